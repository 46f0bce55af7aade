"""Build the model with fewer channels: new layers of the same names, with parts of the weights."""

from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np

from keras_pruner import backends
from keras_pruner.channels.classes import Channels
from keras_pruner.model_graph import Call
from keras_pruner.shrink.constants import Cut


def rebuild(form: keras.Model, channels: Channels, cut: Cut) -> keras.Model:
    """Build a model without the channels of a cut; the given model is not changed.

    Args:
        form: the functional form that the channels were found in.
        channels: the channels of the model.
        cut: the channels to remove.
    """
    builder = _Builder(channels, cut)
    built = builder.model(form, [tuple(tensor.shape) for tensor in form.inputs])
    builder.copy_weights()
    return built


class _Builder:
    """Builds the successor of each layer: the layer of the same name in the smaller model."""

    def __init__(self, channels: Channels, cut: Cut) -> None:
        self._channels = channels
        self._cut = cut
        self._axes = channels.by_variable()
        self._calls: dict[int, Call] = {}
        for call in channels.graph.calls:
            self._calls.setdefault(id(call.layer), call)
        self._made: dict[int, tuple[Any, Any]] = {}  # id of a layer -> the layer, its successor

    # ------------------------------------------------------------------ models

    def model(self, form: Any, shapes: list[tuple[int | None, ...]]) -> keras.Model:
        """The successor of a functional model and its nested models, for these input shapes."""
        entries = [self._input(t, shape) for t, shape in zip(form.inputs, shapes, strict=True)]
        known = {id(old): new for old, new in zip(form.inputs, entries, strict=True)}
        for node in self._nodes(form):
            args, kwargs = node.arguments.fill_in(known)
            if type(node.operation).__name__ == "GetItem":
                args, kwargs = self._subscript(node.operation, args, kwargs)
            shapes = [tuple(known[id(tensor)].shape) for tensor in node.input_tensors]
            outputs = self._successor(node, shapes)(*args, **kwargs)
            pairs = zip(node.outputs, keras.tree.flatten(outputs), strict=True)
            known |= {id(symbolic): output for symbolic, output in pairs}
        inputs, outputs = keras.tree.map_structure(
            lambda symbolic: known[id(symbolic)], (form._inputs_struct, form._outputs_struct)
        )
        return keras.Model(inputs, outputs, name=form.name, trainable=form.trainable)

    def _nodes(self, form: Any) -> Iterator[Any]:
        """The calls of a functional model, without those of its inputs."""
        entries = {id(tensor) for tensor in form.inputs}
        for depth in sorted(form._nodes_by_depth, reverse=True):
            for node in form._nodes_by_depth[depth]:
                if not any(id(tensor) in entries for tensor in node.outputs):
                    yield node

    def _input(self, symbolic: Any, shape: tuple[int | None, ...]) -> Any:
        layer = symbolic._keras_history.operation
        config = layer.get_config() if isinstance(layer, keras.layers.InputLayer) else {}
        config = {"dtype": symbolic.dtype, **config, "batch_shape": shape}
        return keras.layers.InputLayer.from_config(config).output

    def _successor(self, node: Any, shapes: list[tuple[int | None, ...]]) -> Any:
        """The successor of the layer, operation or nested model that a node calls."""
        operation = node.operation
        if id(operation) not in self._made:
            form = self._channels.graph.forms.get(id(node))
            if form is None:
                made = self._new(operation)
            else:
                made = self.model(form, shapes)
                if isinstance(operation, keras.Sequential):
                    made = as_sequential(made, operation)
            self._made[id(operation)] = operation, made
        return self._made[id(operation)][1]

    # ------------------------------------------------------------------ layers

    def _new(self, operation: Any) -> Any:
        """The successor of a layer, with its own name and new sizes, without weights yet."""
        if isinstance(operation, keras.layers.Lambda):
            return keras.layers.Lambda(
                operation.function,
                output_shape=operation._output_shape,
                mask=operation.mask,
                arguments=operation.arguments,
                name=operation.name,
                dtype=operation.dtype_policy,
            )
        try:
            config = _without_shapes(operation.get_config())
        except NotImplementedError as error:
            if not getattr(operation, "variables", None):
                return operation  # without variables, both models can share it
            raise ValueError(
                "`model` must have layers that can be created from their configuration. Received: "
                f"{operation.name!r}, a {type(operation).__name__} without `get_config`. "
                "Implement `get_config`."
            ) from error
        self.resize(operation, config)
        if _is_of_keras(operation):
            config = _with_zeros(config)
        with keras.saving.custom_object_scope({type(operation).__name__: type(operation)}):
            return type(operation).from_config(config)

    def resize(self, operation: Any, config: dict[str, Any]) -> None:
        """Write the new sizes into the configuration of a layer."""
        for kind in type(operation).__mro__:
            if kind.__name__ in _SIZES:
                _SIZES[kind.__name__](self, operation, config)
                break
        if id(operation) in self._cut.biases:
            config["use_bias"] = True

    def shape(self, variable: keras.Variable) -> tuple[int, ...]:
        """The shape of a weight after the cut."""
        shape = list(map(int, variable.shape))
        for axis in self._axes.get(id(variable), []):
            shape[axis.axis] = self._count(axis.channels)
        return tuple(shape)

    def _count(self, numbers: np.ndarray) -> int:
        return int(np.count_nonzero(self._cut.kept[numbers]))

    def width_after(self, operation: Any) -> int | None:
        """The number of channels of an operation's first output after the cut."""
        call = self._calls.get(id(operation))
        numbers = None if call is None else self._channels.of.get(call.outputs[0])
        return None if numbers is None else self._count(numbers)

    def _subscript(self, operation: Any, args: Any, kwargs: Any) -> tuple[Any, Any]:
        """The arguments of a subscript x[..., a:b], with a and b as they are after the cut."""
        call = self._calls[id(operation)]
        key = args[1] if len(args) > 1 else kwargs.get("key")
        numbers = self._channels.of.get(call.inputs[0])
        last = key[-1] if isinstance(key, tuple | list) else key
        if numbers is None or not isinstance(last, slice) or not isinstance(key, tuple | list):
            return args, kwargs
        if Ellipsis not in key and len(key) < len(call.inputs[0].shape):
            return args, kwargs
        start, stop, _ = last.indices(len(numbers))
        ends = (self._count(numbers[:start]), self._count(numbers[:stop]))
        return (args[0], (*key[:-1], slice(*ends))), {}

    # ------------------------------------------------------------------ weights

    def copy_weights(self) -> None:
        """Copy the weights of the old layers into the new ones, without the removed channels."""
        for layer, successor in self._made.values():
            if isinstance(successor, keras.Model) or layer is successor:
                continue
            if _is_of_keras(layer):
                _restore_initializers(layer, successor)
            olds = list(getattr(layer, "weights", ()))
            news = list(getattr(successor, "weights", ()))
            has_new = len(olds) < len(news)
            for variable in news:
                added = has_new and variable.name == "bias"
                variable.assign(self._added_bias(layer) if added else self.value(olds.pop(0)))

    def _added_bias(self, layer: Any) -> np.ndarray:
        """The bias of a layer that had none before."""
        inner = layer if id(layer) in self._cut.biases else layer.layer
        products = self._channels.products
        numbers = next(p.outputs for p in products if p.layer is inner)
        return np.compress(self._cut.kept[numbers], self._cut.biases[id(inner)])

    def value(self, variable: keras.Variable) -> np.ndarray:
        """The value of a weight after the cut."""
        given = self._cut.values.get(id(variable))
        array = backends.current().to_numpy(variable) if given is None else given
        for axis in self._axes.get(id(variable), []):
            array = np.compress(self._cut.kept[axis.channels], array, axis=axis.axis)
        return array


