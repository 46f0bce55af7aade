"""Progress of long work on standard error: a bar on a terminal, a line now and then elsewhere."""

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

Announce = Callable[[str], None]
"""Called with the name of each step as it begins."""

_SECONDS = 5.0  # between two lines where there is no terminal


@contextlib.contextmanager
def show_progress(title: str, total: int | None = None, *, shown: bool) -> Iterator[Announce]:
    """Show how far long work has come.

    On a terminal that is a bar, or a spinner if the number of steps is unknown; both disappear
    at the end. Where standard error is a file or a pipe, one line every five seconds.

    Args:
        title: the name of the work.
        total: the number of steps. None: unknown.
        shown: False prints nothing.

    Yields:
        A function to call with the name of each step as it begins.

    Example:
        >>> with show_progress("pruning", total=2, shown=False) as announce:
        ...     announce("conv_1/kernel")
        ...     announce("conv_2/kernel")
    """
    console = Console(stderr=True)
    if not shown:
        yield lambda _: None
    elif not console.is_terminal:
        with _lines(title, total) as announce:
            yield announce
    elif total is None:
        with console.status(title) as status:
            yield lambda name: status.update(f"{title}: {name}")
    else:
        columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()
        with Progress(*columns, console=console, transient=True) as bar:
            task = bar.add_task(title, total=total)
            yield lambda name: bar.update(task, description=f"{title}: {name}", advance=1)


@contextlib.contextmanager
def _lines(title: str, total: int | None) -> Iterator[Announce]:
    """Print the current step every few seconds, from a thread, since one step may be long."""
    began, done, current = time.monotonic(), 0, ""
    ended = threading.Event()

    def announce(name: str) -> None:
        nonlocal done, current
        done, current = done + 1, name

    def report() -> None:
        while not ended.wait(_SECONDS):
            place = f" {done}/{total}" if total else ""
            seconds = time.monotonic() - began
            step = f": {current}" if current else ""
            print(f"{title}{place}{step} ({seconds:.0f} s)", file=sys.stderr, flush=True)

    thread = threading.Thread(target=report, name=f"progress of {title}", daemon=True)
    thread.start()
    try:
        yield announce
    finally:
        ended.set()
        thread.join()
