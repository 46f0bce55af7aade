"""Text tables."""

import builtins

import pytest

from keras_pruner.reporting import tables

pytestmark = pytest.mark.backend_free


def test_a_table():
    found = tables.render("plan", ["weight", ">kept"], [("a/kernel", 3), ("b/kernel", 12)])
    assert [line.split() for line in found.splitlines() if line.strip("─ ")] == [
        ["plan"],
        ["weight", "kept"],
        ["a/kernel", "3"],
        ["b/kernel", "12"],
    ]


def test_columns_of_numbers_are_right_aligned():
    found = tables.render("t", [">n", "text"], [(1, "one"), (100, "hundred")])
    rows = [line for line in found.splitlines() if "one" in line or "hundred" in line]
    assert rows[0].index("1") == rows[1].index("100") + 2
    assert rows[0].index("one") == rows[1].index("hundred")


def test_cells_are_not_read_as_markup_or_emoji():
    path = "[red]block[/red]/:smile:/kernel"
    assert path in tables.render("[bold]t[/bold]", ["weight"], [(path,)])


def test_nothing_is_cut_off():
    path = "a_block_of_a_model/" * 12 + "kernel"
    found = tables.render("plan", ["weight", "shape"], [(path, (3, 3, 64, 64))], width=80)
    assert max(map(len, found.splitlines())) <= 80
    assert path in "".join(line.split()[0] for line in found.splitlines()[4:] if line.strip())


def test_no_trailing_spaces_no_colour():
    found = tables.render("t", ["a", "b"], [("x", ""), ("", "y")])
    assert all(line == line.rstrip() for line in found.splitlines())
    assert "\x1b" not in found


def test_no_rows():
    assert "weight" in tables.render("t", ["weight"], [])


def test_a_table_is_text_in_a_notebook_too(monkeypatch):
    expected = tables.render("t", ["a"], [(1,)])
    shell = type("ZMQInteractiveShell", (), {})  # by which rich knows a notebook
    monkeypatch.setattr(builtins, "get_ipython", shell, raising=False)
    assert tables.render("t", ["a"], [(1,)]) == expected != ""
