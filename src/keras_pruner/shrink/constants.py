"""Channels that can be removed without changing an output.

There are three kinds: a channel that is zero for every input; a channel with another constant
value, if every layer that reads it can add the constant's effect to its bias; and a channel that is
only multiplied with zeros.
"""

import dataclasses
from typing import Any

import keras
import numpy as np

from keras_pruner import backends
from keras_pruner.channels import probing
from keras_pruner.channels.classes import Channels, Product
from keras_pruner.channels.layer_rules import attended
from keras_pruner.model_graph import Call, ModelGraph, Tensor

_ROUNDING = 1e-6  # relative difference up to which two numbers count as the same constant
_WIDTH = 6  # trial runs use a multiple of this many channels: JAX compiled it for `probing`


@dataclasses.dataclass(frozen=True, eq=False)
class Cut:
    """The channels to remove from a model, and the weights that make up for them.

    Attributes:
        kept: for each class of channels, whether it stays.
        values: id of a variable -> its new value, before channels are removed from it.
        biases: id of a layer without a bias -> the bias that it gets.
    """

    kept: np.ndarray
    values: dict[int, np.ndarray] = dataclasses.field(default_factory=dict)
    biases: dict[int, np.ndarray] = dataclasses.field(default_factory=dict)


def cut_of_dead(channels: Channels) -> Cut:
    """The cut that removes every channel that changes no output."""
    constants = _constants(channels)
    read = [(product, _at_inputs(product, constants)) for product in channels.products]
    read = _equal_in_all_calls(read)
    kept = _live(channels, read)
    keep_one_of_each(channels, kept)
    return _folded(channels, Cut(kept), read)


def keep_one_of_each(channels: Channels, kept: np.ndarray) -> None:
    """Keep at least one channel on each axis of each weight."""
    for axis in channels.axes:
        if not kept[axis.channels].any():
            kept[axis.channels[0]] = True


# ---------------------------------------------------------------------- constants

Constants = dict[Tensor, np.ndarray]
"""Tensor -> the value of each of its channels; NaN for a channel that is not constant."""


def _constants(channels: Channels) -> Constants:
    found: Constants = {}
    # Of several products in one call, the last gives the outputs: the projection after the heads.
    products = {product.call.outputs[0]: product for product in channels.products}
    for tensor in channels.graph.inputs:
        found[tensor] = _varying(tensor)
    for call in channels.graph.calls:
        if call.is_input:
            continue
        behaviour = channels.behaviours.get(call, "")
        if behaviour in ("multiplies", "attends"):
            product = products[call.outputs[0]]
            found[call.outputs[0]] = _of_product(product, _at_inputs(product, found))
        elif behaviour == "each" and isinstance(call.layer, keras.layers.BatchNormalization):
            found[call.outputs[0]] = _of_batch_norm(call.layer, found[call.inputs[0]])
        elif behaviour in ("each", "moves"):
            _of_operation(call, found, each=behaviour == "each")
        elif isinstance(call.layer, _RECURRENT) and len(call.outputs) == 1:
            found[call.outputs[0]] = _of_recurrent(call.layer)
        elif isinstance(call.layer, keras.layers.Embedding):
            rows = _numpy(call.layer.embeddings)
            found[call.outputs[0]] = np.where((rows == rows[:1]).all(axis=0), rows[0], np.nan)
        for tensor in call.outputs:
            found.setdefault(tensor, _varying(tensor))
    return found


_RECURRENT = (
    keras.layers.LSTM, keras.layers.GRU, keras.layers.SimpleRNN, keras.layers.Bidirectional,
)  # fmt: skip


def _varying(tensor: Tensor) -> np.ndarray:
    return np.full(tensor.shape[-1] or 0 if len(tensor.shape) > 1 else 0, np.nan)


def _of_operation(call: Call, found: Constants, *, each: bool) -> None:
    """Find the constants in an operation's outputs: run it on constants and random numbers."""
    known = any(np.isfinite(found[tensor]).any() for tensor in call.inputs)
    if not known and not getattr(call.layer, "weights", None):
        return

    inputs, again = [found[tensor] for tensor in call.inputs], None
    if each:
        inputs, again = _distinct(inputs, call)
    constants = dict(zip(call.inputs, inputs, strict=True))

    def fill(tensor: Tensor, drawn: np.ndarray) -> np.ndarray:
        constant = constants[tensor]
        if len(constant) != drawn.shape[-1]:
            return drawn
        return np.where(np.isnan(constant), drawn, constant).astype(drawn.dtype)

    sizes = {} if again is None else {len(again): len(inputs[0])}
    for tensor, output in zip(call.outputs, probing.outputs_for(call, fill, sizes), strict=True):
        flat = output.reshape(-1, output.shape[-1]).astype(np.float64)
        low, high = flat.min(axis=0), flat.max(axis=0)
        same = high - low <= _ROUNDING * np.maximum(np.abs(low), np.abs(high))
        values = np.where(same, flat[0], np.nan)
        found[tensor] = values if again is None else values[again]


