"""Small `.keras` files that open with plain Keras."""

import dataclasses
import json
import lzma
import os
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import h5py
import keras
import numpy as np

from keras_pruner import backends
from keras_pruner.model_weights import check_model, weights_of
from keras_pruner.reporting.report import Report
from keras_pruner.reporting.tables import Table
from keras_pruner.storage.model_file import atomic_write, expands_too_far
from keras_pruner.storage.rounding import Bytes, float8, shared_values

_WEIGHTS = "model.weights.h5"
_CHUNK = 1 << 22


@dataclasses.dataclass(frozen=True)
class RoundedWeight:
    """The rounding of one kernel of a file.

    Attributes:
        path: its name in the model.
        shape: its shape.
        stored: "float16", "float8" or "shared".
        largest_error: the largest error of a weight, relative to that weight.
        error: the norm of the errors, relative to the norm of the kernel.
    """

    path: str
    shape: tuple[int, ...]
    stored: str
    largest_error: float
    error: float


@dataclasses.dataclass(frozen=True)
class SavedFile(Report):
    """A file that `kp.save_compressed` wrote.

    Attributes:
        path: the file.
        size: its size in bytes.
        rounded: the kernels that were rounded; empty if all weights are exact.
        difference: the largest difference between the outputs of the file and of the model,
            relative to the largest output; None without samples.

    Example:
        >>> print(SavedFile("small.keras", 4096, (), None))
        small.keras: 4,096 bytes
    """

    path: str
    size: int
    rounded: tuple[RoundedWeight, ...]
    difference: float | None

    def headline(self) -> str:
        """The size, and the difference of the outputs if it was measured."""
        text = f"{self.path}: {self.size:,} bytes"
        if self.rounded:
            largest = max(weight.error for weight in self.rounded)
            text += f"; kernels rounded, relative error up to {largest:.2g}"
        if self.difference is not None:
            text += f"; outputs differ by {self.difference:.1e} of the largest"
        return text

    def tables(self) -> list[Table]:
        """The rounding of each kernel; the short form has the largest errors."""
        rows = [
            (w.path, w.shape, w.stored, f"{w.error:.2g}", f"{w.largest_error:.2g}")
            for w in self.rounded
        ]
        heads = ["weight", "shape", "stored as", ">relative error", ">largest of a weight"]
        return [Table("", heads, rows, importance=[w.error for w in self.rounded])]


def save_compressed(
    model: keras.Model,
    path: str | os.PathLike[str],
    *,
    weights: str | None = None,
    samples: Any = None,
    optimizer: bool = False,
    compression: str | None = "lzma",
) -> SavedFile:
    """Save a model as a small `.keras` file that plain `keras.saving.load_model` opens.

    Zeros take next to no space. Without `weights` all values come back bit-identical, except that
    -0.0 becomes 0.0. Only one weight at a time is in memory.

    Args:
        model: any built Keras 3 model, quantized ones included.
        path: the file, ending with ".keras".
        weights: how to store the kernels of type float32; they are float32 again when loaded.
            Zeros stay zeros. Biases, scales and statistics stay exact. None: exact.
            "float16": 16 bits. "float8": one byte, with an exponent range for each kernel; the
            relative error is at most 1/16, more below 1/8192 of the largest weight. "shared": 16
            values for each kernel, zero among them, chosen by k-means; needs the extra "shared".
            With one byte, depthwise kernels and unknown matrices take float16. All of these files
            open in plain Keras, since HDF5 converts the values while they are read.
        samples: inputs of the model, with which the file is loaded and compared before this
            returns. None: no comparison.
        optimizer: also store the compile configuration and the state of the optimizer, which
            takes once or twice the size of the weights. Without it, compile the loaded model
            before you evaluate or train it.
        compression: "lzma" is the smallest; "deflate" is several times faster to write; None
            does not compress, like `model.save`.

    Returns:
        A report with the size of the file and the errors of rounding.

    Raises:
        ValueError: for a wrong argument, or weights outside the range of the type.
        ImportError: for weights="shared" without SciPy.
        OSError: if the file cannot be written; nothing is left at `path`.

    Example:
        >>> import keras, keras_pruner as kp
        >>> model = keras.Sequential([keras.Input((100,)), keras.layers.Dense(100)])
        >>> report = kp.prune(model, 0.8)
        >>> exact = kp.save_compressed(model, "small.keras")
        >>> rounded = kp.save_compressed(model, "smaller.keras", weights="float8")
        >>> exact.size > 2 * rounded.size
        True
        >>> rounded.rounded[0].largest_error < 1 / 16
        True
    """
    check_model(model)
    _check_choice("weights", weights, tuple(_FILTERS))
    _check_choice("compression", compression, tuple(_METHODS))
    with atomic_write(path, ".keras") as unfinished:
        plain = unfinished.parent / "plain"
        keras.saving.save_model(model, plain, zipped=False)
        if not optimizer:
            _forget_compilation(plain / "config.json")
        rounded: list[RoundedWeight] = []
        if weights or not optimizer:
            kernels = {} if weights is None else _kernels(model, weights)
            rounded = _rewrite_weights(plain / _WEIGHTS, kernels, optimizer)
        _take_signs_off_zeros(plain / _WEIGHTS)
        _pack(plain, unfinished, compression, weights)
        difference = None if samples is None else _difference(model, unfinished, samples)
        return SavedFile(str(path), unfinished.stat().st_size, tuple(rounded), difference)


