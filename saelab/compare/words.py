"""What the numbers say, in words: answers, cautions, and one paragraph that a newcomer can read."""

from collections.abc import Sequence
from typing import Any

from saelab.compare.glossary import METRICS

LIKE = {"rate": "firing rate", "strength": "strength of activation"}
FAMILIES = {"faithfulness": "label faithfulness", "coherence": "unit coherence"}
CONTROLS = {
    "random_rotation": "a random rotation",
    "pca": "principal components",
    "sae": "an SAE on a randomly initialised host",
}


def answers(result: dict[str, Any]) -> list[dict[str, Any]]:
    """Per pair, matching and family: which side is better, by the corrected results of counting `all`.

    "mixed": some metrics for either side. SCS has no say where its judge is the encoder that chose the labels.
    """
    found = []
    for pair in result["pairs"]:
        for family in FAMILIES:
            rows = [
                row
                for row in pair["results"]
                if row["counting"] == "all" and METRICS[row["metric"]].family == family
                if row["metric"] != "scs" or _independent_judge(result)
            ]
            sides = {side: [row["metric"] for row in rows if row["verdict"] == side] for side in ("a", "b", "none")}
            verdict = "mixed" if sides["a"] and sides["b"] else "a" if sides["a"] else "b" if sides["b"] else "none"
            found.append(
                {name: pair[name] for name in ("a", "b", "matching")}
                | {"family": family, "verdict": verdict if rows else "refused"}
                | {"better_a": sides["a"], "better_b": sides["b"], "none": sides["none"]}
            )
    return found


def cautions(result: dict[str, Any]) -> list[str]:
    """What can't be concluded from this comparison, and why; the most consequential first."""
    lines = []
    for n, seeds in ((1, "one seed"), (2, "two seeds")):
        drawn = [group for group in result["groups"] if group["kind"] in ("sae", "random_rotation")]
        names = [group["name"] for group in drawn if len(group["bases"]) == n]
        if names:
            have, other = ("has", "it") if len(names) == 1 else ("have", "each")
            lines.append(
                f"{_capital(_list(names))} {have} {seeds} only: no interval over seeds is given, and what is said of "
                f"{other} may not hold for another seed."
            )
    lines += _on_refused(result)
    lines += _on_truth(result)
    if not _independent_judge(result):
        encoder = result["setup"]["encoder"]
        lines.append(f"SCS is judged by the encoder that chose the labels ({encoder}): it counts in no answer.")
    ran = {group["kind"] for group in result["groups"] if group["control"]}
    missing = [text for kind, text in CONTROLS.items() if kind not in ran]
    if missing:
        lines.append(f"Controls that were not run: {', '.join(missing)}.")
    lines += _on_null(result)
    lines.append(
        "One host, one layer, one set of images and one label set: other choices may order the bases differently."
    )
    return lines


def conclusion(result: dict[str, Any]) -> str:
    """The paragraph: what was compared, what can be concluded, what can't."""
    setup = result["setup"]
    sides = "; ".join(_size(result, group) for group in result["groups"])
    text = [
        f"Compared on layer {setup['layer']} of {setup['host']}, labelled by {setup['encoder']} from {setup['k']} "
        f"images a unit: {sides}. Numbers are from test images that neither labels nor SAEs have seen."
    ]
    mains = [pair for pair in result["pairs"] if pair["role"] == "main" and pair["matching"] == "all"]
    for pair in mains:
        for family in FAMILIES:
            text.append(_on_pair(result, pair, family))
            text.append(_on_matched(result, pair, family))
    for group in result["groups"]:
        if not group["control"]:
            text.append(_on_controls(result, group["name"]))
    text.append("What this can't show: " + " ".join(result["cautions"]))
    return " ".join(part for part in text if part)


