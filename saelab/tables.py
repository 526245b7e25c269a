"""Tables as text: aligned for a terminal, or Markdown."""

from collections.abc import Sequence


def draw(head: Sequence[str], rows: Sequence[Sequence[str]], names: int = 1) -> str:
    """An aligned table: the first `names` columns to the left, the numbers after them to the right.

    A column is as wide as its widest cell. Raises ValueError where a row has more or fewer cells than the head.
    """
    columns = list(zip(head, *rows, strict=True))
    widths = [max(map(len, column)) for column in columns]
    aligned = [
        [cell.ljust(w) if i < names else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths))]
        for row in (head, *rows)
    ]
    return "\n".join("  ".join(row).rstrip() for row in aligned)


def draw_markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown; cells are put in as they are."""
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *rows))


def number(value: float | None, form: str = ".3f") -> str:
    """A number for a cell, a dash where there is none."""
    return "-" if value is None else format(value, form)