def _check_choice(name: str, value: object, choices: tuple[object, ...]) -> None:
    if value not in choices:
        raise ValueError(
            f"`{name}` must be one of {', '.join(map(repr, choices))}. Received: {name}={value!r}."
        )


def _forget_compilation(config: Path) -> None:
    content = json.loads(config.read_text())
    content.pop("compile_config", None)
    config.write_text(json.dumps(content))


def _difference(model: keras.Model, path: Path, samples: Any) -> float:
    """The largest difference between the outputs of a model and of its file."""
    loaded = keras.saving.load_model(path, compile=False)
    largest = difference = 0.0
    outputs = [keras.tree.flatten(each.predict(samples, verbose=0)) for each in (model, loaded)]
    for mine, its in zip(*outputs, strict=True):
        largest = max(largest, float(np.abs(mine).max(initial=0)))
        difference = max(difference, float(np.abs(mine - its).max(initial=0)))
    return difference / (largest or 1.0)


_Key = tuple[tuple[int, ...], int]  # the shape of a weight and the checksum of its values


def _kernels(model: keras.Model, stored: str) -> dict[_Key, tuple[str, str]]:
    """The weights to round -> their paths and how to store them.

    The names in the file do not tell kernels from biases, of which some are matrices; so weights
    are found by their values.
    """
    found = {}
    for owned in weights_of(model):
        is_bias = "bias" in owned.variable.name
        dtype = keras.backend.standardize_dtype(owned.variable.dtype)
        if dtype != "float32" or len(owned.variable.shape) < 2 or is_bias:
            continue
        one_byte = stored != "float16" and not owned.reason(by_default=True)
        key = _key(np.asarray(backends.current().to_numpy(owned.variable)))
        found[key] = owned.path, stored if one_byte else "float16"
    return found


def _key(weight: np.ndarray) -> _Key:
    return tuple(weight.shape), zlib.crc32(np.ascontiguousarray(weight).tobytes())


def _rewrite_weights(
    path: Path, kernels: Mapping[_Key, tuple[str, str]], optimizer: bool
) -> list[RoundedWeight]:
    """Rewrite the HDF5 file without the optimizer and with rounded kernels."""
    copy = path.with_suffix(".copy")
    rounded: list[RoundedWeight] = []
    with h5py.File(path, "r") as old, h5py.File(copy, "w") as new:
        _copy_attributes(old, new)
        for name in old:
            if name == "optimizer":
                if optimizer:
                    old.copy(name, new)
            else:
                rounded += _copy_rounded(old, new, name, kernels)
    os.replace(copy, path)
    return rounded


def _copy_attributes(old: Any, new: Any) -> None:
    for key, attribute in old.attrs.items():
        new.attrs[key] = attribute


def _copy_rounded(
    old: h5py.Group, new: h5py.Group, name: str, kernels: Mapping[_Key, tuple[str, str]]
) -> Iterator[RoundedWeight]:
    """Copy a group or a dataset; kernels are rounded."""
    item = old[name]
    if isinstance(item, h5py.Group):
        group = new.create_group(name)
        _copy_attributes(item, group)
        for child in item:
            yield from _copy_rounded(item, group, child, kernels)
        return
    weight = item[...] if kernels and item.ndim > 1 and item.dtype == np.float32 else None
    found = None if weight is None else kernels.get(_key(weight))
    if weight is None or found is None:
        old.copy(name, new)
        return
    path, stored = found
    try:
        dataset, values = _ROUNDINGS[stored](new, name, weight)
    except ValueError as error:
        raise ValueError(
            f"`weights` cannot be {stored!r} for {path}: {error}. Leave `weights` out."
        ) from None
    _copy_attributes(item, dataset)
    yield _rounding(path, stored, weight, values)


def _float16(group: h5py.Group, name: str, weight: np.ndarray) -> tuple[h5py.Dataset, np.ndarray]:
    if np.abs(weight).max(initial=0) > np.finfo(np.float16).max:
        raise ValueError("float16 needs weights of at most 65504")
    # NumPy rounds; the conversion of HDF5 itself turns 0.99999 into 2.0.
    values = weight.astype(np.float16)
    return group.create_dataset(name, data=values), values


def _one_byte(rounded: Callable[[np.ndarray], Bytes]) -> Any:
    def write(group: h5py.Group, name: str, weight: np.ndarray) -> tuple[h5py.Dataset, np.ndarray]:
        found = rounded(weight)
        return found.write(group, name), found.values()

    return write


