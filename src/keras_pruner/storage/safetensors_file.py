"""The weights of a model in a safetensors file that stores zeros as bits."""

import json
import math
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from keras_pruner import backends
from keras_pruner.model_file import FileError, atomic_write
from keras_pruner.model_weights import WeightView, check_model, unique_paths, view_of, weights_of
from keras_pruner.storage.bitmaps import GROUPS, Groups, bits_of, pack_mask, unpack_mask

_FORMAT, _VERSION = "keras-pruner sparse weights", "2"
_HEADER = ("format", "version", "weights")
_Arrays = dict[str, np.ndarray]
_Description = tuple[str, list[int], str, str, int]  # name, shape, dtype, encoding, checksum


def save_sparse(model: keras.Model, path: str | os.PathLike[str]) -> int:
    """Write the weights of a model with their zeros as a bitmap, or as a smaller N:M index.

    Any reader of safetensors can list the tensors of the file. A weight with too few zeros is
    stored as it is. All values come back bit-identical, except that -0.0 becomes 0.0.

    Args:
        model: any built Keras 3 model.
        path: the file, ending with ".safetensors".

    Returns:
        The size of the file in bytes.

    Raises:
        ValueError: for a wrong path, a model without weights, or a type of weights that
            safetensors does not have.
        OSError: if the file cannot be written; nothing is left at `path`.

    Example:
        >>> import keras, keras_pruner as kp
        >>> model = keras.Sequential([keras.Input((100,)), keras.layers.Dense(100)])
        >>> report = kp.prune(model, 0.8)
        >>> kp.storage.save_sparse(model, "weights.safetensors") < 4 * model.count_params() / 3
        True
        >>> kp.storage.load_sparse(model, "weights.safetensors")
    """
    check_model(model)
    tensors: _Arrays = {}
    described: list[_Description] = []
    for name, variable, view in _named(model):
        encoding, parts = _encode(variable, view)
        shape, dtype = list(variable.shape), keras.backend.standardize_dtype(variable.dtype)
        described.append((name, shape, dtype, encoding, _checksum(parts)))
        tensors |= {f"{name}|{key}": part for key, part in parts.items()}
    text = json.dumps(described, separators=(",", ":"))
    metadata = dict(zip(_HEADER, (_FORMAT, _VERSION, text), strict=True))
    with atomic_write(path, ".safetensors") as unfinished:
        save_file(tensors, unfinished, metadata)
        return unfinished.stat().st_size


def load_sparse(model: keras.Model, path: str | os.PathLike[str]) -> None:
    """Set the weights of a model to those in a file written by `save_sparse`.

    Weights are matched by name, or by position if the names of the model differ. The whole file
    is checked before the first weight changes; nothing in it is executed.

    Args:
        model: a built Keras 3 model of the same architecture, on any backend.
        path: the file.

    Raises:
        FileError: if the file is missing, damaged, of another kind or version, or if its weights
            do not fit the model.

    Example:
        >>> import keras, keras_pruner as kp
        >>> model = keras.Sequential([keras.Input((100,)), keras.layers.Dense(100)])
        >>> report = kp.prune(model, 0.8)
        >>> size = kp.storage.save_sparse(model, "weights.safetensors")
        >>> other = keras.models.clone_model(model)
        >>> kp.storage.load_sparse(other, "weights.safetensors")
        >>> kp.summarize(other).prunable.sparsity
        0.8
    """
    check_model(model)
    try:
        # The library checks all offsets and sizes against the file before it allocates memory.
        with safe_open(path, framework="numpy") as file:
            pairs = _match(list(_named(model)), _described(file.metadata()))
            expected = [f"{d[0]}|{key}" for _, _, d in pairs for key in _parts_of(d[3])]
            if sorted(expected) != sorted(file.keys()):
                raise ValueError("its list of weights does not fit its tensors")
            for _, view, described in pairs:
                _read(file, described, view)
            for variable, view, described in pairs:
                variable.assign(_read(file, described, view))
    except FileNotFoundError:
        raise FileError(f"{Path(path)} does not exist.") from None
    except (SafetensorError, ValueError, KeyError, TypeError, RecursionError, OSError) as error:
        raise FileError(f"{str(path)!r} cannot be loaded: {error}") from None


_Named = tuple[str, keras.Variable, WeightView]


def _named(model: keras.Model) -> Iterator[_Named]:
    """Each weight with a unique path that does not depend on the model's name."""
    views = {id(owned.variable): owned.view for owned in weights_of(model)}
    for path, variable in zip(unique_paths(model, model.weights), model.weights, strict=True):
        yield path, variable, views.get(id(variable)) or view_of(model, variable)