def _on_pair(result: dict[str, Any], pair: dict[str, Any], family: str) -> str:
    answer = _answer(result, pair, family, "all")
    a, b, what = pair["a"], pair["b"], FAMILIES[family]
    if answer["verdict"] == "refused":
        why = pair["refused"] or "neither side has enough numbers"
        return f"{_capital(what)} of {a} and {b} can't be compared: {why}."
    rows = {row["metric"]: row for row in pair["results"] if row["counting"] == "all"}
    if answer["verdict"] == "none":
        widest = rows[answer["none"][0]]
        return (
            f"{_capital(what)}: no difference shown between {a} and {b} ({_titles(answer['none'])}). That is not "
            f"proof that they are equal: for {METRICS[widest['metric']].title} the interval runs "
            f"from {_f(widest['low'])} to {_f(widest['high'])}."
        )
    parts = []
    for side, other, metrics in ((a, b, answer["better_a"]), (b, a, answer["better_b"])):
        if metrics:
            row, rest = rows[metrics[0]], metrics[1:]
            also = f", and by {_titles(rest)}" if rest else ""
            parts.append(f"better for {side} than for {other} by {_detail(row, pair, result)}{also}")
    shown = f"{_capital(what)}, all selected units: {'; but '.join(parts)}."
    if answer["none"]:
        shown += f" No difference shown by {_titles(answer['none'])}."
    return shown


def _on_matched(result: dict[str, Any], pair: dict[str, Any], family: str) -> str:
    """What is left of a difference among units of like firing rate, and of like strength."""
    whole = _answer(result, pair, family, "all")["verdict"]
    if whole == "refused":
        return ""
    parts = []
    for matching, like in LIKE.items():
        answer = _answer(result, pair, family, matching)
        matched = _pair(result, pair["a"], pair["b"], matching)
        units = f"{_number(min(matched['units_a'] + matched['units_b']), 'unit')} of each basis"
        if answer["verdict"] == "refused":
            parts.append(f"Among units of like {like} it can't be told: {matched['refused'] or 'too few numbers'}.")
        elif answer["verdict"] == "mixed":
            parts.append(f"Among units of like {like} ({units}) the metrics disagree.")
        elif answer["verdict"] == "none":
            doubt = _doubt(pair, matched, answer["none"], like) if whole in ("a", "b") else ""
            parts.append(f"Among units of like {like} ({units}) no difference is shown{doubt}.")
        else:
            still = "still " if answer["verdict"] == whole else ""
            parts.append(f"Among units of like {like} ({units}) it is {still}better for {pair[answer['verdict']]}.")
    return " ".join(parts)


def _doubt(pair: dict[str, Any], matched: dict[str, Any], metrics: Sequence[str], like: str) -> str:
    """Did the difference go, or only the number of units that it could be seen with?"""
    before, after = _row(pair, metrics[0]), _row(matched, metrics[0])
    title = METRICS[metrics[0]].title
    if before is None or after is None or abs(before["difference"]) < 1e-12:
        return ""
    if after["difference"] / before["difference"] >= 0.5:
        was, now = _f(before["difference"]), _f(after["difference"])
        return (
            f", though the estimate stays ({title}: difference {now} where all units gave {was}): too few units to tell"
        )
    return f", so {like} may explain the difference"


def _on_controls(result: dict[str, Any], name: str) -> str:
    """What a real basis has over its controls, by faithfulness."""
    sides: dict[str, list[str]] = {"a": [], "b": [], "none": [], "mixed": [], "refused": []}
    for pair in result["pairs"]:
        if pair["role"] == "control" and pair["a"] == name and pair["matching"] == "all":
            sides[_answer(result, pair, "faithfulness", "all")["verdict"]].append(pair["b"])
    says = {
        "a": "labels of {name} are more faithful than those of {list}",
        "b": "labels of {name} are less faithful than those of {list}",
        "none": "labels of {name} are not shown to be more faithful than those of {list}",
        "mixed": "the metrics disagree on {name} against {list}",
        "refused": "{name} can't be compared with {list}",
    }
    parts = [text.format(name=name, list=_list(sides[side])) for side, text in says.items() if sides[side]]
    return f"Controls: {'; '.join(parts)}." if parts else ""


def _on_truth(result: dict[str, Any]) -> list[str]:
    shares = {}
    for group in result["groups"]:
        members = [basis for basis in result["bases"] if basis["group"] == group["name"]]
        labelled = sum(basis["labelled"] for basis in members)
        if labelled:
            shares[group["name"]] = sum(basis["with_truth"] for basis in members) / labelled
    lines = []
    if shares and max(shares.values()) == 0:
        lines.append(
            "No label has boolean truth on the test images: AUPRC, F1, IoU and truth correlation can't be had."
        )
    elif shares and (min(shares.values()) < 0.5 or max(shares.values()) - min(shares.values()) > 0.1):
        listed = ", ".join(f"{100 * share:.0f} % for {name}" for name, share in shares.items())
        lines.append(
            f"Only some labels have boolean truth on the test images ({listed}): AUPRC, F1, IoU and truth correlation "
            "speak of those alone, and labels that nobody's words confirm are not in them."
        )
    if all(basis["means"]["caption_r"]["all"] is None for basis in result["bases"]):
        lines.append("No captions: nothing that people wrote is compared with every label.")
    return lines


