"""The page of a concept edit: the units taken out, and accuracy by group before, after, and without random units."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

BEYOND = 0.05  # share of random sets that may do as well, for the named units to count as special


def write_edit(path: Path, found: Mapping[str, Any]) -> None:
    """One page that needs nothing beside it. `found`: edit.json."""
    from jinja2 import Environment, PackageLoader

    template = Environment(loader=PackageLoader("saelab.report", "pages"), autoescape=True).get_template("edit.html")
    groups = [group | _span(group["random"]) for group in found["groups"]]
    totals = [{"name": name, **found[name], **_span(found[name]["random"])} for name in ("worst", "average")]
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
    interval = f"({worst['change']:+.2f}, 95 % interval {worst['low']:+.2f} to {worst['high']:+.2f})"
    mean = float(np.mean(worst["random"]))
    clear, beyond = worst["low"] > 0 or worst["high"] < 0, worst["p"] <= BEYOND
    if worst["high"] < 0:
        verdict = "The classifier needs them there."
    elif not clear:
        verdict = "The change may be chance."
    else:
        verdict = "The classifier leaned on them." if beyond else "Random units may do as much."
    others = f"Random units of equal effect on the outputs leave it at {mean:.2f} on average (p {worst['p']:.2f})."
    return f"{moved} {interval}. {others} {verdict}"


def _span(values: list[float]) -> dict[str, float]:
    """Mean and range of the random sets."""
    return {"random_mean": float(np.mean(values)), "random_low": min(values), "random_high": max(values)}
