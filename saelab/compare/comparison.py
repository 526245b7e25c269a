"""The comparison of bases on one layer: every number that comparison.json holds (its schema is docs/comparison.md)."""

import dataclasses
import itertools
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from saelab.compare import statistics
from saelab.compare.glossary import METRICS
from saelab.compare.inputs import Basis, Counting, Settings, check, rule, selected
from saelab.compare.matching import match
from saelab.compare.words import answers, cautions, conclusion

SCHEMA = 1
MATCHINGS = {"all": None, "rate": "firing_rate", "strength": "strength"}
FAITHFUL = [name for name, metric in METRICS.items() if metric.family == "faithfulness"]
Index = Int[np.ndarray, "some"]


def compare(bases: Sequence[Basis], settings: Settings = Settings()) -> dict[str, Any]:  # noqa: B008  (frozen)
    """Compare evaluated bases of one layer; the result is comparison.json as plain values.

    Raises UserError where they don't share their ground (`inputs.check`). What can't be compared (fewer than
    `settings.fewest` units a side) is said in the result, not raised.
    """
    check(bases)
    bases = [dataclasses.replace(basis, scorer=settings.scorer) for basis in bases]
    kept = {basis.name: selected(basis, settings) for basis in bases}
    groups = _groups(bases)
    result = {
        "schema": SCHEMA,
        "setup": dataclasses.asdict(bases[0].setup),
        "settings": dataclasses.asdict(settings) | {"keep": list(settings.keep)},
        "selection": rule(settings),
        "metrics": {name: dataclasses.asdict(metric) for name, metric in METRICS.items()},
        "bases": [describe(basis, kept[basis.name]) for basis in bases],
        "groups": [_group(name, members) for name, members in groups.items()],
        "pairs": [
            compare_groups(groups[a], groups[b], kept, matching, settings)
            for a, b in _pairs(groups)
            for matching in MATCHINGS
        ],
        "methods": [row for members in groups.values() for row in compare_methods(members, kept, settings)],
        "distributions": {name: _histograms(name, bases, kept) for name in METRICS},
    }
    return finish([result])[0]


