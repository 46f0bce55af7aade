"""Every layer that multiplies its inputs with a kernel, seen as rows times a matrix.

`linears(model)` finds the kernels. Each section below computes the rows of one kind of layer.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np

from keras_pruner.model_weights import WeightView, view_of
from keras_pruner.oneshot.arrays import like, namespace, to_array
from keras_pruner.oneshot.listen import Call

Choose = Callable[[int], np.ndarray]
"""Number of rows -> indices of the rows to take."""


@dataclasses.dataclass(frozen=True, eq=False)
class Linear:
    """A kernel, the layer that applies it, and the rows that it is multiplied with.

    The layer computes activation(rows @ matrix + bias).

    Attributes:
        layer: the layer in whose calls the inputs can be seen.
        kernel: the variable.
        bias: the variable with one number for each output, in their order; None without one.
        view: the kernel as matrices (groups, inputs, outputs).
        rows: (call, choose) -> chosen rows of the call's inputs, in float32, of shape
            (groups, m, inputs).
        outputs: (output, choose) -> the same rows of the layer's output, of shape
            (groups, m, outputs); None if they cannot be computed from the layer's output.
        activation: the function applied to the outputs; None without one.
    """

    layer: keras.layers.Layer
    kernel: keras.Variable
    bias: keras.Variable | None
    view: WeightView
    rows: Callable[[Call, Choose], Any]
    outputs: Callable[[Any, Choose], Any] | None = None
    activation: Callable[[Any], Any] | None = None


def linears(model: keras.layers.Layer) -> Iterator[Linear]:
    """Every kernel of the model that belongs to one of the kinds of layers below."""
    layers = list(model._flatten_layers())
    wrapped = {id(layer.layer) for layer in layers if _is_per_step(layer)}
    for layer in layers:
        if _is_per_step(layer) and not isinstance(layer.layer, keras.layers.RNN):
            yield from map(functools.partial(_per_step, layer), of_layer(layer.layer))
        elif id(layer) not in wrapped:
            yield from of_layer(layer)


def of_layer(layer: keras.layers.Layer) -> Iterator[Linear]:
    """The kernels of one layer."""
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
        yield from _recurrent(layer)


def _flat(tensor: Any, choose: Choose) -> Any:
    """Chosen rows of (..., features) as (1, m, features)."""
    values = to_array(tensor)
    xp = namespace(values)
    flat = xp.reshape(values, (-1, values.shape[-1]))
    return xp.take(flat, choose(flat.shape[0]), axis=0)[None]


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
    """Chosen rows as (rest, m of the batch axes, last), by the letters of the tensor's axes."""
    values = to_array(tensor)
    xp = namespace(values)
    extra = len(tensor.shape) - len(spec.replace("...", ""))
    dots = "0123456789"[:extra]
    axes = spec.replace("...", dots)
    order = [*rest, *dots, *batch, *last]
    moved = xp.transpose(values, [axes.index(c) for c in order])
    sizes = [math.prod(moved.shape[len(order) - len(last) :]), math.prod(moved.shape[: len(rest)])]
    flat = xp.reshape(moved, (sizes[1], -1, sizes[0]))
    return xp.take(flat, choose(flat.shape[1]), axis=1)


# ---------------------------------------------------------------------- convolutions


