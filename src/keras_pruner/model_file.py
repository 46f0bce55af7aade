"""Model files: read with errors that say what to do, written completely or not at all."""

import contextlib
import os
import re
import shutil
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import keras
import numpy as np

# Keras lets a member of an archive expand to 100 times its stored size; small ones to any.
_EXPANSION, _EXPANSION_FLOOR = 100, 1 << 28
_DICTIONARY = 1 << 26  # bytes of an LZMA dictionary, which a reader allocates at once


class FileError(ValueError):
    """A file cannot be read or written as asked; the message says why and what to do.

    Raised for files that are missing, damaged, of another kind, would run code, announce far
    more data than they hold, or need a class that is not there. There are no subclasses.

    Example:
        >>> import keras_pruner as kp
        >>> try:
        ...     kp.compare("dense.keras", "pruned.keras")
        ... except kp.FileError as error:
        ...     print(error)
        dense.keras does not exist.
    """


def load(path: str | Path, *, trust: bool = False, compile: bool = False) -> keras.Model:
    """Load a model file.

    Args:
        path: a `.keras` or `.h5` file.
        trust: also run the Python code that the file may hold.
        compile: also restore the optimizer, the loss and the metrics.

    Raises:
        FileError: if the file is missing, damaged or not a model; if it would run code, announces
            far more data than it holds, or refers to other files; or if it needs a class that is
            not registered.
    """
    path = Path(path)
    if not path.is_file():
        what = "is a directory, not a model file" if path.is_dir() else "does not exist"
        raise FileError(f"{path} {what}.")
    if not (zipfile.is_zipfile(path) or h5py.is_hdf5(path)):
        raise FileError(
            f"{path} is damaged or not a model file: it is neither a .keras archive nor HDF5. "
            "Write it with model.save('model.keras'), or copy it again."
        )
    try:
        _check_contents(path)
        return keras.saving.load_model(path, compile=compile, safe_mode=not trust)
    except Exception as error:  # a damaged file makes Keras raise anything
        raise FileError(_why_not(path, error)) from error


def save(model: keras.Model, path: str | Path, *, overwrite: bool = False) -> None:
    """Save a model completely or not at all.

    Raises:
        FileError: if the file exists and `overwrite` is False, or if it cannot be written. What
            was at `path` before is unchanged then.
    """
    check_output(path, overwrite=overwrite)
    try:
        with atomic_write(path, ".keras") as unfinished:
            model.save(unfinished)
    except OSError as error:
        raise FileError(f"{path} cannot be written: {error.strerror or error}.") from error


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike[str], suffix: str) -> Iterator[Path]:
    """Write a file completely or not at all.

    Args:
        path: the destination; an existing file is replaced.
        suffix: the required ending of its name, like ".keras".

    Yields:
        A temporary path in the same directory, renamed to `path` if no error occurs.

    Raises:
        FileError: for another ending, a missing directory, or a `path` that is a directory.
        OSError: if the directory is full or cannot be written to; nothing is left there.

    Example:
        >>> with atomic_write("notes.txt", ".txt") as unfinished:
        ...     size = unfinished.write_text("complete")
        >>> Path("notes.txt").read_text()
        'complete'
    """
    path = Path(path)
    check_destination(path, suffix)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".keras-pruner-") as scratch:
        unfinished = Path(scratch, path.name)
        yield unfinished
        os.replace(unfinished, path)


def check_destination(path: Path, suffix: str) -> None:
    """Raise for another ending than `suffix`, a missing directory, or a directory."""
    if path.suffix != suffix:
        raise FileError(
            f"The name of the file must end with {suffix!r}. Received: path={str(path)!r}. For "
            f"example: {str(path.with_suffix(suffix) if path.name else f'model{suffix}')!r}."
        )
    if not path.parent.is_dir():
        raise FileError(
            f"The directory of the file must exist. Received: path={str(path)!r}. "
            f"Make the directory {str(path.parent)!r} first."
        )
    if path.is_dir():
        raise FileError(
            f"A directory cannot be replaced by a file. Received: path={str(path)!r}. Name a file "
            f"in it, such as {str(path / f'model{suffix}')!r}."
        )


def check_output(path: str | Path, *, overwrite: bool) -> None:
    """Raise unless a `.keras` file can be written there.

    Raises:
        FileError: for another ending, a missing directory, or an existing file.
    """
    check_destination(Path(path), ".keras")
    check_free(path, overwrite=overwrite)


def check_free(path: str | Path, *, overwrite: bool) -> None:
    """Raise if the file exists.

    Raises:
        FileError: unless `overwrite` is set.
    """
    if Path(path).exists() and not overwrite:
        raise FileError(f"{path} exists already. Pass --force to overwrite it.")


