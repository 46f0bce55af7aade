"""The operator DECODE of TensorFlow Lite Micro, which unpacks weights while a network runs.

It takes pairs of tensors: encoded data, and ancillary data that begin with a header of 16 bytes.
Two of its encodings are written and read here: a bit for each weight with the non-zero values,
and indices into look-up tables. Its Huffman codes would take about as many bytes at 80 to 90 %
zeros (a code has at least one bit), with larger tables and a slower loop.
"""

import copy
import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from keras_pruner.litert import flatbuffer
from keras_pruner.litert.flatbuffer import Graph, name_of

OPERATOR = "TFLM_DECODE"


# ---------------------------------------------------------------------------- encodings


@dataclasses.dataclass(frozen=True)
class Encoded:
    """A weight as DECODE reads it.

    Attributes:
        form: its name.
        data: bits or indices, most significant bit first.
        ancillary: header of 16 bytes, then the values or tables.
    """

    form: str
    data: bytes
    ancillary: bytes

    @property
    def size(self) -> int:
        """Bytes of both, and about those of the operator and its two tensors."""
        return len(self.data) + len(self.ancillary) + _OVERHEAD


PRUNED = "bits and values"
_OVERHEAD = 350  # bytes of the operator and its two tensors, on the average
_LUT, _PRUNE, _VERSION = 0, 2, 1
_WIDEST = 7  # bits of an index
_ONE_TABLE = 15  # in place of an axis


def pruned(weight: np.ndarray) -> Encoded:
    """A bit for each weight, and the values that are not zero.

    Example:
        >>> found = pruned(np.array([[0, 5, 0, 0, -1, 0, 0, 0, 7]], np.int8))
        >>> list(found.data), list(found.ancillary[16:])
        ([72, 128], [5, 255, 7])
    """
    flat = weight.reshape(-1)
    header = bytes([_PRUNE, _VERSION, 0, 0, 1]) + bytes(11)
    data = np.packbits(flat != 0).tobytes()
    return Encoded(PRUNED, data, header + flat[flat != 0].tobytes())


def table(weight: np.ndarray, axis: int | None) -> Encoded | None:
    """Indices into a table of values, or into one for each channel; None for too many values.

    Args:
        weight: of any shape.
        axis: of the channels, first or last; None: one table.

    Example:
        >>> found = table(np.array([[0, 5], [5, 5], [0, 0]], np.int8), None)
        >>> found.form, list(found.data), list(found.ancillary[16:])
        ('table of 2', [112], [0, 5])
    """
    channels = [weight] if axis is None else list(np.moveaxis(weight, axis, 0))
    tables = [np.unique(channel) for channel in channels]
    stride = max(len(values) for values in tables)
    bits = max(1, (stride - 1).bit_length())
    if bits > _WIDEST:
        return None
    found = [np.searchsorted(t, c) for t, c in zip(tables, channels, strict=True)]
    indices = found[0] if axis is None else np.moveaxis(np.stack(found), 0, axis)
    wide = (indices.reshape(-1, 1) >> np.arange(bits - 1, -1, -1)) & 1
    where = (_ONE_TABLE if axis is None else axis) << 4
    header = bytes([_LUT, _VERSION, 0, 0, 1, where | bits, stride]) + bytes(9)
    rows = [np.pad(values, (0, stride - len(values))) for values in tables]
    data = np.packbits(wide.astype(np.uint8)).tobytes()
    return Encoded(f"table of {stride}", data, header + np.concatenate(rows).tobytes())


# ------------------------------------------------------------------------- the file


def insert(content: Any, chosen: dict[tuple[int, int], Encoded]) -> None:
    """Put a DECODE before every operator that takes one of these weights.

    It unpacks for one operator only: TFLM keeps the result no longer.

    Args:
        content: a `ModelT`, which is changed.
        chosen: (graph, tensor) -> its encoding.
    """
    if not chosen:
        return
    schema = flatbuffer.schema()
    code = schema.OperatorCodeT()
    code.builtinCode = code.deprecatedBuiltinCode = schema.BuiltinOperator.CUSTOM
    code.customCode, code.version = OPERATOR.encode(), 1
    content.operatorCodes.append(code)
    for number, graph in enumerate(content.subgraphs):
        forms = {tensor: form for (g, tensor), form in chosen.items() if g == number}
        placed: dict[int, tuple[int, int]] = {}
        operators = []
        for source in graph.operators:
            taken = [i for i in dict.fromkeys(flatbuffer.listed(source.inputs)) if i in forms]
            if taken:
                operators.append(_decode(content, graph, taken, forms, placed, source))
            operators.append(source)
        graph.operators = operators


