"""Tables: what is printed keeps its columns, whatever the cells hold."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from saelab import tables

CELL = st.text("abc .-µ0123456789", min_size=0, max_size=30)


@given(st.integers(1, 5).flatmap(lambda n: st.lists(st.lists(CELL, min_size=n, max_size=n), min_size=1, max_size=6)))
def test_every_cell_stands_under_its_title(rows):
    head, *body = rows
    drawn = tables.draw(head, body).split("\n")
    widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
    edges = [sum(widths[:i]) + 2 * i for i in range(len(head))]
    for line, row in zip(drawn, rows, strict=True):
        cells = [line.ljust(sum(widths) + 2 * len(widths))[edge : edge + w] for edge, w in zip(edges, widths)]
        assert cells[0] == row[0].ljust(widths[0])
        assert cells[1:] == [cell.rjust(w) for cell, w in zip(row[1:], widths[1:])]


def test_a_row_that_lacks_a_cell_is_refused():
    with pytest.raises(ValueError, match="shorter"):
        tables.draw(("basis", "units"), [("neuron",)])


def test_a_number_that_is_not_there_is_a_dash():
    assert [tables.number(x) for x in (None, 0.12345, -1.0)] == ["-", "0.123", "-1.000"]


def test_markdown():
    assert tables.draw_markdown(("a", "b"), [("1", "2")]) == "| a | b |\n| --- | --- |\n| 1 | 2 |"
