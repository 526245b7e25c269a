"""What the numbers say, in one paragraph that a newcomer can read; the answer first."""

from collections.abc import Sequence
from typing import Any

from saelab.compare import causal_words
from saelab.compare.answers import FAMILIES, answer_of, pair_of, row_of
from saelab.compare.glossary import METRICS
from saelab.compare.other_views import rate_explains
from saelab.compare.phrases import LIKE, capital, f3, interval_of, listed, number, p_value, titles


def headline(result: dict[str, Any]) -> str:
    """For each main pair: whose labels hold better, matched, against controls; what contradicts it; then coherence.

    Last, where it holds: layer, host, pooling, one set of images.
    """
    mains = [pair for pair in result["pairs"] if pair["role"] == "main" and pair["matching"] == "all"]
    setup, images = result["setup"], result["images"]
    count = f" of {images['test']:,} test images" if images else ""
    where = f"On layer {setup['layer']} of {setup['host']}, pooled by {setup['pooling']}, one set{count}."
    return " ".join(
        [*(_headline(result, pair) for pair in mains), *causal_words.headline(result), where] if mains else []
    )


def _headline(result: dict[str, Any], pair: dict[str, Any]) -> str:
    a, b = pair["a"], pair["b"]
    answer = answer_of(result, pair, "faithfulness", "all")
    whole = answer["verdict"]
    coherent = answer_of(result, pair, "coherence", "all")["verdict"]
    better, worse = (a, b) if whole == "a" else (b, a)
    if whole in ("a", "b") and not answer["above"]:
        text = f"Labels of {better} and of {worse} differ, {better} ahead, but neither is shown to hold above chance"
        text += _contradicted(result, pair)
    elif whole in ("a", "b"):
        rate = {
            whole: "it is so among units of like firing rate too",
            "none": "among units of like firing rate no difference is shown",
            "refused": "too few units of like firing rate are left to tell whether that explains it",
        }.get(
            answer_of(result, pair, "faithfulness", "rate")["verdict"], "it is not so among units of like firing rate"
        )
        rate = _by_twins(result, pair) or rate
        text = f"Labels of {better} hold better than labels of {worse}{_beaten(result, better)}; {rate}"
        text += _contradicted(result, pair)
    else:
        text = {
            "none": f"No difference is shown between how well labels of {a} and of {b} hold"
            + _contradicted(result, pair),
            "mixed": f"Metrics disagree on whether labels of {a} or of {b} hold better",
            "refused": f"Labels of {a} and of {b} can't be compared",
        }[whole]
    images = {
        "a": f"images that fire {a} are more alike than those of {b}",
        "b": f"images that fire {b} are more alike than those of {a}",
        "none": "in how alike a unit's images are, no difference is shown",
        "mixed": "on how alike a unit's images are, metrics disagree",
        "refused": "how alike a unit's images are can't be compared",
    }
    return f"{text}. {capital(images[coherent])}."


def _by_twins(result: dict[str, Any], pair: dict[str, Any]) -> str:
    """Whether the firing rate makes the difference, by twins of the same directions behind another gate."""
    row = row_of(pair, result["primary"])
    explained = None if row is None else rate_explains(result, pair, row["difference"])
    return {
        "no": "the firing rate does not explain it: twins of the same directions make less than half of the difference",
        "yes": "the firing rate explains half of it or more: twins of the same directions differ by so much",
        "unclear": "twins of the same directions leave open whether the firing rate explains it",
    }.get(explained or "", "")


def _on_twins(result: dict[str, Any]) -> str:
    """What cutting to another basis' rate, or taking the gate away, does to the labels of the same directions."""
    parts = []
    for twin in result["twins"]:
        if twin["low"] is None:
            continue
        if twin["twin"] == "cut":
            way = f"{twin['group']} cut to fire on {100 * twin['rate']:.1f} % of the images score"
        elif twin["against"] is None:
            way = f"{twin['group']} before their gate score"
        else:
            way = f"{twin['group']} and {twin['against']}, both before their gates, differ by"
        change = f"{twin['difference']:+.3f}, interval {twin['low']:+.3f} to {twin['high']:+.3f}"
        parts.append(f"{way} {f3(twin['mean_twin'])} instead of {f3(twin['mean'])} ({change})")
    return f"Is it the firing rate? Labels chosen anew, {'; '.join(parts)}." if parts else ""


