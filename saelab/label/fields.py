"""Settings checked by their dataclass's types, and by the ranges that their numbers may have."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from saelab.errors import UserError

Range = tuple[float, float]  # least and greatest value
NAMES = {bool: "true or false", int: "a whole number", float: "a number", str: "a word"}


def check_fields(settings: Any, prefix: str, ranges: Mapping[str, Range]) -> None:
    """Raise UserError for a field of a settings dataclass whose value is of another type, or outside its range.

    `prefix` goes before the field's name in the message. Fields of other types than bool, int, float and str pass.
    """
    for field in fields(settings):
        kind, value = field.type, getattr(settings, field.name)
        if kind not in NAMES:
            continue
        low, high = ranges.get(field.name, (float("-inf"), float("inf")))
        if not _is(value, kind) or (kind in (int, float) and not low <= value <= high):
            raise UserError(f"{prefix}.{field.name}", value, f"expected {NAMES[kind]}{_told(low, high)}")


def _is(value: Any, kind: Any) -> bool:
    if kind is bool or isinstance(value, bool):
        return kind is bool and isinstance(value, bool)
    return isinstance(value, int | float if kind is float else kind)


def _told(low: float, high: float) -> str:
    if low == float("-inf"):
        return ""
    return f" of at least {low:g}" if high == float("inf") else f" from {low:g} to {high:g}"
