"""The rules that a user gives for pruning, and `kp.plan`, which applies them to a model.

First each weight is judged by itself: an override, the filters and the layer's class decide whether
it becomes a target. If whole output channels are pruned, the targets are then tied into groups.
"""

import dataclasses
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import keras
import numpy as np

from keras_pruner.allocations import PerWeight, as_allocation, lamp, uniform
from keras_pruner.channels.tied import TiedAxis, TiedGroup, tied_groups
from keras_pruner.criteria import magnitude
from keras_pruner.masks import MaskedWeight, count_kept
from keras_pruner.model_weights import FROZEN, OwnedWeight, check_model, fix_of, weights_of
from keras_pruner.patterns import (
    Block,
    Channel,
    FixedPattern,
    Pattern,
    Unstructured,
    fixed_conflict,
    settle_sparsity,
)
from keras_pruner.plan import Criterion, Group, Member, Plan, Skip, Target
from keras_pruner.validation import check_regex, check_sparsity, shown, value

Filters = str | Sequence[str] | Callable[[keras.layers.Layer], bool] | None
"""Layers to prune: regexes of their paths, or a function. None: all layers."""

Override = None | float | Pattern | tuple[float, Pattern]
"""An exception for some weights: leave alone (None), a sparsity, a pattern, or both."""

Judged = tuple[str, Target | None]
"""The reason why a weight is left alone; or, with an empty reason, the target it becomes."""

_TOO_LARGE = "does not fit its shape"
_OVERRIDDEN = "left alone by an override"


