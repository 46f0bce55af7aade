"""Kernels of one byte a weight: floats with an exponent bias of their own, shared values.

HDF5 describes floating-point types by their fields, and h5py converts them while it reads: a file
with such kernels opens in plain Keras. Vectors can take two bytes a value.
"""

import dataclasses
import warnings

import h5py
import numpy as np

from keras_pruner.validation import need

_EXPONENTS, _MANTISSA = 15, 3  # exponent fields 0 to 14 (15 means infinity), bits of the mantissa
_SHARED = 16  # values of a kernel with shared values, zero among them
_FEW = 8  # the same in a large kernel, where samples choose the rounding
_LARGE = 1 << 15  # weights of a large kernel, at least
_SAMPLE = 1 << 17  # weights that k-means looks at
COMPACT = 60_000  # bytes of an array stored in its HDF5 header, which has room for 64 KiB
_LEAST = 1 << 10  # weights of a kernel with shared values: smaller ones lose more than they save


@dataclasses.dataclass(frozen=True)
class Bytes:
    """A kernel as one byte a weight.

    Attributes:
        codes: unsigned bytes: the sign, four bits of exponent, three of mantissa; 0 for zeros.
        bias: the bias of the exponent, such that the largest weight has the largest exponent.
    """

    codes: np.ndarray
    bias: int

    def values(self) -> np.ndarray:
        """The kernel as readers of the file see it, in float64."""
        return _table(self.bias)[self.codes]

    def grid(self) -> np.ndarray:
        """The values that weights may take, ascending, without zero: those used, or all floats."""
        used = np.unique(self.codes)
        if used.size <= _SHARED:
            return np.sort(_table(self.bias)[used[used != 0]])
        positive = _table(self.bias)[1 : _EXPONENTS << _MANTISSA]
        return np.concatenate([-positive[::-1], positive])

    def with_values(self, values: np.ndarray) -> "Bytes":
        """A kernel of the same type, with other values of `grid`."""
        positive = _table(self.bias)[: _EXPONENTS << _MANTISSA]
        codes = _nearest(positive, np.abs(values)).astype(np.uint8)
        codes[values < 0] |= 0x80
        return Bytes(codes, self.bias)

    def write(self, group: h5py.Group, name: str) -> h5py.Dataset:
        """Store the kernel as a dataset of a one-byte float type."""
        kind = h5py.h5t.IEEE_F16LE.copy()
        kind.set_fields(7, _MANTISSA, 4, 0, _MANTISSA)  # sign, exponent and mantissa: place, bits
        kind.set_size(1)
        kind.set_precision(8)
        kind.set_ebias(self.bias)
        return _store(group, name, self.codes, kind)


def _store(group: h5py.Group, name: str, codes: np.ndarray, kind: h5py.h5t.TypeID) -> h5py.Dataset:
    """Write codes as a dataset of a type of HDF5."""
    space = h5py.h5s.create_simple(codes.shape)
    dataset = h5py.h5d.create(group.id, name.encode(), kind, space, layout(codes.nbytes))
    dataset.write(h5py.h5s.ALL, h5py.h5s.ALL, codes, kind)
    return h5py.Dataset(dataset)


def layout(size: int) -> h5py.h5p.PropDCID:
    """HDF5's layout for an array of `size` bytes: small arrays are stored in their header."""
    options = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    options.set_obj_track_times(False)
    if size <= COMPACT:
        options.set_layout(h5py.h5d.COMPACT)
    return options


@dataclasses.dataclass(frozen=True)
class Halves:
    """A vector as bfloat16: the range of float32, and an error of at most 1/256 of each value.

    Attributes:
        codes: the upper halves of the rounded values, unsigned.
    """

    codes: np.ndarray

    @classmethod
    def of(cls, vector: np.ndarray) -> "Halves":
        """Round float32 values to the nearest.

        Example:
            >>> Halves.of(np.array([0.0, 1.003, -0.1], "float32")).values().tolist()
            [0.0, 1.0, -0.10009765625]
        """
        upper = (np.ascontiguousarray(vector).view(np.uint32) + np.uint32(1 << 15)) >> 16
        return cls(np.where(np.isnan(vector), 0x7FC0, upper).astype(np.uint16))

    def values(self) -> np.ndarray:
        """The vector as readers of the file see it."""
        return (self.codes.astype(np.uint32) << 16).view(np.float32)

    def write(self, group: h5py.Group, name: str) -> h5py.Dataset:
        """Store the vector as a dataset of type bfloat16."""
        kind = h5py.h5t.IEEE_F16LE.copy()
        kind.set_fields(15, 7, 8, 0, 7)
        kind.set_ebias(127)
        return _store(group, name, self.codes, kind)


