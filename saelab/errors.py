"""The one exception that users see: a mistake that they can mend, in one line."""

from typing import Any

LONGEST = 400  # characters of a value, from which on it is cut off; text is shown whole


def _show(value: object) -> str:
    """A value in a line: of arrays (in lists and settings too) their shapes, of an object with long text its class."""
    if isinstance(value, str):
        return value
    try:
        text = str(_without_arrays(value))
    except Exception:  # an object of the caller's
        text = type(value).__name__
    if len(text.splitlines()) > 1:
        text = type(value).__name__
    return text if len(text) <= LONGEST else f"{text[:LONGEST]} ..."


class _Shaped:
    """An array, of which messages show this."""

    def __init__(self, array: Any) -> None:
        self.text = f"{type(array).__name__} {list(array.shape)}"

    def __repr__(self) -> str:
        return self.text


def _without_arrays(value: Any) -> Any:
    shape = getattr(value, "shape", None)
    if isinstance(shape, tuple) and len(shape):
        return _Shaped(value)
    if type(value) is dict:
        return {key: _without_arrays(own) for key, own in value.items()}
    return type(value)(map(_without_arrays, value)) if type(value) in (list, tuple) else value


class UserError(Exception):
    """A user's mistake: which setting, its value, what was expected, what to do.

    Scripts print it as one line and exit with status 2; library callers can catch it. Anything else that is raised
    is a fault of saelab's own and keeps its traceback. Line breaks in a value or a name become spaces, and of arrays
    in a value their shapes alone are shown.
    """

    def __init__(self, setting: str, value: object, expected: str, remedy: str = "") -> None:
        self.setting, self.value, self.expected, self.remedy = setting, value, expected, remedy
        text = f"{setting}={_show(value)}: {expected}" + (f"; {remedy}" if remedy else "")
        super().__init__(" ".join(text.splitlines()))