def _distinct(
    constants: list[np.ndarray], call: Call
) -> tuple[list[np.ndarray], np.ndarray | None]:
    """One channel for each distinct combination of constants.

    A layer of Keras without weights that works on each channel by itself gives equal channels equal
    outputs. So it is run on one channel of each kind. This also needs fewer shapes, and JAX
    compiles the layer anew for each shape.

    Returns:
        The constants of the distinct channels; and for each channel of the operation its index
        among them, or None if the operation has to be run on all channels.
    """
    is_free = probing.is_of_keras(call.layer) and not getattr(call.layer, "weights", None)
    alike = len({len(numbers) for numbers in constants}) == 1
    if not is_free or not alike or any(len(o.shape) < 2 for o in call.outputs):
        return constants, None
    if any(tensor.shape[-1] != len(constants[0]) for tensor in call.outputs):
        return constants, None
    columns = np.where(np.isnan(constants), np.inf, constants)
    few, again = np.unique(columns, axis=1, return_inverse=True)
    few = np.where(np.isinf(few), np.nan, few)
    missing = -few.shape[1] % _WIDTH
    few = np.pad(few, ((0, 0), (0, missing)), mode="edge")
    if few.shape[1] >= len(constants[0]):
        return constants, None
    return list(few), again.reshape(-1)


def _of_batch_norm(layer: Any, inputs: np.ndarray) -> np.ndarray:
    """The constants after a batch normalization; a scale of zero makes every channel constant."""
    mean, variance = _numpy(layer.moving_mean), _numpy(layer.moving_variance)
    scale = 1 / np.sqrt(variance + layer.epsilon)
    if layer.gamma is not None:
        scale = scale * _numpy(layer.gamma)
    offset = 0.0 if layer.beta is None else _numpy(layer.beta)
    return np.where(scale == 0, 0.0, (inputs - mean) * scale) + offset


def _of_product(product: Product, inputs: np.ndarray) -> np.ndarray:
    """The constants in the outputs of a product."""
    weights = product.matrix(_numpy(product.kernel)).astype(np.float64)
    weights = weights.reshape(*weights.shape[:2], -1)
    usable = np.isfinite(inputs) & (product.foldable | (inputs == 0))
    reads = np.abs(weights).sum(axis=2)
    varies = reads[~usable].any(axis=0)
    outputs = np.where(usable, inputs, 0) @ weights.sum(axis=2)
    bias = product.layer.bias
    if bias is not None and len(bias.shape) > 1:
        varies = varies | bool(_numpy(bias).any())
    elif bias is not None:
        outputs = outputs + _numpy(bias)
    activated = _activated(product.layer.activation, outputs)
    return np.where(varies, np.nan, activated)


def _activated(activation: Any, outputs: np.ndarray) -> np.ndarray:
    if activation is None:
        return outputs
    tensor = keras.ops.convert_to_tensor(outputs[None].astype("float32"))
    return keras.ops.convert_to_numpy(activation(tensor))[0]


def _of_recurrent(layer: Any) -> np.ndarray:
    """The constants in the outputs of a recurrent layer: units whose state stays zero."""
    if not isinstance(layer, keras.layers.Bidirectional):
        return np.where(_silent(layer), 0.0, np.nan)
    one, other = _silent(layer.forward_layer), _silent(layer.backward_layer)
    if layer.merge_mode == "concat":
        return np.where(np.concatenate([one, other]), 0.0, np.nan)
    return np.where(one & other, 0.0, np.nan)


def _silent(layer: Any) -> np.ndarray:
    """For each unit, whether its state stays zero: all weights of its candidate gate are zero."""
    cell = layer.cell
    weights = [cell.kernel, cell.recurrent_kernel] + ([cell.bias] if cell.use_bias else [])
    gate = 2 if len(weights[0].shape) and int(weights[0].shape[-1]) > layer.units else 0
    columns = slice(gate * layer.units, (gate + 1) * layer.units)
    total: Any = 0.0
    for variable in weights:
        part = np.abs(_numpy(variable)[..., columns])
        total = total + part.reshape(-1, layer.units).sum(axis=0)
    at_zero = _activated(layer.activation, np.zeros(1))[0]
    return (total == 0) & bool(at_zero == 0)