def _decode(
    content: Any,
    graph: Any,
    taken: list[int],
    forms: dict[int, Encoded],
    placed: dict[int, tuple[int, int]],
    user: Any,
) -> Any:
    """The operator that unpacks the weights of one other operator, which then takes them."""
    schema = flatbuffer.schema()
    source = schema.OperatorT()
    source.opcodeIndex = len(content.operatorCodes) - 1
    inputs: list[int] = []
    outputs: list[int] = []
    for index in taken:
        if index not in placed:
            stored = (forms[index].data, forms[index].ancillary)
            placed[index] = tuple(_bytes(content, graph, part) for part in stored)  # type: ignore
        unpacked = copy.copy(graph.tensors[index])
        unpacked.buffer = 0
        graph.tensors.append(unpacked)
        inputs += placed[index]
        outputs.append(len(graph.tensors) - 1)
    source.inputs, source.outputs = np.array(inputs, np.int32), np.array(outputs, np.int32)
    renamed = dict(zip(taken, outputs, strict=True))
    user.inputs = np.array([renamed.get(i, i) for i in flatbuffer.listed(user.inputs)], np.int32)
    return source


def _bytes(content: Any, graph: Any, data: bytes) -> int:
    """The index of a new tensor of bytes."""
    schema = flatbuffer.schema()
    buffer = schema.BufferT()
    buffer.data = np.frombuffer(data, np.uint8)
    content.buffers.append(buffer)
    tensor = schema.TensorT()
    tensor.type, tensor.shape = schema.TensorType.UINT8, np.array([len(data)], np.int32)
    tensor.buffer, tensor.name = len(content.buffers) - 1, b""
    graph.tensors.append(tensor)
    return len(graph.tensors) - 1


# -------------------------------------------------------------------------- reading it


def encoded_weights(graph: Graph) -> Iterator[tuple[int, str, np.ndarray]]:
    """Every weight that a DECODE of a graph unpacks: its tensor, form and values.

    Raises:
        ValueError: if an encoding is damaged, or none that this module knows.
    """
    seen = set()
    for source in graph.sources:
        code = graph.model.operatorCodes[source.opcodeIndex].customCode
        if code is None or bytes(code) != OPERATOR.encode():
            continue
        inputs, outputs = graph.inputs_of(source), graph.outputs_of(source)
        if len(inputs) != 2 * len(outputs):
            raise ValueError(f"{OPERATOR} has {len(inputs)} inputs, {len(outputs)} outputs")
        for place, index in enumerate(outputs):
            pair = tuple(inputs[2 * place : 2 * place + 2])
            if pair not in seen:  # a weight of several operators is stored once
                seen.add(pair)
                yield index, *_unpack(graph, index, *(graph.data(i) for i in pair))


def _unpack(
    graph: Graph, index: int, data: np.ndarray, ancillary: np.ndarray
) -> tuple[str, np.ndarray]:
    tensor, shape = graph.tensors[index], graph.shape(index)
    dtype, name = flatbuffer.dtype_of(tensor), name_of(tensor)
    if dtype is None or len(ancillary) < 16 or ancillary[1] != _VERSION:
        raise ValueError(f"{name} has an encoding that is not supported")
    kind, bits, stride = int(ancillary[0]), int(ancillary[5]) & _WIDEST, int(ancillary[6])
    width = 1 if kind == _PRUNE else bits
    count = math.prod(shape)
    rest = np.ascontiguousarray(ancillary[16:])
    if kind not in (_PRUNE, _LUT) or not width or 8 * len(data) < width * count:
        raise ValueError(f"{name} has an encoding that does not fit its shape")
    if rest.nbytes % np.dtype(dtype).itemsize:
        raise ValueError(f"{name} ends within a value")
    values: np.ndarray = rest.view(dtype)
    stored = np.unpackbits(data, count=width * count).reshape(count, width)
    if kind == _PRUNE:
        if stored.sum() != values.size:
            raise ValueError(f"{name} has {values.size} values for {stored.sum()} bits")
        weight: np.ndarray = np.zeros(count, dtype)
        weight[stored[:, 0] == 1] = values
        return PRUNED, weight.reshape(shape)
    axis = int(ancillary[5]) >> 4
    channel = np.zeros(shape, np.int64) if axis == _ONE_TABLE else np.indices(shape)[axis]
    places = channel.reshape(-1) * stride + stored @ (1 << np.arange(width - 1, -1, -1))
    if places.size and places.max() >= values.size:
        raise ValueError(f"{name} has an index outside its tables")
    return f"table of {stride}", values[places].reshape(shape)
