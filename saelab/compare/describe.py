"""What a comparison says of each basis by itself: counts, coverage, label use, means, null, distributions."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from saelab.compare.glossary import FAITHFUL, METRICS
from saelab.compare.inputs import COUNTINGS, ComparedBasis, Index, mean_of, scorers_of, values_of


def describe(basis: ComparedBasis, kept: Index) -> dict[str, Any]:
    """One basis: counts before and after selection, coverage, label reuse and entropy, means, null."""
    before, dropped = Counter(basis.statuses), Counter(np.delete(np.array(basis.statuses, dtype=object), kept).tolist())
    every = basis.entries()
    entries = [every[u] for u in kept]
    labels = Counter(entry["label"] for entry in entries if entry["label"] is not None)
    facts = {name: getattr(basis, name) for name in ("name", "group", "kind", "seed", "control", "weights")}
    return facts | {
        "before": len(basis.rows),
        "after": len(kept),
        "coverage": len(kept) / len(basis.rows) if basis.rows else None,
        "statuses": dict(sorted(before.items())),
        "dropped": dict(sorted(dropped.items())),
        "named": sum(label is not None for label in _of(basis.named(), kept)),
        "labelled": labels.total(),
        "abstained": sum(basis.rows[u]["label"] is not None and bool(basis.rows[u]["abstained"]) for u in kept),
        "with_truth": int(np.isfinite(basis.faithfulness("auprc", "labelled")[kept]).sum()),
        "labels": label_use(labels),
        "firing_rate": _quantiles(basis.column("firing_rate")[kept]),
        "strength": _quantiles(basis.column("strength")[kept]),
        "means": {name: _means(basis, name, kept) for name in METRICS} | {"redundancy": _mean_of_units(basis, kept)},
        "shuffled": {name: mean_of(basis.faithfulness(name, "named", "shuffled")[kept]) for name in FAITHFUL},
        "null_percentile": {scorer: _null(basis, scorer, kept) for scorer in scorers_of([basis])},
    }


def label_use(labels: Counter[str]) -> dict[str, Any]:
    """How labels are spread over units: distinct labels, units a label, entropy in bits, its share of the most."""
    shares = np.array(list(labels.values()), dtype=float) / max(1, labels.total())
    entropy = float(-(shares * np.log2(shares)).sum()) + 0.0  # no -0.0
    return {
        "distinct": len(labels),
        "reuse": labels.total() / len(labels) if labels else None,
        "entropy": entropy if labels else None,
        "evenness": entropy / float(np.log2(len(labels))) if len(labels) > 1 else None,
        "most_used": [[label, n] for label, n in labels.most_common(10)],
    }


def _means(basis: ComparedBasis, metric: str, kept: Index) -> dict[str, Any]:
    if METRICS[metric].family == "coherence":
        values = basis.column(metric)[kept]
        return _only(values)
    values_of_each = {counting: basis.faithfulness(metric, counting)[kept] for counting in COUNTINGS}
    means = {counting: mean_of(values) for counting, values in values_of_each.items()}
    return means | {f"n_{counting}": int(np.isfinite(values).sum()) for counting, values in values_of_each.items()}


def _mean_of_units(basis: ComparedBasis, kept: Index) -> dict[str, Any]:
    """Redundancy grows with the number of units, so it is described and not compared."""
    return _only(basis.column("redundancy")[kept])


def _only(values: Float[np.ndarray, "units"]) -> dict[str, Any]:
    """Means of a number that needs no label."""
    mean, n = mean_of(values), int(np.isfinite(values).sum())
    return {"named": mean, "all": mean, "labelled": None, "n_named": n, "n_all": n, "n_labelled": None}


def _of(labels: Sequence[str | None], kept: Index) -> list[str | None]:
    return [labels[u] for u in kept]


def _null(basis: ComparedBasis, scorer: str, kept: Index) -> dict[str, Any]:
    entries = basis.entries(scorer)
    values = np.array([p for u in kept if (p := entries[u].get("null_percentile")) is not None], dtype=float)
    return {
        "mean": mean_of(values),
        "share_above_95": mean_of(values > 0.95) if len(values) else None,
        "n": len(values),
    }


def histograms(metric: str, bases: Sequence[ComparedBasis], kept: dict[str, Index], bins: int = 24) -> dict[str, Any]:
    units = [[kept[basis.name]] for basis in bases]
    real = {basis.name: values_of([basis], index, metric, "named")[0] for basis, index in zip(bases, units)}
    null = {}
    if METRICS[metric].family == "faithfulness":
        null = {b.name: values_of([b], index, metric, "named", "shuffled")[0] for b, index in zip(bases, units)}
    found = [values for values in (*real.values(), *null.values()) if len(values)]
    if not found:
        return {"edges": [], "bases": {}, "shuffled": {}}
    low, high = min(v.min() for v in found), max(v.max() for v in found)
    edges = np.linspace(low, high if high > low else low + 1, bins + 1)
    counted = [{name: np.histogram(v, edges)[0].tolist() for name, v in side.items()} for side in (real, null)]
    return {"edges": edges.tolist(), "bases": counted[0], "shuffled": counted[1]}


def _quantiles(values: Float[np.ndarray, "units"]) -> dict[str, float | None]:
    shares = {"q05": 0.05, "q25": 0.25, "median": 0.5, "q75": 0.75, "q95": 0.95}
    finite = values[np.isfinite(values)]
    return {name: float(np.quantile(finite, q)) if len(finite) else None for name, q in shares.items()}