def _at_inputs(product: Product, found: Constants) -> np.ndarray:
    """The constants in the inputs of a product."""
    width, operation = len(product.inputs), product.call.layer
    if product.source is not None:
        constants = found[product.source]
        if len(constants) > width:  # a grouped convolution: the same position in each group
            constants = np.where((constants == 0).reshape(-1, width).all(axis=0), 0.0, np.nan)
        return constants
    if isinstance(operation, _ATTENTION):
        if product.layer is operation._output_dense:
            return _silent_heads(operation, width)
    elif isinstance(operation, _RECURRENT):
        if product.kernel is product.layer.cell.recurrent_kernel:
            return np.where(_silent(product.layer), 0.0, np.nan)
    else:  # the second half of a separable convolution
        constants = found[product.call.inputs[0]]
        return np.where(np.repeat(constants, width // len(constants)) == 0, 0.0, np.nan)
    constants = _source_of(product, found)
    return np.where(constants == 0, 0.0, np.nan)


_ATTENTION = (keras.layers.MultiHeadAttention, keras.layers.GroupQueryAttention)


def _source_of(product: Product, found: Constants) -> np.ndarray:
    """The constants in the inputs of an attention projection or a recurrent layer's kernel."""
    call = product.call
    if not isinstance(call.layer, _ATTENTION):
        return found[call.inputs[0]]
    query, value, key = attended(call)
    return found[{"key": key, "value": value}.get(product.layer.name, query)]


def _silent_heads(layer: Any, count: int) -> np.ndarray:
    """The constants in the outputs of attention heads: zero for heads with zero values."""
    value = layer._value_dense
    total = np.abs(_numpy(value.kernel)).sum(axis=(0, 2))
    if value.bias is not None:
        total = total + np.abs(_numpy(value.bias)).sum(axis=1)
    return np.repeat(np.where(total == 0, 0.0, np.nan), count // len(total))


# ---------------------------------------------------------------------- channels that are read

ReadConstants = list[tuple[Product, np.ndarray]]
"""The products of a model, each with the constants in its inputs."""


def _equal_in_all_calls(read: ReadConstants) -> ReadConstants:
    """Keep only the constants that are equal in all calls of a shared layer; else NaN."""
    together: dict[int, list[np.ndarray]] = {}
    for product, constants in read:
        together.setdefault(id(product.kernel), []).append(constants)
    same = {}
    for kernel, several in together.items():
        equal = np.all([one == several[0] for one in several], axis=0)
        same[kernel] = np.where(equal, several[0], np.nan)
    return [(product, same[id(product.kernel)]) for product, _ in read]


def _live(channels: Channels, read: ReadConstants) -> np.ndarray:
    """For each class, whether an output depends on it, or it must stay for another reason."""
    live = channels.blocked() | channels.mixed()
    tables = []
    for product, constants in read:
        weights = product.matrix(_numpy(product.kernel))
        multiplied = (weights.reshape(*weights.shape[:2], -1) != 0).any(axis=2)
        dispensable = (constants == 0) | (product.foldable & np.isfinite(constants))
        tables.append((product, multiplied & ~dispensable[:, None]))
    before = -1
    while before != np.count_nonzero(live):
        before = int(np.count_nonzero(live))
        for product, table in tables:
            needed = table[:, live[product.outputs]].any(axis=1)
            live[product.inputs[needed]] = True
    return live


# ---------------------------------------------------------------------- folding


def _folded(channels: Channels, cut: Cut, read: ReadConstants) -> Cut:
    """Add the effect of the removed constants to the biases of the layers that read them."""
    done: set[int] = set()
    for product, constants in read:
        lost = np.where(~cut.kept[product.inputs] & np.isfinite(constants), constants, 0.0)
        if id(product.kernel) in done or not lost.any():
            continue
        done.add(id(product.kernel))
        weights = product.matrix(_numpy(product.kernel)).astype(np.float64)
        shift = lost @ weights.reshape(*weights.shape[:2], -1).sum(axis=2)
        if shift.any():
            _shift(channels.graph, product, shift, cut)
    return cut


def _shift(graph: ModelGraph, product: Product, shift: np.ndarray, cut: Cut) -> None:
    """Shift the outputs of a product: by its bias, or the mean of the batch norm that follows."""
    layer = product.layer
    if layer.bias is not None:
        cut.values[id(layer.bias)] = _numpy(layer.bias) + shift
        return
    consumers = graph.consumers_of(product.call.outputs[0])
    norm: Any = consumers[0].layer if len(consumers) == 1 else None
    plain = layer.activation in (None, keras.activations.linear)
    once = [graph.calls_of(one) for one in (layer, norm)]
    is_norm = isinstance(norm, keras.layers.BatchNormalization)
    if is_norm and plain and all(len(calls) == 1 for calls in once):
        mean = norm.moving_mean
        cut.values[id(mean)] = cut.values.get(id(mean), _numpy(mean)) - shift
    else:
        cut.biases[id(layer)] = shift


def _numpy(variable: keras.Variable) -> np.ndarray:
    return backends.current().to_numpy(variable)
