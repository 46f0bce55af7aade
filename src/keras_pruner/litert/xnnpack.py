"""XNNPACK's rules for running a CNN sparse, read from its source, on the graph of a `.tflite`.

The values of one connected cluster of operators are kept channel by channel, where a 1x1
convolution can skip its zeros. The cluster begins at a 3x3 convolution of stride 2 over 3
channels with padding 1 on all sides, ends at a global average, and one operator in it that
has no such form loses the whole gain.
"""

import dataclasses
from typing import Any

import numpy as np

from keras_pruner.litert import encoding, flatbuffer
from keras_pruner.litert.cost_model import LEAST_SPARSITY


@dataclasses.dataclass(frozen=True)
class Eligibility:
    """Whether XNNPACK can run the convolutions of a model sparse.

    Attributes:
        eligible: where its sparse path is on: ARM, WebAssembly, RISC-V; never on x86 with AVX.
        obstacle: the first one; empty if there is none.
        sparsity: fraction of zeros over the cluster's 1x1 filters.
        filters: names of their weights.
    """

    eligible: bool
    obstacle: str
    sparsity: float = 0.0
    filters: tuple[str, ...] = ()

    def __str__(self) -> str:
        if self.eligible:
            return f"eligible: {len(self.filters)} 1x1 filters, {self.sparsity:.1%} zeros"
        return f"not eligible: {self.obstacle}"


def eligibility(model: Any) -> Eligibility:
    """Apply the rules to a `ModelT`."""
    graph = _Graph(model)
    obstacle = "no 3x3 convolution of stride 2 with 3 input channels and padding 1 on all sides"
    for operator in graph.operators:
        if graph.kind(operator) == "CONV_2D":
            found = graph.stem_obstacle(operator)
            if found is None:
                return _follow(graph, operator)
            if graph.weight_shape(operator)[-1] == 3:
                obstacle = found
    return Eligibility(False, obstacle)


def _follow(graph: "_Graph", stem: Any) -> Eligibility:
    """Walk the cluster from its first convolution."""
    waiting, seen, filters = list(graph.outputs(stem)), set(), []
    ended = False
    while waiting:
        value = waiting.pop()
        if value in seen:
            continue
        seen.add(value)
        if value in graph.results:
            return Eligibility(False, "the cluster reaches an output before a global average")
        for operator in graph.users(value):
            if graph.ends_cluster(operator):
                ended = True
                continue
            obstacle = graph.obstacle(operator)
            if obstacle:
                return Eligibility(False, obstacle)
            if graph.kind(operator) == "CONV_2D":
                filters.append(graph.weight(operator))
            waiting += [v for v in graph.outputs(operator) if v not in seen]
    return _judge(graph, filters, ended)


def _judge(graph: "_Graph", filters: list[int], ended: bool) -> Eligibility:
    weights = [graph.constant(index) for index in dict.fromkeys(filters)]
    names = tuple(graph.name(index) for index in dict.fromkeys(filters))
    total = sum(w.size for w in weights)
    zeros = sum(int(np.count_nonzero(w == 0)) for w in weights)
    sparsity = zeros / total if total else 0.0
    if not ended:
        return Eligibility(False, "the cluster has no global average at its end", sparsity, names)
    if any(graph.is_spatially_single(index) for index in filters):
        return Eligibility(
            False, "a 1x1 convolution after the global average: make it a Dense", sparsity, names
        )
    if sparsity <= LEAST_SPARSITY:
        reason = f"{sparsity:.1%} zeros over its 1x1 filters; more than two thirds are needed"
        return Eligibility(False, reason, sparsity, names)
    return Eligibility(True, "", sparsity, names)


_UNARY = {
    "RELU", "RELU6", "RELU_N1_TO_1", "HARD_SWISH", "LOGISTIC", "TANH", "ELU", "LEAKY_RELU", "ABS",
    "NEG", "SQUARE", "SQRT", "RSQRT", "EXP", "LOG", "FLOOR", "CEIL", "ROUND", "GELU",
}  # fmt: skip


