"""Every layer that multiplies its inputs with a kernel, as rows times a matrix."""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np

from keras_pruner.model_weights import WeightView, view_of
from keras_pruner.oneshot import recurrent
from keras_pruner.oneshot.listen import Call
from keras_pruner.oneshot.patches import Window, gather

Choose = Callable[[int], np.ndarray]


@dataclasses.dataclass(frozen=True, eq=False)
class Linear:
    """A kernel, the layer that applies it, and the rows it is applied to.

    rows(call) @ matrix (+ bias) is what the layer computes before its activation.

    Attributes:
        layer: whose calls show the inputs.
        kernel: the variable.
        bias: that adds one number to each output, in their order; None if there is none.
        view: the meaning of the kernel's axes.
        rows: (call, choose) -> some rows of a call's inputs, of shape (groups, m, inputs);
            `choose` is given how many there are and returns the indices of those to take.
        outputs: (output, choose) -> the same rows of the layer's output before its activation
            is undone, of shape (groups, m, outputs); None if the layer does not show them.
    """

    layer: keras.layers.Layer
    kernel: keras.Variable
    bias: keras.Variable | None
    view: WeightView
    rows: Callable[[Call, Choose], Any]
    outputs: Callable[[Any, Choose], Any] | None = None
    activation: Callable[[Any], Any] | None = None


def linears(model: keras.layers.Layer) -> Iterator[Linear]:
    """All of the model that is known."""
    layers = list(model._flatten_layers())
    wrapped = {id(layer.layer) for layer in layers if _is_per_step(layer)}
    for layer in layers:
        if _is_per_step(layer) and not isinstance(layer.layer, keras.layers.RNN):
            yield from map(functools.partial(_per_step, layer), of_layer(layer.layer))
        elif id(layer) not in wrapped:
            yield from of_layer(layer)


def of_layer(layer: keras.layers.Layer) -> Iterator[Linear]:
    """What the layer multiplies with."""
    kinds = keras.layers
    if not layer.built or getattr(layer, "quantization_mode", None) is not None:
        return
    if isinstance(layer, kinds.Dense):
        yield _dense(layer)
    elif isinstance(layer, kinds.EinsumDense):
        yield from _einsum(layer)
    elif isinstance(layer, kinds.Conv1D | kinds.Conv2D | kinds.Conv3D):
        yield _conv(layer)
    elif isinstance(layer, kinds.Conv1DTranspose | kinds.Conv2DTranspose | kinds.Conv3DTranspose):
        yield _conv_transpose(layer)
    elif isinstance(layer, kinds.DepthwiseConv1D | kinds.DepthwiseConv2D):
        yield _depthwise(layer)
    elif isinstance(layer, kinds.SeparableConv1D | kinds.SeparableConv2D):
        yield _pointwise(layer)
    elif isinstance(layer, kinds.RNN):
        for kernel, bias, rows in recurrent.products(layer):
            yield Linear(layer, kernel, bias, view_of(layer, kernel), rows)


def _flat(tensor: Any, choose: Choose) -> Any:
    """Some of (..., features) as (1, m, features)."""
    flat = keras.ops.reshape(tensor, (-1, tensor.shape[-1]))
    return keras.ops.take(flat, choose(flat.shape[0]), axis=0)[None]


def _dense(layer: Any) -> Linear:
    return Linear(
        layer,
        layer.kernel,
        layer.bias,
        view_of(layer, layer.kernel),
        lambda call, choose: _flat(call.input, choose),
        _flat,
        layer.activation,
    )


# ---------------------------------------------------------------------- einsum


def _einsum(layer: Any) -> Iterator[Linear]:
    operands, result = layer.equation.replace(" ", "").split("->")
    data, kernel = operands.split(",")
    rest = [c for c in kernel if c in data and c in result]
    inputs = [c for c in kernel if c in data and c not in result]
    outputs = [c for c in kernel if c not in data]
    batch = [c for c in data if c != "." and c not in kernel]
    if (
        not inputs
        or any(c not in result for c in [*batch, *outputs])
        or len(set(data)) < len(data.replace("...", "."))
    ):
        return  # no product of rows with a matrix
    bias = layer.bias
    whole = bias is not None and not rest and _bias_letters(layer, result) == outputs
    yield Linear(
        layer,
        layer.kernel,
        bias if whole else None,
        view_of(layer, layer.kernel),
        lambda call, choose: _letters(call.input, data, rest, batch, inputs, choose),
        functools.partial(_einsum_outputs, result, rest, batch, outputs)
        if whole or bias is None
        else None,
        layer.activation,
    )


def _bias_letters(layer: Any, result: str) -> list[str]:
    """The axes of a bias that has one number for each of them; none if it is broadcast."""
    letters = list(result.replace("...", "")[-len(layer.bias.shape) :])
    return letters if all(c in layer.bias_axes for c in letters) else []


def _einsum_outputs(
    result: str, rest: list[str], batch: list[str], outputs: list[str], output: Any, choose: Choose
) -> Any:
    return _letters(output, result, rest, batch, outputs, choose)


