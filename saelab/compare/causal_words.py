"""What the family `causal` says, in sentences; nothing where effects were not measured."""

from typing import Any

from saelab.compare.phrases import f3, listed, p_value


def headline(result: dict[str, Any]) -> list[str]:
    """For each main pair whether the network uses one side more; then how many units pass on both axes."""
    family = result.get("causal")
    if not family:
        return []
    mains = [pair for pair in family["pairs"] if pair["role"] == "main"]
    return [*(_on_pair(result, pair) for pair in mains), *_both(family)]


def conclusion(result: dict[str, Any]) -> list[str]:
    """The same with numbers, controls too."""
    family = result.get("causal")
    if not family:
        return []
    parts = []
    for pair in family["pairs"]:
        row = _row(pair)
        if row is not None and row["p"] is not None:
            parts.append(
                f"{pair['a']} {f3(row['mean_a'])}, {pair['b']} {f3(row['mean_b'])}, difference {f3(row['difference'])} "
                f"({f3(row['low'])} to {f3(row['high'])}; corrected p {p_value(row['p_holm'])})"
            )
    if not parts:
        return []
    return [
        "What units do, as the percentile of the label's own outputs among all that an ablation lowers, less that of "
        f"other units on the same images: {'; '.join(parts)}."
    ]


def cautions(result: dict[str, Any]) -> list[str]:
    """What effects can't show."""
    family = result.get("causal")
    if not family:
        return []
    looked = [basis for basis in family["bases"] if basis["chosen"]]
    if not looked:
        return []
    counts: dict[str, list[int]] = {}
    for basis in looked:
        found = counts.setdefault(basis["group"], [0, 0])
        found[:] = [found[0] + basis["measured"], found[1] + basis["units"]]
    each = [f"{measured:,} of {units:,} {group}" for group, (measured, units) in counts.items()]
    why = ["were not looked at"] if any(basis["chosen"] < basis["units"] for basis in looked) else []
    if any(basis["measured"] < basis["chosen"] for basis in looked):
        why += ["have no output of the host that means the label", "fire on too few test images"]
    rest = f"; the others {', or '.join(why)}" if why else ""
    return [
        f"What units do is known for {listed(each)}{rest}. Units that stand in for each other look unnecessary; a late "
        "layer makes it easy."
    ]


def _on_pair(result: dict[str, Any], pair: dict[str, Any]) -> str:
    a, b = pair["a"], pair["b"]
    answer = next(x for x in result["answers"] if (x["a"], x["b"], x["family"]) == (a, b, "causal"))
    if answer["verdict"] == "refused":
        return f"Whether the network uses {a} or {b} more for what their labels say can't be compared: {answer['why']}."
    if answer["verdict"] == "none":
        return f"No difference is shown in how much the network uses {a} and {b} for what their labels say."
    better, worse = (a, b) if answer["verdict"] == "a" else (b, a)
    if not answer["above"]:
        return f"Neither {better} nor {worse} are shown to be used for what their labels say; {better} come closer."
    return f"The network uses {better} more than {worse} for what their labels say."


def _both(family: dict[str, Any]) -> list[str]:
    """Shares of units on both axes, a group at a time, of how many."""
    shares: dict[str, list[float]] = {}
    counts: dict[str, int] = {}
    for basis in family["bases"]:
        if basis["chosen"]:
            shares.setdefault(basis["group"], []).append(basis["four_field"]["both"])
            counts[basis["group"]] = counts.get(basis["group"], 0) + basis["chosen"]
    if not shares:
        return []
    each = [f"{100 * sum(x) / len(x):.0f} % of {counts[group]:,} {group}" for group, x in shares.items()]
    return [f"A label that says both when its unit fires and what it does: {listed(each)}."]


def _row(pair: dict[str, Any]) -> dict[str, Any] | None:
    return next((r for r in pair["results"] if (r["metric"], r["counting"]) == ("causal_net", "named")), None)
