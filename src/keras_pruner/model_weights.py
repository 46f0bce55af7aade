"""The weights of a model: the layer of each, the meaning of its axes, and whether to prune it."""

import dataclasses
import math
import os
from collections.abc import Iterable, Iterator

import keras
import numpy as np

from keras_pruner.validation import value

Axes = tuple[int, ...]


@value
class WeightView:
    """The meaning of each axis of a weight, and the two views of a weight.

    - As a **kernel** (..., inputs, outputs), the order of Keras' Dense and Conv kernels: what
      patterns and criteria see. The leading axes are groups and taps.
    - As **matrices** (groups, inputs, outputs): what a layer multiplies its inputs with. The taps
      of a convolution are inputs here.

    Attributes:
        shape: the shape of the variable.
        groups: axes of independent matrices: the axes that an einsum shares between its kernel,
            inputs and outputs, or the channels of a depthwise kernel.
        taps: axes of the positions in the window of a convolution.
        inputs: axes of the inputs. A depthwise kernel has none; seen as a kernel, its channels
            take their place, as in Keras' order (taps, channels, multiplier).
        outputs: axes of the outputs.
        parts: the number of groups of a grouped convolution, which divide its last axis.

    Example:
        >>> layer = keras.layers.Conv2D(8, 3, groups=2)
        >>> layer.build((None, 16, 16, 4))
        >>> view = view_of(layer, layer.kernel)
        >>> view.shape, view.kernel_shape, view.matrix_shape
        ((3, 3, 2, 8), (3, 3, 2, 8), (2, 18, 4))
    """

    shape: tuple[int, ...]
    groups: Axes
    taps: Axes
    inputs: Axes
    outputs: Axes
    parts: int = 1

    def __post_init__(self) -> None:
        for name in ("shape", "groups", "taps", "inputs", "outputs"):
            object.__setattr__(self, name, tuple(getattr(self, name)))

    @property
    def _kernel_axes(self) -> tuple[Axes, Axes, Axes]:
        """The axes of a kernel: of its leading axes, of its inputs and of its outputs."""
        if self.inputs:
            return self.groups + self.taps, self.inputs, self.outputs
        return self.taps, self.groups, self.outputs

    @property
    def is_kernel(self) -> bool:
        """Whether the variable's own axes are in the order (..., inputs, outputs)."""
        order = sum(self._kernel_axes, ())
        return order == tuple(range(len(order)))

    @property
    def kernel_shape(self) -> tuple[int, ...]:
        """The shape (..., inputs, outputs) of the weight as a kernel."""
        leading, inputs, outputs = ([self.shape[a] for a in axes] for axes in self._kernel_axes)
        return (*leading, math.prod(inputs), math.prod(outputs))

    def to_kernel(self, weight: np.ndarray) -> np.ndarray:
        """The weight as a kernel (..., inputs, outputs); a view of the array if possible."""
        return weight.transpose(sum(self._kernel_axes, ())).reshape(self.kernel_shape)

    def from_kernel(self, kernel: np.ndarray) -> np.ndarray:
        """Undo `to_kernel`."""
        return _moved_back(kernel, sum(self._kernel_axes, ()), self.shape)

    @property
    def _divided(self) -> tuple[tuple[int, ...], Axes]:
        """The shape with its last axis divided into parts, and the axes' order in matrices."""
        *before, last = self.shape
        place = len(before)
        order = self.groups + self.taps + self.inputs + self.outputs
        order = (place, *(axis + (axis == place) for axis in order))
        return (*before, self.parts, last // self.parts), order

    @property
    def matrix_shape(self) -> tuple[int, int, int]:
        """The shape (groups, inputs, outputs) of the weight as matrices."""
        groups, inputs, outputs = (
            math.prod(self.shape[axis] for axis in axes)
            for axes in (self.groups, self.taps + self.inputs, self.outputs)
        )
        return groups * self.parts, inputs, outputs // self.parts

    def to_matrix(self, weight: np.ndarray) -> np.ndarray:
        """The weight as matrices (groups, inputs, outputs)."""
        shape, order = self._divided
        return weight.reshape(shape).transpose(order).reshape(self.matrix_shape)

    def from_matrix(self, matrix: np.ndarray) -> np.ndarray:
        """Undo `to_matrix`."""
        shape, order = self._divided
        return _moved_back(matrix, order, shape).reshape(self.shape)


def _moved_back(array: np.ndarray, order: Axes, shape: tuple[int, ...]) -> np.ndarray:
    """Undo `x.transpose(order)` of an array x of this shape, and the reshape that followed it."""
    return array.reshape([shape[axis] for axis in order]).transpose(np.argsort(order))


def view_of(layer: keras.layers.Layer, variable: keras.Variable) -> WeightView:
    """The meaning of the axes of a layer's variable.

    For unknown layers, (..., inputs, outputs) is assumed; vectors have only outputs.
    """
    shape, layers = tuple(variable.shape), keras.layers
    last = len(shape) - 1
    taps, before = tuple(range(last - 1)), last - 1
    if last < 1:
        return WeightView(shape, (), (), (), tuple(range(len(shape))))
    is_main = variable.name == "kernel"  # a subclass may have other weights as well
    if is_main and isinstance(layer, layers.EinsumDense):
        groups, inputs, outputs = _einsum_axes(layer.equation)
        return WeightView(shape, groups, (), inputs, outputs)
    if is_main and isinstance(layer, _TRANSPOSED):
        return WeightView(shape, (), taps, (last,), (before,))
    if variable.name == "depthwise_kernel" or (is_main and isinstance(layer, _DEPTHWISE)):
        return WeightView(shape, (before,), taps, (), (last,))
    parts = layer.groups if is_main and isinstance(layer, _CONVOLUTIONS) else 1
    return WeightView(shape, (), taps, (before,), (last,), parts)


def check_model(model: object) -> None:
    """Raise unless `model` is a built Keras 3 model or layer."""
    module = type(model).__module__.split(".")[0]
    bases = {base.__module__.split(".")[0] for base in type(model).__mro__}
    if "tf_keras" in bases:
        raise ValueError(
            f"{type(model).__name__} is a Keras 2 object (tf_keras); this package prunes Keras 3 "
            "models. Save it with `model.save('model.h5')` and load it with Keras 3: "
            "`keras.saving.load_model('model.h5')`; or unset TF_USE_LEGACY_KERAS."
        )
    if isinstance(model, str | os.PathLike):
        raise ValueError(
            "`model` must be a Keras model, not the file it is in. "
            f"Received: model={str(model)!r}. Load it: `keras.saving.load_model({str(model)!r})`."
        )
    if not isinstance(model, keras.layers.Layer):
        raise ValueError(
            "`model` must be a Keras model, not an output of one. "
            f"Received: an object of type {module}.{type(model).__name__}. Pass the model itself, "
            "such as keras.Model(inputs, outputs)."
        )
    if not model.built:
        raise ValueError(
            f"The model {model.name!r} has no weights yet. Build it first: call it on a batch "
            "(`model(x[:1])`), or give `model.build(input_shape)` the shape of its input."
        )
    if not model.weights:
        raise ValueError(
            f"There is nothing to prune in {model.name!r}: it has no weights. If its layers make "
            "them when they are first called, call it on a batch: `model(x[:1])`."
        )


@dataclasses.dataclass(frozen=True)
class OwnedWeight:
    """A variable and the layer that owns it.

    Attributes:
        variable: the weight.
        layer: its owner.
        layer_path: the owner's path in the model.
        path: the weight's path in the model.
        wholes: the layers that the owner is a part of: the recurrent layer of a cell, the
            Bidirectional layer of a direction, the attention layer of a projection.
    """

    variable: keras.Variable
    layer: keras.layers.Layer
    layer_path: str
    path: str
    wholes: tuple[keras.layers.Layer, ...]

    @property
    def is_kernel(self) -> bool:
        """Whether it has the name of a kernel."""
        return self.variable.name in _KERNELS or self.variable.name.endswith("_kernel")

    @property
    def _is_of_keras(self) -> bool:
        """Whether it is a bias or a weight of Keras' own layers, whose names tell the kernels."""
        is_bias = self.variable.name == "bias" or self.variable.name.endswith("_bias")
        return is_bias or type(self.layer).__module__.startswith("keras.")

    @property
    def view(self) -> WeightView:
        """What its axes mean."""
        return view_of(self.layer, self.variable)

    @property
    def is_depthwise(self) -> bool:
        """Whether it is a kernel with one input for each output."""
        return self.is_kernel and _is_depthwise(self.layer, self.variable)

    def reason(self, *, by_default: bool) -> str:
        """The reason why the variable is left alone; empty if it can be pruned."""
        if len(self.variable.shape) < 2:
            return "a vector, not a kernel"
        if 0 in self.variable.shape:
            return "empty"
        if not keras.backend.is_float_dtype(self.variable.dtype):
            return f"holds {self.variable.dtype}, {_INTEGERS}"
        if getattr(self.layer, "lora_enabled", False):
            return _LORA
        if not by_default:
            return ""
        asked = getattr(self.layer, "get_prunable_weights", None)
        if asked is not None:
            mine = any(self.variable is weight for weight in asked())
            return "" if mine else "not among the layer's get_prunable_weights()"
        if isinstance(self.layer, keras.layers.STFTSpectrogram):
            return "the basis of a transform, not learned"
        if isinstance(self.layer, _FOREIGN):
            return _WRAPPED
        if not self.is_kernel:
            return _BUILT_IN if self._is_of_keras else _UNNAMED
        if self.is_depthwise:
            return "a depthwise kernel: few weights, large loss of accuracy; an override admits it"
        return ""


_INTEGERS = "not floating-point weights"
_LORA = "LoRA is enabled: kernel + A·B is no variable; merge it first"
_BUILT_IN = "not a kernel: a bias, a slope or a statistic; an override admits it"
_UNNAMED = "not a kernel by its name; an override or get_prunable_weights() admits it"
_WRAPPED = "a weight of a wrapped PyTorch module or JAX function; an override admits it"
FROZEN = "frozen"
_FIXES = {
    FROZEN: "set its layer's `trainable` to True, or prune it at once with `kp.prune` before",
    _LORA: "merge it with `kp.quantization.merge_lora`",
    _UNNAMED: "pass overrides={{{path!r}: 0.5}} to prune it",
    _WRAPPED: "pass overrides={{{path!r}: 0.5}} to prune it",
}


def fix_of(reason: str) -> str:
    """How to prune a weight that is left alone for this reason; may contain `{path}`.

    Empty if the weight cannot be pruned, or if the user left it alone.
    """
    return "prune before quantizing" if reason.endswith(_INTEGERS) else _FIXES.get(reason, "")


_FOREIGN = (keras.layers.TorchModuleWrapper, keras.layers.JaxLayer, keras.layers.FlaxLayer)
_WHOLES = (
    keras.layers.RNN,
    keras.layers.StackedRNNCells,
    keras.layers.Bidirectional,
    keras.layers.MultiHeadAttention,
    keras.layers.GroupQueryAttention,
)
_KERNELS = {"kernel", "embeddings", "reverse_embeddings"}
_CONVOLUTIONS = (keras.layers.Conv1D, keras.layers.Conv2D, keras.layers.Conv3D)
_TRANSPOSED = (
    keras.layers.Conv1DTranspose,
    keras.layers.Conv2DTranspose,
    keras.layers.Conv3DTranspose,
)
_DEPTHWISE = (keras.layers.DepthwiseConv1D, keras.layers.DepthwiseConv2D)


def _is_depthwise(layer: keras.layers.Layer, variable: keras.Variable) -> bool:
    one_input_each = getattr(layer, "groups", 1) > 1 and variable.shape[-2] == 1
    return isinstance(layer, _DEPTHWISE) or variable.name == "depthwise_kernel" or one_input_each


def _einsum_axes(equation: str) -> tuple[Axes, Axes, Axes]:
    """The axes of an einsum's kernel: groups (in inputs and outputs too), inputs, outputs."""
    operands, result = equation.replace(" ", "").replace("...", "").split("->")
    data, kernel = operands.split(",")
    rest = tuple(i for i, c in enumerate(kernel) if c in data and c in result)
    inputs = tuple(i for i, c in enumerate(kernel) if c in data and c not in result)
    outputs = tuple(i for i, c in enumerate(kernel) if c not in data)
    return rest, inputs, outputs


def weights_of(model: keras.layers.Layer) -> Iterator[OwnedWeight]:
    """Every weight of the model, once, with the layer that owns it."""
    seen: set[int] = set()
    found = []
    wholes: dict[int, list[keras.layers.Layer]] = {}
    for layer in model._flatten_layers():
        if isinstance(layer, _WHOLES):
            for part in layer._flatten_layers(include_self=False):
                wholes.setdefault(id(part), []).append(layer)
        inner = {id(v) for child in layer._flatten_layers(False) for v in child.variables}
        for variable in layer.weights:
            if id(variable) in seen or id(variable) in inner:
                continue
            seen.add(id(variable))
            found.append((variable, layer))
    paths = unique_paths(model, [variable for variable, _ in found])
    for (variable, layer), path in zip(found, paths, strict=True):
        around = tuple(wholes.get(id(layer), ()))
        yield OwnedWeight(variable, layer, layer_path(model, layer), path, around)


def layer_path(model: keras.layers.Layer, layer: keras.layers.Layer) -> str:
    """The path of a layer, without the model's own name."""
    return _without_root(model, layer.path or layer.name)


def unique_paths(model: keras.layers.Layer, variables: Iterable[keras.Variable]) -> Iterator[str]:
    """The path of each weight, without the model's own name; a repeated path ends in ":2"."""
    counts: dict[str, int] = {}
    for variable in variables:
        path = _without_root(model, variable.path)
        count = counts[path] = counts.get(path, 0) + 1
        yield path if count == 1 else f"{path}:{count}"


def _without_root(model: keras.layers.Layer, path: str) -> str:
    return path.removeprefix(f"{model.name}/")