def _on_null(result: dict[str, Any]) -> list[str]:
    """Differences of which shuffled labels show half or more."""
    lines = []
    for pair in result["pairs"]:
        if pair["role"] != "main" or pair["matching"] != "all":
            continue
        share = [
            row["metric"]
            for row in pair["results"]
            if row["counting"] == "all" and row["verdict"] != "none" and row["null_difference"] is not None
            if row["null_difference"] / row["difference"] >= 0.5
        ]
        if share:
            lines.append(
                f"{pair['a']} against {pair['b']}: shuffled labels show half or more of the difference in "
                f"{_titles(share)}, which is then no matter of the labels."
            )
    return lines


def _on_refused(result: dict[str, Any]) -> list[str]:
    """Comparisons that were refused, those of like reason in one sentence."""
    lines = []
    for matching in ("all", *LIKE):
        refused = [pair for pair in result["pairs"] if pair["matching"] == matching and pair["refused"]]
        if refused:
            pairs = "; ".join(f"{pair['a']} and {pair['b']} ({_fewest(pair)})" for pair in refused)
            units = f"units of like {LIKE[matching]}" if matching in LIKE else "units"
            fewest = result["settings"]["fewest"]
            lines.append(f"Too few {units} to compare (fewer than {fewest} on one side): {pairs}.")
    return lines


def _fewest(pair: dict[str, Any]) -> int:
    return int(min(pair["units_a"] + pair["units_b"]))


def _pair(result: dict[str, Any], a: str, b: str, matching: str) -> dict[str, Any]:
    return next(p for p in result["pairs"] if (p["a"], p["b"], p["matching"]) == (a, b, matching))


def _row(pair: dict[str, Any], metric: str) -> dict[str, Any] | None:
    return next((r for r in pair["results"] if r["metric"] == metric and r["counting"] == "all"), None)


def _answer(result: dict[str, Any], pair: dict[str, Any], family: str, matching: str) -> dict[str, Any]:
    wanted = (pair["a"], pair["b"], family, matching)
    return next(x for x in result["answers"] if (x["a"], x["b"], x["family"], x["matching"]) == wanted)


def _independent_judge(result: dict[str, Any]) -> bool:
    return bool(result["setup"]["judge"] != result["setup"]["encoder"])


def _detail(row: dict[str, Any], pair: dict[str, Any], result: dict[str, Any]) -> str:
    percent = 100 * (1 - result["settings"]["alpha"])
    return (
        f"{METRICS[row['metric']].title} ({pair['a']} {_f(row['mean_a'])}, {pair['b']} {_f(row['mean_b'])}; difference "
        f"{_f(row['difference'])}, {percent:.0f} % interval {_f(row['low'])} to {_f(row['high'])}, {pair['interval']}; "
        f"corrected p {_p(row['p_holm'])}; Cliff's delta {row['cliffs_delta']:+.2f})"
    )


def _size(result: dict[str, Any], group: dict[str, Any]) -> str:
    members = [basis for basis in result["bases"] if basis["group"] == group["name"]]
    seeds = f", {_number(len(members), 'seed')}" if len(group["seeds"]) else ""
    control = ", a control" if group["control"] else ""
    before, after = (sum(basis[when] for basis in members) for when in ("before", "after"))
    return f"{group['name']} ({after:,} of {before:,} units selected{seeds}{control})"


def _titles(metrics: Sequence[str]) -> str:
    return _list([METRICS[name].title for name in metrics])


def _list(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _number(n: int, what: str) -> str:
    return f"{n:,} {what}{'' if n == 1 else 's'}"


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]


def _f(value: float) -> str:
    return f"{value:.3f}"


def _p(value: float) -> str:
    return "below 0.001" if value < 0.001 else f"{value:.3f}"
