"""Read `.tflite` files, with every length checked before it is used, and write them."""

import functools
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from keras_pruner.validation import need

_IDENTIFIER = b"TFL3"


@functools.cache
def schema() -> Any:
    """The generated classes of the file format."""
    return need("ai_edge_litert.schema_py_generated", "litert")


@functools.cache
def _tools() -> Any:
    return need("ai_edge_litert.tools.flatbuffer_utils", "litert")


def read(path: str | os.PathLike[str]) -> Any:
    """Read a `.tflite` file as a `ModelT`.

    Raises:
        ValueError: if it is not a `.tflite` file, or a damaged one.
        ImportError: without the extra "litert".
    """
    content = Path(path).read_bytes()
    if content[4:8] != _IDENTIFIER:
        raise ValueError(f"{str(path)!r} is no .tflite file: its identifier is {content[4:8]!r}.")
    try:
        _Lengths(len(content)).check(schema().Model.GetRootAs(content, 0))
        model = _tools().convert_bytearray_to_object(content)
        _check_indices(model)
    except DAMAGE as error:
        raise ValueError(f"{str(path)!r} is damaged: {error}") from None
    return model


DAMAGE = (
    ValueError, TypeError, IndexError, KeyError, AttributeError, ArithmeticError, struct.error,
    RecursionError,
)  # fmt: skip
"""What reading a damaged file raises."""


def write(model: Any, path: str | os.PathLike[str]) -> None:
    """Write a `ModelT` as a `.tflite` file."""
    import flatbuffers  # ai-edge-litert depends on it

    size = sum(0 if b.data is None else len(b.data) for b in model.buffers)
    builder = flatbuffers.Builder(size + (1 << 16))
    packed = model.buffers
    model.buffers = [_Aligned(buffer) for buffer in packed]
    builder.Finish(model.Pack(builder), file_identifier=_IDENTIFIER)
    model.buffers = packed
    Path(path).write_bytes(builder.Output())


class _Aligned:
    """A buffer packed at a multiple of 16 bytes, as the schema demands.

    The writer that ai-edge-litert brings, `flatbuffer_utils.write_model`, does not align it.
    """

    def __init__(self, buffer: Any) -> None:
        self._buffer = buffer

    def Pack(self, builder: Any) -> int:  # noqa: N802 - called by the generated code
        """Append the buffer; returns its offset."""
        data = self._buffer.data
        if data is not None:
            content = np.asarray(data, np.uint8).tobytes()
            builder.StartVector(1, len(content), 16)
            builder.head = builder.head - len(content)
            builder.Bytes[builder.head : builder.head + len(content)] = content
            vector = builder.EndVector()
        schema().BufferStart(builder)
        if data is not None:
            schema().BufferAddData(builder, vector)
        return schema().BufferEnd(builder)


class _Lengths:
    """Refuses vectors that are longer than the file, before memory is allocated for them."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._tables_left = size // 4  # a table takes at least its offset

    def check(self, table: Any) -> None:
        """Raise if `table` or a table that it refers to is damaged."""
        self._tables_left -= 1
        if self._tables_left < 0:
            raise ValueError("it holds more tables than it has room for")
        if not 0 <= table._tab.Pos < self._size:
            raise ValueError("it refers to a place behind its end")
        vectors, tables, unions = _fields(type(table).__name__)
        for name, length_of, is_plain in vectors:
            length = length_of(table)
            if not 0 <= length <= self._size:
                raise ValueError(f"its {name} claims {length} entries")
            for i in range(0 if is_plain else length):
                child = getattr(table, name)(i)
                if hasattr(child, "_tab"):
                    self.check(child)
        for name in tables:
            child = getattr(table, name)()
            if child is not None:
                self.check(child)
        for name, classes in unions:
            child, kind = getattr(table, name)(), getattr(table, f"{name}Type")()
            if child is not None and kind in classes:
                options = classes[kind]()
                options.Init(child.Bytes, child.Pos)
                self.check(options)


@functools.cache
def _fields(name_of_class: str) -> tuple[list[tuple[str, Callable, bool]], list[str], list[Any]]:
    """The vectors, tables and unions of a generated class."""
    cls = getattr(schema(), name_of_class)
    names = [name for name in vars(cls) if name[0].isupper()]
    vectors = [
        (name[:-6], getattr(cls, name), f"{name[:-6]}AsNumpy" in names)
        for name in names
        if name.endswith("Length") and name[:-6] in names
    ]
    unions = [(name, _union(name)) for name in names if f"{name}Type" in names and _union(name)]
    return vectors, [name for name in names if name in _TABLES.get(name_of_class, ())], unions


_TABLES = {"Tensor": ("Quantization", "Sparsity")}


def _union(name: str) -> dict[int, type]:
    """The class for each type that a union may have; empty for a field that is not a union."""
    kinds = {
        "ArraySegments": "SparseIndexVector",
        "ArrayIndices": "SparseIndexVector",
        "Details": "QuantizationDetails",
    }.get(name, name)
    enum = getattr(schema(), kinds, None)
    if enum is None:
        return {}
    found = {value: getattr(schema(), key, None) for key, value in vars(enum).items()}
    return {value: cls for value, cls in found.items() if isinstance(value, int) and cls}


def _check_indices(model: Any) -> None:
    """Raise if anything refers to a tensor, buffer or operator that does not exist."""
    if not model.subgraphs or not model.buffers:
        raise ValueError("it has no graph or no buffers")
    for graph in model.subgraphs:
        tensors = len(graph.tensors or [])
        for tensor in graph.tensors or []:
            _check_within("buffer", [tensor.buffer], len(model.buffers))
            if tensor.shape is not None and (np.asarray(tensor.shape) < 0).any():
                raise ValueError(f"tensor {name_of(tensor)} has the shape {tensor.shape}")
        _check_within("tensor", [*listed(graph.inputs), *listed(graph.outputs)], tensors)
        for operator in graph.operators or []:
            _check_within("operator code", [operator.opcodeIndex], len(model.operatorCodes or []))
            used = [*listed(operator.inputs), *listed(operator.outputs)]
            _check_within("tensor", [i for i in used if i != -1], tensors)


def _check_within(what: str, indices: list[int], count: int) -> None:
    for index in indices:
        if not 0 <= index < count:
            raise ValueError(f"it refers to {what} {index} of {count}")


def listed(vector: Any) -> list[int]:
    """A vector of numbers as a list; empty if there is none."""
    return [] if vector is None else [int(n) for n in vector]


def name_of(tensor: Any) -> str:
    """The name of a tensor as text."""
    name = tensor.name or b""
    return name.decode("utf-8", "replace") if isinstance(name, bytes) else name


def within_model(name: str) -> str:
    """A tensor's name without that of the model, and without what was merged into its operator.

    Example:
        >>> within_model("sequential_1/head_1/MatMul;sequential_1/head_1/Relu")
        'head_1/MatMul'
    """
    return name.split(";")[0].partition("/")[2] or name


def name_of_type(kind: int) -> str:
    """The name of a tensor's type, such as "FLOAT32"."""
    return _tools().type_to_name(kind)