def _on_judges(result: dict[str, Any]) -> str:
    """What another reader of the captions says of the same labels."""
    parts = [
        f"{row['difference']:+.3f} for {row['a']} over {row['b']}, interval {row['low']:+.3f} to {row['high']:+.3f}"
        for row in result["judges"]
        if row["low"] is not None
    ]
    return f"Captions read by {result['judges'][0]['judge']} instead: {'; '.join(parts)}." if parts else ""


def _contradicted(result: dict[str, Any], pair: dict[str, Any]) -> str:
    """What other countings, matchings, judges, layers and poolings say, where it is something else."""
    says = {"none": "no difference is shown", "a": f"{pair['a']} are ahead", "b": f"{pair['b']} are ahead"}
    found: dict[str, list[str]] = {}
    for other in result["disagreements"]:
        if (other["a"], other["b"]) == (pair["a"], pair["b"]):
            found.setdefault(other["verdict"], []).append(other["way"])
    if not found:
        return ""
    return ". That depends on the choice: " + "; ".join(f"{says[v]} {listed(ways)}" for v, ways in found.items())


def _beaten(result: dict[str, Any], name: str) -> str:
    """Whether a group's labels hold better than those of every control."""
    against = _controls(result, name)
    lost = [control for verdict, controls in against.items() if verdict != "a" for control in controls]
    if lost:
        return f", but not shown better than those of {listed(lost)}"
    return " and than those of every control that was run" if against["a"] else ""


def conclusion(result: dict[str, Any]) -> str:
    """The paragraph: what was compared, what can be concluded, what can't."""
    setup = result["setup"]
    sides = "; ".join(_size(result, group) for group in result["groups"])
    text = [
        headline(result),
        f"Compared on layer {setup['layer']} of {setup['host']}, labelled by {setup['encoder']} from {setup['k']} "
        f"images a unit: {sides}. Numbers are from test images that neither labels nor SAEs have seen.",
    ]
    mains = [pair for pair in result["pairs"] if pair["role"] == "main" and pair["matching"] == "all"]
    for pair in mains:
        for family in FAMILIES:
            text.append(_on_pair(result, pair, family))
            text.append(_on_matched(result, pair, family))
    against = [_on_controls(result, group["name"]) for group in result["groups"] if not group["control"]]
    if any(against):
        text.append(f"Controls: {'; '.join(filter(None, against))}.")
    text += [_on_judges(result), _among_random(result), _on_twins(result), *causal_words.conclusion(result)]
    text.append("What this can't show: " + " ".join(result["cautions"]))
    return " ".join(part for part in text if part)


def _on_pair(result: dict[str, Any], pair: dict[str, Any], family: str) -> str:
    answer = answer_of(result, pair, family, "all")
    a, b, what = pair["a"], pair["b"], FAMILIES[family]
    if answer["verdict"] == "refused":
        return f"{capital(what)} of {a} and {b} can't be compared: {answer['why']}."
    rows = {row["metric"]: row for row in pair["results"] if row["counting"] == "named"}
    if answer["verdict"] == "none":
        none = titles(answer["none"])
        doubt = _not_equal(rows[answer["none"][0]])
        return f"{capital(what)}: no difference shown between {a} and {b} ({none}). {doubt}"
    parts = []
    for side, other, metrics in ((a, b, answer["better_a"]), (b, a, answer["better_b"])):
        if metrics:
            row, rest = rows[metrics[0]], metrics[1:]
            also = f", and by {titles(rest)}" if rest else ""
            parts.append(f"better for {side} than for {other} by {_detail(row, pair, result)}{also}")
    shown = f"{capital(what)}, every unit named: {'; but '.join(parts)}."
    if answer["none"]:
        shown += f" No difference shown by {titles(answer['none'])}."
    return shown


def _not_equal(row: dict[str, Any]) -> str:
    """That no difference shown is no proof of equality: how large it may still be."""
    low, high = row["low"], row["high"]
    text = (
        f"That is not proof that they are equal: for {METRICS[row['metric']].title} the interval runs "
        f"from {f3(low)} to {f3(high)}"
    )
    if low > 0 or high < 0:
        text += f", off 0, but corrected for all that was compared p is {p_value(row['p_holm'])}"
    return text + "."


