"""One checker of settings: names, types and ranges by their dataclass, and the nearest name to one that is unknown."""

import dataclasses
import numbers
import types
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from saelab.errors import UserError

Kind = TypeVar("Kind")
Thing = TypeVar("Thing")
Range = tuple[float, float]  # least and greatest value
NAMES = {
    int: "a whole number",
    float: "a number",
    str: "a word",
    bool: "true or false",
    tuple: "a list",
    list: "a list",
    dict: "settings",
}


def similar(word: Any, known: Iterable[str], count: int = 3, cutoff: float = 0.6) -> list[str]:
    """The known names most like `word`, best first: at most `count`, none less alike than `cutoff` (0..1)."""
    return get_close_matches(str(word), list(known), count, cutoff)


def nearest(word: Any, known: Iterable[str]) -> str:
    """`did you mean A or B? `, or nothing where no known name is like `word`."""
    close = similar(word, known)
    return f"did you mean {' or '.join(close)}? " if close else ""


def choose(
    setting: str, wanted: Any, known: Sequence[tuple[Thing, Iterable[str]]], lacks: str = "is not in this run"
) -> list[Thing]:
    """The things that `wanted` (a name, a list of them, None: all) names, in the order of `known`: each with its names.

    A name that several share means all of them. Raises UserError for a name that nothing has (`lacks`: its fault, in
    words), and for an empty list.
    """
    all_names = list(dict.fromkeys(name for _, names in known for name in names))
    if wanted is None:
        return [thing for thing, _ in known]
    asked = list(wanted) if isinstance(wanted, list | tuple) else [wanted]
    if not asked:
        raise UserError(setting, "[]", "at least one is needed", f"it has {', '.join(all_names)}")
    asked = [name if name in all_names else str(name) for name in asked]  # a layer's name may be a number
    for name in asked:
        if name not in all_names:
            raise UserError(setting, name, lacks, f"{nearest(name, all_names)}it has {', '.join(all_names)}")
    return [thing for thing, names in known if set(names) & set(asked)]


def make(
    kind: type[Kind],
    mapping: Mapping[str, Any],
    prefix: str = "",
    fixed: Mapping[str, Any] | None = None,
    beside: Sequence[str] = (),
) -> Kind:
    """The dataclass `kind` from a mapping: lists become tuples where the field is one.

    `prefix` stands before a field's name in messages, such as `sae.train.`. `fixed` holds fields that the caller
    fills: they are no settings. `beside` names settings of the same group that the caller has read already. Raises
    UserError for a name that is no setting, with the nearest ones that are, and for a value of another type.
    """
    hints, made = get_type_hints(kind), dict(fixed or {})
    known = [field.name for field in dataclasses.fields(kind) if field.name not in made]  # type: ignore[arg-type]
    known += beside
    check_names(mapping, known, prefix)
    for name, value in mapping.items():
        made[name] = _check(prefix + name, value, hints[name])
    try:
        return kind(**made)
    except UserError as error:  # the dataclass knows its fields, not the group that they stand in here
        if error.setting not in known:
            raise
        raise UserError(prefix + error.setting, error.value, error.expected, error.remedy) from None


def check_names(given: Mapping[str, Any], known: Sequence[str], prefix: str = "") -> None:
    """Raise UserError for a setting that is not among the known ones, with the nearest that are."""
    for name, value in given.items():
        if name not in known:
            near = nearest(name, known)
            raise UserError(prefix + name, value, "there is no such setting", f"{near}known: {', '.join(known)}")


def check(settings: Any, prefix: str, ranges: Mapping[str, Range]) -> None:
    """Raise UserError for a field of a dataclass whose value is of another type, or outside its range.

    Numbers of numpy become Python's.
    """
    hints = get_type_hints(type(settings))
    for field in dataclasses.fields(settings):
        given, bounds = getattr(settings, field.name), ranges.get(field.name)
        value = _check(f"{prefix}{field.name}", given, hints[field.name], _say_bounds(bounds))
        if _is_of_numpy(given):
            object.__setattr__(settings, field.name, value)
        if bounds is not None and value is not None and not bounds[0] <= value <= bounds[1]:
            kind = NAMES[float if float in _kinds(hints[field.name]) else int]
            raise UserError(f"{prefix}{field.name}", value, f"expected {kind}{_say_bounds(bounds)}")


def check_types(given: Mapping[str, Any], hints: Mapping[str, Any]) -> None:
    """Raise UserError for a setting whose value is of another type than its hint, such as `str | None`."""
    for name, value in given.items():
        _check(name, value, hints[name])


def _say_bounds(bounds: Range | None) -> str:
    if bounds is None:
        return ""
    low, high = bounds
    return f" of at least {low:g}" if high == float("inf") else f" from {low:g} to {high:g}"


def _check(setting: str, value: Any, hint: Any, bounds: str = "") -> Any:
    kinds = _kinds(hint)
    if value is None and type(None) in kinds:
        return None
    if tuple in kinds and isinstance(value, list):
        value = tuple(value)
    if _is_of_numpy(value):
        value = value.item()
    if not any(_is(value, kind) for kind in kinds):
        wanted = [NAMES.get(kind, "null") for kind in kinds]
        raise UserError(setting, _show(value), f"expected {' or '.join(dict.fromkeys(wanted))}{bounds}")
    return value


def _show(value: Any) -> Any:
    """A value as a message shows it: text that would read as a number, a switch, nothing or a list is in quotes."""
    if not isinstance(value, str):
        return value
    try:
        float(value)
    except ValueError:
        plain = value == value.strip() and value.lower() not in ("", "~", "null", "none", "true", "false")
        return value if plain and value[0] not in "[{(" else repr(value)
    return repr(value)


def _is_of_numpy(value: Any) -> bool:
    return hasattr(value, "item") and (isinstance(value, numbers.Number) or type(value).__name__ in ("bool_", "bool"))


def _kinds(hint: Any) -> list[Any]:
    """The classes that a hint allows."""
    options = get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    return [get_origin(option) or option for option in options]


def _is(value: Any, kind: Any) -> bool:
    if kind is Any or not isinstance(kind, type):
        return True  # such as Literal: its own dataclass checks it
    if isinstance(value, bool) or kind is bool:
        return isinstance(value, bool) and kind in (bool, object)
    return isinstance(value, int | float if kind is float else kind)
