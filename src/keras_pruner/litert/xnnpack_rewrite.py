"""Rewrite a CNN into the form that XNNPACK can run sparse, with the same outputs.

TensorFlow pads a convolution of stride 2 only at the end of each axis, so output i reads inputs
2i to 2i+2. Counted from the other end of the image, it reads 2i-1 to 2i+1: padding of 1 on all
sides, as XNNPACK needs it. So the image is reversed once, and every spatial kernel with it.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np

from keras_pruner.litert import xnnpack
from keras_pruner.litert.interpreter import largest_difference
from keras_pruner.litert.xnnpack import Operator
from keras_pruner.model_graph import Call, ModelGraph
from keras_pruner.model_weights import check_model
from keras_pruner.reporting.report import Report

_FLIPPED = (1, 2)  # height and width
_CONVOLUTIONS = (keras.layers.Conv2D, keras.layers.DepthwiseConv2D)


@dataclasses.dataclass(frozen=True)
class Rewrite(Report):
    """A model rewritten for XNNPACK.

    Attributes:
        model: the new model; its outputs are those of the given one.
        changes: the layers that were changed, and how.
        obstacles: what still keeps the model from running sparse, judged by its layers;
            `kp.litert.inspect` judges the exported file.
        difference: largest difference of the outputs, in units of the largest output.

    Example:
        >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2)], name="small")
        >>> print(Rewrite(model, ("stem: padding (1, 1) on both sides",), (), 1e-7))
        small: outputs differ by 1.0e-07
          changed: stem: padding (1, 1) on both sides
    """

    model: keras.Model = dataclasses.field(repr=False)
    changes: tuple[str, ...]
    obstacles: tuple[str, ...]
    difference: float

    def headline(self) -> str:
        """The difference of the outputs."""
        return f"{self.model.name}: outputs differ by {self.difference:.1e}"

    def notes(self) -> list[str]:
        """The changes, then the remaining obstacles."""
        return [
            *(f"  changed: {change}" for change in self.changes),
            *(f"  in the way: {obstacle}" for obstacle in self.obstacles),
        ]


def prepare_for_xnnpack(model: keras.Model) -> Rewrite:
    """Rewrite a CNN so that XNNPACK can run its pruned 1x1 convolutions sparse.

    For ARM, WebAssembly and RISC-V. Strided convolutions get symmetric padding, a 1x1 convolution
    as head becomes a Dense layer, average pooling over the whole image becomes global, and an
    input of one channel is repeated three times. Zeros stay where they are. Export the result.

    Args:
        model: a model of images (height, width, channels) of known size; it is not changed.

    Returns:
        The new model, the changes, and what still keeps it from running sparse.

    Raises:
        ValueError: if the model is not a graph of layers over images of a known size.
        RuntimeError: if the outputs of the new model differ.

    Example:
        >>> image = keras.Input((32, 32, 3))
        >>> x = keras.layers.Conv2D(8, 3, strides=2, padding="same", name="stem")(image)
        >>> x = keras.layers.Conv2D(16, 1)(x)
        >>> x = keras.layers.GlobalAveragePooling2D()(x)
        >>> rewrite = prepare_for_xnnpack(keras.Model(image, keras.layers.Dense(5)(x)))
        >>> rewrite.changes
        ('the image and all spatial kernels are reversed', 'stem: padding (1, 1) on both sides')
        >>> rewrite.obstacles
        ()
    """
    check_model(model)
    draft = _Draft(model)
    rewritten = draft.build()
    difference = _difference(model, rewritten)
    if not difference <= 1e-3:
        raise RuntimeError(
            f"The outputs of the rewritten model differ by {difference:.1e} of the largest. "
            "The given model was not changed; export it as it is."
        )
    return Rewrite(rewritten, tuple(draft.changes), draft.obstacles, difference)


def missing(model: keras.Model) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The changes that `prepare_for_xnnpack` would make, and the obstacles that would remain.

    Raises:
        ValueError: if the model is not a graph of layers over images of a known size.
    """
    draft = _Draft(model)
    return tuple(draft.changes), draft.obstacles


