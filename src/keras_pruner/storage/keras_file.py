"""Small `.keras` files that open with plain Keras."""

import dataclasses
import io
import json
import lzma
import os
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import keras
import numpy as np

from keras_pruner import backends
from keras_pruner.model_file import atomic_write, expands_too_far
from keras_pruner.model_weights import OwnedWeight, check_model, weights_of
from keras_pruner.oneshot.calibration import Calibration
from keras_pruner.oneshot.report import Distillation
from keras_pruner.reporting.report import Report
from keras_pruner.reporting.tables import Table
from keras_pruner.storage.rounding import (
    COMPACT,
    Bytes,
    Halves,
    float8,
    layout,
    shared_for_samples,
    shared_values,
)
from keras_pruner.storage.rounding_by_samples import SampleRounding, roundings
from keras_pruner.storage.vector_training import train_vectors

_WEIGHTS = "model.weights.h5"
_NEEDS_SAMPLES = (
    "The shared values were chosen without data, which can lose accuracy. With samples=x, a few "
    "hundred inputs, rounding preserves the outputs, and large kernels take fewer bytes."
)
_CHUNK = 1 << 22


@dataclasses.dataclass(frozen=True)
class RoundedWeight:
    """The rounding of one kernel or vector of a file.

    Attributes:
        path: its name in the model.
        shape: its shape.
        stored: "float16", "float8", "shared" or "bfloat16".
        largest_error: the largest error of a value, relative to that value.
        error: the norm of the errors, relative to the norm of all values.
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
        rounded: what was rounded; empty if all weights are exact.
        difference: the largest difference between the outputs of the file and of the model,
            relative to the largest output; None without samples.
        distillation: the result of training the vectors; None without `distillation_epochs`.

    Example:
        >>> print(SavedFile("small.keras", 4096, (), None))
        small.keras: 4,096 bytes
    """

    path: str
    size: int
    rounded: tuple[RoundedWeight, ...]
    difference: float | None
    distillation: Distillation | None = None

    def headline(self) -> str:
        """The size, and the difference of the outputs if it was measured."""
        text = f"{self.path}: {self.size:,} bytes"
        if self.rounded:
            largest = max(weight.error for weight in self.rounded)
            text += f"; weights rounded, relative error up to {largest:.2g}"
        if self.difference is not None:
            text += f"; outputs differ by {self.difference:.1e} of the largest"
        return text

    def tables(self) -> list[Table]:
        """The rounding of each weight; the short form has the largest errors."""
        rows = [
            (w.path, w.shape, w.stored, f"{w.error:.2g}", f"{w.largest_error:.2g}")
            for w in self.rounded
        ]
        heads = ["weight", "shape", "stored as", ">relative error", ">largest of a weight"]
        return [Table("", heads, rows, importance=[w.error for w in self.rounded])]

    def notes(self) -> list[str]:
        """The result of training the vectors, and advice for shared values without samples."""
        blind = self.difference is None and any(w.stored == "shared" for w in self.rounded)
        notes = [_NEEDS_SAMPLES] if blind else []
        if told := self.distillation:
            error = min(told.before, told.after)
            notes.append(f"Relative error of the outputs on held-out samples: {error:.3g} ({told})")
        return notes


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
            Zeros stay zeros, and all of these files open in plain Keras, since HDF5 converts the
            values while they are read.

            - None: everything exact.
            - "float16": 16 bits.
            - "float8": one byte, with an exponent range for each kernel. The relative error is at
              most 1/16, more below 1/8192 of the largest weight. Matrices that are no kernels take
              float16.
            - "shared": 16 values for each kernel, zero among them, chosen by k-means; needs the
              extra "shared". Depthwise kernels take float8, matrices that are no kernels float16.
              Biases and vectors of normalization layers, exact in the other forms, take bfloat16:
              an error of at most 1/256 of each value. They stay exact in a batch normalization
              with a mean above 16 standard deviations.
        samples: inputs of the model. The file is loaded and compared with the model on them
            before this returns. One-byte kernels are also rounded so that the outputs of their
            layers change least on these inputs; "shared" then uses 8 values for kernels of 32,768
            weights and more. A few hundred inputs are enough. None: nearest values, no comparison.
            A `kp.oneshot.Calibration` with `distillation_epochs` also trains biases and the
            vectors of normalization layers to reproduce the model's outputs, without labels. In a
            network of narrow layers, 20 epochs of 512 samples restore most of what shared values
            lose. What is trained keeps 12 significant bits. Its `refit` and `batch_norm` have no
            meaning here.
        optimizer: also store the compile configuration and the state of the optimizer, which
            takes once or twice the size of the weights. Without it, compile the loaded model
            before you evaluate or train it.
        compression: "lzma" is the smallest; "deflate" is several times faster to write; None
            does not compress, like `model.save`.

    Returns:
        A report with the size of the file and the errors of rounding.

    Raises:
        ValueError: for a wrong argument, weights outside the range of the type, or
            `distillation_epochs` where nothing is rounded or nothing else can be trained.
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
    _check_choice("weights", weights, (None, "float16", "float8", "shared"))
    _check_choice("compression", compression, ("lzma", "deflate", None))
    form, inputs, epochs = _Form(weights, compression, optimizer), samples, 0
    if isinstance(samples, Calibration):
        epochs = samples.distillation_epochs
        form.check_training(epochs)
        inputs = samples.read(model).inputs
        samples = dataclasses.replace(samples, data=inputs)
    with atomic_write(path, ".keras") as unfinished:
        rounded = form.write(model, unfinished, samples)
        distillation = form.train(model, unfinished, samples) if epochs else None
        difference = None if inputs is None else _difference(model, unfinished, inputs)
        size = unfinished.stat().st_size
        return SavedFile(str(path), size, tuple(rounded), difference, distillation)


