"""XNNPACK's rules for running a CNN sparse, for Keras models and for `.tflite` files alike.

XNNPACK stores the values of one connected cluster of operators channel by channel; a 1x1
convolution can then skip its zeros. The cluster begins at a 3x3 convolution of stride 2 over 3
channels with padding 1 on all sides and ends at a global average. A single operator inside that
has no such form loses the whole gain. The rules were read in XNNPACK's source.

A Keras model and a file are both reduced to a list of `Operator`; the rules look at nothing else.
"""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import keras
import numpy as np

from keras_pruner.litert import flatbuffer, sparse_tensors
from keras_pruner.litert.cost_model import LEAST_SPARSITY
from keras_pruner.model_graph import Call, ModelGraph

Sides = tuple[int, int, int, int]
"""Rows added at the top and bottom, columns added at the left and right."""

INPUT, PADDING, ELEMENTWISE = "input", "padding", "elementwise"
CONVOLUTION, DEPTHWISE, GLOBAL_AVERAGE = "convolution", "depthwise", "global average"


@dataclasses.dataclass(eq=False)
class Operator:
    """What the rules look at in one operator.

    Attributes:
        name: in messages.
        kind: one of the kinds above, or the name of an operator that XNNPACK has no form for.
        producers: the operators whose results it takes.
        kernel, strides: height and width.
        channels: of its input.
        padding: on each side of the image, its own and that of a padding before it.
        is_same: whether TensorFlow's "same" pads it.
        is_plain: False for groups, dilation or a depth multiplier.
        activation: an activation inside it that XNNPACK has no form for.
        is_output: whether the model returns its result.
        source: the `Call` or the operator of the file.
    """

    name: str
    kind: str
    producers: tuple["Operator", ...] = ()
    kernel: tuple[int, ...] = (1, 1)
    strides: tuple[int, ...] = (1, 1)
    channels: int = 0
    padding: Sides = (0, 0, 0, 0)
    is_same: bool = False
    is_plain: bool = True
    activation: str = ""
    is_output: bool = False
    source: Any = None

    @property
    def is_pointwise(self) -> bool:
        """True for a 1x1 convolution of stride 1, the only one that can skip zeros."""
        ones = (1, 1)
        return self.kind == CONVOLUTION and self.kernel == self.strides == ones and self.is_plain


# ------------------------------------------------------------------------------------ the rules


def stem_obstacle(operator: Operator) -> str:
    """Why a convolution cannot begin a cluster; empty if it can."""
    if operator.kernel != (3, 3) or operator.strides != (2, 2) or not operator.is_plain:
        return "the first convolution is not 3x3 of stride 2"
    if operator.channels != 3:
        return f"the first convolution takes {operator.channels} channels, not 3 channels"
    return _padding_obstacle(operator, 1) or operator.activation