def _checksum(parts: _Arrays) -> int:
    crc = 0
    for key in sorted(parts):
        crc = zlib.crc32(parts[key].tobytes(), crc)
    return crc


def _parts_of(encoding: str) -> tuple[str, ...]:
    return ("values",) if encoding == "dense" else ("index", "values")


def _encode(variable: keras.Variable, view: WeightView) -> tuple[str, _Arrays]:
    """The smallest encoding of a weight: "dense", "bitmap" or "n:m", and its parts."""
    dtype = keras.backend.standardize_dtype(variable.dtype)
    weight = np.asarray(backends.current().to_numpy(variable))
    if keras.backend.is_int_dtype(dtype):  # PyTorch keeps some of them in other types
        weight = weight.astype(dtype)
    weight = np.ascontiguousarray(weight)
    if keras.backend.is_float_dtype(dtype):  # -0.0, as in `weight * mask`, is a zero
        bits = bits_of(weight)
        weight = np.where(bits << 1 == 0, 0, bits).astype(bits.dtype).view(weight.dtype)
    mask = bits_of(weight) != 0
    if mask.ndim >= 2 and np.count_nonzero(mask) * 2 <= mask.size:
        for groups in GROUPS:
            full = np.count_nonzero(mask) * groups.m == mask.size * groups.n
            if full and groups.fits(mask, view):
                index, values = groups.encode(weight, view)
                return f"{groups.n}:{groups.m}", {"values": values, "index": index}
    index, values = pack_mask(mask), weight[mask]
    if index.nbytes + values.nbytes < weight.nbytes:
        return "bitmap", {"values": values, "index": index}
    return "dense", {"values": weight}


def _described(metadata: dict[str, str] | None) -> list[_Description]:
    """The descriptions of all weights in the header."""
    found, version, weights = ((metadata or {}).get(key, "") for key in _HEADER)
    if found != _FORMAT:
        raise ValueError("it was not written by kp.storage.save_sparse")
    if version != _VERSION:
        raise ValueError(f"it has version {version!r}; this keras-pruner reads {_VERSION!r}")
    return [
        (str(name), [int(n) for n in shape], str(dtype), str(encoding), int(crc))
        for name, shape, dtype, encoding, crc in json.loads(weights)
    ]


def _match(
    named: list[_Named], described: list[_Description]
) -> list[tuple[keras.Variable, WeightView, _Description]]:
    """The variables with their descriptions: by name if all agree, by position otherwise."""
    if len(named) != len(described):
        raise ValueError(f"it holds {len(described)} weights, the model has {len(named)}")
    by_name = {each[0]: each for each in described}
    if set(by_name) == {name for name, _, _ in named}:
        described = [by_name[name] for name, _, _ in named]
    found = []
    for (name, variable, view), each in zip(named, described, strict=True):
        mine = tuple(variable.shape), keras.backend.standardize_dtype(variable.dtype)
        its = tuple(each[1]), each[2]
        if mine != its:
            raise ValueError(f"{each[0]} is {its} in the file; {name} is {mine} in the model")
        found.append((variable, view, each))
    return found


def _read(file: Any, described: _Description, view: WeightView) -> np.ndarray:
    """The value of a weight in the file; raises if it does not fit its description."""
    name, shape, dtype, encoding, crc = described
    groups = None if encoding in ("dense", "bitmap") else _groups(encoding)
    parts = {key: file.get_tensor(f"{name}|{key}") for key in _parts_of(encoding)}
    if _checksum(parts) != crc:
        raise ValueError(f"the checksum of {name} is wrong: the file is damaged")
    values, index = parts["values"], parts.get("index")
    if values.dtype.name != dtype or (index is not None and index.dtype != np.uint8):
        raise ValueError(f"{name} does not have the type that its header says")
    if index is None:
        if list(values.shape) != shape:
            raise ValueError(f"{name} does not have the shape that its header says")
        return values
    if values.ndim != 1 or index.ndim != 1:
        raise ValueError(f"{name} is not a list of values")
    try:
        if groups is not None:
            return groups.decode(index, values, view)
        mask = unpack_mask(index, math.prod(shape))
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None
    if np.count_nonzero(mask) != values.size:
        raise ValueError(f"{name}: its bitmap does not fit its values")
    weight = np.zeros(mask.size, values.dtype)
    weight[mask] = values
    return weight.reshape(shape)


def _groups(encoding: str) -> Groups:
    for groups in GROUPS:
        if encoding == f"{groups.n}:{groups.m}":
            return groups
    raise ValueError(f"it uses the encoding {encoding!r}, which this version does not know")
