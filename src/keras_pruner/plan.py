"""What is pruned in a model, and why everything else is left alone."""

import dataclasses
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import keras
import numpy as np

from keras_pruner.allocations import Allocation, Fixed, as_allocation, lamp, uniform
from keras_pruner.criteria import magnitude
from keras_pruner.model_weights import Axes, OwnedWeight, check_model, weights_of
from keras_pruner.overrides import check_filters, check_overrides, read_override
from keras_pruner.patterns import Block, Pattern, Unstructured
from keras_pruner.reporting.report import Report
from keras_pruner.reporting.tables import Table
from keras_pruner.validation import shown, value

Criterion = Callable[[np.ndarray], np.ndarray]
Filters = str | Sequence[str] | Callable[[keras.layers.Layer], bool] | None
Override = None | float | Pattern | tuple[float, Pattern]


_FROZEN = "frozen"
_OVERRIDDEN = "left alone by an override"


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

    @property
    def is_kernel(self) -> bool:
        """Whether the variable's own axes are in the order (..., inputs, outputs)."""
        order = sum(self.axes, ())
        return order == tuple(range(len(order)))

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
class Plan(Report):
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

    def headline(self) -> str:
        """The number of weights that are pruned and that are left alone."""
        return f"plan: {len(self.targets)} weights are pruned, {len(self.skipped)} left alone"

    def tables(self) -> list[Table]:
        """The targets, then the variables left alone with the reasons."""
        targets = [
            (t.path, t.shape, t.pattern, "shared budget" if t.sparsity is None else t.sparsity)
            for t in self.targets
        ]
        left = [(skip.path, skip.shape, skip.reason) for skip in self.skipped]
        return [
            Table("", ["weight", "shape", "pattern", "sparsity"], targets),
            Table("left alone", ["weight", "shape", "reason"], left),
        ]

    def check_final(self, sparsity: float | None) -> None:
        """Raise if a mapping given as `allocation` does not come to the final sparsity."""
        if not isinstance(self.allocation, Fixed) or sparsity is None:
            return
        shared: dict[Pattern, dict[str, int]] = {}
        for target in self.targets:
            if target.sparsity is None:
                shared.setdefault(target.pattern, {})[target.path] = target.units
        for pattern, units in shared.items():
            self.allocation.check_final(units, sparsity, pattern if len(shared) > 1 else None)

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
            in the layer's path, or a function layer -> bool. None: all. A function sees the
            layer that owns the weight: the cell of an LSTM, the projections of an attention
            layer. If it accepts no part of a recurrent, Bidirectional or attention layer, it is
            asked for the whole. Of wrappers such as TimeDistributed, nested models and layers
            of your own it sees what is within.
        overrides: regex searched in a weight's path -> None (leave alone), a sparsity, a
            pattern, or both as a tuple. The first that fits counts. It goes before the filters,
            and also admits what the default rule leaves alone, such as depthwise kernels.

    Raises:
        ValueError: for arguments that are wrong or do not go together.
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
                f"kp.NM(2, 4) or kp.Channel(). Received: pattern={shown(self.pattern)}."
            )
        allocation = given = self.allocation
        if allocation is None:
            allocation = lamp if isinstance(self.pattern, Unstructured | Block) else uniform
        allocation = as_allocation(allocation)
        object.__setattr__(self, "allocation", allocation)
        if not callable(self.criterion):
            raise ValueError(
                "`criterion` must be a function from weights to scores of the same shape. "
                f"Received: criterion={self.criterion!r}."
            )
        check_filters(self.filters)
        check_overrides(self.overrides, self.pattern)
        # Immutable, and the same after a trip through JSON, which knows no tuples.
        if isinstance(self.filters, list):
            object.__setattr__(self, "filters", tuple(self.filters))
        if self.overrides is not None:
            pairs = {r: tuple(o) if isinstance(o, list) else o for r, o in self.overrides.items()}
            object.__setattr__(self, "overrides", pairs)
        if allocation is not uniform:
            self.check_split(given)

    def check_split(self, allocation: object) -> None:
        """Raise for an allocation that the user gave where no weight has a share in a budget."""
        patterns = [self.pattern, *self._patterns_of_overrides()]
        if all(pattern.own_sparsity is not None for pattern in patterns):
            raise ValueError(
                f"`allocation` has nothing to split: {self.pattern!r} has a sparsity of its own, "
                f"{self.pattern.own_sparsity:g}. Received: allocation={shown(allocation)}. Leave "
                "it out."
            )

    def plan(self, model: keras.Model, *, frozen: bool = False) -> Plan:
        """Apply the rules to a built model.

        Args:
            model: any Keras 3 model.
            frozen: also prune what is not trainable.

        Raises:
            ValueError: if `model` is no built Keras 3 model, a filter, an override or a name in
                `allocation` fits nothing, or nothing is left to prune.
        """
        check_model(model)
        found = list(weights_of(model))
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
        self._check_overrides_serve(targets, skipped)
        plan = Plan(
            tuple(targets), tuple(skipped), tuple(variables), self.allocation, self.criterion
        )
        if not targets:
            raise ValueError(f"There is nothing to prune in {model.name!r}.\n{plan}")
        if isinstance(self.allocation, Fixed):
            self.allocation.check_names([t.path for t in targets if t.sparsity is None])
        return plan

    def _judge(
        self, owned: OwnedWeight, index: int | None, frozen: bool
    ) -> tuple[str, Target | None]:
        """Why this variable is left alone, or the target it makes."""
        regex = self._override_of(owned.path)
        named = regex is not None
        override = (self.overrides or {}).get(regex or "") if named else None
        sparsity, pattern = read_override(override, self.pattern)
        if named and (override is None or sparsity == 0):
            return _OVERRIDDEN, None
        if not named and not self._admits(owned):
            return "its layer does not match the filters", None
        reason = owned.reason(by_default=not named)
        if not reason and index is None and not frozen:
            reason = _FROZEN
        if reason:
            return reason, None
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

    def _override_of(self, path: str) -> str | None:
        """The regex of the override that counts for a weight."""
        return next((regex for regex in self.overrides or {} if re.search(regex, path)), None)

    def _patterns_of_overrides(self) -> Iterator[Pattern]:
        for override in (self.overrides or {}).values():
            if override is not None:
                yield read_override(override, self.pattern)[1]

    def _admits(self, owned: OwnedWeight) -> bool:
        if self.filters is None:
            return True
        if callable(self.filters):
            return bool(self.filters(owned.layer)) or any(map(self._admits_whole, owned.wholes))
        return any(re.search(regex, owned.layer_path) for regex in self._regexes())

    def _admits_whole(self, layer: keras.layers.Layer) -> bool:
        """Whether the function means the layer as a whole, and does not look at its parts."""
        parts = [part for part in layer._flatten_layers(include_self=False) if part.weights]
        return not any(map(self.filters, parts)) and bool(self.filters(layer))

    def _regexes(self) -> Sequence[str]:
        """The filters, where they are regexes."""
        if self.filters is None or callable(self.filters):
            return ()
        return (self.filters,) if isinstance(self.filters, str) else self.filters

    def _check_matches(self, found: list[OwnedWeight]) -> None:
        """Raise for filters and overrides that fit nothing."""
        layers = list(dict.fromkeys(owned.layer_path for owned in found))
        idle = [r for r in self._regexes() if not any(re.search(r, path) for path in layers)]
        if idle or (self.filters is not None and not any(map(self._admits, found))):
            is_part = len(idle) < len(self._regexes())
            which = f" with {', '.join(map(repr, idle))}" if is_part else ""
            raise ValueError(
                f"`filters` matches no layer{which}. Received: filters={self.filters!r}. "
                f"The layers with weights are: {layers}."
            )
        for regex in self.overrides or {}:
            paths = [owned.path for owned in found if re.search(regex, owned.path)]
            if not paths:
                raise ValueError(
                    f"`overrides` matches no weight with {regex!r}. "
                    f"The weights are: {[owned.path for owned in found]}."
                )
            first = {self._override_of(path) for path in paths}
            if regex not in first:
                raise ValueError(
                    f"`overrides[{regex!r}]` would have no effect: the first override that fits a "
                    f"weight counts, and {sorted(map(str, first))} before it fit all of its: "
                    f"{paths}. Put the narrower one first."
                )

    def _check_overrides_serve(self, targets: Sequence[Target], skipped: Sequence[Skip]) -> None:
        """Raise for an override that asks for zeros where none can be."""
        served = {self._override_of(target.path) for target in targets}
        for regex, override in (self.overrides or {}).items():
            if override in (None, 0) or regex in served:
                continue
            reasons = [skip for skip in skipped if self._override_of(skip.path) == regex]
            if all(skip.reason not in (_FROZEN, _OVERRIDDEN) for skip in reasons):
                listed = "; ".join(f"{skip.path}: {skip.reason}" for skip in reasons)
                raise ValueError(
                    f"`overrides[{regex!r}]` asks for zeros, and none of its weights can be "
                    f"pruned ({listed}). Received: {override!r}. Take it out, or name a kernel."
                )