@dataclasses.dataclass(frozen=True)
class _Form:
    """How a model is written.

    Attributes:
        weights: how to store the kernels; None: exact.
        compression: "lzma", "deflate" or None.
        optimizer: whether to store the state of the optimizer.
    """

    weights: str | None
    compression: str | None
    optimizer: bool

    def write(self, model: keras.Model, path: Path, samples: Any = None) -> list[RoundedWeight]:
        """Write a file; samples choose the rounding."""
        small = self.compression is not None or self.weights is not None
        kernels = {} if self.weights is None else _kernels(model, self.weights, samples)
        with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
            plain = Path(scratch, "plain")
            keras.saving.save_model(model, plain, zipped=False)
            if not self.optimizer:
                _forget_compilation(plain / "config.json")
            file = plain / _WEIGHTS
            rounded = _rewrite_weights(file, kernels, optimizer=self.optimizer, small=small)
            _take_signs_off_zeros(file)
            _pack(plain, path, self.compression, self.weights)
        return rounded

    def check_training(self, epochs: int) -> None:
        """Raise if vectors would be trained although all kernels are exact."""
        if epochs and self.weights is None:
            raise ValueError(
                "`distillation_epochs` trains biases and normalization beside rounded kernels. "
                f"Received: distillation_epochs={epochs} with weights=None. "
                "Choose 'float8' or 'shared', or leave it out."
            )

    def train(self, model: keras.Model, path: Path, options: Calibration) -> Distillation:
        """Train the vectors of a file of this form, and write it again if that helps."""
        rounded = keras.saving.load_model(path, compile=self.optimizer)
        kernels = [
            owned.variable
            for owned in weights_of(rounded)
            if self.weights and _kind(owned, self.weights) not in (None, "bfloat16")
        ]
        result = train_vectors(model, rounded, kernels, options)
        if result.kept:
            self.write(rounded, path)  # rounding changes no kernel that is rounded already
        return result


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


@dataclasses.dataclass(frozen=True)
class _Rounding:
    """A weight to round.

    Attributes:
        path: its name in the model.
        stored: "float16", "float8", "shared" or "bfloat16".
        by_samples: improves the rounding of one byte a weight; None without samples.
    """

    path: str
    stored: str
    by_samples: SampleRounding | None = None

    def write(
        self, group: h5py.Group, name: str, weight: np.ndarray
    ) -> tuple[h5py.Dataset, np.ndarray]:
        """Store the rounded weight; returns its dataset and its values."""
        try:
            if self.stored == "float16":
                values = _float16(weight)
                options = layout(values.nbytes)
                return group.create_dataset(name, data=values, dcpl=options), values
            rounded = Halves.of(weight) if self.stored == "bfloat16" else self._one_byte(weight)
        except ValueError as error:
            raise ValueError(
                f"`weights` cannot be {self.stored!r} for {self.path}: {error}. "
                "Leave `weights` out."
            ) from None
        return rounded.write(group, name), rounded.values()

    def _one_byte(self, weight: np.ndarray) -> Bytes:
        if self.by_samples is None:
            return float8(weight) if self.stored == "float8" else shared_values(weight)
        if self.stored == "float8":
            return self.by_samples(weight, float8(weight))
        return self.by_samples(weight, shared_for_samples(weight))


