"""How each layer of Keras treats channels: rules for those with weights, trials for all others.

A rule is valid for a layer if its class runs the `call` that the rule was written for. Where
neither a rule nor a trial explains an operation, its channels are frozen, with a reason.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from keras_pruner.channels import probing
from keras_pruner.channels.classes import Channels, Labels, Numbers, Product, Work
from keras_pruner.model_graph import Call, ModelGraph, Tensor

Rule = Callable[[Labels, Call], None]
_kinds = keras.layers


def channels_of(graph: ModelGraph) -> Channels:
    """Number the channels of a model, and find which belong together.

    Example:
        The image has the classes 0 to 2, the convolution 3 to 6; the head reads the latter:

        >>> image = keras.Input((8, 8, 3))
        >>> x = keras.layers.Conv2D(4, 3, name="conv")(image)
        >>> x = keras.layers.Dense(2, name="head")(x)
        >>> for axis in channels_of(ModelGraph(keras.Model(image, x))).axes:
        ...     print(axis.variable.path, axis.axis, axis.channels)
        conv/bias 0 [3 4 5 6]
        conv/kernel 2 [0 1 2]
        conv/kernel 3 [3 4 5 6]
        head/bias 0 [7 8]
        head/kernel 0 [3 4 5 6]
        head/kernel 1 [7 8]
    """
    labels = Labels(graph)
    for tensor in graph.inputs:
        if len(tensor.shape) > 1 and tensor.shape[-1] is not None:
            labels.of[tensor] = labels.new(tensor.shape[-1], tensor.producer.layer)
            labels.freeze(labels.of[tensor], "an input of the model")
    for call in graph.calls:
        if not call.is_input:
            _apply(labels, call)
    for tensor in graph.outputs:
        labels.freeze(labels.of.get(tensor), "an output of the model")
    for layer in graph.layers:
        _tie_calls(labels, graph.calls_of(layer))
    return labels.finish()


def _tie_calls(labels: Labels, calls: list[Call]) -> None:
    """Tie the channels of all calls of a layer in a nested model: it has one width."""
    first, *others = calls
    for other in others if "/" in first.name else ():
        pairs = zip((*first.inputs, *first.outputs), (*other.inputs, *other.outputs), strict=True)
        for one, two in pairs:
            if one in labels.of and two in labels.of and one.shape[-1] == two.shape[-1]:
                labels.tie(labels.of[one], labels.of[two])


def _apply(labels: Labels, call: Call) -> None:
    layer = call.layer
    rule = rule_for(layer)
    missing = [t for t in call.inputs if t not in labels.of and _has_channels(t)]
    if rule is not None and not missing:
        rule(labels, call)
        for tensor in call.inputs[1:]:
            if rule not in (_recurrent, _bidirectional, _attention):
                labels.freeze(labels.of.get(tensor), f"{layer.name} takes them as a mask")
    elif getattr(layer, "weights", None):
        labels.opaque(call, f"{layer.name}: no rule for the weights of {type(layer).__name__}")
    elif missing:
        labels.opaque(call, f"{layer.name}: the channels of its inputs are not known")
    else:
        _try_out(labels, call)


def _has_channels(tensor: Tensor) -> bool:
    return len(tensor.shape) > 1 and tensor.shape[-1] is not None


def rule_for(layer: Any) -> Rule | None:
    """The rule of the class that the layer's `call` comes from."""
    kind: Any
    for kind in type(layer).__mro__:
        if kind in _RULES:
            return _RULES[kind] if type(layer).call is kind.call else None
    return None


# ---------------------------------------------------------------------- without weights