def float8(kernel: np.ndarray) -> Bytes:
    """Round each weight to the nearest float of four exponent bits and three mantissa bits.

    Zeros stay zeros. The relative error is at most 1/16 for weights above 1/8192 of the largest;
    smaller ones have fewer bits, and the smallest become zero.

    Args:
        kernel: finite weights of any shape, with absolute values below 2**14.

    Raises:
        ValueError: for weights that are not finite or too large.

    Example:
        >>> float8(np.array([0.0, 0.30, -0.52, 1.0])).values().tolist()
        [0.0, 0.3125, -0.5, 1.0]
    """
    largest = float(np.abs(kernel).max(initial=0))
    if not largest < 2.0**14:  # HDF5 cannot read floats with a bias of 0
        raise ValueError("one-byte floats need finite weights below 16384")
    exponent = int(np.floor(np.log2(largest))) if largest else 0
    bias = _EXPONENTS - 1 - exponent
    positive = _table(bias)[: _EXPONENTS << _MANTISSA]
    codes = _nearest(positive, np.abs(kernel)).astype(np.uint8)
    codes[(kernel < 0) & (codes != 0)] |= 0x80
    return Bytes(codes, bias)


def shared_values(kernel: np.ndarray, count: int = _SHARED) -> Bytes:
    """Round each weight to one of 16 values: zero and 15 that k-means chooses.

    Each value is a one-byte float. Zeros stay zeros, and no other weight becomes zero. Kernels of
    fewer than 1024 weights are left to `float8`.

    Args:
        kernel: finite weights of any shape.
        count: the number of values, zero among them.

    Raises:
        ValueError: for weights that are not finite or too large.
        ImportError: without SciPy, the extra "shared".

    Example:
        >>> kernel = np.random.default_rng(0).normal(size=(64, 64))
        >>> len(np.unique(shared_values(kernel).values()))
        15
    """
    weights = kernel[kernel != 0].astype(np.float64)
    exact = float8(kernel)
    if not weights.size or kernel.size < _LEAST:
        return exact
    centers = np.unique(float8_like(exact.bias, _centers(weights, count - 1)))
    centers = centers[centers != 0]
    if not centers.size:
        return exact
    table = {value: code for code, value in enumerate(_table(exact.bias)) if code & 0x7F}
    chosen = np.array([table[value] for value in centers], np.uint8)
    codes = np.zeros(kernel.shape, np.uint8)
    codes[kernel != 0] = chosen[_nearest(centers, weights)]
    return Bytes(codes, exact.bias)


def shared_for_samples(kernel: np.ndarray) -> Bytes:
    """Shared values for rounding by samples: 8 in a large kernel, 16 in a smaller one.

    In a small kernel, the larger errors of 8 values do not average out over the few outputs, and
    it takes little of the file anyway.
    """
    return shared_values(kernel, _FEW if kernel.size >= _LARGE else _SHARED)


def float8_like(bias: int, values: np.ndarray) -> np.ndarray:
    """The one-byte floats with that bias nearest to some values."""
    positive = _table(bias)[: _EXPONENTS << _MANTISSA]
    return np.sign(values) * positive[_nearest(positive, np.abs(values))]


def _centers(weights: np.ndarray, count: int) -> np.ndarray:
    """The values that k-means chooses, starting at quantiles; all weights if few are different."""
    different = np.unique(weights)
    if different.size <= count:
        return different
    sample = weights[:: max(1, weights.size // _SAMPLE)][:, None]
    shares = (np.arange(count) + 0.5) / count
    start = np.unique(np.quantile(sample, shares))[:, None]
    kmeans = need("scipy.cluster.vq", "shared").kmeans2
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # an empty cluster keeps its value
        return kmeans(sample, start, iter=30, minit="matrix", missing="warn")[0].reshape(-1)


def _table(bias: int) -> np.ndarray:
    """The value of each of the 256 codes. Codes of infinity and NaN are never written."""
    codes = np.arange(256)
    exponent, mantissa = codes >> _MANTISSA & 15, codes & 7
    sizes = np.where(
        exponent == 0,
        np.ldexp(mantissa / 8, 1 - bias),
        np.ldexp(1 + mantissa / 8, exponent - bias),
    )
    return np.where(codes & 0x80, -sizes, sizes)


def _nearest(grid: np.ndarray, values: np.ndarray) -> np.ndarray:
    """For each value, the index of the nearest one in an ascending grid."""
    return np.searchsorted((grid[1:] + grid[:-1]) / 2, values)
