"""A progress bar with the names of layers."""

import contextlib
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

Announce = Callable[[str], None]
"""Told the name of each layer as its turn comes."""


@contextlib.contextmanager
def announcing(title: str, total: int, *, shown: bool) -> Iterator[Announce]:
    """Show how far the work has come, on a terminal's standard error, until it is done."""
    console = Console(stderr=True)
    if not (shown and console.is_terminal):  # a disabled bar of rich 13.7 prints an empty line
        yield lambda _: None
        return
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(title, total=total)

        def announce(name: str) -> None:
            bar.update(task, description=f"{title}: {name}", advance=1)

        yield announce
