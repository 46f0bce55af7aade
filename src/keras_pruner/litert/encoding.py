"""The sparse tensors of a `.tflite` file: encode, decode, measure. No TensorFlow needed."""

import math
from typing import Any

import numpy as np

from keras_pruner.litert import flatbuffer

_SPARSE = 1  # DimensionType.SPARSE_CSR
BLOCK = 4  # consecutive inputs in a block of the native kernel


def csr(weight: np.ndarray) -> tuple[np.ndarray, Any]:
    """Values and `SparsityParametersT`, with the last axis sparse."""
    rows = weight.reshape(-1, weight.shape[-1])
    row, column = np.nonzero(rows)
    sparsity = _parameters(list(range(weight.ndim)), [])
    sparsity.dimMetadata = [_dense(size) for size in weight.shape[:-1]]
    sparsity.dimMetadata.append(_sparse(row, column, len(rows)))
    return rows[row, column], sparsity


def blocks(weight: np.ndarray) -> tuple[np.ndarray, Any]:
    """Values and `SparsityParametersT`, in blocks of 4 of the last axis of a matrix."""
    outputs, inputs = weight.shape
    grouped = weight.reshape(outputs, inputs // BLOCK, BLOCK)
    row, column = np.nonzero(grouped.any(-1))
    sparsity = _parameters([0, 1, 2], [1])
    sparsity.dimMetadata = [_dense(outputs), _sparse(row, column, outputs), _dense(BLOCK)]
    return grouped[row, column].reshape(-1), sparsity


def block_density(weight: np.ndarray) -> float:
    """The fraction of blocks of 4 that are not all zeros; 1 if they cannot be laid."""
    if weight.ndim != 2 or weight.shape[1] % BLOCK or not weight.size:
        return 1.0
    return float(weight.reshape(len(weight), -1, BLOCK).any(-1).mean())


def encoded_size(values: np.ndarray, sparsity: Any) -> int:
    """Bytes of an encoded tensor."""
    size = values.nbytes
    for dimension in sparsity.dimMetadata:
        for vector in (dimension.arraySegments, dimension.arrayIndices):
            size += 0 if vector is None else vector.values.nbytes
    return size


def name_of(tensor: Any) -> str:
    """How a tensor is stored: dense, csr, block 1x4, or sparse for a form that is none."""
    if tensor.sparsity is None:
        return "dense"
    rank = len(tensor.shape)
    formats = [dimension.format for dimension in tensor.sparsity.dimMetadata or []]
    mapped = flatbuffer.listed(tensor.sparsity.blockMap)
    if not mapped and formats == [0] * (rank - 1) + [_SPARSE]:
        return "csr"
    if rank == 2 and mapped == [1] and formats == [0, _SPARSE, 0]:
        return f"block 1x{tensor.sparsity.dimMetadata[2].denseSize}"
    return "sparse"


def decode(tensor: Any, data: np.ndarray) -> np.ndarray:
    """The weight in a tensor, sparse or not.

    Raises:
        ValueError: if the encoding is damaged or of another form than `csr` and `blocks` make.
    """
    shape = tuple(flatbuffer.listed(tensor.shape))
    dtype = flatbuffer.dtype_of(tensor)
    if dtype is None:
        raise ValueError(f"{flatbuffer.name_of(tensor)} holds no weights of a known type")
    if data.nbytes % np.dtype(dtype).itemsize:
        raise ValueError(f"{flatbuffer.name_of(tensor)} has a part of a value at its end")
    values: np.ndarray = np.ascontiguousarray(data).view(dtype)
    kind = name_of(tensor)
    if kind == "dense":
        if values.size != math.prod(shape):
            raise ValueError(f"{flatbuffer.name_of(tensor)} has not the size of its shape")
        return values.reshape(shape)
    if kind == "sparse":
        raise ValueError(f"{flatbuffer.name_of(tensor)} is sparse in a form that is not read")
    return _decode_sparse(tensor, values, shape, 1 if kind == "csr" else _block(kind))


def _block(kind: str) -> int:
    return int(kind.removeprefix("block 1x"))


def _decode_sparse(
    tensor: Any, values: np.ndarray, shape: tuple[int, ...], block: int
) -> np.ndarray:
    name = flatbuffer.name_of(tensor)
    dimensions = tensor.sparsity.dimMetadata
    sparse = dimensions[-1] if block == 1 else dimensions[1]
    segments, indices = (
        np.asarray(v.values, np.int64) for v in (sparse.arraySegments, sparse.arrayIndices)
    )
    rows = math.prod(shape[:-1])
    steps = np.diff(segments)
    if (
        block < 1
        or shape[-1] % block
        or segments.size != rows + 1
        or segments[0] != 0
        or (steps < 0).any()
        or segments[-1] != indices.size
        or values.size != indices.size * block
        or (indices.size and not 0 <= indices.min() <= indices.max() < shape[-1] // block)
    ):
        raise ValueError(f"{name} is sparse, and its index does not fit its values and shape")
    if rows * shape[-1] > max(_SMALL, _EXPANSION * values.nbytes):
        raise ValueError(f"{name} claims {rows * shape[-1]} weights")
    weight = np.zeros((rows, shape[-1] // block, block), values.dtype)
    weight[np.repeat(np.arange(rows), steps), indices] = values.reshape(-1, block)
    return weight.reshape(shape)


_SMALL, _EXPANSION = 1 << 24, 1000  # weights that a few bytes may stand for


def _parameters(order: list[int], block_map: list[int]) -> Any:
    sparsity = flatbuffer.schema().SparsityParametersT()
    sparsity.traversalOrder = np.array(order, np.int32)
    sparsity.blockMap = np.array(block_map, np.int32)
    return sparsity


def _dense(size: int) -> Any:
    dimension = flatbuffer.schema().DimensionMetadataT()
    dimension.denseSize = size
    return dimension


def _sparse(row: np.ndarray, column: np.ndarray, rows: int) -> Any:
    dimension = flatbuffer.schema().DimensionMetadataT()
    dimension.format = _SPARSE
    segments = np.concatenate([[0], np.cumsum(np.bincount(row, minlength=rows))])
    dimension.arraySegmentsType, dimension.arraySegments = _narrowest(segments)
    dimension.arrayIndicesType, dimension.arrayIndices = _narrowest(column)
    return dimension


def _narrowest(numbers: np.ndarray) -> tuple[int, Any]:
    schema = flatbuffer.schema()
    largest = numbers.max(initial=0)
    kinds = schema.SparseIndexVector
    dtype: type
    if largest < 1 << 8:
        kind, vector, dtype = kinds.Uint8Vector, schema.Uint8VectorT(), np.uint8
    elif largest < 1 << 16:
        kind, vector, dtype = kinds.Uint16Vector, schema.Uint16VectorT(), np.uint16
    else:
        kind, vector, dtype = kinds.Int32Vector, schema.Int32VectorT(), np.int32
    vector.values = numbers.astype(dtype)
    return kind, vector
