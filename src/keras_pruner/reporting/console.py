"""What a long call is doing, on a terminal's standard error, while it is doing it."""

import contextlib
from collections.abc import Callable, Iterator

from rich.console import Console

Announce = Callable[[str], None]
"""Told the name of each stage as it begins."""


@contextlib.contextmanager
def stages(*, shown: bool) -> Iterator[Announce]:
    """Show the stage the work is in, until it is done; nothing where there is no terminal."""
    console = Console(stderr=True)
    if not (shown and console.is_terminal):
        yield lambda _: None
        return
    with console.status("") as status:
        yield status.update
