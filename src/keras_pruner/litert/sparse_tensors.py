"""Which weights of a dense `.tflite` file to store sparse, how, and doing it."""

import copy
import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from keras_pruner.litert import encoding, flatbuffer
from keras_pruner.litert.cost_model import LEAST_GAIN, SpeedupTable, gains_of
from keras_pruner.reporting.tables import Table

# A sparse tensor must be this much smaller to be worth a DENSIFY operator.
_SMALLER = 0.95
_NO_ZEROS = "no zeros"


@dataclasses.dataclass(frozen=True)
class Encoded:
    """What became of a weight in a file.

    Attributes:
        name: of the tensor.
        shape: as LiteRT has it, outputs first.
        sparsity: fraction of zeros.
        encoding: "dense", "csr" or "block 1x4".
        execution: "native sparse", "densified" (unpacked once, when loaded) or "dense".
        reason: why so.
    """

    name: str
    shape: tuple[int, ...]
    sparsity: float
    encoding: str
    execution: str
    reason: str


def table_of(weights: Sequence[Encoded]) -> Table:
    """How each weight of a file is stored; the short form has the largest weights."""
    rows = [
        (w.name, w.shape, f"{w.sparsity:.1%}", w.encoding, w.execution, w.reason) for w in weights
    ]
    heads = ["weight", "shape", ">zeros", "stored", "runs", "why"]
    return Table("", heads, rows, importance=[float(math.prod(w.shape)) for w in weights])


def encode(model: Any, runtime: str | SpeedupTable, batch_size: int) -> list[Encoded]:
    """Store weights sparse, in place, where that makes the file smaller or the runtime faster.

    Args:
        model: a dense `ModelT`.
        runtime: where it will run, as in `advise`.
        batch_size: at which it will run.
    """
    found = [
        (graph, tensor, users)
        for graph in model.subgraphs
        for tensor in list(graph.tensors)
        if (users := _users(model, graph, tensor)) is not None
    ]
    matrices = [t for _, t, users in found if _is_dense_layer(model, t, users)]
    site = _Site(
        gains_of(runtime), batch_size, sum(len(model.buffers[t.buffer].data) for t in matrices)
    )
    stored = [_encode(model, graph, tensor, users, site) for graph, tensor, users in found]
    return [*stored, *_tables(model)]


@dataclasses.dataclass(frozen=True)
class _Site:
    """Where a file will run, and with how many bytes of Dense weights."""

    gains: SpeedupTable
    batch_size: int
    model_bytes: int

    def gain(self, form: str, sparsity: float, rows: int) -> float:
        """How many times faster a weight runs sparse that takes so many rows at once."""
        most = max(self.batch_size, rows)
        return self.gains.dense_speedup(form, sparsity, self.model_bytes, most)


def _users(model: Any, graph: Any, tensor: Any) -> list[Any] | None:
    """The operators that take a constant tensor as weights; None if it is no such."""
    data = model.buffers[tensor.buffer].data
    rank = 0 if tensor.shape is None else len(tensor.shape)
    if data is None or rank < 2 or tensor.sparsity is not None or not len(data):
        return None
    if flatbuffer.dtype_of(tensor) is None:
        return None
    index = next(i for i, other in enumerate(graph.tensors) if other is tensor)
    users = [o for o in graph.operators if index in flatbuffer.listed(o.inputs)]
    return users if users and all(_takes_weights(model, graph, o) for o in users) else None


def _tables(model: Any) -> list[Encoded]:
    """The tables that rows are looked up in, as those of embeddings; they stay dense."""
    found = {}
    for graph in model.subgraphs:
        for operator in graph.operators or []:
            if flatbuffer.code_of(model, operator) != _operators().GATHER:
                continue
            tensor = graph.tensors[flatbuffer.listed(operator.inputs)[0]]
            data, shape = model.buffers[tensor.buffer].data, flatbuffer.listed(tensor.shape)
            known = flatbuffer.dtype_of(tensor) is not None
            if known and data is not None and len(data) and len(shape) > 1:
                zeros = float(np.mean(encoding.decode(tensor, data) == 0))
                reason = (
                    "rows are looked up in it: LiteRT has no sparse form" if zeros else _NO_ZEROS
                )
                name = flatbuffer.name_of(tensor)
                found[id(tensor)] = Encoded(name, tuple(shape), zeros, "dense", "dense", reason)
    return list(found.values())


def _operators() -> Any:
    return flatbuffer.schema().BuiltinOperator


def _takes_weights(model: Any, graph: Any, operator: Any) -> bool:
    """Whether an operator can take a densified constant; a DEQUANTIZE if what follows can."""
    code, known = flatbuffer.code_of(model, operator), _operators()
    if code == known.DEQUANTIZE:
        output = flatbuffer.listed(operator.outputs)[0]
        after = [o for o in graph.operators if output in flatbuffer.listed(o.inputs)]
        return bool(after) and all(flatbuffer.code_of(model, o) in _kinds() for o in after)
    return code in _kinds()