def obstacle(operator: Operator) -> str:
    """Why an operator cannot be inside a cluster; empty if it can."""
    if operator.kind == CONVOLUTION and not operator.is_pointwise:
        return f"a convolution {_text(operator.kernel)}, not 1x1 of stride 1"
    if operator.kind == DEPTHWISE:
        if operator.kernel not in ((3, 3), (5, 5)) or not operator.is_plain:
            return f"a depthwise convolution {_text(operator.kernel)}, not 3x3 or 5x5"
        return _padding_obstacle(operator, operator.kernel[0] // 2) or operator.activation
    if operator.kind in (CONVOLUTION, ELEMENTWISE, PADDING, GLOBAL_AVERAGE, INPUT):
        return operator.activation
    return operator.kind


def _padding_obstacle(operator: Operator, wanted: int) -> str:
    if operator.is_same and max(operator.strides) > 1:
        return f"TensorFlow's same padding: {wanted} on all four sides is needed"
    if operator.padding != (wanted,) * 4:
        return f"padding {operator.padding}: {wanted} on all four sides is needed"
    return ""


def _text(kernel: Sequence[int]) -> str:
    return "x".join(map(str, kernel))


# Activations that XNNPACK has a form for, as Keras serializes them.
_ACTIVATIONS = {
    "linear", "relu", "relu6", "hard_swish", "hard_silu", "silu", "swish", "sigmoid", "tanh",
    "elu", "leaky_relu", "gelu", "exponential",
}  # fmt: skip
_POOLING = "a depthwise convolution of stride 2 with ZeroPadding2D before it"
_REMEDIES = {
    DEPTHWISE: 'kernel 3x3 or 5x5, no dilation, depth_multiplier=1; padding="same" with stride 1, '
    'or ZeroPadding2D(kernel // 2) and padding="valid"',
    CONVOLUTION: "kernel 1x1, stride 1, no groups; larger ones as depthwise followed by 1x1",
    ELEMENTWISE: f"one of the activations {', '.join(sorted(_ACTIVATIONS))}",
    "SeparableConv2D": "a DepthwiseConv2D followed by a Conv2D 1x1",
    "BatchNormalization": "axis=3",
    "UpSampling2D": 'interpolation="bilinear"',
    "MaxPooling2D": _POOLING,
    "AveragePooling2D": _POOLING,
    "Concatenate": "Add, of branches with as many channels",
}


def remedy(operator: Operator) -> str:
    """The change to a model that lets XNNPACK take an operator."""
    return _REMEDIES.get(operator.kind, "replace it, or move it behind GlobalAveragePooling2D")


# ---------------------------------------------------------------------------------- the cluster


@dataclasses.dataclass(frozen=True)
class Cluster:
    """The operators that XNNPACK would have to run channel by channel.

    Attributes:
        stem: the convolution it begins at; None without any convolution.
        inside: those between the stem and the global averages.
        obstacles: (operator, why XNNPACK has no form for it); the stem's first.
        begins: whether every path from an input comes to a convolution that can begin a cluster.
        ends: whether every path from there comes to a global average.
        late: 1x1 convolutions behind a global average, which break the whole cluster.
    """

    stem: Operator | None
    inside: tuple[Operator, ...]
    obstacles: tuple[tuple[Operator, str], ...]
    begins: bool
    ends: bool
    late: tuple[Operator, ...]

    @property
    def reasons(self) -> tuple[str, ...]:
        """Everything that keeps the cluster from running sparse, as sentences."""
        if self.stem is None:
            return ("no 3x3 convolution of stride 2 with 3 input channels",)
        found = [f"{operator.name}: {reason}" for operator, reason in self.obstacles]
        if not self.ends:
            found.append("no global average pooling before the head")
        late = "a 1x1 convolution behind the global average: make it a Dense layer"
        return (*found, *(f"{operator.name}: {late}" for operator in self.late))


def cluster_of(operators: Sequence[Operator]) -> Cluster:
    """Find the cluster among the operators of a model, which are in the order of execution."""
    consumers: dict[Operator, list[Operator]] = {operator: [] for operator in operators}
    for operator in operators:
        for producer in operator.producers:
            consumers[producer].append(operator)
    inputs = [operator for operator in operators if operator.kind == INPUT]
    stems, begins = _search(
        inputs, consumers, lambda x: x.kind == CONVOLUTION and not stem_obstacle(x)
    )
    if not stems:
        stems, _ = _search(inputs, consumers, lambda x: x.kind == CONVOLUTION)
    if not stems:
        return Cluster(None, (), (), False, False, ())
    stem = next(operator for operator in operators if operator in stems)
    after = [user for stem in stems for user in consumers[stem]]
    averages, ends = _search(after, consumers, lambda x: x.kind == GLOBAL_AVERAGE)
    inside = _reached(after, consumers, lambda x: x.kind == GLOBAL_AVERAGE)
    heads = [user for average in averages for user in consumers[average]]
    behind = _reached(heads, consumers, lambda x: x.kind not in (ELEMENTWISE, CONVOLUTION))
    return Cluster(
        stem,
        tuple(operator for operator in operators if operator in inside),
        tuple(_obstacles(operators, consumers, stems, inside)),
        begins,
        ends and not any(stem.is_output for stem in stems),
        tuple(x for x in operators if x in behind and x.is_pointwise),
    )


_Consumers = dict[Operator, list[Operator]]


def _obstacles(
    operators: Iterable[Operator],
    consumers: _Consumers,
    stems: set[Operator],
    inside: set[Operator],
) -> Iterator[tuple[Operator, str]]:
    for operator in operators:
        reason = ""
        if operator in stems:
            reason = stem_obstacle(operator)
        elif operator in inside:
            reason = obstacle(operator)
            is_joined = all(user.kind == DEPTHWISE for user in consumers[operator])
            if operator.kind == PADDING and not is_joined:
                reason = "padding before something else than a depthwise convolution"
        if reason:
            yield operator, reason


def _search(
    sources: Iterable[Operator], consumers: _Consumers, stops: Callable[[Operator], bool]
) -> tuple[set[Operator], bool]:
    """The operators at which the paths from some sources first stop; True if every path does."""
    passed = _reached(sources, consumers, stops)
    followers = [*sources, *(user for operator in passed for user in consumers[operator])]
    found = {operator for operator in followers if stops(operator)}
    return found, bool(found) and not any(operator.is_output for operator in passed)


def _reached(
    sources: Iterable[Operator], consumers: _Consumers, stops: Callable[[Operator], bool]
) -> set[Operator]:
    """The operators on the paths from some sources, without those at which a path stops."""
    waiting, seen = [operator for operator in sources if not stops(operator)], set()
    while waiting:
        operator = waiting.pop()
        if operator not in seen:
            seen.add(operator)
            waiting += [user for user in consumers[operator] if not stops(user)]
    return seen


# -------------------------------------------------------------------------------- Keras models

_L = keras.layers
_PASSING = (_L.ReLU, _L.LeakyReLU, _L.ELU, _L.Dropout, _L.Add, _L.Multiply, _L.Rescaling,
            _L.Identity)  # fmt: skip
# Operations of `keras.ops`.
_PASSING_OPERATIONS = {
    "Add", "Multiply", "Identity", "ConvertToTensor", "Relu", "Relu6", "LeakyRelu", "Elu", "Silu",
    "HardSilu", "Sigmoid", "Tanh", "Gelu", "Exp", "Abs", "Negative", "Square", "Sqrt",
}  # fmt: skip


def operators_of(graph: ModelGraph) -> list[Operator]:
    """The layer calls of a Keras model as operators."""
    found: dict[Call, Operator] = {}
    results = {tensor.producer for tensor in graph.outputs}
    for call in graph:
        producers = tuple(found[producer] for producer in call.producers)
        operator = Operator(call.name, _kind(call), producers, source=call)
        operator.is_output = call in results
        if operator.kind == PADDING:
            operator.padding = _sides(call.layer.padding)
        elif operator.kind in (CONVOLUTION, DEPTHWISE):
            _read_convolution(operator, call)
        operator.activation = _unsupported_activation(call.layer)
        found[call] = operator
    return list(found.values())


def _kind(call: Call) -> str:
    layer = call.layer
    if call.is_input:
        return INPUT
    if isinstance(layer, _L.ZeroPadding2D):
        return PADDING
    if isinstance(layer, _L.DepthwiseConv2D):
        return DEPTHWISE
    if isinstance(layer, _L.Conv2D):
        return CONVOLUTION
    if isinstance(layer, _L.GlobalAveragePooling2D) or covers_image(call):
        return GLOBAL_AVERAGE
    name = type(layer).__name__
    if isinstance(layer, _L.Layer):
        passes = (
            isinstance(layer, (*_PASSING, _L.Activation))
            or (isinstance(layer, _L.BatchNormalization) and layer.axis in (3, -1))
            or (isinstance(layer, _L.UpSampling2D) and layer.interpolation == "bilinear")
        )
    else:
        passes = name in _PASSING_OPERATIONS
    return ELEMENTWISE if passes else name


def covers_image(call: Call) -> bool:
    """Whether a call is an average pooling over the whole height and width."""
    if not isinstance(call.layer, _L.AveragePooling2D):
        return False
    covered = tuple(call.layer.pool_size) == call.inputs[0].shape[1:3]
    return covered and call.outputs[0].shape[1:3] == (1, 1)


def _read_convolution(operator: Operator, call: Call) -> None:
    layer = call.layer
    operator.kernel, operator.strides = tuple(layer.kernel_size), tuple(layer.strides)
    operator.channels = call.inputs[0].shape[-1] or 0
    depthwise = operator.kind == DEPTHWISE
    multiple = layer.depth_multiplier if depthwise else layer.groups
    operator.is_plain = {multiple, *layer.dilation_rate} == {1}
    operator.is_same = layer.padding == "same"
    operator.padding = sides_of(call)


def sides_of(call: Call) -> Sides:
    """The padding of a convolution: its own, after that of a ZeroPadding2D before it."""
    layer, before = call.layer, call.producers[0]
    is_padded = isinstance(before.layer, _L.ZeroPadding2D)
    top, bottom, left, right = _sides(before.layer.padding) if is_padded else (0, 0, 0, 0)
    if layer.padding == "valid":
        return top, bottom, left, right
    sizes = zip(call.inputs[0].shape[1:3], layer.kernel_size, layer.strides, strict=True)
    (above, below), (before_, after) = (same_padding(*size) for size in sizes)
    return top + above, bottom + below, left + before_, right + after


def same_padding(size: int | None, kernel: int, stride: int) -> tuple[int, int]:
    """What TensorFlow's "same" adds before and after one axis; of unknown size: for stride 1."""
    size = stride if size is None else size
    total = max(0, (-(-size // stride) - 1) * stride + kernel - size)
    return total // 2, total - total // 2


def _sides(padding: Any) -> Sides:
    (top, bottom), (left, right) = padding
    return top, bottom, left, right


def _unsupported_activation(layer: Any) -> str:
    convolution = isinstance(layer, _L.Conv2D | _L.DepthwiseConv2D | _L.Activation)
    name = keras.activations.serialize(layer.activation) if convolution else "linear"
    name = name if isinstance(name, str) else getattr(layer.activation, "__name__", str(name))
    return "" if name in _ACTIVATIONS else f"activation {name!r}"


# -------------------------------------------------------------------------------- .tflite files


@dataclasses.dataclass(frozen=True)
class Eligibility:
    """Whether XNNPACK can run the convolutions of a `.tflite` file sparse.

    Attributes:
        eligible: True where its sparse path is on: ARM, WebAssembly, RISC-V; never on x86 with
            AVX.
        obstacle: the first reason against it; empty if there is none.
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
    """Apply the rules to a `ModelT`.

    Args:
        model: of a file, as `flatbuffer.read` returns it.
    """
    graph = _FileGraph(model)
    cluster = cluster_of(graph.operators())
    filters = dict.fromkeys(
        graph.weight_of(operator.source) for operator in cluster.inside if operator.is_pointwise
    )
    weights = [graph.constant(index) for index in filters]
    total = sum(weight.size for weight in weights)
    zeros = sum(int(np.count_nonzero(weight == 0)) for weight in weights)
    sparsity = zeros / total if total else 0.0
    names = tuple(graph.name(index) for index in filters)
    reasons = list(cluster.reasons)
    if sparsity <= LEAST_SPARSITY:
        reasons.append(f"{sparsity:.1%} zeros over its 1x1 filters; more than two thirds needed")
    return Eligibility(not reasons, (reasons or [""])[0], sparsity, names)


# Elementwise operators of LiteRT that XNNPACK has a form for.
_ELEMENTWISE_CODES = {
    "RELU", "RELU6", "RELU_N1_TO_1", "HARD_SWISH", "LOGISTIC", "TANH", "ELU", "LEAKY_RELU", "ABS",
    "NEG", "SQUARE", "SQRT", "RSQRT", "EXP", "LOG", "FLOOR", "CEIL", "ROUND", "GELU", "ADD", "MUL",
    "RESIZE_BILINEAR",
}  # fmt: skip
_KINDS = {
    "CONV_2D": CONVOLUTION, "DEPTHWISE_CONV_2D": DEPTHWISE, "PAD": PADDING, "PADV2": PADDING,
    **dict.fromkeys(_ELEMENTWISE_CODES, ELEMENTWISE),
}  # fmt: skip


class _FileGraph(flatbuffer.Graph):
    """The main graph of a file as operators."""

    def operators(self) -> list[Operator]:
        """In the order of the file; inputs first."""
        makers = {i: Operator(self.name(i), INPUT) for i in self.inputs}
        found = list(makers.values())
        for source in self.sources:
            made = self.outputs_of(source)
            if self.code(source) in ("DENSIFY", "DEQUANTIZE") or not made:
                continue  # between a stored weight and the operator that takes it
            producers = dict.fromkeys(makers[i] for i in self.inputs_of(source) if i in makers)
            operator = Operator(self.name(made[0]), self._kind(source), tuple(producers))
            operator.source = source
            operator.is_output = any(i in self.results for i in made)
            self._read(operator, source)
            makers.update(dict.fromkeys(made, operator))
            found.append(operator)
        return found

    def _kind(self, source: Any) -> str:
        code = self.code(source)
        first = self.shape(self.inputs_of(source)[0]) if self.inputs_of(source) else []
        if code == "MEAN":
            axes = self.integers(self.inputs_of(source)[1])
            return GLOBAL_AVERAGE if sorted(a % 4 for a in axes) == [1, 2] else code
        if code == "AVERAGE_POOL_2D":
            options = source.builtinOptions
            covered = [options.filterHeight, options.filterWidth] == first[1:3]
            return GLOBAL_AVERAGE if covered else code
        return _KINDS.get(code, code)

    def _read(self, operator: Operator, source: Any) -> None:
        if operator.kind == PADDING:
            amounts = self.integers(self.inputs_of(source)[1])
            sides = amounts[2:6] if len(amounts) == 8 else [0] * 4
            operator.padding = (sides[0], sides[1], sides[2], sides[3])
        elif operator.kind in (CONVOLUTION, DEPTHWISE):
            self._read_convolution(operator, source)

    def _read_convolution(self, operator: Operator, source: Any) -> None:
        options, weight = source.builtinOptions, self.shape(self.weight_of(source))
        image = self.shape(self.inputs_of(source)[0])
        operator.kernel = (*weight[1:3],)
        operator.strides = options.strideH, options.strideW
        if min(operator.strides) < 1:
            raise ValueError(f"{operator.name} has strides of {operator.strides}")
        operator.channels = image[-1]
        depthwise = operator.kind == DEPTHWISE
        multiplier = getattr(options, "depthMultiplier", 1) if depthwise else 1
        groups = 1 if depthwise or not weight[-1] else image[-1] // weight[-1]
        operator.is_plain = {groups, multiplier, options.dilationHFactor,
                             options.dilationWFactor} == {1}  # fmt: skip
        operator.is_same = options.padding == flatbuffer.schema().Padding.SAME
        if operator.is_same:
            sizes = zip(image[1:3], operator.kernel, operator.strides, strict=True)
            (above, below), (left, right) = (same_padding(*size) for size in sizes)
            operator.padding = above, below, left, right
        else:
            before = [p for p in operator.producers if p.kind == PADDING]
            operator.padding = before[0].padding if before else (0, 0, 0, 0)

    def weight_of(self, source: Any) -> int:
        """The stored weight of a convolution, before DENSIFY and DEQUANTIZE."""
        index = self.inputs_of(source)[1]
        while index in self.makers and self.code(self.makers[index]) in ("DENSIFY", "DEQUANTIZE"):
            index = self.inputs_of(self.makers[index])[0]
        return index

    def constant(self, index: int) -> np.ndarray:
        """A stored weight; empty if the tensor holds none."""
        tensor, data = self.tensors[index], self.data(index)
        is_stored = len(data) or tensor.sparsity is not None  # all zeros: no data
        return sparse_tensors.decode(tensor, data) if is_stored else np.zeros(0, np.float32)
