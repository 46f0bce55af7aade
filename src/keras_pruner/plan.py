"""What is pruned in a model, and why everything else is left alone."""

import dataclasses
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import keras
import numpy as np

from keras_pruner import tables
from keras_pruner.allocation import Allocation, as_allocation, lamp, uniform
from keras_pruner.criteria import magnitude
from keras_pruner.patterns import NM, Block, Pattern, Unstructured
from keras_pruner.values import check_sparsity, value

Criterion = Callable[[np.ndarray], np.ndarray]
Filters = str | Sequence[str] | Callable[[keras.layers.Layer], bool] | None
Override = None | float | Pattern | tuple[float, Pattern]
Axes = tuple[int, ...]


@value
class Target:
    """One prunable variable of a model.

    Attributes:
        path: its name in the model, unique within a plan.
        shape: of the variable.
        pattern: the zeros allowed in it.
        sparsity: its own final fraction of zeros; None if it shares the overall budget.
        axes: the variable's axes in the order (..., inputs, outputs) of Keras kernels, as three
            groups: those of neither, the inputs', the outputs'.
        index: its position among the model's trainable variables; None if it is frozen.
    """

    path: str
    shape: tuple[int, ...]
    pattern: Pattern
    sparsity: float | None
    axes: tuple[Axes, Axes, Axes]
    index: int | None

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", tuple(self.shape))
        object.__setattr__(self, "axes", tuple(tuple(group) for group in self.axes))

    @property
    def kernel_shape(self) -> tuple[int, ...]:
        """The shape in which the pattern sees the weight: (..., inputs, outputs)."""
        rest, inputs, outputs = ([self.shape[a] for a in group] for group in self.axes)
        size = (int(np.prod(inputs)), int(np.prod(outputs)))
        return (*rest, *size)

    @property
    def units(self) -> int:
        """How many weights, blocks or channels the pattern sees in it."""
        return self.pattern.units(self.kernel_shape)

    def to_kernel(self, weight: np.ndarray) -> np.ndarray:
        """The weight with its axes in the order (..., inputs, outputs); a view if possible."""
        return weight.transpose(sum(self.axes, ())).reshape(self.kernel_shape)

    def from_kernel(self, kernel: np.ndarray) -> np.ndarray:
        """The inverse of `to_kernel`."""
        order = sum(self.axes, ())
        moved = kernel.reshape([self.shape[axis] for axis in order])
        return moved.transpose(np.argsort(order))


@dataclasses.dataclass(frozen=True)
class Skip:
    """A variable that is left alone, and why."""

    path: str
    shape: tuple[int, ...]
    reason: str


@dataclasses.dataclass(frozen=True)
class Plan:
    """The targets of a model and the reasons for all other variables; prints as a table.

    Attributes:
        targets: what is pruned.
        skipped: what is not, with its reason.
        variables: the `keras.Variable` of each target.
        allocation: how the targets without a sparsity of their own share the overall budget.
        criterion: weights -> scores.
    """

    targets: tuple[Target, ...]
    skipped: tuple[Skip, ...]
    variables: tuple[keras.Variable, ...] = dataclasses.field(repr=False, compare=False)
    allocation: Allocation
    criterion: Criterion

    def __str__(self) -> str:
        rows = [
            (t.path, t.shape, t.pattern, "shared budget" if t.sparsity is None else t.sparsity)
            for t in self.targets
        ]
        rows += [(s.path, s.shape, "-", s.reason) for s in self.skipped]
        return tables.render("plan", ["weight", "shape", "pattern", "sparsity, or why not"], rows)

    def same_as(self, other: "Plan") -> bool:
        """Whether masks made for the one serve the other; names may differ after loading."""
        mine, theirs = (
            ([dataclasses.replace(t, path="") for t in p.targets], p.allocation, p.criterion)
            for p in (self, other)
        )
        return mine == theirs