@dataclasses.dataclass(frozen=True)
class Obstacles(Report):
    """Why XNNPACK cannot run a model sparse as it is; prints as a list.

    Attributes:
        layers: (name, class, the change that helps) of each layer in the way.
        begins: whether every input leads to a convolution that can begin the sparse cluster.
        ends: whether every output comes from a global average pooling.
        rewrites: the changes that `kp.litert.prepare_for_xnnpack` makes.

    Example:
        >>> Obstacles((), begins=True, ends=True, rewrites=()).headline()
        'nothing is in the way'
    """

    layers: tuple[tuple[str, str, str], ...]
    begins: bool
    ends: bool
    rewrites: tuple[str, ...]

    def headline(self) -> str:
        """Whether anything is in the way."""
        is_free = self.begins and self.ends and not self.layers
        return "nothing is in the way" if is_free else "XNNPACK cannot run this model sparse"

    def notes(self) -> list[str]:
        """What is missing, the layers in the way, and the changes that can be made for you."""
        return [
            *([] if self.begins else [f"missing: {_START}"]),
            *([] if self.ends else ["missing: GlobalAveragePooling2D, in every output branch"]),
            *(f"in the way: {name} ({kind}): {change}" for name, kind, change in self.layers),
            *(f"kp.litert.prepare_for_xnnpack does: {change}" for change in self.rewrites),
        ]


_START = (
    'ZeroPadding2D(1), then Conv2D(filters, 3, strides=2, padding="valid") on 3 channels, in '
    "every input branch"
)


def obstacles(model: keras.Model) -> Obstacles:
    """List every layer that keeps XNNPACK from running a model sparse.

    Args:
        model: a built model whose layers form a graph.

    Raises:
        ValueError: if they form none.
    """
    cluster = xnnpack.cluster_of(xnnpack.operators_of(ModelGraph(model)))
    layers = [
        (operator.name, type(operator.source.layer).__name__, xnnpack.remedy(operator))
        for operator, _ in cluster.obstacles
        if operator is not cluster.stem
    ]
    try:
        rewrites = missing(model)[0]
    except ValueError as error:
        rewrites = (f"nothing: {error}",)
    return Obstacles(tuple(layers), cluster.begins, cluster.ends, rewrites)


def _graph_of_images(model: keras.Model) -> ModelGraph:
    graph = ModelGraph(model)
    shapes = [tensor.shape for tensor in graph.inputs]
    if len(shapes) != 1 or len(shapes[0]) != 4 or None in shapes[0][1:]:
        raise ValueError(
            "`model` must have one input (height, width, channels) of known size. Received: "
            f"{shapes}. Build it with a fixed input_shape."
        )
    if keras.config.image_data_format() != "channels_last":
        raise ValueError(
            '`model` must be built with the image data format "channels_last". Received: '
            '"channels_first". Call keras.config.set_image_data_format("channels_last"), build '
            "the model again, and `set_weights`: kernels have the same shape."
        )
    return graph