def operator_code(model: Any, builtin: int, version: int) -> int:
    """The index of an operator code in the model, added if the model has none such."""
    for index, code in enumerate(model.operatorCodes):
        if code.builtinCode == builtin and code.version == version:
            return index
    code = schema().OperatorCodeT()
    code.builtinCode, code.version = builtin, version
    code.deprecatedBuiltinCode = min(builtin, 127)
    model.operatorCodes.append(code)
    return len(model.operatorCodes) - 1


_TYPES = {"FLOAT32": np.float32, "FLOAT16": np.float16, "INT8": np.int8}


def dtype_of(tensor: Any) -> type | None:
    """The NumPy type of a weight tensor; None for a type that weights do not have."""
    for name, dtype in _TYPES.items():
        if tensor.type == getattr(schema().TensorType, name):
            return dtype
    return None


class Graph:
    """One graph of a model: its tensors, its operators, and who takes what.

    Attributes:
        sources: the operators (`OperatorT`), in the order of execution.
        tensors: the tensors (`TensorT`), by the index that operators refer to.
        inputs: indices of the tensors that the graph takes.
        results: indices of the tensors that it returns.
        makers: index of a tensor -> the operator that computes it.
        is_called: False for the main graph, True for the body of a loop or a branch.
    """

    def __init__(self, model: Any, graph: Any = None) -> None:
        self.model = model
        self._graph = model.subgraphs[0] if graph is None else graph
        self.is_called = self._graph is not model.subgraphs[0]
        self.tensors = self._graph.tensors or []
        self.sources = self._graph.operators or []
        self.inputs = listed(self._graph.inputs)
        self.results = listed(self._graph.outputs)
        self.makers = {i: source for source in self.sources for i in self.outputs_of(source)}

    @functools.cached_property
    def _users(self) -> dict[int, list[Any]]:
        found: dict[int, list[Any]] = {}
        for source in self.sources:
            for index in dict.fromkeys(self.inputs_of(source)):
                found.setdefault(index, []).append(source)
        return found

    def code(self, source: Any) -> str:
        """The name of an operator, such as "CONV_2D"."""
        code = self.model.operatorCodes[source.opcodeIndex]
        name = _tools().opcode_to_name(self.model, source.opcodeIndex)
        return name or f"operator {max(code.builtinCode, code.deprecatedBuiltinCode)}"

    def inputs_of(self, source: Any) -> list[int]:
        """Indices of the tensors that an operator takes; -1 for one left out."""
        return listed(source.inputs)

    def outputs_of(self, source: Any) -> list[int]:
        """Indices of the tensors that an operator computes."""
        return listed(source.outputs)

    def users(self, index: int) -> list[Any]:
        """The operators that take a tensor."""
        return self._users.get(index, [])

    def name(self, index: int) -> str:
        """The name of a tensor."""
        return name_of(self.tensors[index])

    def shape(self, index: int) -> list[int]:
        """The shape of a tensor."""
        return listed(self.tensors[index].shape)

    def data(self, index: int) -> np.ndarray:
        """The stored bytes of a constant tensor; empty for any other."""
        data = self.model.buffers[self.tensors[index].buffer].data
        return np.zeros(0, np.uint8) if data is None else np.asarray(data, np.uint8)

    def integers(self, index: int) -> list[int]:
        """A constant tensor of integers, flat."""
        is_wide = self.tensors[index].type == schema().TensorType.INT64
        return self.data(index).view(np.int64 if is_wide else np.int32).tolist()