@value
class Rules:
    """How to find the targets of a model; checked when made, applied when there is a model.

    Args:
        pattern: the zeros allowed, unless an override says otherwise.
        allocation: how the overall budget is split. None: "lamp", or "uniform" where the
            pattern is neither unstructured nor of blocks.
        criterion: weights -> scores of the same shape, higher is better.
        filters: layers to prune, as in Keras' `quantize`: a regex or a list of them, searched
            in the layer's path, or a function layer -> bool. None: all.
        overrides: regex searched in a weight's path -> None (leave alone), a sparsity, a
            pattern, or both as a tuple. The first that fits counts. It also admits what the
            default rule leaves alone, such as depthwise kernels.
    """

    pattern: Pattern = Unstructured()
    allocation: Any = None
    criterion: Any = magnitude
    filters: Any = None
    overrides: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.pattern, Pattern):
            raise ValueError(
                "`pattern` must be a pattern, like kp.Unstructured(), kp.Block((4, 1)), "
                f"kp.NM(2, 4) or kp.Channel(). Received: pattern={self.pattern!r}."
            )
        allocation = self.allocation
        if allocation is None:
            allocation = lamp if isinstance(self.pattern, Unstructured | Block) else uniform
        object.__setattr__(self, "allocation", as_allocation(allocation))
        if not callable(self.criterion):
            raise ValueError(
                "`criterion` must be a function from weights to scores of the same shape. "
                f"Received: criterion={self.criterion!r}."
            )
        _check_filters(self.filters)
        for regex, override in (self.overrides or {}).items():
            _check_override(regex, override)

    def plan(self, model: keras.Model, *, frozen: bool = False) -> Plan:
        """Apply the rules to a built model.

        Args:
            model: any Keras 3 model.
            frozen: also prune what is not trainable.

        Raises:
            ValueError: if `model` is no built Keras 3 model, a filter or an override fits
                nothing, or nothing is left to prune.
        """
        check_model(model)
        found = list(_variables(model))
        self._check_matches(found)
        trainable = {id(v): i for i, v in enumerate(model.trainable_variables)}
        targets, skipped, variables = [], [], []
        for owned in found:
            reason, target = self._judge(owned, trainable.get(id(owned.variable)), frozen)
            if target is None:
                skipped.append(Skip(owned.path, tuple(owned.variable.shape), reason))
            else:
                targets.append(target)
                variables.append(owned.variable)
        plan = Plan(
            tuple(targets), tuple(skipped), tuple(variables), self.allocation, self.criterion
        )
        if not targets:
            raise ValueError(f"There is nothing to prune in {model.name!r}.\n{plan}")
        return plan

    def _judge(
        self, owned: "_Owned", index: int | None, frozen: bool
    ) -> tuple[str, Target | None]:
        """Why this variable is left alone, or the target it makes."""
        named, override = self._override(owned.path)
        if named and override is None:
            return "left alone by an override", None
        if not named and not self._admits(owned):
            return "its layer does not match the filters", None
        reason = owned.reason(by_default=not named)
        if not reason and index is None and not frozen:
            reason = "frozen"
        if reason:
            return reason, None
        sparsity, pattern = _read_override(override, self.pattern)
        target = Target(
            owned.path, tuple(owned.variable.shape), pattern, sparsity, owned.axes(), index
        )
        try:
            pattern.units(target.kernel_shape)
        except ValueError as error:
            if named:
                raise ValueError(f"{owned.path}: {error}") from None
            return f"{pattern!r} does not fit its shape {target.kernel_shape}", None
        return "", target

    def _override(self, path: str) -> tuple[bool, Any]:
        for regex, override in (self.overrides or {}).items():
            if re.search(regex, path):
                return True, override
        return False, None

    def _admits(self, owned: "_Owned") -> bool:
        if self.filters is None:
            return True
        if callable(self.filters):
            return bool(self.filters(owned.layer))
        regexes = [self.filters] if isinstance(self.filters, str) else self.filters
        return any(re.search(regex, owned.layer_path) for regex in regexes)

    def _check_matches(self, found: "list[_Owned]") -> None:
        """Raise for filters and overrides that fit nothing."""
        if self.filters is not None and not any(map(self._admits, found)):
            layers = list(dict.fromkeys(owned.layer_path for owned in found))
            raise ValueError(
                f"`filters` matches no layer. Received: filters={self.filters!r}. "
                f"The layers with weights are: {layers}."
            )
        for regex in self.overrides or {}:
            if not any(re.search(regex, owned.path) for owned in found):
                raise ValueError(
                    f"`overrides` matches no weight with {regex!r}. "
                    f"The weights are: {[owned.path for owned in found]}."
                )


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
    if not isinstance(model, keras.layers.Layer):
        raise ValueError(
            "`model` must be a Keras model, not what comes out of one. "
            f"Received: an object of type {module}.{type(model).__name__}."
        )
    if not model.built or not model.variables:
        raise ValueError(
            f"The model {model.name!r} has no weights yet. Build it first: call it on a batch "
            "(`model(x[:1])`), or give `model.build(input_shape)` the shape of its input."
        )