def _try_out(labels: Labels, call: Call) -> None:
    inputs = {t: labels.of[t] for t in call.inputs if t in labels.of}
    sizes = {t.shape[-1] for t in call.outputs}
    last = sizes.pop() if len(sizes) == 1 else None
    full = [numbers for t, numbers in inputs.items() if t.shape[-1] == last]
    if last is not None and full and probing.is_channelwise(call, last):
        for other in full[1:]:
            labels.tie(full[0], other)
        for narrow in (n for n in inputs.values() if len(n) != last):
            labels.freeze(narrow, f"{call.layer.name} spreads them over other channels")
        labels.give(call, *(full[0] for _ in call.outputs), behaviour="each")
    elif not _folds(labels, call, last) and not _move(labels, call):
        name = f"{call.layer.name} ({type(call.layer).__name__})"
        labels.opaque(call, f"{name} {probing.obstacle(call)}")


def _folds(labels: Labels, call: Call, last: int | None) -> bool:
    """Tie the halves of an operation's input, if it makes one channel of two as GLU does."""
    numbers = labels.of.get(call.inputs[0], np.empty(0))
    single = len(call.inputs) == len(call.outputs) == 1
    if (
        last is None
        or not single
        or len(numbers) != 2 * last
        or not probing.folds_halves(call, 2 * last)
    ):
        return False
    labels.tie(numbers[:last], numbers[last:])
    labels.give(call, numbers[:last], behaviour="each")
    return True


_MOVES = ("Flatten", "Reshape", "Concatenate", "Split", "GetItem")
"""Operations that only move channels, and that can be rebuilt for other numbers of them."""


def _move(labels: Labels, call: Call) -> bool:
    """Send the channels' numbers through the operation, if it only moves channels."""
    if type(call.layer).__name__ not in _MOVES or not all(t in labels.of for t in call.inputs):
        return False
    sides = [labels.of[tensor] for tensor in call.inputs]
    moved = probing.route(call, sides)
    if moved is None:
        return False
    name = call.layer.name
    if type(call.layer).__name__ == "Split":
        sections = call.layer.indices_or_sections
        if not isinstance(sections, int):
            return False
        for part in moved[1:]:
            labels.tie(moved[0], part)
    elif type(call.layer).__name__ == "GetItem" and not _is_slice(call):
        for numbers in sides:
            labels.freeze(numbers, f"{name} picks single channels")
    labels.give(call, *moved, behaviour="moves")
    return True


def _is_slice(call: Call) -> bool:
    """Whether a subscript takes consecutive channels, or all of them."""
    args, kwargs = call.arguments(call.inputs)
    key = args[1] if len(args) > 1 else kwargs.get("key")
    last = key[-1] if isinstance(key, tuple | list) else key
    rank = len(call.inputs[0].shape)
    whole = isinstance(key, tuple | list) and Ellipsis not in key and len(key) < rank
    return whole or last is Ellipsis or (isinstance(last, slice) and last.step in (None, 1))


# ---------------------------------------------------------------------- products


def _product(
    labels: Labels,
    call: Call,
    layer: Any,
    kernel: keras.Variable,
    inputs: tuple[int, Numbers],
    outputs: tuple[int, Numbers],
    *,
    source: Tensor | None = None,
    foldable: bool = False,
    times: int = 1,
) -> None:
    """Add a kernel, with labels for its axes, and its multiplications."""
    rank = len(kernel.shape)
    in_axis, out_axis = inputs[0] % rank, outputs[0] % rank
    labels.label(kernel, in_axis, inputs[1])
    labels.label(kernel, out_axis, outputs[1])
    labels.products.append(
        Product(call, layer, kernel, in_axis, inputs[1], out_axis, outputs[1], source, foldable)
    )
    sizes: list[Any] = list(map(int, kernel.shape))
    sizes[in_axis], sizes[out_axis] = inputs[1], outputs[1]
    labels.work.append(Work(layer, times, tuple(sizes)))


def positions(tensor: Tensor) -> int:
    """The number of positions of an image or sequence; an axis of unknown length counts as 1."""
    return math.prod(n or 1 for n in tensor.shape[1:-1])