def arrays(path: str | Path) -> dict[str, np.ndarray]:
    """Read the arrays of an `.npz` file, by name.

    Raises:
        FileError: if the file is missing, damaged or of another kind.
    """
    if not Path(path).exists():
        raise FileError(f"{path} does not exist.")
    try:
        # NumPy would leave a damaged archive open. For a .npy file, dict() raises TypeError.
        with Path(path).open("rb") as file, np.load(file) as found:
            return dict(found)
    except (OSError, ValueError, EOFError, TypeError, zipfile.BadZipFile, zlib.error) as error:
        raise FileError(
            f"{path} is not an .npz file. Write one with numpy.savez({str(path)!r}, x=inputs)."
        ) from error


def samples(path: str | Path, model: keras.Model) -> Any:
    """Read the inputs of a model from an `.npz` file.

    The inputs are the array x, or the only array; for a model with several inputs, the arrays
    with their names. Labels (y) are ignored.

    Raises:
        FileError: if the file cannot be read or does not hold the inputs.
    """
    found = arrays(path)
    names = [tensor.name for tensor in getattr(model, "inputs", None) or []]
    if len(names) > 1 and set(names) <= set(found):
        return {name: found[name] for name in names}
    if len(names) <= 1 and (len(found) == 1 or "x" in found):
        return found.get("x", next(iter(found.values())))
    wanted = f"arrays named {names}" if len(names) > 1 else "an array x"
    raise FileError(
        f"{path} must hold {wanted}, the inputs of the model. It holds: {sorted(found)}."
    )


def _check_contents(path: Path) -> None:
    """Raise for data that are far larger than the file, or in another file.

    Keras checks the members of an archive, but not the sizes that LZMA and HDF5 announce.
    """
    if not zipfile.is_zipfile(path):
        _check_hdf5(path)
        return
    with zipfile.ZipFile(path) as archive, tempfile.TemporaryDirectory() as scratch:
        for member in archive.infolist():
            _check_member(path, member)
            if member.filename.endswith(".h5"):
                copy = Path(scratch, "weights.h5")
                with archive.open(member) as source, copy.open("wb") as target:
                    shutil.copyfileobj(source, target, 1 << 20)
                _check_hdf5(copy)


def _check_member(path: Path, member: zipfile.ZipInfo) -> None:
    _check_size(member.filename, member.file_size, member.compress_size)
    if member.header_offset + member.compress_size > path.stat().st_size:
        raise ValueError(f"{member.filename} ends behind the end of the file")
    if member.compress_type != zipfile.ZIP_LZMA:
        return
    with path.open("rb") as file:  # skip the local header; its last two numbers are lengths
        file.seek(member.header_offset + 26)
        file.seek(sum(struct.unpack("<HH", file.read(4))), os.SEEK_CUR)
        dictionary = struct.unpack("<L", file.read(9)[5:])[0]
    if dictionary > _DICTIONARY:
        raise ValueError(f"{member.filename} asks for {dictionary:,} bytes before it is read")


def _check_hdf5(path: Path) -> None:
    with h5py.File(path, "r") as file:
        for dataset in _datasets(file, set()):
            if dataset.is_virtual or dataset.external:
                raise ValueError(f"{dataset.name} is in another file")
            if dataset.shape is not None:
                _check_size(dataset.name, dataset.nbytes, dataset.id.get_storage_size())


def _datasets(group: h5py.Group, seen: set[Any]) -> Iterator[h5py.Dataset]:
    """Each dataset once, even if groups link to each other."""
    for name in group:
        if not isinstance(group.get(name, getlink=True), h5py.HardLink):
            raise ValueError(f"{group.name}/{name} is a link to another place")
        item = group[name]
        if item.id in seen:
            continue
        seen.add(item.id)
        if isinstance(item, h5py.Group):
            yield from _datasets(item, seen)
        elif isinstance(item, h5py.Dataset):
            yield item


def expands_too_far(size: int, stored: int) -> bool:
    """Whether Keras would refuse a member of `size` bytes that takes `stored` bytes."""
    return size > _EXPANSION_FLOOR and size > _EXPANSION * stored


def _check_size(name: str, size: int, stored: int) -> None:
    if expands_too_far(size, stored):
        raise ValueError(f"{name} announces {size:,} bytes and holds {stored:,}")


def _why_not(path: Path, error: Exception) -> str:
    message = str(error)
    if "safe_mode" in message or "unsafe_deserialization" in message:
        return (
            f"{path} holds Python code, such as a Lambda layer, that would run when it is loaded. "
            "If you trust its source, pass --trust; in Python, load it with "
            "keras.saving.load_model(path, safe_mode=False) and pass the model."
        )
    missing = re.search(r"Could not locate (\w+ '[^']+')", message)
    if missing:
        return (
            f"{path} needs the {missing[1]}, which is not registered. In Python, import or "
            "register it, load the model with keras.saving.load_model(path), and pass the model "
            "in place of the file."
        )
    if "No model config found" in message:
        return (
            f"{path} holds weights without a model. In Python, build the model, then call "
            f"model.load_weights({str(path)!r}) and model.save('model.keras')."
        )
    first = message.strip().split("\n")[0][:300]
    return f"{path} cannot be loaded; it may be damaged: {type(error).__name__}: {first}"