def _float16(weight: np.ndarray) -> np.ndarray:
    if np.abs(weight).max(initial=0) > np.finfo(np.float16).max:
        raise ValueError("float16 needs weights of at most 65504")
    # NumPy rounds; the conversion of HDF5 itself turns 0.99999 into 2.0.
    return weight.astype(np.float16)


def _kernels(model: keras.Model, stored: str, samples: Any) -> dict[_Key, _Rounding]:
    """The weights to round, by their shape and the checksum of their values.

    Names in the file do not tell kernels from biases, and some biases are matrices. So weights
    are found in the file by their values.
    """
    by_samples = {} if samples is None or stored == "float16" else roundings(model, samples)
    found = {}
    for owned in weights_of(model):
        kind = _kind(owned, stored)
        if kind is not None:
            found[_key(_array(owned.variable))] = _Rounding(
                owned.path, kind, by_samples.get(id(owned.variable))
            )
    return found


def _array(variable: keras.Variable) -> np.ndarray:
    return np.asarray(backends.current().to_numpy(variable))


def _kind(owned: OwnedWeight, stored: str) -> str | None:
    """How to store a weight; None: exact."""
    variable, layer = owned.variable, owned.layer
    if keras.backend.standardize_dtype(variable.dtype) != "float32":
        return None
    if "bias" in variable.name or variable.name in _OF_NORMS:
        is_norm = isinstance(layer, keras.layers.BatchNormalization)
        if stored != "shared" or not variable.shape or (is_norm and _is_far_from_zero(layer)):
            return None
        return "bfloat16"
    if len(variable.shape) < 2:
        return None
    if owned.is_depthwise:  # few weights, and the network is sensitive to them
        return "float8" if stored == "shared" else stored
    return "float16" if owned.reason(by_default=True) else stored


_OF_NORMS = ("gamma", "beta", "moving_mean", "moving_variance")
_FAR = 16  # standard deviations


def _is_far_from_zero(norm: keras.layers.BatchNormalization) -> bool:
    """Whether a mean needs more digits than a bfloat16 has."""
    mean, variance = _array(norm.moving_mean), _array(norm.moving_variance)
    return bool((np.abs(mean) > _FAR * np.sqrt(variance + norm.epsilon)).any())


def _key(weight: np.ndarray) -> _Key:
    return tuple(weight.shape), zlib.crc32(np.ascontiguousarray(weight).tobytes())


def _rewrite_weights(
    path: Path, kernels: Mapping[_Key, _Rounding], *, optimizer: bool, small: bool
) -> list[RoundedWeight]:
    """Rewrite the HDF5 file without the optimizer and with rounded kernels.

    Args:
        path: the file.
        kernels: the weights to round.
        optimizer: keep the state of the optimizer.
        small: leave out empty groups, store vectors before kernels, and small arrays beside
            their descriptions. Otherwise the layout is that of Keras.
    """
    copy = path.with_suffix(".copy")
    with h5py.File(path, "r") as old, h5py.File(copy, "w") as new:
        names = [name for name in old if name != "optimizer" or optimizer]
        _copy_attributes(old, new)
        if small:
            rounded = list(_copy_small(old, new, names, kernels))
        else:
            rounded = []
            for name in names:
                old.copy(name, new)
    os.replace(copy, path)
    return rounded


def _copy_attributes(old: Any, new: Any) -> None:
    for key, attribute in old.attrs.items():
        new.attrs[key] = attribute


def _copy_small(
    old: h5py.File,
    new: h5py.File,
    names: Sequence[str],
    kernels: Mapping[_Key, _Rounding],
) -> Iterator[RoundedWeight]:
    """Copy the datasets of some groups, vectors first; yields what was rounded."""
    found: list[Any] = [old[name] for name in names]
    for group in list(filter(_is_group, found)):
        group.visititems(lambda _, item: found.append(item))
    found = [item for item in found if not _is_group(item)]
    for item in sorted(found, key=lambda item: item.ndim > 1):  # keeps the order otherwise
        group = _like(item.parent, new)
        name = item.name.rpartition("/")[2]
        weight = item[...] if kernels and item.ndim and item.dtype == np.float32 else None
        known = None if weight is None else kernels.get(_key(weight))
        if weight is not None and known:
            dataset, values = known.write(group, name, weight)
            yield _rounding(known, weight, values)
        elif item.nbytes <= COMPACT:
            dataset = group.create_dataset(name, data=item[()], dcpl=layout(item.nbytes))
        else:
            item.file.copy(item, group, name)
            continue
        _copy_attributes(item, dataset)


