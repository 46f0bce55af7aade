"""Text tables."""

import io
import sys

import pytest

from keras_pruner.reporting import tables
from keras_pruner.reporting.tables import Table

pytestmark = pytest.mark.backend_free


def test_a_table():
    found = Table("plan", ["weight", ">kept"], [("a/kernel", 3), ("b/kernel", 12)]).text()
    assert found == "\n".join(
        [
            "plan",
            "  weight    kept",
            "  ──────────────",
            "  a/kernel     3",
            "  b/kernel    12",
        ]
    )


def test_totals_come_first():
    found = Table("", ["weight", ">zeros"], [("a", 3), ("b", 4)], [("all", 7)]).text()
    assert [line.strip("─ ") for line in found.splitlines()] == [
        "weight  zeros", "", "all         7", "", "a           3", "b           4",
    ]  # fmt: skip


def test_cells_are_not_read_as_markup_or_emoji():
    path = "[red]block[/red]/:smile:/kernel"
    assert path in Table("[bold]t[/bold]", ["weight"], [(path,)]).text()


def test_without_a_width_nothing_is_cut_off():
    path = "a_block_of_a_model/" * 12 + "kernel"
    assert path in Table("plan", ["weight", "shape"], [(path, (3, 3, 64, 64))]).text()


@pytest.mark.parametrize("width", [50, 60, 80])
def test_a_table_fits_its_width(width):
    path = "a_block_of_a_model/" * 12 + "kernel"
    reason = "its layer does not match the filters, and it is frozen besides"
    columns = ["weight", "shape", ">number of zeros", "reason"]
    found = Table("plan", columns, [(path, (3, 3, 64, 64), 12, reason)]).text(width=width)
    assert max(map(len, found.splitlines())) <= width
    assert " 12 " in found  # a number is never cut


def test_a_long_name_is_cut_in_the_middle_with_an_ellipsis():
    found = Table("", ["weight"], [("a_block/" * 12 + "kernel",)]).text(width=30)
    (name,) = (line.strip() for line in found.splitlines()[2:])
    assert name.startswith("a_block")
    assert "…" in name
    assert name.endswith("/kernel")


def test_the_most_important_rows_are_shown_in_order():
    table = Table("", ["n"], [(i,) for i in range(5)], importance=[1, 9, 0, 8, 7])
    assert table.most_important(3) == [1, 3, 4]
    assert table.most_important(None) == table.most_important(5) == list(range(5))
    assert Table("", ["n"], [(i,) for i in range(5)]).most_important(2) == [0, 1]


def test_no_trailing_spaces_no_colour():
    found = Table("t", ["a", "b"], [("x", ""), ("", "y")]).text()
    assert all(line == line.rstrip() for line in found.splitlines())
    assert "\x1b" not in found


def test_control_characters_of_a_name_are_escaped():
    found = Table("\x1b[2J", ["weight"], [("evil\x1b[31m\n/kernel",)]).text()
    assert "\x1b" not in found
    assert "evil\\x1b[31m /kernel" in found


def test_no_rows():
    assert "weight" in Table("t", ["weight"], []).text()


@pytest.mark.parametrize("encoding", ["cp1252", "ascii", "latin-1", "utf-8"])
def test_any_encoding_prints_any_table(encoding, monkeypatch):
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding=encoding))
    print(Table("t 層", ["weight"], [("層/kernel" * 9,)]).text(width=40), flush=True)
    text = written.getvalue().decode(encoding)
    assert ("─" in text) == (encoding == "utf-8")
    assert ("----" in text) == (encoding != "utf-8")
    assert ("層" in text) == (encoding == "utf-8")


def test_the_width_is_that_of_the_terminal(monkeypatch):
    monkeypatch.setenv("COLUMNS", "66")
    assert tables.terminal_width() == 66
    monkeypatch.delenv("COLUMNS")
    assert tables.terminal_width() == 80  # the tests run without a terminal
