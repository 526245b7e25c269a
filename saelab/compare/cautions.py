"""What a comparison can't show, and why."""

from typing import Any

from saelab.compare import causal_words
from saelab.compare.answers import independent_judge
from saelab.compare.phrases import LIKE, WITH_IMAGES, capital, listed, titles

CONTROLS = {
    "random_rotation": "a random rotation",
    "pca": "principal components",
    "sae": "an SAE on a randomly initialised host",
}


def cautions(result: dict[str, Any]) -> list[str]:
    """What can't be concluded from this comparison, and why; the most consequential first."""
    lines = []
    drawn = [group for group in result["groups"] if group["kind"] in ("sae", "random_rotation")]
    names = [group["name"] for group in drawn if len(group["bases"]) == 1]
    if names:
        lines.append(f"{capital(listed(names))}: one seed only; another seed may give something else.")
    lines += _on_refused(result)
    lines += _on_truth(result)
    if not independent_judge(result):
        encoder = result["setup"]["encoder"]
        lines.append(f"SCS is judged by the encoder that chose the labels ({encoder}): it counts in no answer.")
    ran = {group["kind"] for group in result["groups"] if group["control"]}
    missing = [text for kind, text in CONTROLS.items() if kind not in ran]
    if missing:
        lines.append(f"Controls that were not run: {', '.join(missing)}.")
    lines += [
        f"A check of the comparison itself failed: {report['check']} {report['detail']}."
        for report in result["validity"]
        if report["passed"] is False
    ]
    lines += _on_null(result) + _on_ranks(result)
    lines += causal_words.cautions(result)
    if not any(pair["interval"] == WITH_IMAGES for pair in result["pairs"]):
        lines.append("Intervals speak of units and seeds; the test images are taken as they are.")
    lines.append("One host, one set of images and one label set: other choices may order the bases differently.")
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


def _on_truth(result: dict[str, Any]) -> list[str]:
    shares = {}
    for group in result["groups"]:
        members = [basis for basis in result["bases"] if basis["group"] == group["name"]]
        labelled = sum(basis["labelled"] for basis in members)
        if labelled:
            shares[group["name"]] = sum(basis["with_truth"] for basis in members) / labelled
    lines = []
    if shares and max(shares.values()) == 0:
        lines.append("No label has boolean truth on the test images: there is no AUPRC, F1, IoU or truth correlation.")
    elif shares and (min(shares.values()) < 0.5 or max(shares.values()) - min(shares.values()) > 0.1):
        each = ", ".join(f"{100 * share:.0f} % for {name}" for name, share in shares.items())
        lines.append(
            f"Only some labels have boolean truth on the test images ({each}): AUPRC, F1, IoU and truth correlation "
            "speak of those alone."
        )
    if result["primary"] is None:
        lines.append("No captions and no classes: nothing that people wrote judges the labels, so no side is called.")
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
            if row["counting"] == "named" and row["verdict"] != "none" and row["null_difference"] is not None
            if row["null_difference"] / row["difference"] >= 0.5
        ]
        if share:
            lines.append(
                f"{pair['a']} against {pair['b']}: shuffled labels show half or more of the difference in "
                f"{titles(share)}, which is then no matter of the labels."
            )
    return lines


def _on_ranks(result: dict[str, Any]) -> list[str]:
    """Differences of means that ranks don't bear out: some units that do well outweigh more that do worse."""
    lines = []
    for pair in result["pairs"]:
        if pair["role"] != "main" or pair["matching"] != "all":
            continue
        against = [
            row["metric"]
            for row in pair["results"]
            if row["counting"] == "named" and row["verdict"] != "none" and row["cliffs_delta"] * row["difference"] < 0
        ]
        if against:
            lines.append(
                f"{pair['a']} against {pair['b']}: by {titles(against)} the means differ one way and Cliff's delta the "
                "other; a unit drawn from the better side is not the more likely to do better."
            )
    return lines
