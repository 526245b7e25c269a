"""The page of a concept edit: the units taken out, and accuracy by group before, after, and without random units."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

BEYOND = 0.05  # share of random sets that may do as much, for the named units to count as special
NO_INTERVAL = "no interval: all pictures of a group change, or none does"


def write_edit(path: Path, found: Mapping[str, Any]) -> None:
    """One page that needs nothing beside it. `found`: edit.json."""
    from jinja2 import Environment, PackageLoader

    template = Environment(loader=PackageLoader("saelab.report", "pages"), autoescape=True).get_template("edit.html")
    groups = [group | _span(group["random"]) for group in found["groups"]]
    totals = [
        {"name": name, "said": _change(found[name]), **found[name], **_span(found[name]["random"])}
        for name in ("worst", "average")
    ]
    page = template.render(found=found, groups=groups, totals=totals, says=with_minus(sentence(found)))
    path.write_text(page, encoding="utf-8")


def with_minus(text: str) -> str:
    """A minus before numbers, as in print; hyphens between words stay."""
    return re.sub(r"(?<![^\s(])-(?=\d)", "−", text)


def sentence(found: Mapping[str, Any]) -> str:
    """What the edit did to the worst group, and whether random units of equal effect do as much."""
    worst = found["worst"]
    what = f"{len(found['named'])} unit{'s' if len(found['named']) != 1 else ''} named {' or '.join(found['concepts'])}"
    moved = f"Without the {what}, accuracy on the worst group goes from {worst['before']:.2f} to {worst['after']:.2f}"
    change, mean = f"{worst['change']:+.2f}", float(np.mean(worst["random"]))
    harms = has_interval(worst) and worst["high"] < 0
    p = p_harm(worst) if harms else worst["p"]
    if not has_interval(worst):
        change, verdict = f"{change}; {NO_INTERVAL}", "These pictures can't show whether that is chance."
    else:
        change += f", 95 % interval {worst['low']:+.2f} to {worst['high']:+.2f}"
        found_out = "needs them there" if harms else "leaned on them"
        verdict = f"The classifier {found_out}." if p <= BEYOND else "Random units may do as much."
        if not harms and worst["low"] <= 0:
            verdict = "The change may be chance."
    others = f"Random units of equal effect on the outputs leave it at {mean:.2f} on average (p {p:.2f})."
    return f"{moved} ({change}). {others} {verdict}"


def has_interval(total: Mapping[str, Any]) -> bool:
    """Earlier records gave intervals without a width, where none can be given."""
    return total["low"] is not None and bool(total["low"] < total["high"])


def p_harm(total: Mapping[str, Any]) -> float:
    """The share of sets, the named one among them, after which it is as low or lower; earlier records lack it."""
    if "p_harm" in total:
        return float(total["p_harm"])
    return float((1 + (np.array(total["random"]) <= total["after"]).sum()) / (1 + len(total["random"])))


def _change(total: Mapping[str, Any]) -> str:
    """A change with its interval and both of its chances, for a table."""
    interval = f"({total['low']:+.2f} to {total['high']:+.2f})" if has_interval(total) else f"({NO_INTERVAL})"
    of_sets = f"random sets as good: p {total['p']:.2f}, as bad: p {p_harm(total):.2f}"
    return with_minus(f"{total['change']:+.2f} {interval}; {of_sets}")


def _span(values: list[float]) -> dict[str, float]:
    """Mean and range of the random sets."""
    return {"random_mean": float(np.mean(values)), "random_low": min(values), "random_high": max(values)}
