"""`.keras` files that are several times smaller and open with plain Keras."""

import json
import lzma
import os
import struct
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import keras
import numpy as np

from keras_pruner.model_weights import check_model
from keras_pruner.storage.model_file import atomic_write, expands_too_far

_WEIGHTS = "model.weights.h5"
_CHUNK = 1 << 22


def save_compressed(
    model: keras.Model,
    path: str | os.PathLike[str],
    *,
    weights: str | None = None,
    optimizer: bool = False,
    compression: str | None = "lzma",
) -> int:
    """Save a model as a small `.keras` file that `keras.saving.load_model` opens as it is.

    Zeros cost next to nothing in it. Weights come back bit-identical unless `weights` rounds
    them; but -0.0, which `weight * mask` leaves, and whose sign would take up to a bit of the
    file each, comes back as 0.0. What needs memory is one weight at a time; the rest passes
    through the disk.

    Args:
        model: any built Keras 3 model; quantized ones as well.
        path: of the file, ending with ".keras".
        weights: "float16" stores kernels (float32 of rank 2 and more) with 16 bits; they are
            float32 again when loaded, with values rounded to 11 significant bits. None: as they
            are.
        optimizer: also keep the compile configuration and the optimizer's state, which is as
            large as the weights or twice that. Without, the model must be compiled before it is
            evaluated or trained again.
        compression: "lzma", the smallest; "deflate", several times faster to write; None: not
            at all, as `model.save` does.

    Returns:
        The size of the file in bytes.

    Raises:
        ValueError: for a wrong argument, or weights too large for float16.
        OSError: if the file cannot be written; nothing is left at `path`.
    """
    check_model(model)
    _check_choice("weights", weights, (None, "float16"))
    _check_choice("compression", compression, tuple(_METHODS))
    with atomic_write(path, ".keras") as unfinished:
        plain = unfinished.parent / "plain"
        keras.saving.save_model(model, plain, zipped=False)
        if not optimizer:
            _forget_compilation(plain / "config.json")
        if weights or not optimizer:
            _rewrite_weights(plain / _WEIGHTS, weights, optimizer)
        _take_signs_off_zeros(plain / _WEIGHTS)
        _pack(plain, unfinished, compression)
        return unfinished.stat().st_size


def _check_choice(name: str, value: object, choices: tuple[object, ...]) -> None:
    if value not in choices:
        raise ValueError(
            f"`{name}` must be one of {', '.join(map(repr, choices))}. Received: {name}={value!r}."
        )


def _forget_compilation(config: Path) -> None:
    content = json.loads(config.read_text())
    content.pop("compile_config", None)
    config.write_text(json.dumps(content))


def _rewrite_weights(path: Path, weights: str | None, optimizer: bool) -> None:
    """Copy the HDF5 file in place of itself, without the optimizer and with smaller values."""
    copy = path.with_suffix(".copy")
    with h5py.File(path, "r") as old, h5py.File(copy, "w") as new:
        _copy_attributes(old, new)
        for name in old:
            if name == "optimizer" and not optimizer:
                continue
            if weights is None or name == "optimizer":
                old.copy(name, new)
            else:
                _copy_rounded(old, new, name)
    os.replace(copy, path)


def _copy_attributes(old: Any, new: Any) -> None:
    for key, attribute in old.attrs.items():
        new.attrs[key] = attribute


def _copy_rounded(old: h5py.Group, new: h5py.Group, name: str) -> None:
    """Copy a group or a dataset, float32 kernels as float16."""
    item = old[name]
    if isinstance(item, h5py.Group):
        group = new.create_group(name)
        _copy_attributes(item, group)
        for child in item:
            _copy_rounded(item, group, child)
    elif item.dtype != np.float32 or item.ndim < 2:
        old.copy(name, new)
    else:
        rounded = new.create_dataset(name, item.shape, np.float16)
        _copy_attributes(item, rounded)
        for rows in _parts(item):
            values = item[rows]
            if np.abs(values).max(initial=0) > np.finfo(np.float16).max:
                raise ValueError(
                    '`weights="float16"` needs weights of at most 65504. Received: larger ones '
                    f"in {item.name}. Leave `weights` out."
                )
            # NumPy rounds; the conversion of HDF5 itself turns 0.99999 into 2.0.
            rounded[rows] = values.astype(np.float16)


def _take_signs_off_zeros(path: Path) -> None:
    """Write 0.0 for -0.0, but for the optimizer's."""
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
    """The rows of a dataset, as many at a time as a buffer holds."""
    rows = max(1, _CHUNK * len(dataset) // max(1, dataset.nbytes))
    return (slice(start, start + rows) for start in range(0, len(dataset), rows))


def _pack(plain: Path, destination: Path, compression: str | None) -> None:
    files = sorted(p for p in plain.rglob("*") if p.is_file())
    with zipfile.ZipFile(destination, "w") as archive:
        for file in files:
            info = zipfile.ZipInfo.from_file(file, file.relative_to(plain).as_posix())
            info.date_time = (1980, 1, 1, 0, 0, 0)
            _write_member(archive, file, info, compression)
    members = zipfile.ZipFile(destination).infolist()
    if any(expands_too_far(member.file_size, member.compress_size) for member in members):
        with zipfile.ZipFile(destination, "w") as archive:  # nearly all zeros: plain, or refused
            for file in files:
                archive.write(file, file.relative_to(plain).as_posix())


def _write_member(
    archive: zipfile.ZipFile, file: Path, info: zipfile.ZipInfo, compression: str | None
) -> None:
    info.compress_type = _METHODS[compression]
    with file.open("rb") as source, archive.open(info, "w", force_zip64=True) as member:
        if compression == "lzma":
            # The only way to tell zipfile how; without it the file is valid, and 7 % larger.
            member._compressor = _FloatLzma()  # type: ignore[attr-defined]
        while chunk := source.read(_CHUNK):
            member.write(chunk)


_METHODS = {"lzma": zipfile.ZIP_LZMA, "deflate": zipfile.ZIP_DEFLATED, None: zipfile.ZIP_STORED}


class _FloatLzma:
    """LZMA as zip files hold it, told that bytes come in fours."""

    def __init__(self) -> None:
        filters = [{"id": lzma.FILTER_LZMA1, "preset": 6, "lc": 2, "lp": 2, "pb": 2}]
        self._coder = lzma.LZMACompressor(lzma.FORMAT_RAW, filters=filters)
        # Version of the coder, size of the properties, (pb * 5 + lp) * 9 + lc, dictionary size.
        self._pending = struct.pack("<BBHBL", 9, 4, 5, (2 * 5 + 2) * 9 + 2, 1 << 23)

    def compress(self, chunk: bytes) -> bytes:
        """What comes out when `chunk` goes in."""
        head, self._pending = self._pending, b""
        return head + self._coder.compress(chunk)

    def flush(self) -> bytes:
        """The rest."""
        return self._pending + self._coder.flush()
