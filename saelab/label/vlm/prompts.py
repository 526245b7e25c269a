"""Prompt templates: files that a person can read and replace, filled with text and pictures.

A template is a Jinja file. Pictures enter where it says `{{ positives }}`, `{{ contrasts }}` or `{{ photos }}`. A name
stands for `saelab/label/prompts/<name>.jinja`, anything else for a file of one's own.
"""

from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from saelab.errors import UserError
from saelab.label.vlm.chat import Picture

MARK = "\x00"


def load(name: str | Path) -> str:
    """The text of a template. Raises UserError where there is neither such a name nor such a file."""
    shipped = files("saelab.label") / "prompts"
    if (shipped / f"{name}.jinja").is_file():
        return (shipped / f"{name}.jinja").read_text(encoding="utf-8")
    if Path(name).is_file():
        return Path(name).read_text(encoding="utf-8")
    names = sorted(f.name.removesuffix(".jinja") for f in shipped.iterdir() if f.name.endswith(".jinja"))
    raise UserError("proposer.prompt", name, f"is no file and none of {', '.join(names)}")


def fill(template: str, pictures: Mapping[str, Sequence[str | Picture]], **values: Any) -> tuple[str | Picture, ...]:
    """The template's text and pictures in reading order.

    pictures: what to put in the place of each name; an empty list counts as false in the template. Raises UserError
    for a template that can't be filled or that leaves out pictures that it is given.
    """
    import jinja2
    from jinja2.sandbox import SandboxedEnvironment

    environment = SandboxedEnvironment(undefined=jinja2.StrictUndefined, keep_trailing_newline=False)
    places = {name: f"{MARK}{name}{MARK}" if group else "" for name, group in pictures.items()}
    try:
        text = environment.from_string(template).render(**places, **values)
    except jinja2.TemplateError as error:
        raise UserError("proposer.prompt", f"line {getattr(error, 'lineno', '?')}", str(error)) from None
    parts: list[str | Picture] = []
    used = set()
    for place, piece in enumerate(text.strip().split(MARK)):
        if place % 2:
            parts.extend(pictures[piece])
            used.add(piece)
        elif piece:
            parts.append(piece)
    if missing := {name for name, group in pictures.items() if group} - used:
        raise UserError("proposer.prompt", f"{{{{ {missing.pop()} }}}}", "is missing in the template")
    return tuple(_join(parts))


def _join(parts: Sequence[str | Picture]) -> list[str | Picture]:
    """Neighbouring texts as one: some servers refuse or reorder many small text parts."""
    joined: list[str | Picture] = []
    for part in parts:
        if isinstance(part, str) and joined and isinstance(joined[-1], str):
            joined[-1] += part
        else:
            joined.append(part)
    return joined
