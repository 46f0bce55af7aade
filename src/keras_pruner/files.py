"""Model files: read with errors that say what to do, written whole or not at all."""

import os
import re
import zipfile
from pathlib import Path
from typing import Any

import h5py
import keras
import numpy as np


class FileError(Exception):
    """A file that cannot be read or written as asked; the message is for its user."""


def load(path: str | Path, *, trust: bool = False, compile: bool = False) -> keras.Model:
    """Load a model file.

    Args:
        path: a `.keras` or `.h5` file.
        trust: also run the Python code that the file may hold.
        compile: also restore the optimizer, the loss and the metrics.

    Raises:
        FileError: if there is no such file, it is damaged or no model, it would run code, or it
            needs a class that is not here.
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
    if path.exists() and not overwrite:
        raise FileError(f"{path} exists already. Pass --force to overwrite it.")


def samples(path: str | Path, model: keras.Model) -> Any:
    """The inputs of a model in an `.npz` file.

    That is the only array, or the one named x (labels, named y, are not looked at); for a model
    of several inputs the arrays named as they are.

    Raises:
        FileError: if the file cannot be read, or does not hold them.
    """
    try:
        with np.load(path) as file:
            arrays = dict(file)
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise FileError(f"{path} is no .npz file of arrays, which numpy.savez makes.") from error
    names = [tensor.name for tensor in getattr(model, "inputs", None) or []]
    if len(names) > 1 and set(names) <= set(arrays):
        return {name: arrays[name] for name in names}
    if len(names) <= 1 and (len(arrays) == 1 or "x" in arrays):
        return arrays.get("x", next(iter(arrays.values())))
    wanted = f"arrays named {names}" if len(names) > 1 else "an array x"
    raise FileError(f"{path} must hold {wanted}: inputs of the model. It holds: {sorted(arrays)}.")


def _why_not(path: Path, error: Exception) -> str:
    message = str(error)
    if "safe_mode" in message or "unsafe_deserialization" in message:
        return (
            f"{path} holds Python code (a Lambda layer, for one) that would run when it is "
            "loaded. If you trust where the file comes from, pass --trust."
        )
    missing = re.search(r"Could not locate (\w+ '[^']+')", message)
    if missing:
        return (
            f"{path} needs the {missing[1]}, which is not here. In Python, import or register it, "
            "load the model, and call kp.prune or kp.summarize."
        )
    first = message.strip().split("\n")[0][:300]
    return f"{path} cannot be loaded; it may be damaged: {type(error).__name__}: {first}"