class _Draft:
    """The changes to each layer call, decided before the new model is built."""

    def __init__(self, model: keras.Model) -> None:
        self.changes: list[str] = []
        self._name = model.name
        self._graph = _graph_of_images(model)
        self._padding: dict[Call, tuple[int, int]] = {}  # convolution -> symmetric padding
        self._dropped: set[Call] = set()
        self._dense: set[Call] = set()
        self._global: dict[Call, str] = {}  # pooling -> why it becomes global
        self._tripled = False
        self._flip = False
        self._uneven: list[str] = []  # convolutions whose padding cannot be made symmetric
        self._copies: dict[int, Any] = {}  # id of a layer -> its successor
        self._plan_padding()
        self._plan_head()
        self._plan_entry()

    # ------------------------------------------------------------------ planning

    def _plan_padding(self) -> None:
        strided = [call for call in self._graph if _is_strided(call)]
        fronts = [_fronts(call, self._pad_before(call)) for call in strided]
        wanted = [_half(call) for call in strided]
        as_is, flipped = (
            [side[i] == want for side, want in zip(fronts, wanted, strict=True)] for i in (0, 1)
        )
        if not all(as_is) and not all(flipped):
            self._uneven = [s.name for s, ok in zip(strided, flipped, strict=True) if not ok]
            return
        self._flip = not all(as_is)
        if self._flip:
            self.changes.append("the image and all spatial kernels are reversed")
        for call, want in zip(strided, wanted, strict=True):
            pad = self._pad_before(call)
            if pad is not None and _added(pad) == (want, want):
                continue
            self._padding[call] = want
            if pad is not None:
                self._dropped.add(pad)
            self.changes.append(f"{call.name}: padding {want} on both sides")

    def _plan_head(self) -> None:
        for call in self._graph:
            reason = ""
            if xnnpack.covers_image(call):
                reason = "pooling over the whole image becomes global"
            elif isinstance(call.layer, keras.layers.GlobalAveragePooling2D):
                reason = "no longer keeps its dimensions" if call.layer.keepdims else ""
            head = _head_after(call) if reason else None
            if head is not None:
                self._global[call] = reason
                self._dense.update(head)
                self.changes.append(f"{call.name}: {reason}")
                self.changes += [f"{convolution.name}: a Dense layer" for convolution in head]

    def _plan_entry(self) -> None:
        stem = self._stem
        if stem is None:
            return
        first = stem.producers[0]
        if isinstance(first.layer, keras.layers.ZeroPadding2D):
            first = first.producers[0]
        self._tripled = first.is_input and stem.layer.kernel.shape[-2] == 1
        if self._tripled:
            self.changes.append("the single input channel is repeated three times")

    @property
    def _stem(self) -> Call | None:
        return next((c for c in self._graph if isinstance(c.layer, keras.layers.Conv2D)), None)

    def _pad_before(self, call: Call) -> Call | None:
        """The ZeroPadding2D whose only consumer is this call; None if there is none."""
        before = call.producers[0]
        is_padding = isinstance(before.layer, keras.layers.ZeroPadding2D)
        return before if is_padding and before.consumers == [call] else None

    @property
    def obstacles(self) -> tuple[str, ...]:
        """What XNNPACK has no form for in the new model."""
        found = xnnpack.cluster_of(list(self._operators())).reasons
        if self._uneven:
            return (f"padding of {self._uneven}: needs even sizes at stride 2", *found)
        return found

    def _operators(self) -> Iterator[Operator]:
        """The operators of the new model."""
        for operator in xnnpack.operators_of(self._graph):
            call = operator.source
            if call in self._padding:
                rows, columns = self._padding[call]
                operator.padding, operator.is_same = (rows, rows, columns, columns), False
            elif call in self._dropped:
                operator.kind = xnnpack.ELEMENTWISE
            elif call in self._dense:
                operator.kind = "Dense"
            if call is self._stem and self._tripled:
                operator.channels = 3
            yield operator

    # ------------------------------------------------------------------ building

    def build(self) -> keras.Model:
        """The new model, with the weights of the old one."""
        (given,) = self._graph.inputs
        name = given.producer.layer.name
        image = keras.Input(batch_shape=given.shape, dtype=given.dtype, name=name)
        model = keras.Model(
            image, self._graph.run([self._enter(image)], self._call), name=self._name
        )
        for layer in self._graph.layers:
            if id(layer) in self._copies:
                self._copy_weights(layer, self._copies[id(layer)])
        return model

    def _enter(self, image: Any) -> Any:
        """The input as the layers take it: reversed, with three channels."""
        if self._tripled:
            image = keras.ops.concatenate([image] * 3, axis=-1)
        for axis in _FLIPPED if self._flip else ():
            image = keras.ops.flip(image, axis=axis)  # one each: Keras 3.12 on TensorFlow
        return image

    def _call(self, call: Call, *args: Any, **kwargs: Any) -> Any:
        """The outputs of a call in the new model."""
        if call in self._dropped:
            return args[0]
        if not isinstance(call.layer, keras.layers.Layer):
            return call.layer(*args, **kwargs)  # an operation, which has no weights
        if id(call.layer) not in self._copies:
            self._copies[id(call.layer)] = self._successor(call)
        if call in self._padding:
            pad = keras.layers.ZeroPadding2D(self._padding[call])
            args = (pad(args[0]), *args[1:])
        return self._copies[id(call.layer)](*args, **kwargs)

    def _successor(self, call: Call) -> Any:
        """The layer's counterpart in the new model, without weights."""
        layer = call.layer
        config = layer.get_config() | {"name": call.name.replace("/", "_")}
        if call in self._dense:
            kept = ("name", "activation", "use_bias", "dtype", "trainable")
            return keras.layers.Dense(layer.filters, **{key: config[key] for key in kept})
        if call in self._global:
            return keras.layers.GlobalAveragePooling2D(name=config["name"])
        if call in self._padding:
            config["padding"] = "valid"
        return type(layer).from_config(config)

    def _copy_weights(self, old: Any, new: Any) -> None:
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


