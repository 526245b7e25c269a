"""Pieces of sentences."""

from collections.abc import Sequence

from saelab.compare.glossary import METRICS

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