def _kinds() -> set[int]:
    known = _operators()
    return {
        known.FULLY_CONNECTED, known.CONV_2D, known.DEPTHWISE_CONV_2D, known.TRANSPOSE_CONV
    }  # fmt: skip


def _encode(model: Any, graph: Any, tensor: Any, users: list[Any], site: _Site) -> Encoded:
    """Store one weight in the form that serves best."""
    weight = encoding.decode(tensor, model.buffers[tensor.buffer].data)
    zeros = float(np.mean(weight == 0))
    tell = functools.partial(Encoded, flatbuffer.name_of(tensor), weight.shape, zeros)
    if zeros == 0:
        return tell("dense", "dense", _NO_ZEROS)
    if weight.dtype == np.int8:
        return tell("dense", "dense", "int8: sparse int8 fails in LiteRT, or computes wrongly")
    if _is_dense_layer(model, tensor, users):
        block_sparsity = 1 - encoding.block_density(weight)
        found = {"block 1x4": block_sparsity, "csr": zeros}
        rows = _rows(graph, users)
        gain, form = max((site.gain(form, zero, rows), form) for form, zero in found.items())
        if gain > LEAST_GAIN:
            store_native(model, tensor, users, weight, form)
            return tell(form, "native sparse", f"about {gain:.1f}x faster")
    values, sparsity = encoding.csr(weight)
    size = encoding.encoded_size(values, sparsity)
    if size > _SMALLER * weight.nbytes:
        return tell("dense", "dense", "sparse would be larger")
    _densify(model, graph, tensor, weight)
    return tell("csr", "densified", f"{weight.nbytes / size:.1f}x smaller, runs dense")


def _is_dense_layer(model: Any, tensor: Any, users: list[Any]) -> bool:
    """Whether a weight could run in the native sparse kernel, which takes float32 matrices."""
    every = [t for graph in model.subgraphs for t in graph.tensors]
    return (
        flatbuffer.dtype_of(tensor) is np.float32
        and len(tensor.shape) == 2
        and all(flatbuffer.code_of(model, o) == _operators().FULLY_CONNECTED for o in users)
        and sum(t.buffer == tensor.buffer for t in every) == 1
    )


def _rows(graph: Any, users: list[Any]) -> int:
    """The most rows that a Dense layer takes at once: of a sequence each step is one."""
    outputs = [graph.tensors[flatbuffer.listed(operator.outputs)[0]] for operator in users]
    return max(math.prod(flatbuffer.listed(tensor.shape)[:-1]) for tensor in outputs)


_ENCODERS = {"block 1x4": encoding.blocks, "csr": encoding.csr}


def store_native(model: Any, tensor: Any, users: list[Any], weight: np.ndarray, form: str) -> None:
    """Store the weight of Dense layers for LiteRT's sparse kernel.

    Args:
        model: a `ModelT`, changed in place.
        tensor: the weight's.
        users: the operators that take it.
        weight: a float32 matrix, outputs first.
        form: one of `gains.FORMS`.
    """
    _store(model, tensor, weight, _ENCODERS[form])
    for operator in users:
        operator.opcodeIndex = flatbuffer.operator_code(model, _operators().FULLY_CONNECTED, 8)


def _store(
    model: Any, tensor: Any, weight: np.ndarray, encoder: Callable[[np.ndarray], tuple]
) -> None:
    """Give a tensor its sparse form, in a buffer of its own."""
    values, tensor.sparsity = encoder(weight)
    buffer = flatbuffer.schema().BufferT()
    buffer.data = np.ascontiguousarray(values).view(np.uint8).reshape(-1)
    if not any(
        t.buffer == tensor.buffer and t is not tensor for g in model.subgraphs for t in g.tensors
    ):
        model.buffers[tensor.buffer].data = None
    model.buffers.append(buffer)
    tensor.buffer = len(model.buffers) - 1


def _densify(model: Any, graph: Any, tensor: Any, weight: np.ndarray) -> None:
    """Store a tensor sparse, and put a DENSIFY operator before those that take it."""
    index = next(i for i, other in enumerate(graph.tensors) if other is tensor)
    unpacked = copy.copy(tensor)
    unpacked.name = (tensor.name or b"") + b";dense"
    unpacked.buffer = 0
    graph.tensors.append(unpacked)
    position = len(graph.tensors) - 1
    for operator in graph.operators:
        inputs = flatbuffer.listed(operator.inputs)
        operator.inputs = np.array([position if i == index else i for i in inputs], np.int32)
    _store(model, tensor, weight, encoding.csr)
    operator = flatbuffer.schema().OperatorT()
    operator.opcodeIndex = flatbuffer.operator_code(model, _operators().DENSIFY, 1)
    operator.inputs = np.array([index], np.int32)
    operator.outputs = np.array([position], np.int32)
    graph.operators.insert(0, operator)