def _is_strided(call: Call) -> bool:
    return isinstance(call.layer, _CONVOLUTIONS) and max(call.layer.strides) > 1


def _half(call: Call) -> tuple[int, int]:
    """The padding that centres a kernel."""
    rows, columns = call.layer.kernel_size
    return rows // 2, columns // 2


def _added(pad: Call) -> tuple[tuple[int, int], tuple[int, int]]:
    """Rows and columns added at the front, and at the end."""
    (top, bottom), (left, right) = pad.layer.padding
    return (top, left), (bottom, right)


def _fronts(call: Call, pad: Call | None) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Padding before the first element that is read, from the front and from the far end."""
    layer = call.layer
    source = (pad or call).inputs[0].shape[1:3]
    added = (0, 0) if pad is None else _added(pad)[0]
    fronts: list[tuple[int, int]] = []
    sizes: Any = (source, call.outputs[0].shape[1:3])  # known: `_graph_of_images` checks
    for n, m, k, s, front in zip(*sizes, layer.kernel_size, layer.strides, added, strict=True):
        if layer.padding == "same":
            front += max(0, s * (m - 1) + k - n) // 2
        fronts.append((front, s * (m - 1) + k - n - front))
    return tuple(f[0] for f in fronts), tuple(f[1] for f in fronts)


def _head_after(pooling: Call) -> list[Call] | None:
    """The 1x1 convolutions between a pooling and a Reshape or Flatten; None for another head."""
    found: list[Call] = []
    call = pooling
    while len(call.consumers) == 1:
        call = call.consumers[0]
        if isinstance(call.layer, keras.layers.Reshape | keras.layers.Flatten):
            return found if len(call.outputs[0].shape) == 2 else None
        if isinstance(call.layer, keras.layers.Conv2D):
            if call.layer.kernel_size != (1, 1) or call.layer.groups != 1:
                return None
            found.append(call)
        elif not isinstance(call.layer, keras.layers.Dropout | keras.layers.Activation):
            return None
    return None


def _difference(model: keras.Model, rewritten: keras.Model) -> float:
    rng = np.random.default_rng(0)
    image = rng.normal(size=(2, *rewritten.inputs[0].shape[1:])).astype("float32")
    both = (
        map(keras.ops.convert_to_numpy, keras.tree.flatten(m(image, training=False)))
        for m in (model, rewritten)
    )
    return max(largest_difference(*pair) for pair in zip(*both, strict=True))