def _is_group(item: Any) -> bool:
    return isinstance(item, h5py.Group)


def _like(group: h5py.Group, new: h5py.File) -> h5py.Group:
    """The group with the same name and attributes in a new file."""
    if group.name not in new:
        _like(group.parent, new)
        _copy_attributes(group, new.create_group(group.name))
    return new[group.name]


def _rounding(kernel: _Rounding, weight: np.ndarray, values: np.ndarray) -> RoundedWeight:
    before = weight.astype(np.float64)
    error, kept = np.abs(values - before), before != 0
    largest = float((error[kept] / np.abs(before[kept])).max(initial=0))
    norm = float(np.linalg.norm(before)) or 1.0
    total = float(np.linalg.norm(error)) / norm
    return RoundedWeight(kernel.path, weight.shape, kernel.stored, largest, total)


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
            name = file.relative_to(plain).as_posix()
            chosen = _coders(compression, weights if file.name == _WEIGHTS else "text")
            coder = chosen[0] if len(chosen) == 1 else min(chosen, key=lambda c: c.size(file))
            coder.write(archive, file, name)
    members = zipfile.ZipFile(destination).infolist()
    if any(expands_too_far(member.file_size, member.compress_size) for member in members):
        with zipfile.ZipFile(destination, "w") as archive:  # so many zeros: Keras would refuse it
            for file in files:
                archive.write(file, file.relative_to(plain).as_posix())


@dataclasses.dataclass(frozen=True)
class _Coder:
    """A way to compress a member of a zip file.

    Attributes:
        method: the constant of `zipfile`.
        options: of LZMA; None for another method.
    """

    method: int
    options: Mapping[str, int] | None = None

    def size(self, file: Path) -> int:
        """The number of bytes that a file takes."""
        counted = _Counted()
        with zipfile.ZipFile(counted, "w") as archive:
            self.write(archive, file, "")
        return counted.size

    def write(self, archive: zipfile.ZipFile, file: Path, name: str) -> None:
        """Add a file to an archive."""
        info = zipfile.ZipInfo(name)
        info.compress_type = self.method
        info.external_attr = 0o644 << 16
        with file.open("rb") as source, archive.open(info, "w", force_zip64=True) as member:
            if self.options is not None:
                # zipfile has no argument for it; without it files are valid and 10 % larger.
                member._compressor = _Lzma(self.options)  # type: ignore[attr-defined]
            while chunk := source.read(_CHUNK):
                member.write(chunk)


class _Counted(io.RawIOBase):
    """A stream that only counts its bytes."""

    size = 0

    def writable(self) -> bool:
        """True."""
        return True

    def write(self, content: Any) -> int:
        """Count."""
        self.size += len(content)
        return len(content)


def _coders(compression: str | None, content: str | None) -> tuple[_Coder, ...]:
    """The coders to try; `content` is "text", or how kernels are stored."""
    if compression is None:
        return (_Coder(zipfile.ZIP_STORED),)
    if compression == "deflate":
        return (_Coder(zipfile.ZIP_DEFLATED),)
    return _BEST[content]


def _lzma(lc: int, lp: int, pb: int, nice: int, depth: int = 2) -> _Coder:
    """LZMA for numbers: its contexts fit their width, and it prefers literals to short matches."""
    options = {"lc": lc, "lp": lp, "pb": pb, "nice_len": nice, "depth": depth}
    options |= {"id": lzma.FILTER_LZMA1, "preset": 6, "mf": lzma.MF_BT2, "dict_size": 1 << 23}
    return _Coder(zipfile.ZIP_LZMA, options)


# The smallest of a few is taken, since none wins on every network: bytes are best coded alone,
# unless many values of two or four bytes stand between them; bzip2 is for nearly all zeros.
_BYTES = (
    _lzma(0, 0, 0, 64),
    _lzma(0, 1, 1, 273, 1),
    _lzma(0, 2, 2, 273),
    _Coder(zipfile.ZIP_BZIP2),
)
_BEST: dict[str | None, tuple[_Coder, ...]] = {
    None: (_lzma(1, 2, 2, 273),),
    "float16": (_lzma(0, 1, 1, 64),),
    "float8": _BYTES,
    "shared": _BYTES,
    "text": (_lzma(3, 0, 0, 273, 1000),),
}


class _Lzma:
    """LZMA as a member of a zip file holds it."""

    def __init__(self, options: Mapping[str, int]) -> None:
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
