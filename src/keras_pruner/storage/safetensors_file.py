"""Weights alone in a safetensors file, zeros as bits: written and read one weight at a time."""

import dataclasses
import json
import math
import os
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import keras
import numpy as np

from keras_pruner import backends
from keras_pruner.model_weights import WeightView, check_model, unique_paths, view_of, weights_of
from keras_pruner.storage.bitmaps import GROUPS, Groups, bits_of, pack_mask, unpack_mask
from keras_pruner.storage.model_file import atomic_write

_FORMAT, _VERSION = "keras-pruner sparse weights", 1
_HEADER_LIMIT = 1 << 26
_DTYPES = {  # of Keras -> of safetensors and of the bytes
    "float32": ("F32", "<f4"),
    "float16": ("F16", "<f2"),
    "bfloat16": ("BF16", "<u2"),
    "float64": ("F64", "<f8"),
    "int8": ("I8", "i1"),
    "uint8": ("U8", "u1"),
    "int16": ("I16", "<i2"),
    "uint16": ("U16", "<u2"),
    "int32": ("I32", "<i4"),
    "uint32": ("U32", "<u4"),
    "int64": ("I64", "<i8"),
    "uint64": ("U64", "<u8"),
    "bool": ("BOOL", "u1"),
}


def save_sparse(model: keras.Model, path: str | os.PathLike[str]) -> int:
    """Write the weights of a model with their zeros as a bitmap, or a smaller N:M index.

    The file is a safetensors file: any reader of that format lists its tensors. Weights with
    too few zeros are stored as they are; all come back equal, bit by bit but for -0.0, which
    becomes 0.0.

    Args:
        model: any built Keras 3 model.
        path: of the file, ending with ".safetensors".

    Returns:
        The size of the file in bytes.

    Raises:
        ValueError: for a wrong path or a model without weights.
        OSError: if the file cannot be written; nothing is left at `path`.
    """
    check_model(model)
    with atomic_write(path, ".safetensors") as unfinished:
        with unfinished.open("wb") as file:
            _write(file, list(_named(model)))
        return unfinished.stat().st_size


def load_sparse(model: keras.Model, path: str | os.PathLike[str]) -> None:
    """Set the weights of a model to those of a file written by `save_sparse`.

    Weights are matched by their paths, or by position if the paths of the model are others. The
    whole file is checked before the first weight changes; nothing in it is executed.

    Args:
        model: a built Keras 3 model of the same architecture, on any backend.
        path: of the file.

    Raises:
        ValueError: if the file is damaged, of another kind or version, or of another model.
    """
    check_model(model)
    with Path(path).open("rb") as file:
        try:
            entries = _read_header(file)
            found = _match(list(_named(model)), entries)
            for _, view, entry in found:
                entry.check(file, view)
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise ValueError(f"{str(path)!r} cannot be loaded: {error}") from None
        for variable, view, entry in found:
            variable.assign(entry.read(file, view))


_Named = tuple[str, keras.Variable, WeightView]


def _named(model: keras.Model) -> Iterator[_Named]:
    """Every weight with a path that is unique and does not depend on the model's name."""
    views = {id(owned.variable): owned.view for owned in weights_of(model)}
    for path, variable in zip(unique_paths(model, model.weights), model.weights, strict=True):
        yield path, variable, views.get(id(variable)) or view_of(model, variable)


@dataclasses.dataclass(frozen=True)
class _Part:
    """A stretch of the file: its safetensors type, shape, place and checksum."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    size: int
    crc: int

    def bytes(self, file: BinaryIO) -> bytes:
        file.seek(self.start)
        return file.read(self.size)


@dataclasses.dataclass(frozen=True)
class _Entry:
    """A weight in a file."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    encoding: str  # "dense", "bitmap" or "n:m"
    parts: dict[str, _Part]

    def check(self, file: BinaryIO, view: WeightView) -> None:
        """Raise unless the weight can be read."""
        for part in self.parts.values():
            if zlib.crc32(part.bytes(file)) != part.crc:
                raise ValueError(f"the checksum of {self.name} is wrong: the file is damaged")
        try:
            self.read(file, view)
        except ValueError as error:
            raise ValueError(f"{self.name}: {error}") from None

    def read(self, file: BinaryIO, view: WeightView) -> Any:
        """The weight, as an array that a Keras variable of its type takes."""
        raw = {key: part.bytes(file) for key, part in self.parts.items()}
        values = np.frombuffer(raw["values"], _DTYPES[self.dtype][1])
        if self.encoding == "dense":
            weight = values.reshape(self.shape)
        elif self.encoding == "bitmap":
            weight = np.zeros(math.prod(self.shape), values.dtype)
            mask = unpack_mask(np.frombuffer(raw["index"], np.uint8), weight.size)
            if np.count_nonzero(mask) != values.size:
                raise ValueError("its bitmap does not fit its values")
            weight[mask] = values
            weight = weight.reshape(self.shape)
        else:
            groups = _groups(self.encoding)
            index = np.frombuffer(raw["index"], np.uint8)
            weight = groups.decode(index, values, view)
        if self.dtype == "bfloat16":
            import ml_dtypes  # Keras depends on it

            return weight.view(ml_dtypes.bfloat16)
        return weight.astype(bool) if self.dtype == "bool" else weight


def _groups(encoding: str) -> Groups:
    for groups in GROUPS:
        if encoding == f"{groups.n}:{groups.m}":
            return groups
    raise ValueError(f"it is encoded as {encoding!r}, which this version does not know")


# ------------------------------------------------------------------ writing