def _on_matched(result: dict[str, Any], pair: dict[str, Any], family: str) -> str:
    """What is left of a difference among units of like firing rate, and of like strength."""
    whole = answer_of(result, pair, family, "all")["verdict"]
    if whole == "refused":
        return ""
    parts = []
    for matching, like in LIKE.items():
        answer = answer_of(result, pair, family, matching)
        matched = pair_of(result, pair["a"], pair["b"], matching)
        units = f"{number(min(matched['units_a'] + matched['units_b']), 'unit')} of each basis"
        if answer["verdict"] == "refused":
            parts.append(f"Among units of like {like} nothing can be concluded: {answer['why']}.")
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
    before, after = row_of(pair, metrics[0]), row_of(matched, metrics[0])
    title = METRICS[metrics[0]].title
    if before is None or after is None or abs(before["difference"]) < 1e-12:
        return ""
    if after["difference"] / before["difference"] >= 0.5:
        was, now = f3(before["difference"]), f3(after["difference"])
        return (
            f", though the estimate stays ({title}: difference {now} where all units gave {was}): too few units to tell"
        )
    return f", so {like} may explain the difference"


def _controls(result: dict[str, Any], name: str) -> dict[str, list[str]]:
    """Controls of a real group by the verdict on label faithfulness, all units."""
    found: dict[str, list[str]] = {"a": [], "b": [], "none": [], "mixed": [], "refused": []}
    for pair in result["pairs"]:
        if pair["role"] == "control" and pair["a"] == name and pair["matching"] == "all":
            found[answer_of(result, pair, "faithfulness", "all")["verdict"]].append(pair["b"])
    return found


def _on_controls(result: dict[str, Any], name: str) -> str:
    """What a real basis has over its controls, by faithfulness."""
    sides = _controls(result, name)
    says = {
        "a": "labels of {name} are more faithful than those of {list}",
        "b": "labels of {name} are less faithful than those of {list}",
        "none": "labels of {name} are not shown to be more faithful than those of {list}",
        "mixed": "the metrics disagree on {name} against {list}",
        "refused": "{name} can't be compared with {list}",
    }
    parts = [text.format(name=name, list=listed(sides[side])) for side, text in says.items() if sides[side]]
    return "; ".join(parts)


def _among_random(result: dict[str, Any]) -> str:
    """How many units of each real group do better than 95 % of random directions."""
    parts = []
    for group in result["groups"]:
        members = [basis for basis in result["bases"] if basis["group"] == group["name"]]
        found = [basis["random_percentile"] for basis in members if basis.get("random_percentile")]
        if found and not group["control"]:
            share = sum(x["share_above_95"] * x["n"] for x in found) / sum(x["n"] for x in found)
            parts.append(f"{100 * share:.0f} % of {group['name']}")
    if not parts:
        return ""
    metric = METRICS[result["primary"]].title
    return f"Better than 95 % of random directions of this layer by {metric}: {listed(parts)}; 5 % would be by luck."


def _detail(row: dict[str, Any], pair: dict[str, Any], result: dict[str, Any]) -> str:
    percent = 100 * (1 - result["settings"]["alpha"])
    return (
        f"{METRICS[row['metric']].title} ({pair['a']} {f3(row['mean_a'])}, {pair['b']} {f3(row['mean_b'])}; difference "
        f"{f3(row['difference'])}, {percent:.0f} % interval {f3(row['low'])} to {f3(row['high'])}, {interval_of(row)}; "
        f"corrected p {p_value(row['p_holm'])}; Cliff's delta {row['cliffs_delta']:+.2f})"
    )


def _size(result: dict[str, Any], group: dict[str, Any]) -> str:
    members = [basis for basis in result["bases"] if basis["group"] == group["name"]]
    seeds = f", {number(len(members), 'seed')}" if len(group["seeds"]) else ""
    control = ", a control" if group["control"] else ""
    labelled, named = (sum(basis[name] for basis in members) for name in ("labelled", "named"))
    sure = f", {labelled:,} of {named:,} labels given with confidence"
    before, after = (sum(basis[when] for basis in members) for when in ("before", "after"))
    return f"{group['name']} ({after:,} of {before:,} units selected{sure}{seeds}{control})"
