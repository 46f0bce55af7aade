"""Which layers keep XNNPACK from running a CNN sparse, judged before there is a `.tflite` file.

The rules are those of TFMOT's policy: a cluster of layers from a strided 3x3 convolution over
three channels to a global average, with nothing in it but what XNNPACK has a form for.
"""

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

import keras

from keras_pruner.litert import xnnpack_rewrite

_L = keras.layers
_Next = Callable[[Any], list[Any]]


@dataclasses.dataclass(frozen=True)
class Obstacles:
    """Why XNNPACK cannot run a model sparse; prints as a list.

    Attributes:
        layers: (name, class, the change that admits it) of each layer in the way.
        begins: whether every input comes to a convolution that begins a cluster.
        ends: whether every output comes from a global average pooling.
        rewrites: what `kp.litert.prepare_for_xnnpack(model)` changes by itself, outputs unchanged.
    """

    layers: tuple[tuple[str, str, str], ...]
    begins: bool
    ends: bool
    rewrites: tuple[str, ...]

    def __str__(self) -> str:
        lines = [] if self.begins else [f"missing: {_START}"]
        lines += [] if self.ends else ["missing: GlobalAveragePooling2D, in every output branch"]
        lines += [f"in the way: {name} ({kind}): {change}" for name, kind, change in self.layers]
        lines += [f"kp.litert.prepare_for_xnnpack does: {change}" for change in self.rewrites]
        return "\n".join(lines) or "nothing is in the way"


def obstacles(model: keras.Model) -> Obstacles:
    """Everything in the way, not only the first, and the change that admits it.

    Args:
        model: a built Sequential or functional model.
    """
    graph = _Graph(model)
    layers = [
        (layer.name, type(layer).__name__, _CHANGES.get(type(layer).__name__, _REPLACE))
        for layer in graph.inside()
        if not graph.supports(layer)
    ]
    try:
        rewrites = xnnpack_rewrite.missing(model)[0]
    except ValueError as error:
        rewrites = (f"nothing: {error}",)
    return Obstacles(tuple(layers), bool(graph.starts), bool(graph.ends), rewrites)


def check(model: keras.Model) -> None:
    """Check that XNNPACK can run a model sparse.

    Raises:
        ValueError: with the message of TFMOT's policy, and after it everything in the way.
    """
    if not isinstance(model, keras.Sequential) and not hasattr(model, "operations"):
        raise ValueError("Subclassed models are not supported currently.")
    if not model.built:
        raise ValueError("Unbuilt models are not supported currently.")
    found = obstacles(model)
    if not found.begins:
        raise ValueError(
            "Could not find `Conv2D 3x3` layer with stride 2x2, `input filters == 3` and `VALID` "
            "padding and preceding `ZeroPadding2D` with `padding == 1` in all input branches of "
            f"the model\n{found}"
        )
    if not found.ends:
        raise ValueError(
            f"Could not find a `GlobalAveragePooling2D` layer in all output branches\n{found}"
        )
    if found.layers:
        raise ValueError(
            f"Layer {found.layers[0][1]} is not supported for the PruneForLatencyOnXNNPack "
            f"pruning policy\n{found}"
        )


_START = (
    'ZeroPadding2D(1), then Conv2D(filters, 3, strides=2, padding="valid") on 3 channels, in '
    "every input branch"
)
_ACTIVATIONS = ("relu", "relu6", "leaky_relu", "elu", "sigmoid")
_REPLACE = "replace it, or move it behind GlobalAveragePooling2D"
_POOLING = "a depthwise convolution of stride 2 with ZeroPadding2D before it"
_CHANGES = {
    "DepthwiseConv2D": 'kernel 3x3 or 5x5, no dilation, depth_multiplier=1; padding="same" with '
    'stride 1, or ZeroPadding2D(kernel // 2) and padding="valid"',
    "Conv2D": "kernel 1x1, stride 1, no groups; larger ones as depthwise followed by 1x1",
    "SeparableConv2D": "a DepthwiseConv2D followed by a Conv2D 1x1",
    "GlobalAveragePooling2D": "keepdims=True",
    "BatchNormalization": "axis=3",
    "UpSampling2D": 'interpolation="bilinear"',
    "Activation": f"one of {', '.join(_ACTIVATIONS)}",
    "MaxPooling2D": _POOLING,
    "AveragePooling2D": _POOLING,
    "Concatenate": "Add, of branches with as many channels",
}
_PASSING = (_L.Add, _L.Multiply, _L.ZeroPadding2D, _L.ReLU, _L.LeakyReLU, _L.ELU, _L.Dropout)
_OPERATIONS = {"Add", "Subtract", "Multiply", "Identity"}