def _finish(labels: Labels, call: Call, layer: Any, channels: Numbers) -> None:
    """Set the channels of a product's outputs, frozen if the activation mixes them."""
    if not probing.is_elementwise(layer.activation, len(channels)):
        labels.freeze(channels, f"{layer.name}: its activation mixes channels")
    labels.give(call, channels, behaviour="multiplies")


def _dense(labels: Labels, call: Call) -> None:
    layer, source = call.layer, call.inputs[0]
    channels = labels.new(layer.units, layer)
    labels.label(layer.bias, 0, channels)
    _product(
        labels, call, layer, layer._kernel, (0, labels.of[source]), (1, channels),
        source=source, foldable=True, times=positions(source),
    )  # fmt: skip
    _finish(labels, call, layer, channels)


def _einsum(labels: Labels, call: Call) -> None:
    layer, source = call.layer, call.inputs[0]
    operands, result = layer.equation.replace(" ", "").split("->")
    data, letters = operands.split(",")
    inner, outer = data[-1], result[-1]
    plain = inner in letters and inner not in result and outer in letters and outer not in data
    if not plain or "..." in letters:
        labels.opaque(call, f"{layer.name}: the equation {layer.equation} is no plain product")
        return
    channels = labels.new(layer.kernel.shape[letters.index(outer)], layer)
    if layer.bias is not None and outer in (layer.bias_axes or ""):
        labels.label(layer.bias, -1, channels)
    shared = math.prod(int(n) for n, c in zip(layer.kernel.shape, letters, strict=True)
                       if c in data and c in result)  # fmt: skip
    rows = math.prod(n or 1 for n in source.shape[1:])
    contracted = math.prod(int(n) for n, c in zip(layer.kernel.shape, letters, strict=True)
                           if c in data and c not in result)  # fmt: skip
    _product(
        labels, call, layer, layer._kernel,
        (letters.index(inner), labels.of[source]), (letters.index(outer), channels),
        source=source, foldable=False, times=rows // (contracted * shared),
    )  # fmt: skip
    _finish(labels, call, layer, channels)


def _is_channels_last(layer: Any) -> bool:
    return layer.data_format == "channels_last"


