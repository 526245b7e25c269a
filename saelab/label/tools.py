"""Tools: what a model or a program may ask about units, each a name, arguments of plain values, and a function.

Arguments are checked before the function sees them, whoever sends them; a mistake is one line that says what to send.
Nothing that is sent is ever run as code.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from saelab.errors import UserError
from saelab.label.vlm.chat import Picture
from saelab.label.vlm.text import one_line
from saelab.settings import nearest

LONGEST = 300  # characters of a text argument
NUMBER = (int, float)  # JSON knows one kind of number: 9.0 is a whole one
TYPES: dict[str, Any] = {"integer": NUMBER, "number": NUMBER, "string": str, "boolean": bool}
SHOWN = 40  # characters of a wrong value that a message repeats


@dataclass(frozen=True)
class Argument:
    """One argument of a tool: its type in JSON, its range, and what it means."""

    kind: str  # integer | number | string | boolean
    about: str  # in a few words, for whoever chooses its value
    default: Any = None  # None: it has to be given, unless it is `optional`
    low: float = 0  # least and greatest value of a number; of a list, of each of its numbers
    high: float = 10**9
    longest: int = LONGEST  # characters of a string
    most: int = 0  # of a list of values of this kind; 0: one value
    optional: bool = False  # left out, it is None

    @property
    def schema(self) -> dict[str, Any]:
        """As JSON schema."""
        one: dict[str, Any] = {"type": self.kind}
        if self.kind in ("integer", "number"):
            one |= {"minimum": self.low, "maximum": self.high}
        if self.kind == "string":
            one |= {"maxLength": self.longest}
        found = {"type": "array", "items": one, "maxItems": self.most} if self.most else one
        return found | {"description": self.about} | ({} if self.default is None else {"default": self.default})

    def read(self, name: str, value: Any) -> Any:
        """The value, checked. Raises UserError with what was expected."""
        if value is None:
            if self.default is None and not self.optional:
                raise UserError(name, "null", "is missing", f"give {self._wanted}")
            return self.default
        values = value if self.most and isinstance(value, list) else [value]
        if len(values) > max(1, self.most) or not all(self._fits(each) for each in values):
            raise UserError(name, one_line(str(value)[:SHOWN], SHOWN), f"expected {self._wanted}")
        found = [int(each) if self.kind == "integer" else each for each in values]
        return found if self.most else found[0]

    def _fits(self, value: Any) -> bool:
        if not isinstance(value, TYPES[self.kind]) or isinstance(value, bool) != (self.kind == "boolean"):
            return False
        if self.kind == "string":
            return bool(value.strip()) and len(value) <= self.longest
        if self.kind == "boolean":
            return True
        return self.low <= value <= self.high and (self.kind == "number" or value == int(value))

    @property
    def _wanted(self) -> str:
        one = {"integer": "a whole number", "number": "a number", "string": "a text", "boolean": "true or false"}
        bounds = f" from {self.low:g} to {self.high:g}" if self.kind in ("integer", "number") else ""
        bounds += f" of 1 to {self.longest} characters" if self.kind == "string" else ""
        return f"{one[self.kind]}{bounds}" + (f", or a list of at most {self.most}" if self.most else "")


@dataclass(frozen=True)
class Answer:
    """What a tool says: plain values, and the pictures that belong to them."""

    facts: dict[str, Any]
    pictures: Sequence[Picture] = ()


@dataclass(frozen=True)
class Tool:
    """Something that can be asked."""

    name: str
    about: str  # what it answers, for whoever chooses among tools
    arguments: Mapping[str, Argument]
    ask: Callable[..., Answer] = field(repr=False)  # takes the arguments by name; raises UserError

    @property
    def schema(self) -> dict[str, Any]:
        """Its arguments as the JSON schema of an object."""
        own = self.arguments
        needed = [name for name, argument in own.items() if argument.default is None and not argument.optional]
        properties = {name: argument.schema for name, argument in own.items()}
        return {"type": "object", "properties": properties, "required": needed, "additionalProperties": False}


class Toolbox:
    """Tools by their names."""

    def __init__(self, tools: Sequence[Tool]) -> None:
        self.tools = {tool.name: tool for tool in tools}

    def call(self, name: Any, given: Any) -> Answer:
        """What a tool answers to arguments from outside.

        Raises UserError for a tool or an argument that does not exist, for a value that can't be, and what the tool
        itself raises.
        """
        tool = self.tools.get(name) if isinstance(name, str) else None
        if tool is None:
            near = nearest(name, self.tools) if isinstance(name, str) else ""
            shown = one_line(str(name)[:SHOWN], SHOWN)
            raise UserError("tool", shown, "unknown", f"{near}known: {', '.join(self.tools)}")
        if not isinstance(given, dict):
            raise UserError("arguments", type(given).__name__, f"expected an object for {tool.name}")
        for own in given:
            if own not in tool.arguments:
                known = ", ".join(tool.arguments) or "none"
                shown = one_line(str(own)[:SHOWN], SHOWN)
                raise UserError(shown, "...", f"{tool.name} has no such argument", f"known: {known}")
        return tool.ask(**{own: argument.read(own, given.get(own)) for own, argument in tool.arguments.items()})