class _Graph:
    """The main graph, with what lies between weights and operators looked through."""

    def __init__(self, model: Any) -> None:
        self._model = model
        graph = model.subgraphs[0]
        self._tensors = graph.tensors
        self.operators = graph.operators or []
        self.results = set(flatbuffer.listed(graph.outputs))
        self._maker = {i: o for o in self.operators for i in self.outputs(o)}
        known = flatbuffer.schema().BuiltinOperator
        self._names = {value: key for key, value in vars(known).items() if key[0].isupper()}

    def kind(self, operator: Any) -> str:
        return self._names.get(flatbuffer.code_of(self._model, operator), "an unknown operator")

    def outputs(self, operator: Any) -> list[int]:
        return flatbuffer.listed(operator.outputs)

    def users(self, value: int) -> list[Any]:
        return [o for o in self.operators if value in flatbuffer.listed(o.inputs)]

    def name(self, index: int) -> str:
        return flatbuffer.name_of(self._tensors[index])

    def shape(self, index: int) -> list[int]:
        return flatbuffer.listed(self._tensors[index].shape)

    def weight(self, operator: Any) -> int:
        """The stored weight of a convolution, before DENSIFY and DEQUANTIZE."""
        index = flatbuffer.listed(operator.inputs)[1]
        while index in self._maker and self.kind(self._maker[index]) in ("DENSIFY", "DEQUANTIZE"):
            index = flatbuffer.listed(self._maker[index].inputs)[0]
        return index

    def weight_shape(self, operator: Any) -> list[int]:
        return self.shape(self.weight(operator)) or [0]

    def constant(self, index: int) -> np.ndarray:
        tensor = self._tensors[index]
        data = self._model.buffers[tensor.buffer].data
        if data is None or not len(data):
            return np.zeros(0, np.float32)
        return encoding.decode(tensor, data)

    def is_spatially_single(self, weight: int) -> bool:
        """Whether the convolution with this weight sees one pixel."""
        for operator in self.operators:
            if self.kind(operator) == "CONV_2D" and self.weight(operator) == weight:
                return self.shape(self.outputs(operator)[0])[1:3] == [1, 1]
        return False

    def padding(self, operator: Any) -> list[int]:
        """Rows and columns added before and after: top, bottom, left, right."""
        source = flatbuffer.listed(operator.inputs)[0]
        options = operator.builtinOptions
        kernel = self.weight_shape(operator)[1:3]
        if options.padding == flatbuffer.schema().Padding.SAME:
            added = []
            sizes = self.shape(source)[1:3]
            for size, k, stride in zip(
                sizes, kernel, (options.strideH, options.strideW), strict=True
            ):
                total = max(0, (-(-size // stride) - 1) * stride + k - size)
                added += [total // 2, total - total // 2]
            return added
        maker = self._maker.get(source)
        if maker is None or self.kind(maker) not in ("PAD", "PADV2"):
            return [0, 0, 0, 0]
        return self._added(maker)

    def _added(self, pad: Any) -> list[int]:
        tensor = self._tensors[flatbuffer.listed(pad.inputs)[1]]
        data = self._model.buffers[tensor.buffer].data
        if data is None or len(data) not in (32, 64):
            return [0, 0, 0, 0]
        numbers = np.asarray(data, np.uint8).view(np.int32 if len(data) == 32 else np.int64)
        return numbers.reshape(4, 2)[1:3].reshape(-1).tolist()

    def stem_obstacle(self, operator: Any) -> str | None:
        """Why a convolution cannot begin a cluster; None if it can."""
        shape, options = self.weight_shape(operator), operator.builtinOptions
        if shape[1:3] != [3, 3] or shape[-1] != 3:
            return (
                f"the first convolution is {shape[1:3]} over {shape[-1]}, not 3x3 over 3 channels"
            )
        if (options.strideH, options.strideW) != (2, 2):
            return "the first convolution has not stride 2"
        return self._symmetric(operator, [1, 1, 1, 1])

    def _symmetric(self, operator: Any, wanted: list[int]) -> str | None:
        strided = operator.builtinOptions.strideH > 1
        padding = self.padding(operator)
        is_same = operator.builtinOptions.padding == flatbuffer.schema().Padding.SAME
        if padding != wanted or (is_same and strided):
            name = self.name(self.outputs(operator)[0])
            how = "TensorFlow's same" if is_same else str(padding)
            return f"{how} padding at {name}: {wanted[0]} on all four sides is needed"
        return None

    def ends_cluster(self, operator: Any) -> bool:
        """Whether an operator is a global average over height and width."""
        source = flatbuffer.listed(operator.inputs)[0]
        if self.kind(operator) == "MEAN":
            axes = self._tensors[flatbuffer.listed(operator.inputs)[1]]
            data = self._model.buffers[axes.buffer].data
            found = np.asarray([] if data is None else data, np.uint8).view(np.int32).tolist()
            return sorted(a % 4 for a in found) == [1, 2]
        if self.kind(operator) == "AVERAGE_POOL_2D":
            options = operator.builtinOptions
            return [options.filterHeight, options.filterWidth] == self.shape(source)[1:3]
        return False

    def obstacle(self, operator: Any) -> str | None:
        """Why an operator cannot be inside a cluster; None if it can."""
        kind = self.kind(operator)
        name = self.name(self.outputs(operator)[0]) if self.outputs(operator) else kind
        if kind in _UNARY or kind in ("ADD", "MUL", "RESIZE_BILINEAR"):
            return None
        if kind in ("PAD", "PADV2"):
            followers = [u for v in self.outputs(operator) for u in self.users(v)]
            convolved = all(self.kind(u) == "DEPTHWISE_CONV_2D" for u in followers)
            return None if followers and convolved else f"padding before {name}"
        if kind == "CONV_2D":
            options, shape = operator.builtinOptions, self.weight_shape(operator)
            single = shape[1:3] == [1, 1] and (options.strideH, options.strideW) == (1, 1)
            return None if single else f"a convolution {shape[1:3]}, not 1x1 of stride 1, at {name}"
        if kind == "DEPTHWISE_CONV_2D":
            shape = self.weight_shape(operator)
            if shape[1:3] not in ([3, 3], [5, 5]):
                return f"a depthwise convolution {shape[1:3]}, not 3x3 or 5x5, at {name}"
            return self._symmetric(operator, [shape[1] // 2] * 4)
        return f"{kind} at {name}"
