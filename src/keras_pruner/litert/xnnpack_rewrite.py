"""The same CNN in the form that XNNPACK can run sparse; not an output changes.

A stride-2 convolution that TensorFlow pads only at the end reads inputs 2i .. 2i+2. Seen from
the other end of the image it reads 2i-1 .. 2i+1: padding of 1 on all sides, as XNNPACK wants it.
So the image is reversed once, and every spatial kernel with it.
"""

import dataclasses
from typing import Any

import keras
import numpy as np

from keras_pruner.litert.difference import largest_difference
from keras_pruner.model_weights import check_model
from keras_pruner.reporting.report import Report

_FLIPPED = (1, 2)  # height and width
_CONVOLUTIONS = (keras.layers.Conv2D, keras.layers.DepthwiseConv2D)
_ELEMENTWISE = (
    keras.layers.BatchNormalization, keras.layers.ReLU, keras.layers.Activation,
    keras.layers.LeakyReLU, keras.layers.ELU, keras.layers.Dropout, keras.layers.Add,
    keras.layers.Multiply, keras.layers.Rescaling,
)  # fmt: skip
_ACTIVATIONS = {
    "linear", "relu", "relu6", "hard_swish", "hard_silu", "silu", "swish", "sigmoid", "tanh",
    "elu", "leaky_relu", "gelu", "exponential",
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Rewrite(Report):
    """A model rewritten for XNNPACK, and what became of it.

    Attributes:
        model: computes what the given one does.
        changes: what was changed.
        obstacles: what still keeps it from running sparse, as far as the layers tell;
            `inspect` on the exported file has the last word.
        difference: of the outputs, in units of the largest.
    """

    model: keras.Model = dataclasses.field(repr=False)
    changes: tuple[str, ...]
    obstacles: tuple[str, ...]
    difference: float

    def headline(self) -> str:
        """The difference of the outputs."""
        return f"{self.model.name}: outputs differ by {self.difference:.1e}"

    def notes(self) -> list[str]:
        """The changes, then the obstacles that are left."""
        return [
            *(f"  changed: {change}" for change in self.changes),
            *(f"  in the way: {obstacle}" for obstacle in self.obstacles),
        ]


def prepare_for_xnnpack(model: keras.Model) -> Rewrite:
    """Rewrite a CNN so that XNNPACK can run its pruned 1x1 convolutions sparse.

    For ARM, WebAssembly and RISC-V. Strided convolutions get padding that is symmetric, a 1x1
    convolution as head becomes Dense, average pooling of the whole map becomes global, an input
    of one channel is fed three times. Zeros stay where they are. Export the result.

    Args:
        model: a functional or Sequential model of images (height, width, channels); unchanged.

    Returns:
        The new model, with a list of the changes and of what is still in the way.

    Raises:
        ValueError: if the model is no graph of layers over images of a known size.
        RuntimeError: if the new model computes something else.
    """
    check_model(model)
    model = _as_functional(model)
    draft = _Draft(model)
    clone = keras.models.clone_model(
        model, clone_function=draft.clone_layer, call_function=draft.call_layer
    )
    draft.copy_weights(clone)
    difference = _difference(model, clone)
    if not difference <= 1e-3:
        raise RuntimeError(
            f"The rewritten model computes something else: outputs differ by {difference:.1e} of "
            "the largest. The model was not changed; export it as it is."
        )
    return Rewrite(clone, tuple(draft.changes), tuple(draft.obstacles), difference)


def missing(model: keras.Model) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """What `prepare_for_xnnpack` would change in a model, and what it could not.

    Raises:
        ValueError: if the model is no graph of layers over images of a known size.
    """
    draft = _Draft(_as_functional(model))
    return tuple(draft.changes), tuple(draft.obstacles)


def _as_functional(model: keras.Model) -> keras.Model:
    if isinstance(model, keras.Sequential):
        model = keras.Model(model.inputs, model.outputs, name=model.name)
    layers = getattr(model, "operations", None)
    if layers is None:
        raise ValueError(
            "`model` must be a functional or Sequential model, whose layers form a graph. "
            f"Received: a {type(model).__name__}."
        )
    nested = [op.name for op in layers if isinstance(op, keras.Model)]
    if nested:
        raise ValueError(
            "`model` must have its layers itself, not in models within. Received: the nested "
            f"models {nested}. Build it with `inner(inputs)` replaced by the inner layers."
        )
    shapes = [tuple(tensor.shape) for tensor in model.inputs]
    if len(shapes) != 1 or len(shapes[0]) != 4 or None in shapes[0][1:]:
        raise ValueError(
            "`model` must have one input (height, width, channels) of known size. Received: "
            f"{shapes}. Build it with a fixed input_shape."
        )
    if keras.config.image_data_format() != "channels_last":
        raise ValueError('`model` must be built with the image data format "channels_last".')
    return model


class _Draft:
    """Decisions about each layer, made before the model is cloned."""

    def __init__(self, model: keras.Model) -> None:
        self.changes: list[str] = []
        self.obstacles: list[str] = []
        self._layers = {op.name: op for op in model.operations}
        # A layer may also be in other models, as those that are cut off or built again have it.
        self._nodes = {id(node) for level in model._nodes_by_depth.values() for node in level}
        self._padding: dict[str, tuple[int, int]] = {}  # convolution -> symmetric padding
        self._dropped: set[str] = set()
        self._dense: set[str] = set()
        self._global: dict[str, str] = {}  # pooling -> why it becomes global
        self._tripled = False
        self._flip = False
        self._entry: Any = None
        self._plan_padding()
        self._plan_head()
        self._plan_entry()
        self._list_obstacles()

    # ------------------------------------------------------------------ planning

    def _plan_padding(self) -> None:
        strided = [layer for layer in self._layers.values() if _is_strided(layer)]
        fronts = [_fronts(layer, self._pad_before(layer)) for layer in strided]
        wanted = [tuple(k // 2 for k in layer.kernel_size) for layer in strided]
        as_is, flipped = (
            [side[i] == want for side, want in zip(fronts, wanted, strict=True)] for i in (0, 1)
        )
        if not all(as_is) and not all(flipped):
            wrong = [s.name for s, ok in zip(strided, flipped, strict=True) if not ok]
            self.obstacles.append(f"padding of {wrong}: needs even sizes at stride 2")
            return
        self._flip = not all(as_is)
        for layer, want in zip(strided, wanted, strict=True):
            pad = self._pad_before(layer)
            if pad is not None and _added(pad) == (want, want):
                continue
            self._padding[layer.name] = want
            if pad is not None:
                self._dropped.add(pad.name)
            self.changes.append(f"{layer.name}: padding {want} on both sides, then valid")
        if self._flip:
            self.changes.insert(0, "the image and all spatial kernels are reversed")

    def _plan_head(self) -> None:
        for layer in self._layers.values():
            if isinstance(layer, keras.layers.AveragePooling2D) and _covers_all(layer):
                self._global[layer.name] = "pooling of the whole map becomes global"
            elif isinstance(layer, keras.layers.GlobalAveragePooling2D) and layer.keepdims:
                self._global[layer.name] = "no longer keeps its dimensions"
        for name in list(self._global):
            if convolutions := self._head_after(self._layers[name]):
                self._dense.update(convolutions)
                self.changes.append(f"{name}: {self._global[name]}")
                self.changes += [f"{c}: a Dense layer" for c in convolutions if c]
            else:
                del self._global[name]
        self._dense.discard("")

    def _head_after(self, layer: Any) -> list[str]:
        """The 1x1 convolutions between a pooling and the Reshape or Flatten after it."""
        found = [""]
        while len(followers := self._followers(layer)) == 1:
            layer = followers[0]
            if isinstance(layer, keras.layers.Reshape | keras.layers.Flatten):
                return found if len(layer.output.shape) == 2 else []
            if isinstance(layer, keras.layers.Conv2D) and _is_single(layer):
                found.append(layer.name)
            elif not isinstance(layer, keras.layers.Dropout | keras.layers.Activation):
                return []
        return []

    def _plan_entry(self) -> None:
        stems = [x for x in self._layers.values() if isinstance(x, keras.layers.Conv2D)]
        first = self._inbound(stems[0])[0] if stems else None
        if isinstance(first, keras.layers.ZeroPadding2D):
            first = self._inbound(first)[0]
        self._tripled = (
            isinstance(first, keras.layers.InputLayer) and stems[0].kernel.shape[-2] == 1
        )
        if self._tripled:
            self.changes.append("the one channel of the input is fed three times")

    def _list_obstacles(self) -> None:
        stem, pooled = None, False
        for layer in self._layers.values():
            if stem is None:  # what comes before is outside the cluster
                if isinstance(layer, keras.layers.Conv2D):
                    stem = layer
                    self._list_stem_obstacles(stem)
                continue
            pooled = pooled or isinstance(layer, keras.layers.GlobalAveragePooling2D)
            pooled = pooled or layer.name in self._global
            if not pooled:
                self.obstacles += _obstacle(layer)
        if not pooled:
            self.obstacles.append("no global average pooling before the head")

    def _list_stem_obstacles(self, stem: Any) -> None:
        if stem.kernel_size != (3, 3) or stem.strides != (2, 2):
            self.obstacles.append(f"{stem.name}: the first convolution is not 3x3 of stride 2")
        if stem.kernel.shape[-2] != 3 and not self._tripled:
            self.obstacles.append(f"{stem.name}: not 3 channels")

    # ------------------------------------------------------------------ the graph

    def _inbound(self, layer: Any) -> list[Any]:
        """The operations whose outputs a layer takes."""
        nodes = [node for node in layer._inbound_nodes if id(node) in self._nodes]
        return [t._keras_history.operation for node in nodes for t in node.input_tensors]

    def _followers(self, layer: Any) -> list[Any]:
        return [node.operation for node in layer._outbound_nodes if id(node) in self._nodes]

    def _pad_before(self, layer: Any) -> Any:
        """The ZeroPadding2D that only this layer follows; None if there is none."""
        before = self._inbound(layer)
        if len(before) == 1 and isinstance(before[0], keras.layers.ZeroPadding2D):
            return before[0] if len(self._followers(before[0])) == 1 else None
        return None

    # ------------------------------------------------------------------ cloning

    def clone_layer(self, layer: Any) -> Any:
        """The layer's successor, without weights."""
        config = layer.get_config()
        if layer.name in self._padding:
            config["padding"] = "valid"
        elif layer.name in self._dense:
            kept = ("name", "activation", "use_bias", "dtype", "trainable")
            return keras.layers.Dense(layer.filters, **{key: config[key] for key in kept})
        elif layer.name in self._global:
            return keras.layers.GlobalAveragePooling2D(name=layer.name)
        return type(layer).from_config(config)

    def call_layer(self, layer: Any, *args: Any, **kwargs: Any) -> Any:
        """Put a layer's successor into the new graph."""
        if isinstance(layer, keras.layers.InputLayer):
            return layer(*args, **kwargs)
        if layer.name in self._dropped:
            return args[0]
        args = keras.tree.map_structure(self._enter, args)
        if layer.name in self._padding:
            rows, columns = self._padding[layer.name]
            pad = keras.layers.ZeroPadding2D((rows, columns), name=f"{layer.name}_symmetric")
            args = (pad(args[0]), *args[1:])
        return layer(*args, **kwargs)

    def _enter(self, tensor: Any) -> Any:
        """The input as the layers see it: reversed, with three channels."""
        history = getattr(tensor, "_keras_history", None)
        if history is None or not isinstance(history.operation, keras.layers.InputLayer):
            return tensor
        if self._entry is None:
            self._entry = tensor
            if self._tripled:
                self._entry = keras.ops.concatenate([self._entry] * 3, axis=-1)
            if self._flip:
                for axis in _FLIPPED:  # one at a time: Keras 3.12 takes no two on TensorFlow
                    self._entry = keras.ops.flip(self._entry, axis=axis)
        return self._entry

    def copy_weights(self, clone: keras.Model) -> None:
        """Give the new layers the old ones' weights, in their form."""
        for new in clone.layers:
            old = self._layers.get(new.name)
            if old is None or not new.weights:
                continue
            weights = [keras.ops.convert_to_numpy(w.value) for w in old.weights]
            if isinstance(old, _CONVOLUTIONS):
                weights[0] = self._kernel(weights[0], tuple(new.weights[0].shape))
            for variable, weight in zip(new.weights, weights, strict=True):
                variable.assign(weight)

    def _kernel(self, kernel: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        if len(shape) == 2:
            return kernel.reshape(shape)
        if self._flip:
            kernel = kernel[::-1, ::-1]
        added = [(0, new - old) for old, new in zip(kernel.shape, shape, strict=True)]
        return np.pad(kernel, added)


def _is_strided(layer: Any) -> bool:
    return isinstance(layer, _CONVOLUTIONS) and max(layer.strides) > 1


def _is_single(layer: Any) -> bool:
    return layer.kernel_size == (1, 1) and layer.groups == 1


def _added(pad: Any) -> tuple[tuple[int, int], tuple[int, int]]:
    """Rows and columns added at the front, and at the end."""
    (top, bottom), (left, right) = pad.padding
    return (top, left), (bottom, right)


def _fronts(layer: Any, pad: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Padding before the first element that is read, from the front and from the far end."""
    source = (pad or layer).input.shape[1:3]
    added = (0, 0) if pad is None else _added(pad)[0]
    fronts = []
    for n, m, k, s, front in zip(
        source, layer.output.shape[1:3], layer.kernel_size, layer.strides, added, strict=True
    ):
        if layer.padding == "same":
            front += max(0, s * (m - 1) + k - n) // 2
        fronts.append((front, s * (m - 1) + k - n - front))
    return tuple(f[0] for f in fronts), tuple(f[1] for f in fronts)


def _covers_all(layer: Any) -> bool:
    covered = tuple(layer.pool_size) == tuple(layer.input.shape[1:3])
    return covered and tuple(layer.output.shape[1:3]) == (1, 1)


def _obstacle(layer: Any) -> list[str]:
    """What XNNPACK has no form for in a layer; nothing, or one sentence."""
    name = f"{layer.name}: "
    if isinstance(layer, keras.layers.DepthwiseConv2D):
        fits = layer.kernel_size in ((3, 3), (5, 5)) and layer.depth_multiplier == 1
        return [] if fits else [f"{name}a depthwise convolution {layer.kernel_size}"]
    if isinstance(layer, keras.layers.Conv2D):
        fits = layer.kernel_size == (1, 1) and layer.strides == (1, 1) and layer.groups == 1
        return [] if fits else [f"{name}a convolution {layer.kernel_size}, not 1x1 of stride 1"]
    if isinstance(layer, keras.layers.Activation):
        activation = keras.activations.serialize(layer.activation)
        return [] if activation in _ACTIVATIONS else [f"{name}activation {activation!r}"]
    passing = (*_ELEMENTWISE, keras.layers.InputLayer, keras.layers.ZeroPadding2D)
    return [] if isinstance(layer, passing) else [f"{name}{type(layer).__name__}"]


def _difference(model: keras.Model, clone: keras.Model) -> float:
    rng = np.random.default_rng(0)
    image = rng.normal(size=(2, *model.inputs[0].shape[1:])).astype("float32")
    both = (
        map(keras.ops.convert_to_numpy, keras.tree.flatten(m(image, training=False)))
        for m in (model, clone)
    )
    return max(largest_difference(*pair) for pair in zip(*both, strict=True))