def _encode(variable: keras.Variable, view: WeightView) -> tuple[str, dict[str, np.ndarray]]:
    """The smallest encoding of a weight and its parts."""
    dtype = keras.backend.standardize_dtype(variable.dtype)
    if dtype not in _DTYPES:
        raise ValueError(f"{variable.path} is of type {dtype}, which safetensors does not know.")
    weight = np.asarray(backends.current().to_numpy(variable))
    if keras.backend.is_int_dtype(dtype):  # PyTorch has no arithmetic for some of them
        weight = weight.astype(dtype)
    weight = np.ascontiguousarray(weight).view(_DTYPES[dtype][1])
    if keras.backend.is_float_dtype(dtype):  # -0.0, as in `weight * mask`, is a zero
        bits = bits_of(weight)
        weight = np.where(bits << 1 == 0, 0, bits).view(weight.dtype)
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


def _write(file: BinaryIO, named: list[_Named]) -> None:
    """Measure every weight first, so that the header can stand before them; encode them twice."""
    tensors: dict[str, Any] = {}
    described, offset = [], 0
    for name, variable, view in named:
        encoding, parts = _encode(variable, view)
        dtype = keras.backend.standardize_dtype(variable.dtype)
        crcs = {key: zlib.crc32(part.tobytes()) for key, part in parts.items()}
        shape = list(variable.shape)
        described.append([name, shape, dtype, encoding, crcs])
        for key, part in parts.items():
            kind = _DTYPES[dtype][0] if key == "values" else "U8"
            tensors[f"{name}|{key}"] = {
                "dtype": kind,
                "shape": shape if encoding == "dense" else [part.size],
                "data_offsets": [offset, offset + part.nbytes],
            }
            offset += part.nbytes
    metadata = {"format": _FORMAT, "version": str(_VERSION), "weights": json.dumps(described)}
    header = json.dumps({"__metadata__": metadata, **tensors}).encode()
    header += b" " * (-len(header) % 8)
    file.write(struct.pack("<Q", len(header)) + header)
    for _, variable, view in named:
        for part in _encode(variable, view)[1].values():
            file.write(part.tobytes())


# ------------------------------------------------------------------ reading


def _read_header(file: BinaryIO) -> list[_Entry]:
    """The entries of a file whose header agrees with itself and with the file's size."""
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    if size < 8:
        raise ValueError("it is too short for a safetensors file")
    (length,) = struct.unpack("<Q", file.read(8))
    if not 2 <= length <= min(_HEADER_LIMIT, size - 8):
        raise ValueError(f"its header claims {length} bytes; it is truncated or no safetensors")
    try:
        header = json.loads(file.read(length))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"its header is no JSON ({error})") from None
    metadata = header.pop("__metadata__", {}) if isinstance(header, dict) else {}
    if metadata.get("format") != _FORMAT:
        raise ValueError("it was not written by keras_pruner.save_sparse")
    if metadata.get("version") != str(_VERSION):
        raise ValueError(
            f"it is of version {metadata.get('version')!r}; this keras-pruner reads {_VERSION}"
        )
    end = 8 + length
    entries = []
    for name, shape, dtype, encoding, crcs in json.loads(metadata["weights"]):
        parts = {}
        for key, crc in crcs.items():
            parts[key] = part = _part(header.pop(f"{name}|{key}"), crc, 8 + length)
            if part.start != end:
                raise ValueError("the places in its header overlap or leave gaps")
            end += part.size
        _check_parts(name, tuple(shape), dtype, encoding, parts)
        entries.append(_Entry(name, tuple(shape), dtype, encoding, parts))
    if header or end != size:
        raise ValueError("its header and its size disagree; it is truncated or damaged")
    return entries


def _part(described: dict[str, Any], crc: int, origin: int) -> _Part:
    """A stretch as the header describes it, counted from `origin`."""
    begin, end = described["data_offsets"]
    if not all(isinstance(n, int) for n in (begin, end, *described["shape"])) or end < begin:
        raise ValueError("its header holds places that are none")
    return _Part(described["dtype"], tuple(described["shape"]), origin + begin, end - begin, crc)


def _check_parts(
    name: str, shape: tuple[int, ...], dtype: str, encoding: str, parts: dict[str, _Part]
) -> None:
    """Raise unless the parts have the sizes that their types and shapes say."""
    if dtype not in _DTYPES or not all(isinstance(n, int) and n >= 0 for n in shape):
        raise ValueError(f"{name} is of type {dtype!r} and shape {shape}")
    if set(parts) != ({"values"} if encoding == "dense" else {"values", "index"}):
        raise ValueError(f"{name} lacks a part of its {encoding} encoding")
    for key, part in parts.items():
        kind, raw = _DTYPES[dtype] if key == "values" else ("U8", "u1")
        fits = part.size == math.prod(part.shape) * np.dtype(raw).itemsize
        if part.dtype != kind or not fits or min(part.shape, default=0) < 0:
            raise ValueError(f"{name}: its header and its size disagree")
    if encoding == "dense" and parts["values"].shape != shape:
        raise ValueError(f"{name}: its header names two shapes")


def _match(
    named: list[_Named], entries: list[_Entry]
) -> list[tuple[keras.Variable, WeightView, _Entry]]:
    """The variables with their entries; by name if all names are known, by position if not."""
    if len(named) != len(entries):
        raise ValueError(f"it holds {len(entries)} weights, the model has {len(named)}")
    by_name = {entry.name: entry for entry in entries}
    if set(by_name) == {name for name, _, _ in named}:
        entries = [by_name[name] for name, _, _ in named]
    found = []
    for (name, variable, view), entry in zip(named, entries, strict=True):
        dtype = keras.backend.standardize_dtype(variable.dtype)
        mine, its = (tuple(variable.shape), dtype), (entry.shape, entry.dtype)
        if mine != its:
            raise ValueError(f"{entry.name} is {its} there; {name} is {mine} in the model")
        found.append((variable, view, entry))
    return found