@value
class Rules:
    """What to prune in a model, and how; checked at construction, before there is a model.

    `kp.plan`, `kp.GradualPruning`, `kp.Pruner` and `kp.prune` take arguments of the same names and
    meanings.

    Args:
        pattern: the zeros allowed: `kp.Unstructured()`, `kp.Block((4, 1))`, `kp.NM(2, 4)` or
            `kp.Channel()`; an override may give single weights another.
        allocation: how the overall budget of zeros is split over the weights: "lamp", "erk",
            "global", "uniform", a mapping from regex to sparsity, or a function
            (shares, sparsity) -> {share: sparsity}. None: "lamp" for `Unstructured` and `Block`
            patterns, "uniform" for others.
        criterion: a function from a kernel (..., inputs, outputs) to scores of the same shape;
            weights with the highest scores stay.
        filters: the layers to prune: a regex or a list of them, searched in the layer's path, or
            a function layer -> bool, as in Keras' `quantize`. None: all layers. The function
            gets the layer that owns the weight: the cell of an LSTM, a projection of an
            attention layer. If it accepts no part of a recurrent, Bidirectional or attention
            layer, it is asked about the whole layer. For wrappers such as TimeDistributed, nested
            models and custom layers it gets the layers inside.
        overrides: a mapping from regex, searched in the weight's path, to None (leave alone), a
            sparsity, a pattern, or (sparsity, pattern). The first regex that matches counts. An
            override goes before `filters`, and also admits weights that are left alone by
            default, such as depthwise kernels.

    Raises:
        ValueError: if an argument is wrong, or arguments contradict each other.

    Example:
        >>> rules = Rules(filters="conv", overrides={"head": None})
        >>> rules.pattern
        Unstructured()
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
        """Raise for an allocation without effect, because every pattern fixes its own sparsity."""
        pattern, others = self.pattern, self._patterns_of_overrides()
        if isinstance(pattern, FixedPattern) and all(isinstance(p, FixedPattern) for p in others):
            raise fixed_conflict(pattern, "allocation", allocation)

    def plan(self, model: keras.Model, *, frozen: bool = False) -> Plan:
        """Apply the rules to a built model.

        Args:
            model: any built Keras 3 model.
            frozen: whether to prune frozen weights as well.

        Raises:
            ValueError: if `model` is not a built Keras 3 model, if a filter, an override or a
                name in `allocation` matches nothing, or if nothing is left to prune.
        """
        check_model(model)
        found = list(weights_of(model))
        self._check_matches(found)
        trainable = {id(v): i for i, v in enumerate(model.trainable_variables)}
        judged = {id(o): self._judge(o, trainable.get(id(o.variable)), frozen) for o in found}
        groups: tuple[Group, ...] = ()
        if isinstance(self.pattern, Channel) and self.pattern.axis == -1:
            judged, groups = self._tie(model, found, judged, trainable, frozen)
        plan = self._planned(found, judged, groups)
        self._check_overrides_serve(plan.targets, plan.skipped)
        if not plan.targets:
            raise ValueError(f"There is nothing to prune in {model.name!r}.\n{plan}")
        if isinstance(self.allocation, PerWeight):
            self.allocation.check_names([t.path for t in plan.decided() if t.sparsity is None])
        return plan

    def _planned(
        self, found: list[OwnedWeight], judged: dict[int, Judged], groups: tuple[Group, ...]
    ) -> Plan:
        """The plan that the judgements on all weights make."""
        targets, skipped, variables, others = [], [], [], []
        for owned in found:
            reason, target = judged[id(owned)]
            if target is None:
                fix = self._fix(owned, reason).format(path=owned.path)
                skipped.append(Skip(owned.path, tuple(owned.variable.shape), reason, fix))
                others += [owned.variable] if fix else []
            else:
                targets.append(target)
                variables.append(owned.variable)
        return Plan(
            tuple(targets),
            tuple(skipped),
            tuple(variables),
            self.allocation,
            self.criterion,
            groups=groups,
            others=tuple(others),
        )

    def _tie(
        self,
        model: keras.Model,
        found: list[OwnedWeight],
        judged: dict[int, Judged],
        trainable: Mapping[int, int],
        frozen: bool,
    ) -> tuple[dict[int, Judged], tuple[Group, ...]]:
        """Tie the targets into groups of channels, and make biases and scales targets as well.

        A kernel whose channels must all stay is left alone. A model that is not a graph of layers
        has no groups.
        """
        try:
            ties = tied_groups(model)
        except ValueError:
            return judged, ()
        by_variable = {id(owned.variable): owned for owned in found}
        result = dict(judged)
        reasons: dict[int, str] = {}
        groups = []
        for tie in ties:
            parts = [(axis, by_variable[id(axis.variable)]) for axis in tie.axes]
            reason, sparsity = self._judge_tie(tie, parts, judged)
            if reason:
                reasons |= dict.fromkeys((id(owned) for _, owned in parts), reason)
                continue
            parts = [(a, o) for a, o in parts if frozen or id(o.variable) in trainable]
            for _, owned in parts:
                index = trainable.get(id(owned.variable))
                target = Target(owned.path, owned.view, self.pattern, sparsity, index)
                result[id(owned)] = "", target
            groups.append(self._group(tie, parts, sparsity))
        tied = {member.path for group in groups for member in group.members}
        for owned in found:
            planned = result[id(owned)][1]
            if planned and planned.path not in tied and planned.pattern == self.pattern:
                result[id(owned)] = reasons.get(id(owned), "not in any group of channels"), None
        return result, tuple(groups)

    def _group(
        self, tie: TiedGroup, parts: list[tuple[TiedAxis, OwnedWeight]], sparsity: float | None
    ) -> Group:
        members = [
            Member(owned.path, axis.axis, tuple(axis.units.tolist()), follows=not axis.is_kernel)
            for axis, owned in parts
        ]
        pattern: Any = self.pattern
        return Group(tie.name, tuple(members), tie.count, pattern, sparsity)

    def _judge_tie(
        self, tie: TiedGroup, parts: list[tuple[TiedAxis, OwnedWeight]], judged: dict[int, Judged]
    ) -> tuple[str, float | None]:
        """The reason why a group is left alone, or else the sparsity that an override gives it."""
        if tie.reason:
            return tie.reason, None
        kernels = [judged[id(owned)] for axis, owned in parts if axis.is_kernel]
        sparsities = [target.sparsity for _, target in kernels if target is not None]
        for reason, target in kernels:
            if target is None:
                return reason, None
            if target.pattern != self.pattern:
                return f"tied to {target.path}, which has another pattern", None
        if not kernels:
            return "no kernel produces it", None
        return "", max((s for s in sparsities if s is not None), default=None)

    def _judge(self, owned: OwnedWeight, index: int | None, frozen: bool) -> Judged:
        """Judge one weight by itself."""
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
            reason = FROZEN
        if reason:
            return reason, None
        target = Target(owned.path, owned.view, pattern, sparsity, index)
        try:
            pattern.units(target.view.kernel_shape)
        except ValueError as error:
            if named:
                raise ValueError(f"{owned.path}: {error}") from None
            return f"{pattern!r} {_TOO_LARGE} {target.view.kernel_shape}", None
        return "", target

    def _fix(self, owned: OwnedWeight, reason: str) -> str:
        """How to prune a weight that is left alone; empty for vectors, which need no fix.

        The text may contain the placeholder `{path}`.
        """
        is_matrix = len(owned.variable.shape) >= 2 and 0 not in owned.variable.shape
        if is_matrix and _TOO_LARGE in reason:
            return "pass overrides={{{path!r}: kp.Unstructured()}} to prune it"
        return fix_of(reason) if is_matrix else ""

    def _override_of(self, path: str) -> str | None:
        """The first regex of `overrides` that matches a weight; None if there is none."""
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
        """Whether the filter function accepts the layer as a whole, but none of its parts."""
        parts = [part for part in layer._flatten_layers(include_self=False) if part.weights]
        return not any(map(self.filters, parts)) and bool(self.filters(layer))

    def _regexes(self) -> Sequence[str]:
        """The filters that are regexes; none if they are a function."""
        if self.filters is None or callable(self.filters):
            return ()
        return (self.filters,) if isinstance(self.filters, str) else self.filters

    def _check_matches(self, found: list[OwnedWeight]) -> None:
        """Raise for filters and overrides that match nothing."""
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
                    f"`overrides[{regex!r}]` has no effect: every weight that it matches is "
                    f"matched by an earlier override ({sorted(map(str, first))}). Put the more "
                    f"specific one first. Received: {list(self.overrides or {})}."
                )

    def _check_overrides_serve(self, targets: Sequence[Target], skipped: Sequence[Skip]) -> None:
        """Raise for an override that asks for zeros in weights that cannot be pruned."""
        served = {self._override_of(target.path) for target in targets}
        for regex, override in (self.overrides or {}).items():
            if override in (None, 0) or regex in served:
                continue
            reasons = [skip for skip in skipped if self._override_of(skip.path) == regex]
            if all(skip.reason not in (FROZEN, _OVERRIDDEN) for skip in reasons):
                listed = "; ".join(f"{skip.path}: {skip.reason}" for skip in reasons)
                raise ValueError(
                    f"`overrides[{regex!r}]` asks for zeros, and none of its weights can be "
                    f"pruned ({listed}). Received: {override!r}. Take it out, or name a kernel."
                )


def plan(
    model: keras.Model,
    sparsity: float | None = None,
    *,
    pattern: Pattern = Unstructured(),  # noqa: B008 - a frozen value
    allocation: Any = None,
    criterion: Criterion = magnitude,
    filters: Filters = None,
    overrides: Mapping[str, Override] | None = None,
) -> Plan:
    """The weights that a training would prune, and why all others are left alone.

    The model is not changed. Frozen weights are left alone, as in training; `kp.prune` prunes
    them as well.

    Args:
        model: any built Keras 3 model.
        sparsity: the overall fraction of zeros, in [0, 1). With it, the plan shows the sparsity
            that each weight would get now, and whether the overall sparsity is reached.
        pattern: the zeros allowed. `Rules` describes this and the following arguments in full.
        allocation: how the budget is split over the weights.
        criterion: kernel -> scores.
        filters: the layers to prune.
        overrides: exceptions for single weights.

    Returns:
        The plan, which prints as a table.

    Raises:
        ValueError: if an argument is wrong, arguments contradict each other, or the model has
            nothing to prune.

    Example:
        >>> model = keras.Sequential(
        ...     [
        ...         keras.Input((64,)),
        ...         keras.layers.Dense(32, kernel_initializer="ones", name="body"),
        ...         keras.layers.Dense(10, name="head"),
        ...     ]
        ... )
        >>> found = plan(model, 0.8, allocation="uniform", overrides={"head": 0.5})
        >>> print(found.headline())
        plan: 2 weights are pruned, 2 left alone; overall sparsity 0.7593
        >>> dict(zip([target.path for target in found.targets], found.kept))
        {'body/kernel': 410, 'head/kernel': 160}
    """
    if sparsity is not None:
        check_sparsity("sparsity", sparsity)
    sparsity = settle_sparsity("sparsity", sparsity, pattern)
    found = Rules(pattern, allocation, criterion, filters, overrides).plan(model)
    if sparsity is None:
        return found
    found.check_final(sparsity)
    weights = [
        MaskedWeight(target, variable, np.broadcast_to(np.True_, target.shape))
        for target, variable in zip(found.targets, found.variables, strict=True)
    ]
    kept = tuple(count_kept(weights, found, float(sparsity)))
    return dataclasses.replace(found, sparsity=float(sparsity), kept=kept)


def check_filters(filters: object) -> None:
    """Raise unless `filters` is a regex, a list of them, a function layer -> bool, or None."""
    if isinstance(filters, type):
        name = filters.__name__
        if getattr(keras.layers, name, None) is filters:
            name = f"keras.layers.{name}"
        raise ValueError(
            "`filters` must be a regex, a list of them, or a function layer -> bool, not a class. "
            f"Received: filters={filters!r}. Pass `lambda layer: isinstance(layer, {name})`."
        )
    if filters is None or callable(filters):
        return
    regexes = [filters] if isinstance(filters, str) else filters
    if not isinstance(regexes, list | tuple):
        raise ValueError(
            "`filters` must be a regex, a list of them, or a function layer -> bool. "
            f"Received: filters={shown(filters)}."
        )
    for regex in regexes:
        check_regex("filters", regex)


def check_overrides(overrides: object, default: Pattern) -> None:
    """Raise unless `overrides` maps regexes to valid overrides for the default pattern."""
    if overrides is None:
        return
    if not isinstance(overrides, Mapping):
        raise ValueError(
            "`overrides` must map regexes to None, a sparsity, a pattern or (sparsity, pattern). "
            f"Received: overrides={overrides!r}."
        )
    for regex, override in overrides.items():
        check_regex("overrides", regex)
        name = f"overrides[{regex!r}]"
        if override is None or isinstance(override, Pattern):
            continue
        pair = override if isinstance(override, tuple | list) else (override, default)
        if len(pair) != 2 or not isinstance(pair[1], Pattern):
            raise ValueError(
                f"`{name}` must be None, a sparsity, a pattern or (sparsity, pattern). "
                f"Received: {name}={override!r}."
            )
        sparsity, pattern = pair
        check_sparsity(name, sparsity)
        settle_sparsity(name, sparsity, pattern)


def read_override(override: Any, default: Pattern) -> tuple[float | None, Pattern]:
    """The sparsity and pattern of an override; a sparsity of None is a share of the budget."""
    if isinstance(override, tuple):
        sparsity, pattern = override
    elif isinstance(override, Pattern):
        sparsity, pattern = None, override
    else:
        sparsity, pattern = override, default
    sparsity = settle_sparsity("overrides", sparsity, pattern)
    return None if sparsity is None else float(sparsity), pattern