class _Graph:
    """The layers of a model with their neighbours, and where the cluster starts and ends."""

    def __init__(self, model: keras.Model) -> None:
        self._model = keras.Model(model.inputs, model.outputs)
        self._mine = set(self._model.operations)
        inputs = [tensor._keras_history.operation for tensor in model.inputs]
        outputs = [tensor._keras_history.operation for tensor in model.outputs]
        self.starts = _search(inputs, self._starts, self.consumers)
        self.ends = _search(outputs, _ends, self.producers)

    def producers(self, layer: Any) -> list[Any]:
        """The layers whose outputs this one takes."""
        parents = [
            parent.operation for node in layer._inbound_nodes for parent in node.parent_nodes
        ]
        return [parent for parent in parents if parent in self._mine]

    def consumers(self, layer: Any) -> list[Any]:
        """The layers that take this one's outputs."""
        nodes = layer._outbound_nodes
        return [node.operation for node in nodes if node.operation in self._mine]

    def inside(self) -> list[Any]:
        """The layers of the cluster between its two ends, in the order of the model."""
        starts = self.starts or [x for x in self._model.operations if _is_convolution(x)][:1]
        inside = set()
        waiting = [layer for start in starts for layer in self.consumers(start)]
        while waiting:
            layer = waiting.pop()
            if layer not in inside and layer not in self.ends:
                inside.add(layer)
                waiting += self.consumers(layer)
        return [layer for layer in self._model.operations if layer in inside]

    def _padding_before(self, layer: Any) -> Any:
        producers = set(self.producers(layer))
        before = producers.pop() if len(producers) == 1 else None
        return before.padding if isinstance(before, _L.ZeroPadding2D) else None

    def _starts(self, layer: Any) -> bool:
        return (
            isinstance(layer, _L.Conv2D)
            and tuple(layer.kernel.shape[:3]) == (3, 3, 3)
            and layer.strides == (2, 2)
            and layer.padding == "valid"
            and self._padding_before(layer) == ((1, 1), (1, 1))
        )

    def supports(self, layer: Any) -> bool:
        """Whether XNNPACK has a form for the layer inside of the cluster, as TFMOT sees it."""
        if isinstance(layer, _L.DepthwiseConv2D):
            kernel, around = layer.kernel_size, layer.kernel_size[0] // 2
            padded = self._padding_before(layer) == ((around, around), (around, around))
            fits = layer.padding == "same" and layer.strides == (1, 1)
            fits |= layer.padding == "valid" and padded and layer.strides in ((1, 1), (2, 2))
            single = layer.depth_multiplier == 1 and layer.dilation_rate == (1, 1)
            return kernel in ((3, 3), (5, 5)) and single and fits
        if isinstance(layer, _L.Conv2D):
            ones = {layer.kernel_size, layer.strides, layer.dilation_rate} == {(1, 1)}
            return ones and layer.groups == 1
        if isinstance(layer, _L.GlobalAveragePooling2D):
            return layer.keepdims
        if isinstance(layer, _L.BatchNormalization):
            return layer.axis in (3, -1)
        if isinstance(layer, _L.UpSampling2D):
            return layer.interpolation == "bilinear"
        if isinstance(layer, _L.Activation):
            return keras.activations.serialize(layer.activation) in _ACTIVATIONS
        if isinstance(layer, _L.Layer):
            return isinstance(layer, _PASSING)
        return type(layer).__name__ in _OPERATIONS


def _ends(layer: Any) -> bool:
    return isinstance(layer, _L.GlobalAveragePooling2D)


def _is_convolution(layer: Any) -> bool:
    return isinstance(layer, _L.Conv2D)


def _search(sources: Iterable[Any], stops: Callable[[Any], bool], following: _Next) -> set[Any]:
    """Where every way from the sources first meets a stop; nothing if one way meets none."""
    waiting, seen, found = list(sources), set(sources), set()
    while waiting:
        layer = waiting.pop()
        if stops(layer):
            found.add(layer)
            continue
        onward = following(layer)
        if not onward:
            return set()
        waiting += [new for new in onward if new not in seen]
        seen.update(onward)
    return found
