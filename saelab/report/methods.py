"""How a run was made, as a paragraph for a paper with every setting: as text, as LaTeX, and what it cites as BibTeX."""

import json
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

from saelab.compare.phrases import WITH_IMAGES, WITHOUT_IMAGES, interval_of
from saelab.report import references, sae_quality
from saelab.report.reading import ReadBasis, Run
from saelab.sae.rules import RULES

CITED = re.compile(r" ?\[@([^\]]+)\]")  # Pandoc's mark of a citation: [@key; @key]
LATEX = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "−": "-", "→": "to"}
LATEX |= {sign: f"\\{sign}" for sign in "&%$#_{}"}


def text(run: Run) -> str:
    """The paragraph, with Pandoc's citations; then every setting, as recorded in the run and its recipes."""
    listed = "; ".join(f"{name} = {value}" for name, value in settings(run).items())
    return f"{paragraph(run)}\n\nSettings: {listed}.\n"


def latex(run: Run) -> str:
    r"""The same for LaTeX: signs escaped, citations as `\cite`, settings as small print."""
    listed = "; ".join(rf"\texttt{{{_escaped(name)}}} = {_escaped(value)}" for name, value in settings(run).items())
    parts, last = [], 0
    prose = paragraph(run)
    for found in CITED.finditer(prose):
        keys = found[1].replace("@", "").replace("; ", ",")
        parts += [_escaped(prose[last : found.start()]), rf"~\cite{{{keys}}}"]
        last = found.end()
    parts.append(_escaped(prose[last:]))
    return f"{''.join(parts)}\n\n{{\\footnotesize Settings: {listed}.\\par}}\n"


def bibtex(run: Run) -> str:
    """The entries that the paragraph cites, and no others."""
    keys = dict.fromkeys(key.strip(" @") for found in CITED.finditer(paragraph(run)) for key in found[1].split(";"))
    known = references.entries()
    return "\n\n".join(known[key] for key in keys) + "\n"


def paragraph(run: Run) -> str:
    """Plain sentences: images, bases, mining, labels, metrics, comparison."""
    images, facts = run.images, run.facts
    counts = ", ".join(f"{n} {split}" for split, n in images.counts.items())
    host = f" of {facts['host']}" if facts.get("host") else ""
    lines = [
        f"We used {len(images)} images ({images.name}; {counts}; fingerprint {images.fingerprint[:12]}).",
        *(_of_group(group, host) for group in _grouped(run.bases)),
        _mined(run),
        _labelled(run),
        _measured(run),
        *(_compared(comparison) for comparison in run.comparisons[:1]),
        f"Made with saelab {facts['version']} on {str(facts.get('created', ''))[:10]}.",
    ]
    return " ".join(lines)


def settings(run: Run) -> dict[str, Any]:
    """Every setting of the run and of every recipe, by its dotted name."""
    found = dict(_flat(run.facts.get("config") or {}))
    for basis in run.bases:
        for stage, recipe in basis.recipes.items():
            found |= {f"{basis.name}/{stage}/{key}": value for key, value in _flat(recipe)}
    return found


def _grouped(bases: Sequence[ReadBasis]) -> list[list[ReadBasis]]:
    """Bases that differ by their seed alone, together."""
    found: dict[Any, list[ReadBasis]] = {}
    for basis in bases:
        recipe = basis.recipes.get("sae", {}).get("sae") or {}
        alike = json.dumps({key: value for key, value in recipe.items() if key != "seed"}, sort_keys=True)
        found.setdefault((basis.kind, basis.layer, basis.control, len(basis.labels), alike), []).append(basis)
    return list(found.values())


def _of_group(group: list[ReadBasis], host: str) -> str:
    first = group[0]
    trained = first.recipes.get("sae", {}).get("sae") or {}
    how = ""
    if trained:
        rule = "matryoshka" if trained.get("prefixes") else trained["rule"]
        sparse = f", k = {trained['k']}" if RULES[trained["rule"]].has_k else ""
        cited = "".join(_cite(key) for key in references.of_sae(trained))
        how = f", the latents of an SAE of rule {rule}{sparse}{cited}"
    if not first.of_tokens:
        host, how = "", ", planted: each fires for concepts that people wrote of the pictures"
    host += " with random weights" if trained and first.control else ""
    names = ", ".join(basis.short for basis in group)
    states = "; ".join(_states(basis) for basis in group)
    who, each = (f"Basis {names} has", "") if len(group) == 1 else (f"Bases {names} have", " each")
    text = f"{who} {len(first.labels)} units{each} of layer {first.layer}{host}{how} ({states})."
    quality = sae_quality.sentence(group)
    return f"{text} {quality}" if quality else text