def finish(results: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Correct p-values over metrics and over all the layers given together, then draw verdicts and words from them.

    Within one pair of groups, one matching and one counting; methods: within one group, over the pairs of methods too.
    """
    families: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for result in results:
        for pair in result["pairs"]:
            for row in pair["results"]:
                families.setdefault(("bases", pair["a"], pair["b"], pair["matching"], row["counting"]), []).append(row)
        for row in result["methods"]:
            families.setdefault(("methods", row["group"]), []).append(row)
    for family, rows in families.items():
        names = ("p", "p_mannwhitney") if family[0] == "bases" else ("p_wilcoxon",)
        for name in names:
            corrected = "p_mannwhitney_holm" if name == "p_mannwhitney" else "p_holm"
            for row, p in zip(rows, statistics.holm([row[name] for row in rows])):
                row[corrected] = p
    for result in results:
        for row in itertools.chain(*(pair["results"] for pair in result["pairs"]), result["methods"]):
            row["verdict"] = _verdict(row, result["settings"]["alpha"])
        result["answers"] = answers(result)
        result["cautions"] = cautions(result)
        result["conclusion"] = conclusion(result)
    return list(results)


def describe(basis: Basis, kept: Index) -> dict[str, Any]:
    """One basis: counts before and after selection, coverage, label reuse and entropy, means, null."""
    before, dropped = Counter(basis.statuses), Counter(np.delete(np.array(basis.statuses, dtype=object), kept).tolist())
    entries = [basis.entries()[u] for u in kept]
    labels = Counter(entry["label"] for entry in entries if entry["label"] is not None)
    facts = {name: getattr(basis, name) for name in ("name", "group", "kind", "seed", "control", "weights")}
    return facts | {
        "before": len(basis.rows),
        "after": len(kept),
        "coverage": len(kept) / len(basis.rows) if basis.rows else None,
        "statuses": dict(sorted(before.items())),
        "dropped": dict(sorted(dropped.items())),
        "labelled": labels.total(),
        "abstained": sum(basis.rows[u]["label"] is not None and bool(basis.rows[u]["abstained"]) for u in kept),
        "with_truth": int(np.isfinite(basis.faithfulness("auprc", "labelled")[kept]).sum()),
        "labels": label_use(labels),
        "firing_rate": _quantiles(basis.column("firing_rate")[kept]),
        "strength": _quantiles(basis.column("strength")[kept]),
        "means": {name: _means(basis, name, kept) for name in METRICS} | {"redundancy": _mean_of_units(basis, kept)},
        "shuffled": {name: _mean(basis.faithfulness(name, "all", "shuffled")[kept]) for name in FAITHFUL},
        "null_percentile": {scorer: _null(basis, scorer, kept) for scorer in _scorers([basis])},
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


def compare_groups(
    a: Sequence[Basis], b: Sequence[Basis], kept: dict[str, Index], matching: str, settings: Settings
) -> dict[str, Any]:
    """All metrics of group a against group b, on all selected units or on matched ones."""
    units_a, units_b = [kept[basis.name] for basis in a], [kept[basis.name] for basis in b]
    balance, by = None, MATCHINGS[matching]
    if by is not None:
        before = _side_means(a, units_a, by), _side_means(b, units_b, by)
        values_a = [basis.column(by)[units] for basis, units in zip(a, units_a)]
        values_b = [basis.column(by)[units] for basis, units in zip(b, units_b)]
        index_a, index_b = match(values_a, values_b, settings.bins, settings.seed)
        units_a = [units[index] for units, index in zip(units_a, index_a)]
        units_b = [units[index] for units, index in zip(units_b, index_b)]
        balance = {"before": list(before), "after": [_side_means(a, units_a, by), _side_means(b, units_b, by)]}
    fewest = min(map(len, [*units_a, *units_b]))
    refused = None
    if fewest < settings.fewest:
        after = "" if by is None else f" after matching on {by.replace('_', ' ')}"
        refused = f"only {fewest} units on one side{after}; at least {settings.fewest} are needed"
    results = []
    if refused is None:
        for metric, counting in _columns():
            sides = [_values(group, units, metric, counting) for group, units in ((a, units_a), (b, units_b))]
            if min(map(len, [*sides[0], *sides[1]])) >= settings.fewest:
                results.append(_result(metric, counting, sides, a, b, (units_a, units_b), settings))
    return {
        "a": a[0].group,
        "b": b[0].group,
        "role": "control" if a[0].control or b[0].control else "main",
        "matching": matching,
        "refused": refused,
        "units_a": [len(units) for units in units_a],
        "units_b": [len(units) for units in units_b],
        "balance": balance,
        "interval": statistics.interval_kind(len(a), len(b)),
        "results": results,
    }


def compare_methods(group: Sequence[Basis], kept: dict[str, Index], settings: Settings) -> list[dict[str, Any]]:
    """Every two scorers on the same units of a group, and the given label against its shuffled control.

    Counting `all`: a unit that one of them leaves without a label counts 0 for it.
    """
    if sum(len(kept[basis.name]) for basis in group) < settings.fewest:
        return []
    names = [(a, b) for a, b in itertools.combinations(_scorers(group), 2)] + [("final", "shuffled")]
    columns = [(a, b, metric) for a, b in names for metric in FAITHFUL]
    values = {
        (scorer, metric): [basis.faithfulness(metric, "all", scorer)[kept[basis.name]] for basis in group]
        for scorer in {*itertools.chain(*names)}
        for metric in FAITHFUL
    }
    left, right = (
        np.stack([np.concatenate(values[column[side], column[2]]) for column in columns], axis=1) for side in (0, 1)
    )
    rows = []
    for (a, b, metric), found in zip(
        columns, statistics.on_same_units(left, right, settings.alpha, settings.resamples, settings.seed)
    ):
        if found is None or found.n < settings.fewest:
            continue
        by_seed = [_mean(x - y) for x, y in zip(values[a, metric], values[b, metric])]
        row = {"group": group[0].group, "a": a, "b": b, "metric": metric, "n": found.n}
        row |= {"mean_a": found.mean_a, "mean_b": found.mean_b, "difference": found.mean_a - found.mean_b}
        rows.append(row | {"low": found.low, "high": found.high, "p_wilcoxon": found.p_wilcoxon, "by_seed": by_seed})
    return rows


def _result(
    metric: str,
    counting: Counting,
    sides: list[list[np.ndarray]],
    a: Sequence[Basis],
    b: Sequence[Basis],
    units: tuple[list[Index], list[Index]],
    settings: Settings,
) -> dict[str, Any]:
    found = statistics.between_bases(sides[0], sides[1], settings.alpha, settings.resamples, settings.seed)
    null = None
    if METRICS[metric].family == "faithfulness":
        means = [
            np.mean([x.mean() if len(x) else np.nan for x in _values(group, kept, metric, counting, "shuffled")])
            for group, kept in zip((a, b), units)
        ]
        null = _number(means[0] - means[1])
    row = {"metric": metric, "counting": counting, "n_a": sum(map(len, sides[0])), "n_b": sum(map(len, sides[1]))}
    row |= dataclasses.asdict(found)
    return row | {"difference": found.difference, "null_difference": null}


def _columns() -> list[tuple[str, Counting]]:
    both: tuple[Counting, ...] = ("all", "labelled")
    return [
        (name, counting)
        for name, metric in METRICS.items()
        for counting in both[: 2 if metric.family == "faithfulness" else 1]
    ]


def _values(
    group: Sequence[Basis], units: Sequence[Index], metric: str, counting: Counting, scorer: str | None = None
) -> list[Float[np.ndarray, "units"]]:
    """A metric on the chosen units of each basis, units without a number left out."""
    found = []
    for basis, index in zip(group, units):
        faithful = METRICS[metric].family == "faithfulness"
        values = (basis.faithfulness(metric, counting, scorer) if faithful else basis.column(metric))[index]
        found.append(values[np.isfinite(values)])
    return found


def _groups(bases: Sequence[Basis]) -> dict[str, list[Basis]]:
    """Groups in the order in which differences read best: other bases, neurons, controls."""
    ordered = sorted(bases, key=lambda basis: (basis.control, basis.kind == "neuron"))
    return {name: [b for b in ordered if b.group == name] for name in dict.fromkeys(b.group for b in ordered)}


def _pairs(groups: dict[str, list[Basis]]) -> list[tuple[str, str]]:
    """Every two groups but two controls."""
    return [(a, b) for a, b in itertools.combinations(groups, 2) if not groups[a][0].control]


def _group(name: str, members: Sequence[Basis]) -> dict[str, Any]:
    seeds = [basis.seed for basis in members if basis.seed is not None]
    first = members[0]
    return {
        "name": name,
        "kind": first.kind,
        "control": first.control,
        "bases": [b.name for b in members],
        "seeds": seeds,
    }


def _scorers(bases: Sequence[Basis]) -> list[str]:
    return sorted({name for basis in bases for row in basis.rows for name in row["by_scorer"]})


def _means(basis: Basis, metric: str, kept: Index) -> dict[str, Any]:
    if METRICS[metric].family == "coherence":
        values = basis.column(metric)[kept]
        return {"all": _mean(values), "labelled": None, "n_all": int(np.isfinite(values).sum()), "n_labelled": None}
    every, labelled = basis.faithfulness(metric, "all")[kept], basis.faithfulness(metric, "labelled")[kept]
    means = {"all": _mean(every), "labelled": _mean(labelled)}
    return means | {"n_all": int(np.isfinite(every).sum()), "n_labelled": int(np.isfinite(labelled).sum())}


def _mean_of_units(basis: Basis, kept: Index) -> dict[str, Any]:
    """Redundancy grows with the number of units, so it is described and not compared."""
    values = basis.column("redundancy")[kept]
    return {"all": _mean(values), "labelled": None, "n_all": int(np.isfinite(values).sum()), "n_labelled": None}


def _null(basis: Basis, scorer: str, kept: Index) -> dict[str, Any]:
    entries = basis.entries(scorer)
    values = np.array([p for u in kept if (p := entries[u].get("null_percentile")) is not None], dtype=float)
    return {"mean": _mean(values), "share_above_95": _mean(values >= 0.95) if len(values) else None, "n": len(values)}


def _side_means(group: Sequence[Basis], units: Sequence[Index], by: str) -> float | None:
    return _mean(np.array([_mean(basis.column(by)[index]) for basis, index in zip(group, units)], dtype=float))


def _histograms(metric: str, bases: Sequence[Basis], kept: dict[str, Index], bins: int = 24) -> dict[str, Any]:
    units = [[kept[basis.name]] for basis in bases]
    real = {basis.name: _values([basis], index, metric, "labelled")[0] for basis, index in zip(bases, units)}
    null = {}
    if METRICS[metric].family == "faithfulness":
        null = {b.name: _values([b], index, metric, "labelled", "shuffled")[0] for b, index in zip(bases, units)}
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


def _mean(values: np.ndarray) -> float | None:
    finite = np.asarray(values, dtype=float)
    finite = finite[np.isfinite(finite)]
    return float(finite.mean()) if len(finite) else None


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _verdict(row: dict[str, Any], alpha: float) -> str:
    """Which side is better: "a", "b", or "none" where no difference is shown."""
    if row["p_holm"] >= alpha or row["low"] <= 0 <= row["high"]:
        return "none"
    return "a" if (row["difference"] > 0) == METRICS[row["metric"]].higher_is_better else "b"