def _letters(
    tensor: Any, spec: str, rest: list[str], batch: list[str], last: list[str], choose: Choose
) -> Any:
    """Some of the tensor as (rest, m of the batch axes, last), by the letters of its axes."""
    extra = len(tensor.shape) - len(spec.replace("...", ""))
    dots = "0123456789"[:extra]
    axes = spec.replace("...", dots)
    order = [*rest, *dots, *batch, *last]
    moved = keras.ops.transpose(tensor, [axes.index(c) for c in order])
    sizes = [math.prod(moved.shape[len(order) - len(last) :]), math.prod(moved.shape[: len(rest)])]
    flat = keras.ops.reshape(moved, (sizes[1], -1, sizes[0]))
    return keras.ops.take(flat, choose(flat.shape[1]), axis=1)


# ---------------------------------------------------------------------- convolutions


def _channels_last(layer: Any, tensor: Any) -> Any:
    if layer.data_format == "channels_last":
        return tensor
    return keras.ops.moveaxis(tensor, 1, -1)


def _patches(layer: Any, window: Window, call: Call, choose: Choose) -> Any:
    """Some patches of the input, of shape (m, taps, channels)."""
    images = _channels_last(layer, call.input)
    out_shape = tuple(_channels_last(layer, call.output).shape[1:-1])
    rows = choose(images.shape[0] * math.prod(out_shape))
    return gather(images, window, out_shape, rows)


def _pixels(layer: Any, groups: int, output: Any, choose: Choose) -> Any:
    """Some pixels of the output, of shape (groups, m, channels of a group)."""
    pixels = _flat(_channels_last(layer, output), choose)[0]
    grouped = keras.ops.reshape(pixels, (pixels.shape[0], groups, -1))
    return keras.ops.transpose(grouped, (1, 0, 2))


def _conv(layer: Any) -> Linear:
    window = Window(layer.kernel_size, layer.strides, layer.dilation_rate, layer.padding)
    groups = layer.groups

    def rows(call: Call, choose: Choose) -> Any:
        patches = _patches(layer, window, call, choose)
        parts = keras.ops.reshape(patches, (patches.shape[0], window.taps, groups, -1))
        parts = keras.ops.transpose(parts, (2, 0, 1, 3))
        return keras.ops.reshape(parts, (groups, patches.shape[0], -1))

    return Linear(
        layer,
        layer.kernel,
        layer.bias if layer.use_bias else None,
        view_of(layer, layer.kernel),
        rows,
        functools.partial(_pixels, layer, groups),
        layer.activation,
    )


def _conv_transpose(layer: Any) -> Linear:
    window = Window(
        layer.kernel_size,
        layer.strides,
        layer.dilation_rate,
        layer.padding,
        transposed=True,
        output_padding=layer.output_padding,
    )
    return Linear(
        layer,
        layer.kernel,
        layer.bias if layer.use_bias else None,
        view_of(layer, layer.kernel),
        lambda call, choose: _flat_patches(_patches(layer, window, call, choose)),
        functools.partial(_pixels, layer, 1),
        layer.activation,
    )


def _flat_patches(patches: Any) -> Any:
    return keras.ops.reshape(patches, (1, patches.shape[0], -1))


def _depthwise(layer: Any) -> Linear:
    window = Window(layer.kernel_size, layer.strides, layer.dilation_rate, layer.padding)
    return Linear(
        layer,
        layer.kernel,
        layer.bias if layer.use_bias else None,
        view_of(layer, layer.kernel),
        lambda call, choose: keras.ops.transpose(_patches(layer, window, call, choose), (2, 0, 1)),
        functools.partial(_pixels, layer, layer.kernel.shape[-2]),
        layer.activation,
    )


def _pointwise(layer: Any) -> Linear:
    """The second half of a separable convolution: its inputs are what the first half gives."""
    window = Window(layer.kernel_size, layer.strides, layer.dilation_rate, layer.padding)
    depthwise = layer.depthwise_kernel

    def rows(call: Call, choose: Choose) -> Any:
        patches = _patches(layer, window, call, choose)
        kernel = keras.ops.reshape(depthwise, (window.taps, *depthwise.shape[-2:]))
        mixed = keras.ops.einsum("mtc,tck->mck", patches, keras.ops.cast(kernel, patches.dtype))
        return keras.ops.reshape(mixed, (1, patches.shape[0], -1))

    return Linear(
        layer,
        layer.pointwise_kernel,
        layer.bias if layer.use_bias else None,
        view_of(layer, layer.pointwise_kernel),
        rows,
        functools.partial(_pixels, layer, 1),
        layer.activation,
    )


# ---------------------------------------------------------------------- wrappers


def _is_per_step(layer: keras.layers.Layer) -> bool:
    return isinstance(layer, keras.layers.TimeDistributed)


def _per_step(wrapper: Any, inner: Linear) -> Linear:
    """A layer under `TimeDistributed`, whose calls are traced: the wrapper's show the inputs."""

    def untimed(tensor: Any) -> Any:
        return keras.ops.reshape(tensor, (-1, *tensor.shape[2:]))

    def rows(call: Call, choose: Choose) -> Any:
        call = Call(call.function, (untimed(call.input),), {}, untimed(call.output))
        return inner.rows(call, choose)

    outputs = inner.outputs
    return dataclasses.replace(
        inner,
        layer=wrapper,
        rows=rows,
        outputs=outputs and (lambda output, choose: outputs(untimed(output), choose)),
    )