def _states(basis: ReadBasis) -> str:
    counted = Counter(row["status"] for row in basis.labels)
    return ", ".join(f"{n} {status}" for status, n in counted.items())


def _mined(run: Run) -> str:
    k = run.bases[0].exemplars["positives"].shape[1]
    rule = settings(run).get("label.mining.rule", "below_mean")
    paired = (
        f"the image most like it, in the encoder's space, of those that leave the unit below its "
        f"mean{_cite('bouanani2026csp')}"
        if rule == "below_mean"
        else f"a contrast by the rule {rule}"
    )
    return (
        f"A unit's positives are the {k} images of the mining split with its highest activations, each paired with "
        f"{paired}."
    )


def _labelled(run: Run) -> str:
    scorers = dict.fromkeys(name for basis in run.bases for row in basis.labels for name in row["scores"])
    named = ", ".join(f"{name}{_cite(references.of_scorer(name))}" for name in scorers)
    conse = _cite("norouzi2014conse" if "conse" in run.facts["encoder"].lower() else None)
    final = next((row["final"] for basis in run.bases for row in basis.labels if row.get("final")), None)
    chosen = f" The label given is that of {final}." if final else ""
    return (
        f"Labels come from {run.facts['encoder']}{conse}; every unit of every basis went through the same vocabulary "
        f"and scorers: {named}.{chosen}{_abstaining(run)}"
    )


def _abstaining(run: Run) -> str:
    found = settings(run)
    nulls, below = (
        next((value for name, value in found.items() if name.endswith(f"labels/settings.{key}")), None)
        for key in ("nulls", "abstain_below")
    )
    if not nulls or below is None:
        return ""
    return (
        f" A unit abstains where the exact p of its best label over {nulls} permutations of its activations is above "
        f"{1 - below:.3g}{_cite('phipson2010permutation')}."
    )


def _measured(run: Run) -> str:
    rows = [row for basis in run.bases for row in basis.evaluation]
    faithful = _present([entry for row in rows for entry in (row.get("by_scorer") or {}).values()], references.METRICS)
    coherent = _present(rows, references.METRICS)
    cited = "; ".join(dict.fromkeys(f"@{references.METRICS[name]}" for name in (*faithful, *coherent)))
    bracket = f" [{cited}]" if cited else ""
    tested = run.images.counts.get("test", 0)
    return (
        f"Faithfulness and coherence were measured on the {tested} test images, which neither mining nor labelling nor "
        f"SAE training saw{bracket}; intervals of single units are 95 % percentile bootstrap intervals over "
        f"these images."
    )


def _present(rows: list[dict[str, Any]], names: Any) -> list[str]:
    return [name for name in names if any(row.get(name) is not None for row in rows)]


def _compared(comparison: dict[str, Any]) -> str:
    return (
        f"{comparison['selection']} Every named unit counts, with or without confidence. Correlations count above "
        "chance: above what a typical label of the two bases reaches on the unit. "
        f"{_decided(comparison)}{_intervals(comparison)}; scorers are compared on the same units by "
        "paired bootstrap and Wilcoxon's test; p-values are corrected over all main pairs and layers"
        f"{_cite('holm1979')}."
    )


def _intervals(comparison: dict[str, Any]) -> str:
    """What the intervals of each metric take into account."""
    rows = [row for pair in comparison["pairs"] for row in pair["results"] if row["p"] is not None]
    titles: dict[str, list[str]] = {}
    for name in dict.fromkeys(row["metric"] for row in rows):
        own = [interval_of(row) for row in rows if row["metric"] == name]
        titles.setdefault(own[0], []).append(comparison["metrics"][name]["title"])
    if len(titles) < 2:
        kinds = list(titles) or sorted({pair["interval"] for pair in comparison["pairs"]})
        return f"Intervals are by {' and by '.join(kinds)}"
    return f"Intervals are by {WITH_IMAGES} ({', '.join(titles[WITH_IMAGES])}) or by {WITHOUT_IMAGES} (other metrics)"


def _decided(comparison: dict[str, Any]) -> str:
    primary = comparison.get("primary")
    title = comparison["metrics"][primary]["title"] if primary else None
    return f"One metric decides, {title[0].lower()}{title[1:]}; the others are secondary. " if title else ""


def _cite(key: str | None) -> str:
    return f" [@{key}]" if key else ""


def _escaped(value: Any) -> str:
    return "".join(LATEX.get(sign, sign) for sign in str(value))


def _flat(value: Any, prefix: str = "") -> list[tuple[str, Any]]:
    """Nested settings as (dotted name, value) pairs."""
    if isinstance(value, dict):
        return [
            pair for key, inner in value.items() for pair in _flat(inner, f"{prefix}.{key}" if prefix else str(key))
        ]
    return [(prefix, value)]
