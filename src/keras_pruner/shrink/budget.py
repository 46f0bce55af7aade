"""How many channels each group keeps: the least error for each multiplication saved."""

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np

from keras_pruner.channels.classes import Channels, Group, Work
from keras_pruner.shrink.scores import Ranking

_FLOOR = 0.1  # of a group's channels stay in any case
_NEAR = 0.02  # of the whole size: a target that is undershot by no more is met


@dataclasses.dataclass(frozen=True, eq=False)
class Budget:
    """A size that the model shall have.

    Attributes:
        name: the argument that asks for it.
        fraction: of the present size.
        work: what is counted: multiplications, or weights.
        fixed: what is counted beside, and does not change.
    """

    name: str
    fraction: float
    work: tuple[Work, ...]
    fixed: int = 0

    def size(self, kept: np.ndarray | None = None) -> int:
        """The size for the classes that are kept; None: of the whole model."""
        return self.fixed + sum(work.macs(kept) for work in self.work)


def allocate(
    channels: Channels, ranked: Mapping[Group, Ranking], budget: Budget, multiple: int
) -> np.ndarray:
    """Remove channels, from the group where it costs least for what it saves, until it is enough.

    Returns:
        For each class, whether it is kept.

    Raises:
        ValueError: if the size cannot be reached.
    """
    kept = np.ones(channels.count, bool)
    whole = budget.size()
    steps = {group: _steps(channels, group, multiple) for group in ranked}
    works = {group: _touched(budget.work, group) for group in ranked}
    sharing = {g: [o for o in ranked if set(works[o]) & set(works[g])] for g in ranked}
    size, nexts, stale = whole, dict[Group, _Step](), list(ranked)
    while size > budget.fraction * whole:
        for group in stale:
            nexts[group] = _next(group, ranked[group], steps[group], works[group], kept)
        best = _best(nexts, size - budget.fraction * whole, _NEAR * whole)
        if best is None:
            raise _out_of_reach(channels, budget, size / whole, multiple)
        _keep(ranked[best], steps[best].pop(0), kept)
        stale, size = sharing[best], budget.size(kept)
    return kept


@dataclasses.dataclass(frozen=True)
class _Step:
    """The next step of a group: the error it adds, and the multiplications it saves."""

    error: float = math.inf
    saved: int = 0

    @property
    def ratio(self) -> float:
        """The error for each multiplication saved."""
        return self.error / self.saved if self.saved else math.inf


def _best(nexts: Mapping[Group, _Step], missing: float, near: float) -> Group | None:
    """The group that is next: where the error is least for what is saved, near the target.

    Rounded steps are large in small networks. One that saves far more than is missing is taken
    only if no smaller one adds less error.
    """
    by_ratio = sorted((g for g in nexts if nexts[g].saved), key=lambda group: nexts[group].ratio)
    if not by_ratio:
        return None
    best = nexts[by_ratio[0]]
    fitting = (g for g in by_ratio if nexts[g].saved <= missing + near)
    return next((g for g in fitting if nexts[g].error <= best.error), by_ratio[0])


def _steps(channels: Channels, group: Group, multiple: int) -> list[int]:
    """The numbers of channels that a group may go down to, one after another."""
    width = channels.width(group)
    multiple = multiple // math.gcd(multiple, width)
    least = max(1, multiple, math.ceil(_FLOOR * len(group.classes)))
    return [n for n in range(len(group.classes) - 1, least - 1, -1) if n % multiple == 0]


def _touched(work: Sequence[Work], group: Group) -> list[Work]:
    members = set(group.classes.tolist())
    return [
        each
        for each in work
        if any(not members.isdisjoint(s.tolist()) for s in each.sizes if not isinstance(s, int))
    ]


def _next(
    group: Group, ranking: Ranking, steps: list[int], works: list[Work], kept: np.ndarray
) -> _Step:
    if not steps:
        return _Step()
    after = kept.copy()
    _keep(ranking, steps[0], after)
    saved = sum(work.macs(kept) - work.macs(after) for work in works)
    present = int(np.count_nonzero(kept[group.classes]))
    count = len(group.classes)
    added = ranking.costs[count - steps[0]] - ranking.costs[count - present]
    return _Step(float(added), saved)


def _keep(ranking: Ranking, count: int, kept: np.ndarray) -> None:
    kept[ranking.classes[: len(ranking.classes) - count]] = False


def _out_of_reach(channels: Channels, budget: Budget, least: float, multiple: int) -> ValueError:
    reasons: dict[str, list[str]] = {}
    for group in channels.groups:
        reason = group.reason or group.mixes
        if reason:
            reasons.setdefault(reason, []).append(group.name)
    listed = "; ".join(f"{', '.join(names)}: {reason}" for reason, names in reasons.items())
    finer = f" multiple=1 reaches further than {multiple}." if multiple > 1 else ""
    return ValueError(
        f"`{budget.name}` must be at least {least:.3g} for this model. Received: "
        f"{budget.name}={budget.fraction:g}.{finer} Channels that cannot be removed: {listed}."
    )
