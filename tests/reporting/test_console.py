"""Progress of long work."""

import io
import time

import pytest

from keras_pruner.reporting import console

pytestmark = pytest.mark.backend_free


@pytest.fixture
def terminal(monkeypatch):
    out = io.StringIO()
    shown = console.Console(file=out, force_terminal=True)
    monkeypatch.setattr(console, "Console", lambda **_: shown)
    return out


@pytest.mark.parametrize("total", [None, 2])
def test_a_terminal_shows_the_step(terminal, total):
    with console.show_progress("exporting", total, shown=True) as announce:
        announce("converting")
    assert "exporting: converting" in terminal.getvalue()


@pytest.mark.parametrize("total", [None, 2])
def test_nothing_is_shown_that_was_not_asked_for(terminal, capsys, total):
    with console.show_progress("exporting", total, shown=False) as announce:
        announce("converting")
    assert terminal.getvalue() == capsys.readouterr().err == ""


def test_a_pipe_gets_a_line_now_and_then(monkeypatch, capsys):
    monkeypatch.setattr(console, "_SECONDS", 0.02)
    with console.show_progress("pruning net", 3, shown=True) as announce:
        announce("conv_1/kernel")
        time.sleep(0.2)
        announce("conv_2/kernel")
        time.sleep(0.2)
    lines = capsys.readouterr().err.splitlines()
    assert "pruning net 1/3: conv_1/kernel (0 s)" in lines
    assert "pruning net 2/3: conv_2/kernel (0 s)" in lines
    time.sleep(0.1)
    assert capsys.readouterr().err == ""


def test_short_work_prints_nothing_into_a_pipe(capsys):
    with console.show_progress("pruning net", 3, shown=True) as announce:
        announce("conv_1/kernel")
    assert capsys.readouterr().err == ""


def test_an_error_ends_the_lines(monkeypatch, capsys):
    monkeypatch.setattr(console, "_SECONDS", 0.02)
    with pytest.raises(ZeroDivisionError), console.show_progress("pruning", shown=True):
        raise ZeroDivisionError
    time.sleep(0.1)
    assert capsys.readouterr().err == ""
