"""Pieces of sentences."""

from collections.abc import Mapping, Sequence
from typing import Any

from saelab.compare.glossary import METRICS

WITH_IMAGES, WITHOUT_IMAGES = "t over labels, seeds and groups of images", "t over labels and seeds"
LIKE = {"rate": "firing rate", "strength": "strength of activation"}


def titles(metrics: Sequence[str]) -> str:
    return listed([METRICS[name].title for name in metrics])


def listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def number(n: int, what: str) -> str:
    return f"{n:,} {what}{'' if n == 1 else 's'}"


def capital(text: str) -> str:
    return text[0].upper() + text[1:]


def f3(value: float) -> str:
    return f"{value:.3f}"


def p_value(value: float) -> str:
    return "below 0.001" if value < 0.001 else f"{value:.3f}"


def interval_of(row: Mapping[str, Any]) -> str:
    """What the interval of one row takes into account; metrics that are read from rows know nothing of images."""
    return WITH_IMAGES if "images" in row["clusters"] else WITHOUT_IMAGES
