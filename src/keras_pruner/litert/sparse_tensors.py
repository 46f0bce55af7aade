"""The sparse tensors of a `.tflite` file: their two encodings, and which weights to store so."""

import copy
import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from keras_pruner.litert import flatbuffer
from keras_pruner.litert.cost_model import BLOCK, LEAST_SPEEDUP, SpeedupTable, speedups_of
from keras_pruner.litert.flatbuffer import Graph, name_of, within_model
from keras_pruner.reporting.tables import Table

_SPARSE = 1  # DimensionType.SPARSE_CSR

# --------------------------------------------------------------------------------- encodings


def csr(weight: np.ndarray) -> tuple[np.ndarray, Any]:
    """Encode a weight with its last axis sparse; returns values and `SparsityParametersT`."""
    rows = weight.reshape(-1, weight.shape[-1])
    row, column = np.nonzero(rows)
    sparsity = _parameters(list(range(weight.ndim)), [])
    sparsity.dimMetadata = [_dense(size) for size in weight.shape[:-1]]
    sparsity.dimMetadata.append(_sparse(row, column, len(rows)))
    return rows[row, column], sparsity


def blocks(weight: np.ndarray) -> tuple[np.ndarray, Any]:
    """Encode a matrix in blocks of 4 along its last axis; returns as `csr` does."""
    outputs, inputs = weight.shape
    grouped = weight.reshape(outputs, inputs // BLOCK, BLOCK)
    row, column = np.nonzero(grouped.any(-1))
    sparsity = _parameters([0, 1, 2], [1])
    sparsity.dimMetadata = [_dense(outputs), _sparse(row, column, outputs), _dense(BLOCK)]
    return grouped[row, column].reshape(-1), sparsity


def block_density(weight: np.ndarray) -> float:
    """Fraction of blocks of 4 that are not all zeros; 1 for a weight that has no such blocks."""
    if weight.ndim != 2 or weight.shape[1] % BLOCK or not weight.size:
        return 1.0
    return float(weight.reshape(len(weight), -1, BLOCK).any(-1).mean())


def encoded_size(values: np.ndarray, sparsity: Any) -> int:
    """Bytes of an encoded tensor with its index."""
    size = values.nbytes
    for dimension in sparsity.dimMetadata:
        for vector in (dimension.arraySegments, dimension.arrayIndices):
            size += 0 if vector is None else vector.values.nbytes
    return size


def encoding_of(tensor: Any) -> str:
    """How a tensor is stored: "dense", "csr", "block 1x4", or "sparse" for any other form."""
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
    """The weight in a tensor, sparse or dense.

    Raises:
        ValueError: if the encoding is damaged, or neither of `csr` nor of `blocks`.
    """
    shape = tuple(flatbuffer.listed(tensor.shape))
    dtype = flatbuffer.dtype_of(tensor)
    if dtype is None:
        raise ValueError(f"{name_of(tensor)} does not hold weights of a known type")
    if data.nbytes % np.dtype(dtype).itemsize:
        raise ValueError(f"{name_of(tensor)} ends within a value")
    values: np.ndarray = np.ascontiguousarray(data).view(dtype)
    kind = encoding_of(tensor)
    if kind == "dense":
        if values.size != math.prod(shape):
            raise ValueError(f"{name_of(tensor)} does not have the size of its shape")
        return values.reshape(shape)
    if kind == "sparse":
        raise ValueError(f"{name_of(tensor)} has a sparse encoding that is not supported")
    return _decode_sparse(tensor, values, shape, 1 if kind == "csr" else _block(kind))


def _block(kind: str) -> int:
    return int(kind.removeprefix("block 1x"))


def _decode_sparse(
    tensor: Any, values: np.ndarray, shape: tuple[int, ...], block: int
) -> np.ndarray:
    name = name_of(tensor)
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
        raise ValueError(f"{name} has a sparse index that does not fit its values and shape")
    if rows * shape[-1] > max(_SMALL, _EXPANSION * values.nbytes):
        raise ValueError(f"{name} claims {rows * shape[-1]} weights")
    weight = np.zeros((rows, shape[-1] // block, block), values.dtype)
    weight[np.repeat(np.arange(rows), steps), indices] = values.reshape(-1, block)
    return weight.reshape(shape)


_SMALL, _EXPANSION = 1 << 24, 1000  # decoded weights: at most this many, or this many a byte


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


# ------------------------------------------------------------------- which weights to store sparse

# A sparse tensor must be this much smaller to be worth a DENSIFY operator.
_SMALLER = 0.95
_NO_ZEROS = "no zeros"
DENSE_INT8 = "stored dense in int8"
"""The reason for weights of int8: LiteRT computes sparse ones wrongly, or not at all."""


@dataclasses.dataclass(frozen=True)
class StoredWeight:
    """How a weight is stored in a file.

    Attributes:
        name: of the tensor.
        shape: as LiteRT stores it, outputs first.
        sparsity: fraction of zeros.
        encoding: "dense", "csr" or "block 1x4".
        execution: "native sparse", "densified" (unpacked once, when the file is loaded) or
            "dense".
        reason: why it is stored so.
        most_in_group: of the weights in any group of consecutive inputs, at most this many are
            not zero; None if the weight has no such groups, or they were not counted.
    """

    name: str
    shape: tuple[int, ...]
    sparsity: float
    encoding: str
    execution: str
    reason: str
    most_in_group: int | None = None

    @property
    def size(self) -> int:
        """Number of weights."""
        return math.prod(self.shape)


def table_of(weights: Sequence[StoredWeight], group: int | None = None) -> Table:
    """How each weight of a file is stored; the short form has the largest weights.

    With `group`, a column has the most non-zero weights in any group of that many inputs.
    """
    heads = ["weight", "shape", ">zeros", "stored", "runs", "why"]
    rows = [
        [within_model(w.name), w.shape, f"{w.sparsity:.1%}", w.encoding, w.execution, w.reason]
        for w in weights
    ]
    if group is not None:
        heads.insert(3, f">of {group}")
        for row, w in zip(rows, weights, strict=True):
            row.insert(3, "-" if w.most_in_group is None else f"<= {w.most_in_group}")
    return Table("", heads, rows, importance=[float(w.size) for w in weights])


def most_in_group(weight: np.ndarray, group: int) -> int:
    """The most non-zero weights in any group of consecutive inputs, which are the last axis.

    Example:
        >>> most_in_group(np.array([[1, 0, 2, 0, 0, 3, 4]]), 4)
        2
    """
    missing = -weight.shape[-1] % group
    padded = np.pad(weight != 0, [(0, 0)] * (weight.ndim - 1) + [(0, missing)])
    return int(padded.reshape(-1, group).sum(-1).max(initial=0))


def store_sparse(model: Any, runtime: str | SpeedupTable, batch_size: int) -> list[StoredWeight]:
    """Store weights sparse where that makes the file smaller or the runtime faster.

    Args:
        model: a dense `ModelT`, changed in place.
        runtime: where it will run, as for `advise`.
        batch_size: samples per inference.
    """
    graphs = [Graph(model, graph) for graph in model.subgraphs]
    found = [
        (graph, index)
        for graph in graphs
        for index in range(len(graph.tensors))
        if _is_weight(graph, index)
    ]
    matrices = [place for place in found if _can_run_sparse(*place)]
    sizes = [(graph, index, len(graph.data(index))) for graph, index in matrices]
    reused = sum(size for graph, index, size in sizes if _is_reused(graph, index))
    total = sum(size for _, _, size in sizes)
    stored = []
    for graph, index in found:
        read = reused if _is_reused(graph, index) else total
        stored.append(_store_best(graph, index, _Site(speedups_of(runtime), batch_size, read)))
    return [*stored, *(table for graph in graphs for table in _lookup_tables(graph))]


@dataclasses.dataclass(frozen=True)
class _Site:
    """Where a file will run, and the bytes of Dense weights among which a weight is read.

    Those are all of the model for a weight that an inference reads once. The weights of loops
    are read in every step and stay in the cache, so only they count for each other.
    """

    speedups: SpeedupTable
    batch_size: int
    model_bytes: int

    def speedup(self, form: str, sparsity: float, rows: int) -> float:
        """How many times faster a weight runs sparse that takes so many rows at once."""
        rows = max(self.batch_size, rows)
        return self.speedups.dense_speedup(form, sparsity, self.model_bytes, rows)


def _is_reused(graph: Graph, index: int) -> bool:
    """Whether an inference reads a weight several times: in a loop, or in unrolled steps."""
    return graph.is_called or len(graph.users(index)) > 1


_TAKERS = {"FULLY_CONNECTED", "CONV_2D", "DEPTHWISE_CONV_2D", "TRANSPOSE_CONV"}


def _is_weight(graph: Graph, index: int) -> bool:
    """Whether a tensor is a dense constant that only operators with weights take."""
    tensor = graph.tensors[index]
    if not len(graph.data(index)) or len(graph.shape(index)) < 2 or tensor.sparsity is not None:
        return False
    users = graph.users(index)
    known = flatbuffer.dtype_of(tensor) is not None
    return known and bool(users) and all(_takes_weights(graph, source) for source in users)


def _takes_weights(graph: Graph, source: Any) -> bool:
    """Whether an operator takes weights, itself or behind a DEQUANTIZE."""
    if graph.code(source) != "DEQUANTIZE":
        return graph.code(source) in _TAKERS
    after = graph.users(graph.outputs_of(source)[0])
    return bool(after) and all(graph.code(user) in _TAKERS for user in after)


def _lookup_tables(graph: Graph) -> list[StoredWeight]:
    """The tables of embeddings, which stay dense."""
    found = {}
    for source in graph.sources:
        if graph.code(source) != "GATHER":
            continue
        index = graph.inputs_of(source)[0]
        tensor, data = graph.tensors[index], graph.data(index)
        if flatbuffer.dtype_of(tensor) is None or not len(data) or len(graph.shape(index)) < 2:
            continue
        table = decode(tensor, data)
        zeros = float(np.mean(table == 0))
        reason = "rows are looked up in it: LiteRT has no sparse form" if zeros else _NO_ZEROS
        found[index] = StoredWeight(graph.name(index), table.shape, zeros, "dense", "dense", reason)
    return list(found.values())


def _store_best(graph: Graph, index: int, site: _Site) -> StoredWeight:
    """Store one weight in the form that suits it best."""
    tensor = graph.tensors[index]
    weight = decode(tensor, graph.data(index))
    zeros = float(np.mean(weight == 0))
    stored = functools.partial(StoredWeight, graph.name(index), weight.shape, zeros)
    if zeros == 0:
        return stored("dense", "dense", _NO_ZEROS)
    if weight.dtype == np.int8:
        return stored("dense", "dense", DENSE_INT8)
    if _can_run_sparse(graph, index):
        sparsities = {"block 1x4": 1 - block_density(weight), "csr": zeros}
        rows = _rows(graph, index)
        speedup, form = max((site.speedup(form, s, rows), form) for form, s in sparsities.items())
        if speedup > LEAST_SPEEDUP:
            store_native(graph, index, weight, form)
            return stored(form, "native sparse", f"about {speedup:.1f}x faster")
    values, sparsity = csr(weight)
    size = encoded_size(values, sparsity)
    if size > _SMALLER * weight.nbytes:
        return stored("dense", "dense", "sparse would be larger")
    _densify(graph, index, weight)
    return stored("csr", "densified", f"{weight.nbytes / size:.1f}x smaller, runs dense")


def _can_run_sparse(graph: Graph, index: int) -> bool:
    """Whether a weight fits the native sparse kernel, which takes float32 matrices."""
    tensor, model = graph.tensors[index], graph.model
    every = [t for each in model.subgraphs for t in each.tensors]
    return (
        flatbuffer.dtype_of(tensor) is np.float32
        and len(tensor.shape) == 2
        and all(graph.code(source) == "FULLY_CONNECTED" for source in graph.users(index))
        and sum(t.buffer == tensor.buffer for t in every) == 1
    )


def _rows(graph: Graph, index: int) -> int:
    """The most rows that a Dense layer takes at once: in a sequence each step is one."""
    outputs = [graph.outputs_of(source)[0] for source in graph.users(index)]
    return max(math.prod(graph.shape(output)[:-1]) for output in outputs)


_ENCODERS = {"block 1x4": blocks, "csr": csr}


def store_native(graph: Graph, index: int, weight: np.ndarray, form: str) -> None:
    """Store the weight of Dense layers for LiteRT's sparse kernel.

    Args:
        graph: of the weight; its model is changed in place.
        index: of the weight's tensor.
        weight: a float32 matrix, outputs first.
        form: "csr" or "block 1x4".
    """
    _store(graph, index, weight, _ENCODERS[form])
    builtin = flatbuffer.schema().BuiltinOperator.FULLY_CONNECTED
    for source in graph.users(index):
        source.opcodeIndex = flatbuffer.operator_code(graph.model, builtin, 8)


def _store(
    graph: Graph, index: int, weight: np.ndarray, encoder: Callable[[np.ndarray], tuple]
) -> None:
    """Give a tensor its sparse form, in a buffer of its own."""
    model, tensor = graph.model, graph.tensors[index]
    values, tensor.sparsity = encoder(weight)
    buffer = flatbuffer.schema().BufferT()
    buffer.data = np.ascontiguousarray(values).view(np.uint8).reshape(-1)
    every = [t for each in model.subgraphs for t in each.tensors]
    if sum(t.buffer == tensor.buffer for t in every) == 1:
        model.buffers[tensor.buffer].data = None
    model.buffers.append(buffer)
    tensor.buffer = len(model.buffers) - 1


def _densify(graph: Graph, index: int, weight: np.ndarray) -> None:
    """Store a tensor sparse, with a DENSIFY operator before the operators that take it."""
    tensor = graph.tensors[index]
    unpacked = copy.copy(tensor)
    unpacked.name = (tensor.name or b"") + b";dense"
    unpacked.buffer = 0
    graph.tensors.append(unpacked)
    position = len(graph.tensors) - 1
    for source in graph.users(index):
        inputs = [position if i == index else i for i in graph.inputs_of(source)]
        source.inputs = np.array(inputs, np.int32)
    _store(graph, index, weight, csr)
    densify = flatbuffer.schema().OperatorT()
    builtin = flatbuffer.schema().BuiltinOperator.DENSIFY
    densify.opcodeIndex = flatbuffer.operator_code(graph.model, builtin, 1)
    densify.inputs = np.array([index], np.int32)
    densify.outputs = np.array([position], np.int32)
    graph.sources.insert(0, densify)