@dataclasses.dataclass(frozen=True)
class _Owned:
    """A variable and the layer that owns it."""

    variable: keras.Variable
    layer: keras.layers.Layer
    layer_path: str
    path: str

    def axes(self) -> tuple[Axes, Axes, Axes]:
        """Which axes of the variable are inputs, outputs, and neither."""
        rank = len(self.variable.shape)
        if isinstance(self.layer, keras.layers.EinsumDense):
            return _einsum_axes(self.layer.equation)
        if isinstance(self.layer, _TRANSPOSED):
            return tuple(range(rank - 2)), (rank - 1,), (rank - 2,)
        return tuple(range(rank - 2)), (rank - 2,), (rank - 1,)

    def reason(self, *, by_default: bool) -> str:
        """Why the rules leave the variable alone; empty if they do not."""
        if len(self.variable.shape) < 2:
            return "a vector: pruned are kernels and tables"
        if not keras.backend.is_float_dtype(self.variable.dtype):
            return f"holds {self.variable.dtype}, not floating-point weights"
        if getattr(self.layer, "lora_enabled", False):
            return "LoRA is enabled: kernel + A·B is no variable; merge it first"
        if not by_default:
            return ""
        asked = getattr(self.layer, "get_prunable_weights", None)
        if asked is not None:
            mine = any(self.variable is weight for weight in asked())
            return "" if mine else "not among the layer's get_prunable_weights()"
        name = self.variable.name
        if name not in _KERNELS and not name.endswith("_kernel"):
            return "not a kernel by its name; an override or get_prunable_weights() admits it"
        if _is_depthwise(self.layer, self.variable):
            return "a depthwise kernel: few weights, much harm; an override admits it"
        return ""


_KERNELS = {"kernel", "embeddings"}
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
    """Contracted axes of the kernel are inputs; those it shares with both sides are neither."""
    operands, result = equation.replace(" ", "").replace("...", "").split("->")
    data, kernel = operands.split(",")
    rest = tuple(i for i, c in enumerate(kernel) if c in data and c in result)
    inputs = tuple(i for i, c in enumerate(kernel) if c in data and c not in result)
    outputs = tuple(i for i, c in enumerate(kernel) if c not in data)
    return rest, inputs, outputs


def _variables(model: keras.layers.Layer) -> Iterator[_Owned]:
    """Every weight of the model, once, with the layer that owns it."""
    seen: set[int] = set()
    names: dict[str, int] = {}
    for layer in model._flatten_layers():
        inner = {id(v) for child in layer._flatten_layers(False) for v in child.variables}
        for variable in layer.weights:
            if id(variable) in seen or id(variable) in inner:
                continue
            seen.add(id(variable))
            path = _without_root(variable.path, model)
            count = names[path] = names.get(path, 0) + 1
            unique = path if count == 1 else f"{path}:{count}"
            yield _Owned(variable, layer, _without_root(layer.path or layer.name, model), unique)


def _without_root(path: str, model: keras.layers.Layer) -> str:
    return path.removeprefix(f"{model.name}/")


def _check_filters(filters: object) -> None:
    if filters is None or callable(filters):
        return
    regexes = [filters] if isinstance(filters, str) else filters
    if isinstance(regexes, Sequence) and all(isinstance(regex, str) for regex in regexes):
        for regex in regexes:
            re.compile(regex)
        return
    raise ValueError(
        "`filters` must be a regex, a list of them, or a function layer -> bool. "
        f"Received: filters={filters!r}."
    )


def _check_override(regex: str, override: object) -> None:
    re.compile(regex)
    sparsity, pattern = override if isinstance(override, tuple) else (override, override)
    if isinstance(override, tuple) or not (override is None or isinstance(override, Pattern)):
        check_sparsity(f"overrides[{regex!r}]", sparsity)
    if isinstance(override, tuple):
        if not isinstance(pattern, Pattern):
            raise ValueError(
                "`overrides` takes (sparsity, pattern) tuples. "
                f"Received: overrides[{regex!r}]={override!r}."
            )
        if pattern.own_sparsity not in (None, sparsity):
            raise ValueError(
                f"`overrides[{regex!r}]` gives {pattern!r} a sparsity that is not its own. "
                f"Received: {sparsity!r}. Leave it out; it is {pattern.own_sparsity:g}."
            )


def _read_override(override: Any, default: Pattern) -> tuple[float | None, Pattern]:
    """The sparsity and the pattern of a weight."""
    sparsity, pattern = override if isinstance(override, tuple) else (override, override)
    pattern = pattern if isinstance(pattern, Pattern) else default
    sparsity = sparsity if isinstance(sparsity, float | int) else None
    return (sparsity if pattern.own_sparsity is None else pattern.own_sparsity), pattern
