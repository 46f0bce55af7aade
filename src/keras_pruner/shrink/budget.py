"""How many channels each group keeps: the least error for each multiplication saved."""

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np

from keras_pruner.channels.classes import Channels, Group, Work
from keras_pruner.shrink.scores import Ranking

_FLOOR = 0.1  # of a group's channels stay in any case


@dataclasses.dataclass(frozen=True, eq=False)
class Budget:
    """The size that a smaller model may have.

    Attributes:
        name: the argument of `shrink` that sets it.
        fraction: the fraction of the present size.
        work: the multiplications or weights to count.
    """

    name: str
    fraction: float
    work: tuple[Work, ...]

    def size(self, kept: np.ndarray | None = None) -> int:
        """The size of a model with the classes that are kept; None: with all of them."""
        return sum(work.macs(kept) for work in self.work)


def allocate(
    channels: Channels, ranked: Mapping[Group, Ranking], budget: Budget, multiple: int
) -> np.ndarray:
    """Remove channels until the budget is met.

    Each step removes channels of the group with the least error for each multiplication saved.

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
    taken: dict[Group, list[int]] = {group: [len(group.classes)] for group in ranked}
    size, ratios = whole, dict.fromkeys(ranked, math.nan)
    stale = list(ranked)
    while size > budget.fraction * whole:
        for group in stale:
            ratios[group] = _ratio(group, ranked[group], steps[group], works[group], kept)
        best = min(ranked, key=lambda group: ratios[group], default=None)
        if best is None or ratios[best] == math.inf:
            raise _out_of_reach(channels, budget, size / whole, multiple)
        taken[best].append(steps[best].pop(0))
        _remove_all_but(taken[best][-1], ranked[best], kept)
        stale, size = sharing[best], budget.size(kept)
    return _undo_unneeded(ranked, budget, taken, kept)


def _undo_unneeded(
    ranked: Mapping[Group, Ranking], budget: Budget, taken: dict[Group, list[int]], kept: np.ndarray
) -> np.ndarray:
    """Undo steps that the budget does not need, those with the largest error first.

    Steps are rounded to multiples, which are large in small networks: the last one may save far
    more than was missing.
    """
    most = budget.fraction * budget.size()
    while True:
        found: dict[float, tuple[Group, np.ndarray]] = {}
        for group, counts in taken.items():
            if len(counts) > 1:
                before = _kept_before(ranked[group], counts, kept)
                costs, count = ranked[group].costs, len(group.classes)
                gain = float(costs[count - counts[-1]] - costs[count - counts[-2]])
                if budget.size(before) <= most and gain > 0:
                    found[gain] = group, before
        if not found:
            return kept
        group, kept = found[max(found)]
        taken[group].pop()


def _kept_before(ranking: Ranking, counts: Sequence[int], kept: np.ndarray) -> np.ndarray:
    """The classes that were kept before the last step of a group."""
    before = kept.copy()
    before[ranking.classes] = True
    _remove_all_but(counts[-2], ranking, before)
    return before


def _steps(channels: Channels, group: Group, multiple: int) -> list[int]:
    """The numbers of channels that a group may keep, from large to small."""
    width = channels.width(group)
    multiple = multiple // math.gcd(multiple, width)
    least = max(1, multiple, math.ceil(_FLOOR * len(group.classes)))
    return [n for n in range(len(group.classes) - 1, least - 1, -1) if n % multiple == 0]


def _touched(work: Sequence[Work], group: Group) -> list[Work]:
    """The work whose size depends on the channels of a group."""
    members = set(group.classes.tolist())
    return [
        each
        for each in work
        if any(not members.isdisjoint(s.tolist()) for s in each.sizes if not isinstance(s, int))
    ]


def _ratio(
    group: Group, ranking: Ranking, steps: list[int], works: list[Work], kept: np.ndarray
) -> float:
    """The error that the next step adds for each multiplication it saves."""
    if not steps:
        return math.inf
    after = kept.copy()
    _remove_all_but(steps[0], ranking, after)
    saved = sum(work.macs(kept) - work.macs(after) for work in works)
    present = int(np.count_nonzero(kept[group.classes]))
    count = len(group.classes)
    added = ranking.costs[count - steps[0]] - ranking.costs[count - present]
    return float(added) / saved if saved else math.inf


def _remove_all_but(count: int, ranking: Ranking, kept: np.ndarray) -> None:
    """Mark all classes of a group as removed, except for its best ones."""
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
        f"{budget.name}={budget.fraction:g}. Pass a larger value.{finer} Channels that cannot be "
        f"removed: {listed}."
    )