def as_sequential(form: keras.Model, old: keras.Sequential) -> keras.Sequential:
    """The same layers as a Sequential model."""
    return keras.Sequential(form.layers, name=old.name, trainable=old.trainable)


# ---------------------------------------------------------------------- sizes in configurations

Config = dict[str, Any]


def _without_shapes(config: Any) -> Any:
    """A copy of a config without the shapes that its layers were built with."""
    if isinstance(config, dict):
        shapes = ("build_config", "build_input_shape")
        return {key: _without_shapes(v) for key, v in config.items() if key not in shapes}
    return [_without_shapes(v) for v in config] if isinstance(config, list) else config


def _is_of_keras(operation: Any) -> bool:
    """Whether an operation is a layer of Keras, and so are all layers inside it."""
    if not isinstance(operation, keras.layers.Layer):
        return False
    parts = operation._flatten_layers()
    return all(type(part).__module__.startswith("keras.src.layers.") for part in parts)


def _with_zeros(config: Any) -> Any:
    """A copy of a config with zero initializers: random ones take JAX a second for each shape."""
    if isinstance(config, list):
        return [_with_zeros(value) for value in config]
    if not isinstance(config, dict):
        return config
    return {
        key: "zeros" if key.endswith("_initializer") and value else _with_zeros(value)
        for key, value in config.items()
    }