_ROUNDINGS = {
    "float16": _float16,
    "float8": _one_byte(float8),
    "shared": _one_byte(shared_values),
}


def _rounding(path: str, stored: str, weight: np.ndarray, values: np.ndarray) -> RoundedWeight:
    before = weight.astype(np.float64)
    error, kept = np.abs(values - before), before != 0
    largest = float((error[kept] / np.abs(before[kept])).max(initial=0))
    norm = float(np.linalg.norm(before)) or 1.0
    return RoundedWeight(path, weight.shape, stored, largest, float(np.linalg.norm(error)) / norm)


def _take_signs_off_zeros(path: Path) -> None:
    """Replace -0.0 by 0.0, except in the state of the optimizer."""
    with h5py.File(path, "r+") as file:
        file.visititems(_take_sign_off)


def _take_sign_off(name: str, item: h5py.Group | h5py.Dataset) -> None:
    own = isinstance(item, h5py.Dataset) and not name.startswith("optimizer/")
    if not own or item.dtype.kind != "f" or not item.ndim:
        return
    for rows in _parts(item):
        values = item[rows]
        zeros = values == 0
        if np.signbit(values[zeros]).any():
            values[zeros] = 0
            item[rows] = values


def _parts(dataset: h5py.Dataset) -> Iterator[slice]:
    """The rows of a dataset in slices of a few megabytes."""
    rows = max(1, _CHUNK * len(dataset) // max(1, dataset.nbytes))
    return (slice(start, start + rows) for start in range(0, len(dataset), rows))


def _pack(plain: Path, destination: Path, compression: str | None, weights: str | None) -> None:
    files = sorted(p for p in plain.rglob("*") if p.is_file())
    with zipfile.ZipFile(destination, "w") as archive:
        for file in files:
            info = zipfile.ZipInfo.from_file(file, file.relative_to(plain).as_posix())
            info.date_time = (1980, 1, 1, 0, 0, 0)
            _write_member(archive, file, info, compression, weights)
    members = zipfile.ZipFile(destination).infolist()
    if any(expands_too_far(member.file_size, member.compress_size) for member in members):
        with zipfile.ZipFile(
            destination, "w"
        ) as archive:  # nearly all zeros: Keras would refuse it
            for file in files:
                archive.write(file, file.relative_to(plain).as_posix())


def _write_member(
    archive: zipfile.ZipFile,
    file: Path,
    info: zipfile.ZipInfo,
    compression: str | None,
    weights: str | None,
) -> None:
    info.compress_type = _METHODS[compression]
    with file.open("rb") as source, archive.open(info, "w", force_zip64=True) as member:
        if compression == "lzma":
            # zipfile has no argument for it; without it files are valid and about 10 % larger.
            coder = _Lzma(_FILTERS[weights] if file.name == _WEIGHTS else _TEXT)
            member._compressor = coder  # type: ignore[attr-defined]
        while chunk := source.read(_CHUNK):
            member.write(chunk)


_METHODS = {"lzma": zipfile.ZIP_LZMA, "deflate": zipfile.ZIP_DEFLATED, None: zipfile.ZIP_STORED}


def _filter(lc: int, lp: int, pb: int, nice: int) -> dict[str, int]:
    """LZMA for numbers: its contexts fit their width, and it prefers literals to short matches."""
    options = {"lc": lc, "lp": lp, "pb": pb, "nice_len": nice, "depth": 2, "dict_size": 1 << 23}
    return {"id": lzma.FILTER_LZMA1, "preset": 6, "mf": lzma.MF_BT2, **options}


# By measurement: benchmarks/file_size.py.
_FILTERS: dict[str | None, dict[str, int]] = {
    None: _filter(1, 2, 2, 273),
    "float16": _filter(0, 1, 1, 64),
    "float8": _filter(0, 0, 0, 64),
    "shared": _filter(0, 0, 0, 64),
}
_TEXT = {"id": lzma.FILTER_LZMA1, "preset": 9, "lc": 3, "lp": 0, "pb": 0, "dict_size": 1 << 23}


class _Lzma:
    """LZMA as a member of a zip file holds it."""

    def __init__(self, options: dict[str, int]) -> None:
        self._coder = lzma.LZMACompressor(lzma.FORMAT_RAW, filters=[options])
        # Version of the coder, size of the properties, (pb * 5 + lp) * 9 + lc, dictionary size.
        properties = (options["pb"] * 5 + options["lp"]) * 9 + options["lc"]
        self._pending = struct.pack("<BBHBL", 9, 4, 5, properties, options["dict_size"])

    def compress(self, chunk: bytes) -> bytes:
        """Add data; return what is compressed so far."""
        head, self._pending = self._pending, b""
        return head + self._coder.compress(chunk)

    def flush(self) -> bytes:
        """Return the rest."""
        return self._pending + self._coder.flush()
