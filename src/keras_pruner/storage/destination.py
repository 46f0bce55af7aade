"""A file appears at its destination complete, or not at all."""

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def complete(path: str | os.PathLike[str], suffix: str) -> Iterator[Path]:
    """Give a temporary path beside `path`; it takes the place of `path` if all goes well.

    Args:
        path: the destination.
        suffix: what its name must end with, like ".keras".

    Raises:
        ValueError: if the name does not end with `suffix`, or there is no such directory.
        OSError: if the directory cannot be written to, or is full; nothing is left there.
    """
    path = Path(path)
    if path.suffix != suffix:
        raise ValueError(f"`path` must end with {suffix!r}. Received: path={str(path)!r}.")
    if not path.parent.is_dir():
        raise ValueError(
            f"`path` must be in a directory that exists. Received: path={str(path)!r}."
        )
    if path.is_dir():
        raise ValueError(f"`path` must be a file. Received: a directory, path={str(path)!r}.")
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".keras-pruner-") as scratch:
        unfinished = Path(scratch, path.name)
        yield unfinished
        os.replace(unfinished, path)