def _conv(labels: Labels, call: Call) -> None:
    layer, source = call.layer, call.inputs[0]
    inputs = labels.of[source]
    if not _is_channels_last(layer):
        labels.opaque(call, f"{layer.name}: channels first")
        return
    if layer.groups == len(inputs):
        _depthwise_like(labels, call, layer._kernel, -1, layer.filters // layer.groups)
        return
    channels = labels.new(layer.filters, layer)
    if layer.groups > 1:
        for numbers in (inputs, channels):
            parts = numbers.reshape(layer.groups, -1)
            for part in parts[1:]:
                labels.tie(parts[0], part)
        inputs = inputs[: len(inputs) // layer.groups]
    labels.label(layer.bias, 0, channels)
    _product(
        labels, call, layer, layer._kernel, (-2, inputs), (-1, channels), source=source,
        foldable=layer.groups == 1 and not _has_border(layer), times=positions(call.outputs[0]),
    )  # fmt: skip
    _finish(labels, call, layer, channels)


def _has_border(layer: Any) -> bool:
    """Whether padding makes some positions see fewer inputs than others."""
    return layer.padding != "valid" and max(layer.kernel_size) > 1


def _conv_transpose(labels: Labels, call: Call) -> None:
    layer, source = call.layer, call.inputs[0]
    if not _is_channels_last(layer):
        labels.opaque(call, f"{layer.name}: channels first")
        return
    channels = labels.new(layer.filters, layer)
    labels.label(layer.bias, 0, channels)
    _product(
        labels, call, layer, layer.kernel, (-1, labels.of[source]), (-2, channels),
        source=source, times=positions(source),
    )  # fmt: skip
    _finish(labels, call, layer, channels)


def _depthwise(labels: Labels, call: Call) -> None:
    layer = call.layer
    if not _is_channels_last(layer):
        labels.opaque(call, f"{layer.name}: channels first")
        return
    _depthwise_like(labels, call, layer.kernel, -2, layer.depth_multiplier)


def _depthwise_like(
    labels: Labels, call: Call, kernel: keras.Variable, axis: int, multiplier: int
) -> None:
    """Label a kernel with one or several filters for each channel."""
    layer, inputs = call.layer, labels.of[call.inputs[0]]
    outputs = np.repeat(inputs, multiplier)
    labels.label(kernel, axis, outputs if axis == -1 else inputs)
    labels.label(layer.bias, 0, outputs)
    taps = math.prod(map(int, kernel.shape[:-2]))
    labels.work.append(Work(layer, positions(call.outputs[0]) * taps, (outputs,)))
    if not probing.is_elementwise(layer.activation, len(outputs)):
        labels.freeze(outputs, f"{layer.name}: its activation mixes channels")
    labels.give(call, outputs, behaviour="each")


def _separable(labels: Labels, call: Call) -> None:
    layer, source = call.layer, call.inputs[0]
    if not _is_channels_last(layer):
        labels.opaque(call, f"{layer.name}: channels first")
        return
    inputs, places = labels.of[source], positions(call.outputs[0])
    between = np.repeat(inputs, layer.depth_multiplier)
    channels = labels.new(layer.filters, layer)
    labels.label(layer.depthwise_kernel, -2, inputs)
    labels.label(layer.bias, 0, channels)
    taps = math.prod(map(int, layer.depthwise_kernel.shape[:-2]))
    labels.work.append(Work(layer, places * taps, (between,)))
    _product(
        labels, call, layer, layer.pointwise_kernel, (-2, between), (-1, channels), times=places
    )
    _finish(labels, call, layer, channels)


def _embedding(labels: Labels, call: Call) -> None:
    layer = call.layer
    for tensor in call.inputs:
        labels.freeze(labels.of.get(tensor), f"{layer.name} looks them up")
    channels = labels.new(layer.output_dim, layer)
    labels.label(layer._embeddings, 1, channels)
    labels.give(call, channels)


# ---------------------------------------------------------------------- norms and the like


def _batch_norm(labels: Labels, call: Call) -> None:
    layer = call.layer
    channels = _normalised(labels, call)
    if channels is not None:
        for variable in (layer.moving_mean, layer.moving_variance):
            labels.label(variable, 0, channels)
        labels.give(call, channels, behaviour="each")


def _normalised(labels: Labels, call: Call) -> Numbers | None:
    """Label the scale and offset of a norm; None if its channels are not on the last axis."""
    layer, channels = call.layer, labels.of[call.inputs[0]]
    if layer.axis not in (-1, len(call.inputs[0].shape) - 1):
        labels.opaque(call, f"{layer.name} normalises another axis than the last")
        return None
    for variable in (layer.gamma, layer.beta):
        labels.label(variable, 0, channels)
    return channels


def _norm_over_channels(labels: Labels, call: Call) -> None:
    layer, source = call.layer, call.inputs[0]
    channels = labels.of[source]
    axes = [layer.axis] if isinstance(layer.axis, int) else list(layer.axis)
    if [axis % len(source.shape) for axis in axes] != [len(source.shape) - 1]:
        labels.opaque(call, f"{layer.name} normalises other axes than the last")
        return
    for name in ("gamma", "beta", "scale"):
        variable = getattr(layer, name, None)
        if isinstance(variable, keras.Variable):
            labels.label(variable, 0, channels)
    labels.mix(channels, f"{layer.name} takes its statistics over the channels")
    labels.give(call, channels)


def _group_norm(labels: Labels, call: Call) -> None:
    layer = call.layer
    channels = _normalised(labels, call)
    if channels is None:
        return
    groups = len(channels) if layer.groups == -1 else layer.groups
    if groups < len(channels):
        parts = channels.reshape(groups, -1)
        for part in parts[1:]:
            labels.tie(parts[0], part)
        labels.mix(channels, f"{layer.name} takes its statistics over groups of channels")
    labels.give(call, channels, behaviour="each" if groups == len(channels) else "")


def _prelu(labels: Labels, call: Call) -> None:
    layer = call.layer
    channels = labels.of[call.inputs[0]]
    if int(layer.alpha.shape[-1]) == len(channels):
        labels.label(layer.alpha, -1, channels)
    labels.give(call, channels, behaviour="each")


# ---------------------------------------------------------------------- recurrent layers


def _recurrent(labels: Labels, call: Call) -> None:
    layer = call.layer
    channels = _units_of(labels, call, layer)
    if layer.return_state:
        labels.freeze(channels, f"{layer.name} returns its states")
        labels.give(call, *(channels if len(t.shape) > 1 else None for t in call.outputs))
    else:
        labels.give(call, channels)


def _units_of(labels: Labels, call: Call, layer: Any) -> Numbers:
    """Label the weights of a recurrent layer by its units."""
    source, cell = call.inputs[0], layer.cell
    units = labels.new(layer.units, layer)
    gates = np.tile(units, int(cell.kernel.shape[-1]) // layer.units)
    steps = source.shape[1] or 1
    _product(labels, call, layer, cell.kernel, (0, labels.of[source]), (1, gates), times=steps)
    _product(labels, call, layer, cell.recurrent_kernel, (0, units), (1, gates), times=steps)
    labels.label(cell.bias, -1, gates)
    for extra in call.inputs[1:]:  # initial states and masks
        if extra in labels.of and extra.dtype != "bool":
            labels.freeze(units, f"{layer.name} is given its states")
            labels.freeze(labels.of[extra], f"{layer.name} takes them as its states")
    same = [probing.is_elementwise(a, layer.units) for a in _activations(layer)]
    if not all(same):
        labels.freeze(units, f"{layer.name}: its activation mixes units")
    return units


def _activations(layer: Any) -> list[Any]:
    return [layer.activation, getattr(layer, "recurrent_activation", None)]


def _bidirectional(labels: Labels, call: Call) -> None:
    layer = call.layer
    inner = (layer.forward_layer, layer.backward_layer)
    stock = (keras.layers.LSTM, keras.layers.GRU, keras.layers.SimpleRNN)
    if any(type(one) not in stock for one in inner) or layer.return_state or layer.stateful:
        labels.opaque(call, f"{layer.name}: its inner layers are not known, or return states")
        return
    one, other = (_units_of(labels, call, part) for part in inner)
    if layer.merge_mode == "concat":
        labels.give(call, np.concatenate([one, other]))
    elif layer.merge_mode is None:
        labels.give(call, one, other)
    else:
        labels.tie(one, other)
        labels.give(call, one)


def _per_step(labels: Labels, call: Call) -> None:
    """A layer with weights that a wrapper applies to each step."""
    layer = call.layer
    inner = layer.layer
    if not inner.weights:
        _try_out(labels, call)
    elif isinstance(inner, _PER_STEP) and (rule := rule_for(inner)) is not None:
        seen = dataclasses.replace(call, layer=inner)
        rule(labels, seen)
        labels.behaviours[call] = labels.behaviours.pop(seen)
    else:
        labels.opaque(call, f"{layer.name}: no rule for {type(inner).__name__} in each step")


# ---------------------------------------------------------------------- attention


def _attention(labels: Labels, call: Call) -> None:
    layer = call.layer
    last = layer._output_dense
    if len(last.kernel.shape) != 3:
        labels.opaque(call, f"{layer.name}: its outputs have several axes")
        return
    query, value, key = attended(call)
    grouped = isinstance(layer, keras.layers.GroupQueryAttention)
    few = layer.num_key_value_heads if grouped else layer._num_heads
    heads = labels.new(few, layer, "heads")
    repeats = layer.num_query_heads // few if grouped else 1
    many = np.repeat(heads, repeats)
    parts = [(layer._query_dense, query, many), (layer._key_dense, key, heads),
             (layer._value_dense, value, heads)]  # fmt: skip
    if getattr(layer, "_use_gate", False) or getattr(layer, "use_gate", False):
        parts.append((layer._gate_dense, query, many))
    for part, source, numbers in parts:
        labels.label(part.bias, 0, numbers)
        _product(labels, call, part, part._kernel, (0, labels.of[source]), (1, numbers),
                 times=positions(source))  # fmt: skip
    channels = labels.new(int(last.kernel.shape[-1]), layer)
    if grouped:
        labels.tie(channels, labels.of[query])  # it has no setting for the width of its output
    labels.label(last.bias, 0, channels)
    _product(labels, call, last, last._kernel, (0, many), (2, channels), times=positions(query))
    _add_scores(labels, call, (query, value), many)
    for tensor in set(call.inputs) - {query, value, key}:
        labels.freeze(labels.of.get(tensor), f"{layer.name} takes them as a mask")
    rest = [None] * (len(call.outputs) - 1)
    labels.give(call, channels, *rest, behaviour="attends")
    for tensor in call.outputs[1:]:
        labels.freeze(heads, f"{layer.name} returns the scores of its heads")
        labels.of[tensor] = labels.new(tensor.shape[-1] or 1)
        labels.freeze(labels.of[tensor], f"{layer.name} returns the scores of its heads")


def attended(call: Call) -> tuple[Tensor, Tensor, Tensor]:
    """Query, value and key of a call."""
    names = ("query", "value", "key")
    args, kwargs = call.arguments(call.inputs)
    given = {**dict(zip(names, args, strict=False)), **kwargs}
    value = given["value"]
    return given["query"], value, value if given.get("key") is None else given["key"]


def _add_scores(labels: Labels, call: Call, sides: tuple[Tensor, Tensor], heads: Numbers) -> None:
    """Count query times key, and scores times value."""
    layer = call.layer
    width = int(layer._key_dense.kernel.shape[-1]) + int(layer._value_dense.kernel.shape[-1])
    labels.work.append(Work(layer, positions(sides[0]) * positions(sides[1]) * width, (heads,)))


_PER_STEP = (
    _kinds.Dense, _kinds.Conv1D, _kinds.Conv2D, _kinds.Conv3D, _kinds.DepthwiseConv1D,
    _kinds.DepthwiseConv2D, _kinds.Embedding,
)  # fmt: skip

_RULES: dict[type, Rule] = {
    _kinds.Dense: _dense,
    _kinds.EinsumDense: _einsum,
    _kinds.Conv1D: _conv,
    _kinds.Conv2D: _conv,
    _kinds.Conv3D: _conv,
    _kinds.Conv1DTranspose: _conv_transpose,
    _kinds.Conv2DTranspose: _conv_transpose,
    _kinds.Conv3DTranspose: _conv_transpose,
    _kinds.DepthwiseConv1D: _depthwise,
    _kinds.DepthwiseConv2D: _depthwise,
    _kinds.SeparableConv1D: _separable,
    _kinds.SeparableConv2D: _separable,
    _kinds.Embedding: _embedding,
    _kinds.BatchNormalization: _batch_norm,
    _kinds.LayerNormalization: _norm_over_channels,
    _kinds.RMSNormalization: _norm_over_channels,
    _kinds.GroupNormalization: _group_norm,
    _kinds.PReLU: _prelu,
    _kinds.LSTM: _recurrent,
    _kinds.GRU: _recurrent,
    _kinds.SimpleRNN: _recurrent,
    _kinds.Bidirectional: _bidirectional,
    _kinds.TimeDistributed: _per_step,
    _kinds.MultiHeadAttention: _attention,
    _kinds.GroupQueryAttention: _attention,
}