def _restore_initializers(layer: Any, successor: Any) -> None:
    """Copy the initializers of a layer, and of the layers inside it, to its successor."""
    pairs = zip(layer._flatten_layers(), successor._flatten_layers(), strict=True)
    for old, new in pairs:
        for name, value in vars(old).items():
            if isinstance(value, keras.initializers.Initializer):
                setattr(new, name, value.clone())


def _units(builder: _Builder, layer: Any, config: Config) -> None:
    config["units"] = builder.shape(layer._kernel)[-1]


def _einsum(builder: _Builder, layer: Any, config: Config) -> None:
    equation = layer.equation.replace(" ", "")
    letters, result = equation.split(",")[1].split("->")
    width = builder.shape(layer._kernel)[letters.index(result[-1])]
    shape = config["output_shape"]
    config["output_shape"] = width if isinstance(shape, int) else (*shape[:-1], width)


def _filters(builder: _Builder, layer: Any, config: Config) -> None:
    config["filters"] = builder.shape(layer._kernel)[-1]
    has_one_input_per_group = int(layer._kernel.shape[-2]) == 1
    if layer.groups > 1 and has_one_input_per_group:
        config["groups"] = config["filters"] // (layer.filters // layer.groups)


def _filters_transposed(builder: _Builder, layer: Any, config: Config) -> None:
    config["filters"] = builder.shape(layer.kernel)[-2]


def _filters_separable(builder: _Builder, layer: Any, config: Config) -> None:
    config["filters"] = builder.shape(layer.pointwise_kernel)[-1]


def _output_dim(builder: _Builder, layer: Any, config: Config) -> None:
    config["output_dim"] = builder.shape(layer._embeddings)[-1]


def _units_recurrent(builder: _Builder, layer: Any, config: Config) -> None:
    config["units"] = builder.shape(layer.cell.recurrent_kernel)[0]


def _groups(builder: _Builder, layer: Any, config: Config) -> None:
    if layer.gamma is not None and layer.groups == int(layer.gamma.shape[0]):
        config["groups"] = builder.shape(layer.gamma)[0]


def _heads(builder: _Builder, layer: Any, config: Config) -> None:
    width, heads, _ = builder.shape(layer._query_dense._kernel)
    config["num_heads"] = heads
    outputs = builder.shape(layer._output_dense._kernel)[-1]
    if config["output_shape"] is not None or outputs != width:
        config["output_shape"] = (outputs,)


def _heads_in_groups(builder: _Builder, layer: Any, config: Config) -> None:
    config["num_query_heads"] = builder.shape(layer._query_dense._kernel)[1]
    config["num_key_value_heads"] = builder.shape(layer._key_dense._kernel)[1]


def _target_shape(builder: _Builder, layer: Any, config: Config) -> None:
    name = "target_shape" if "target_shape" in config else "newshape"
    last = builder.width_after(layer)
    if last is not None and config[name][-1] != -1:
        config[name] = (*config[name][:-1], last)


def _inner(builder: _Builder, layer: Any, config: Config) -> None:
    builder.resize(layer.layer, config["layer"]["config"])


def _inner_twice(builder: _Builder, layer: Any, config: Config) -> None:
    builder.resize(layer.forward_layer, config["layer"]["config"])
    if "backward_layer" in config:
        builder.resize(layer.backward_layer, config["backward_layer"]["config"])


_SIZES: dict[str, Callable[[_Builder, Any, Config], None]] = {
    "Dense": _units,
    "EinsumDense": _einsum,
    "Conv1D": _filters,
    "Conv2D": _filters,
    "Conv3D": _filters,
    "Conv1DTranspose": _filters_transposed,
    "Conv2DTranspose": _filters_transposed,
    "Conv3DTranspose": _filters_transposed,
    "SeparableConv1D": _filters_separable,
    "SeparableConv2D": _filters_separable,
    "Embedding": _output_dim,
    "LSTM": _units_recurrent,
    "GRU": _units_recurrent,
    "SimpleRNN": _units_recurrent,
    "GroupNormalization": _groups,
    "MultiHeadAttention": _heads,
    "GroupedQueryAttention": _heads_in_groups,
    "Reshape": _target_shape,
    "TimeDistributed": _inner,
    "Bidirectional": _inner_twice,
}
"""Class name of a layer or operation -> the function that writes the new sizes into its config."""