@dataclasses.dataclass(frozen=True)
class Window:
    """The geometry of a convolution, or of a transposed one.

    Attributes:
        size: the size of the kernel along each spatial axis.
        strides: the stride along each spatial axis.
        dilation: the dilation along each spatial axis.
        padding: "valid", "same" or "causal".
        transposed: whether it is a transposed convolution.
        output_padding: of a transposed convolution, if given.
    """

    size: tuple[int, ...]
    strides: tuple[int, ...]
    dilation: tuple[int, ...]
    padding: str
    transposed: bool = False
    output_padding: tuple[int, ...] | None = None

    def sources(
        self, positions: np.ndarray, in_shape: tuple[int, ...], out_shape: tuple[int, ...]
    ) -> np.ndarray:
        """The flat input positions that the given flat output positions see.

        Args:
            positions: shape (m,).
            in_shape: spatial shape of the input.
            out_shape: spatial shape of the output.

        Returns:
            Shape (m, taps), taps in the order of the kernel; -1 where there is only padding.
        """
        flat = np.zeros((len(positions), 1), np.int64)
        inside = np.ones((len(positions), 1), bool)
        for axis, at in enumerate(np.unravel_index(positions, out_shape)):
            source, valid = self._along(axis, at, in_shape[axis], out_shape[axis])
            flat = (flat[:, :, None] * in_shape[axis] + source[:, None, :]).reshape(len(at), -1)
            inside = (inside[:, :, None] & valid[:, None, :]).reshape(len(at), -1)
        return np.where(inside, flat, -1)

    def _along(
        self, axis: int, at: np.ndarray, in_size: int, out_size: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Source and validity along one axis, of shape (m, size of the kernel)."""
        stride = self.strides[axis]
        reach = np.arange(self.size[axis]) * self.dilation[axis]
        before = self._padding_before(axis, in_size, out_size)
        if self.transposed:
            ahead = at[:, None] + before - reach
            source, rest = np.divmod(ahead, stride)
            return source, (rest == 0) & (source >= 0) & (source < in_size)
        source = at[:, None] * stride - before + reach
        return source, (source >= 0) & (source < in_size)

    def _padding_before(self, axis: int, in_size: int, out_size: int) -> int:
        extent = (self.size[axis] - 1) * self.dilation[axis] + 1
        if self.padding == "causal":
            return extent - 1
        if self.padding == "valid":
            return 0
        if not self.transposed:
            return max((out_size - 1) * self.strides[axis] + extent - in_size, 0) // 2
        if self.output_padding is not None:
            return extent // 2
        return max(extent - self.strides[axis], 0) // 2


def _channels_last(layer: Any, tensor: Any) -> Any:
    values = to_array(tensor)
    if layer.data_format == "channels_last":
        return values
    return namespace(values).moveaxis(values, 1, -1)


def _patches(layer: Any, window: Window, call: Call, choose: Choose) -> Any:
    """The patches behind chosen pixels of the output, of shape (m, taps, channels)."""
    images = _channels_last(layer, call.input)
    in_shape, channels = tuple(images.shape[1:-1]), images.shape[-1]
    spatial = slice(1, -1) if layer.data_format == "channels_last" else slice(2, None)
    out_shape = tuple(call.output.shape[spatial])
    image, position = np.divmod(
        choose(images.shape[0] * math.prod(out_shape)), math.prod(out_shape)
    )
    sources = window.sources(position, in_shape, out_shape)
    nothing = images.shape[0] * math.prod(in_shape)  # the row of zeros behind the last pixel
    index = np.where(sources < 0, nothing, image[:, None] * math.prod(in_shape) + sources)
    xp = namespace(images)
    pixels = xp.reshape(images, (-1, channels))
    pixels = xp.concatenate([pixels, xp.zeros_like(pixels[:1])])
    return xp.take(pixels, index, axis=0)


def _pixels(layer: Any, groups: int, output: Any, choose: Choose) -> Any:
    """Chosen pixels of the output, of shape (groups, m, channels of a group)."""
    pixels = _flat(_channels_last(layer, output), choose)[0]
    xp = namespace(pixels)
    return xp.transpose(xp.reshape(pixels, (pixels.shape[0], groups, -1)), (1, 0, 2))


def _windowed(
    layer: Any, kernel: Any, groups: int, arrange: Callable[[Any], Any], **window: Any
) -> Linear:
    """A convolution, whose rows are patches: of shape (m, taps, channels) before `arrange`."""
    moved = Window(layer.kernel_size, layer.strides, layer.dilation_rate, layer.padding, **window)
    return Linear(
        layer,
        kernel,
        layer.bias if layer.use_bias else None,
        view_of(layer, kernel),
        lambda call, choose: arrange(_patches(layer, moved, call, choose)),
        functools.partial(_pixels, layer, groups),
        layer.activation,
    )


def _conv(layer: Any) -> Linear:
    def by_group(patches: Any) -> Any:
        xp = namespace(patches)
        parts = xp.reshape(patches, (*patches.shape[:2], layer.groups, -1))
        parts = xp.transpose(parts, (2, 0, 1, 3))
        return xp.reshape(parts, (layer.groups, patches.shape[0], -1))

    return _windowed(layer, layer.kernel, layer.groups, by_group)


def _conv_transpose(layer: Any) -> Linear:
    window = {"transposed": True, "output_padding": layer.output_padding}
    return _windowed(layer, layer.kernel, 1, _flat_patches, **window)


def _flat_patches(patches: Any) -> Any:
    return namespace(patches).reshape(patches, (1, patches.shape[0], -1))


def _depthwise(layer: Any) -> Linear:
    def by_channel(patches: Any) -> Any:
        return namespace(patches).transpose(patches, (2, 0, 1))

    return _windowed(layer, layer.kernel, layer.kernel.shape[-2], by_channel)


def _pointwise(layer: Any) -> Linear:
    """The pointwise half of a separable convolution; its inputs are computed by the first half."""
    depthwise = layer.depthwise_kernel

    def first_half(patches: Any) -> Any:
        kernel = keras.ops.convert_to_numpy(depthwise.value)
        kernel = like(patches, kernel.reshape(patches.shape[1], *depthwise.shape[-2:]))
        return _flat_patches(namespace(patches).einsum("mtc,tck->mck", patches, kernel))

    return _windowed(layer, layer.pointwise_kernel, 1, first_half)


# ---------------------------------------------------------------------- recurrent layers


def _recurrent(layer: Any) -> Iterator[Linear]:
    """The kernels for the inputs and for the past outputs of LSTM, GRU and SimpleRNN.

    None for cells that are not exactly Keras' own, for stateful layers, and for the recurrent
    kernel of a GRU with `reset_after=False`, which multiplies a gated output.
    """
    cell = layer.cell
    known = (keras.layers.LSTMCell, keras.layers.GRUCell, keras.layers.SimpleRNNCell)
    if type(cell) not in known or layer.stateful:
        return
    is_gru = type(cell) is keras.layers.GRUCell
    two = is_gru and cell.reset_after  # biases of shape (2, outputs)
    bias = cell.bias if cell.use_bias and not two else None
    yield Linear(layer, cell.kernel, bias, view_of(cell, cell.kernel), _every_step)
    if two or not is_gru:
        rows = functools.partial(_past_outputs, layer)
        kernel = cell.recurrent_kernel
        yield Linear(layer, kernel, bias, view_of(cell, kernel), rows)


def _every_step(call: Call, choose: Choose) -> Any:
    """The inputs of all steps."""
    return _steps(to_array(call.input), _mask(call), choose)


def _past_outputs(layer: Any, call: Call, choose: Choose) -> Any:
    """The output before every step, in the order in which the layer takes the steps."""
    outputs = to_array(_sequence(layer, call))
    xp = namespace(outputs)
    state = call.kwargs.get("initial_state", call.args[1] if len(call.args) > 1 else None)
    first = xp.zeros_like(outputs[:, :1])
    if state is not None:
        first = to_array(keras.tree.flatten(state)[0])[:, None]
    mask = _mask(call)
    if mask is not None and layer.go_backwards:
        mask = mask[:, ::-1]
    return _steps(xp.concatenate([first, outputs[:, :-1]], axis=1), mask, choose)


def _sequence(layer: Any, call: Call) -> Any:
    """The outputs of all steps; the layer is run again to get them."""
    kept = layer.return_sequences, layer.return_state, layer.zero_output_for_mask
    try:
        layer.return_sequences, layer.return_state, layer.zero_output_for_mask = True, False, False
        return call.function(*call.args, **call.kwargs)
    finally:
        layer.return_sequences, layer.return_state, layer.zero_output_for_mask = kept


def _mask(call: Call) -> np.ndarray | None:
    mask = call.kwargs.get("mask")
    mask = mask[0] if isinstance(mask, list | tuple) else mask
    return None if mask is None else keras.ops.convert_to_numpy(mask)


def _steps(values: Any, mask: np.ndarray | None, choose: Choose) -> Any:
    """Chosen rows of (n, steps, features) as (1, m, features); masked steps are left out."""
    xp = namespace(values)
    flat = xp.reshape(values, (-1, values.shape[-1]))
    live = np.arange(flat.shape[0]) if mask is None else np.flatnonzero(mask)
    return xp.take(flat, live[choose(len(live))], axis=0)[None]


# ---------------------------------------------------------------------- wrappers


def _is_per_step(layer: keras.layers.Layer) -> bool:
    return isinstance(layer, keras.layers.TimeDistributed)


def _per_step(wrapper: Any, inner: Linear) -> Linear:
    """A layer inside `TimeDistributed`: its own calls are traced, so the wrapper's are used."""

    def untimed(tensor: Any) -> Any:
        values = to_array(tensor)
        return namespace(values).reshape(values, (-1, *values.shape[2:]))

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
