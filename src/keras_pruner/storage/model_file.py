"""Model files: read with errors that say what to do, written whole or not at all."""

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

# What Keras allows the members of an archive: this many times their size on the disk, and any
# number of times below the floor.
_EXPANSION, _EXPANSION_FLOOR = 100, 1 << 28
_DICTIONARY = 1 << 26  # bytes of an LZMA dictionary, which its reader sets aside at once


class FileError(Exception):
    """A file that cannot be read or written as asked; the message is for its user."""


def load(path: str | Path, *, trust: bool = False, compile: bool = False) -> keras.Model:
    """Load a model file.

    Args:
        path: a `.keras` or `.h5` file.
        trust: also run the Python code that the file may hold.
        compile: also restore the optimizer, the loss and the metrics.

    Raises:
        FileError: if there is no such file, it is damaged or no model, it would run code, take
            far more memory than its size promises, or read other files, or it needs a class
            that is not here.
    """
    path = Path(path)
    if not path.is_file():
        what = "is a directory, not a model file" if path.is_dir() else "does not exist"
        raise FileError(f"{path} {what}.")
    if not (zipfile.is_zipfile(path) or h5py.is_hdf5(path)):
        raise FileError(
            f"{path} is no model file, or it is damaged: it is neither a .keras archive nor HDF5."
        )
    try:
        _check_contents(path)
        return keras.saving.load_model(path, compile=compile, safe_mode=not trust)
    except Exception as error:  # Keras raises whatever the file makes it stumble over
        raise FileError(_why_not(path, error)) from error


def save(model: keras.Model, path: str | Path, *, overwrite: bool = False) -> None:
    """Save a model under a temporary name beside `path`, then rename it.

    Raises:
        FileError: if the file exists and `overwrite` is not set, or cannot be written; what was
            there before is still there then.
    """
    path = Path(path)
    check_output(path, overwrite=overwrite)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.keras")
    try:
        model.save(temporary)
        os.replace(temporary, path)
    except OSError as error:
        raise FileError(f"{path} cannot be written: {error.strerror or error}.") from error
    finally:
        temporary.unlink(missing_ok=True)


def check_output(path: str | Path, *, overwrite: bool) -> None:
    """Raise unless a model can be saved there.

    Raises:
        FileError: for another ending than `.keras`, a missing directory, an existing file.
    """
    path = Path(path)
    if path.suffix != ".keras":
        raise FileError(f"{path} must end in .keras, which is what Keras writes.")
    if not path.parent.is_dir():
        raise FileError(f"{path.parent} does not exist: make the directory first.")
    check_free(path, overwrite=overwrite)


def check_free(path: str | Path, *, overwrite: bool) -> None:
    """Raise if there is a file already.

    Raises:
        FileError: unless `overwrite` is set.
    """
    if Path(path).exists() and not overwrite:
        raise FileError(f"{path} exists already. Pass --force to overwrite it.")


def arrays(path: str | Path) -> dict[str, np.ndarray]:
    """Everything in an `.npz` file, by name.

    Raises:
        FileError: if there is no file, it is no such file, or a damaged one.
    """
    if not Path(path).exists():
        raise FileError(f"{path} does not exist.")
    try:
        # Opened here: NumPy leaves a damaged archive open. A .npy file is one array: TypeError.
        with Path(path).open("rb") as file, np.load(file) as found:
            return dict(found)
    except (OSError, ValueError, EOFError, TypeError, zipfile.BadZipFile, zlib.error) as error:
        raise FileError(f"{path} is no .npz file of arrays, which numpy.savez makes.") from error


def samples(path: str | Path, model: keras.Model) -> Any:
    """The inputs of a model in an `.npz` file.

    That is the only array, or the one named x (labels, named y, are not looked at); for a model
    of several inputs the arrays named as they are.

    Raises:
        FileError: if the file cannot be read, or does not hold them.
    """
    found = arrays(path)
    names = [tensor.name for tensor in getattr(model, "inputs", None) or []]
    if len(names) > 1 and set(names) <= set(found):
        return {name: found[name] for name in names}
    if len(names) <= 1 and (len(found) == 1 or "x" in found):
        return found.get("x", next(iter(found.values())))
    wanted = f"arrays named {names}" if len(names) > 1 else "an array x"
    raise FileError(f"{path} must hold {wanted}: inputs of the model. It holds: {sorted(found)}.")


def _check_contents(path: Path) -> None:
    """Raise for contents that are far larger than the file, or elsewhere; reads a piece at a time.

    Keras has such a check for members of an archive, but none for what LZMA and HDF5 announce.
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
    with path.open("rb") as file:  # past the local header, whose two last numbers are lengths
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
    """Every dataset once, however the groups are linked."""
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
    """Whether Keras refuses to read so many bytes from so few."""
    return size > _EXPANSION_FLOOR and size > _EXPANSION * stored


def _check_size(name: str, size: int, stored: int) -> None:
    if expands_too_far(size, stored):
        raise ValueError(f"{name} announces {size:,} bytes and holds {stored:,}")


def _why_not(path: Path, error: Exception) -> str:
    message = str(error)
    if "safe_mode" in message or "unsafe_deserialization" in message:
        return (
            f"{path} holds Python code (a Lambda layer, for one) that would run when it is "
            "loaded. If you trust where the file comes from, pass --trust; in Python, load it "
            "with keras.saving.load_model(path, safe_mode=False) and pass the model."
        )
    missing = re.search(r"Could not locate (\w+ '[^']+')", message)
    if missing:
        return (
            f"{path} needs the {missing[1]}, which is not here. In Python, import or register it, "
            "load the model with keras.saving.load_model(path), and pass that in place of the file."
        )
    if "No model config found" in message:
        return (
            f"{path} holds weights without a model. In Python, make the model they are of, then "
            f"model.load_weights({str(path)!r}) and model.save('model.keras')."
        )
    first = message.strip().split("\n")[0][:300]
    return f"{path} cannot be loaded; it may be damaged: {type(error).__name__}: {first}"
