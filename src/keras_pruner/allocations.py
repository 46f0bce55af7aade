"""Allocations: how one overall budget of zeros is split over the weights.

An allocation is a function (shares, sparsity) -> {share: sparsity}. Laws: the number of kept units
differs from the request by less than one per weight; every weight keeps at least one; units that
are pruned already stay pruned. `kp.testing.check_allocation` checks them.
"""

import dataclasses
import functools
import math
import numbers
import re
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from keras_pruner.selection.across_weights import Scores, by_lamp, kept_by_one_cut
from keras_pruner.selection.top_k import kept_count
from keras_pruner.validation import check_regex, check_sparsity, serializable, shown, value

__all__ = [
    "Global",
    "PerWeight",
    "Share",
    "erk",
    "lamp",
    "uniform",
]


@dataclasses.dataclass(frozen=True, eq=False)
class Share:
    """One weight, or group of tied weights, among those that share a budget.

    Attributes:
        path: its name in the model.
        shape: of the weight; of a group, the shape of its largest kernel.
        units: the number of single weights, blocks or channels that are kept or removed as one.
        unit_scores: a function that returns their scores, shape (units,); -inf for pruned units.
        in_parts: the same scores, read part by part, of a weight that lies on several devices.

    Example:
        An allocation that leaves small weights dense:

        >>> def large_only(shares, sparsity):
        ...     large = [share for share in shares if share.units >= 100]
        ...     units = sum(share.units for share in shares)
        ...     needed = sparsity * units / sum(share.units for share in large)
        ...     return {share: needed if share in large else 0.0 for share in shares}
        >>> shares = [Share("a", (50, 10), 500, None), Share("b", (10, 4), 40, None)]
        >>> list(large_only(shares, 0.5).values())
        [0.54, 0.0]
    """

    path: str
    shape: tuple[int, ...]
    units: int
    unit_scores: Callable[[], np.ndarray]
    in_parts: Scores | None = None

    @property
    def scores(self) -> Scores:
        """The scores, part by part."""
        return self.in_parts or Scores(lambda: [self.unit_scores()])


Sparsities = dict[Share, float]
Allocation = Callable[[Sequence[Share], float], Sparsities]


@serializable
def uniform(shares: Sequence[Share], sparsity: float) -> Sparsities:
    """The same sparsity for every weight.

    Example:
        >>> shares = [Share("a", (50, 10), 500, None), Share("b", (10, 4), 40, None)]
        >>> {share.path: s for share, s in uniform(shares, 0.8).items()}
        {'a': 0.8, 'b': 0.8}
    """
    return dict.fromkeys(shares, sparsity)


@serializable
def erk(shares: Sequence[Share], sparsity: float) -> Sparsities:
    """Small kernels stay denser: density is in proportion to sum(shape) / prod(shape).

    Erdős-Rényi-kernel (Evci et al. 2020, arXiv:1911.11134). Densities are capped at 1; the other
    weights share what the cap frees, in the same proportion.

    Example:
        >>> shares = [Share("a", (50, 10), 500, None), Share("b", (10, 4), 40, None)]
        >>> {share.path: round(s, 3) for share, s in erk(shares, 0.8).items()}
        {'a': 0.825, 'b': 0.489}
    """
    units = np.array([share.units for share in shares], float)
    raw = np.array([sum(share.shape) / np.prod(share.shape, dtype=float) for share in shares])
    density = np.ones(len(shares))
    budget = units.sum() * (1 - sparsity)
    open_ = np.ones(len(shares), bool)
    while open_.any():
        scale = (budget - units[~open_].sum()) / (units * raw)[open_].sum()
        density[open_] = scale * raw[open_]
        full = open_ & (density >= 1)
        if not full.any():
            break
        density[full] = 1
        open_ &= ~full
    return {share: float(1 - d) for share, d in zip(shares, density, strict=True)}


@serializable
def lamp(shares: Sequence[Share], sparsity: float) -> Sparsities:
    """Layer-adaptive magnitude: the units that matter least to their own layer go first.

    LAMP(u) = s_u^2 / sum of s_v^2 over all units v of the same weight with s_v >= s_u, then one
    top-k over all weights (Lee et al. 2021, arXiv:2010.07611, eq. 3). The highest LAMP score of
    every weight is 1, so that no weight is emptied.

    Raises:
        ValueError: if scores are negative: LAMP squares them.

    Example:
        >>> steep = Share("a", (2, 2), 4, lambda: np.array([8.0, 4.0, 2.0, 1.0]))
        >>> flat = Share("b", (2, 2), 4, lambda: np.array([1.0, 1.0, 1.0, 1.0]))
        >>> {share.path: s for share, s in lamp([steep, flat], 0.5).items()}
        {'a': 0.75, 'b': 0.25}
    """
    scores = [
        dataclasses.replace(each, parts=functools.partial(_from_zero_up, share.path, each))
        for share, each in zip(shares, _scores(shares), strict=True)
    ]
    budget = _budget(shares, sparsity)
    return _sparsities(shares, kept_by_one_cut(scores, [1] * len(shares), budget, by_lamp))


@value
class Global:
    """One top-k over the scores of all weights, with a least density for each weight.

    Args:
        floor: the least density of a weight as a fraction of the overall density, in [0, 1).
            Without a floor, global magnitude may empty whole layers.

    Raises:
        ValueError: if `floor` is no number in [0, 1).

    Example:
        >>> large = Share("a", (2, 2), 4, lambda: np.array([8.0, 7.0, 6.0, 5.0]))
        >>> small = Share("b", (2, 2), 4, lambda: np.array([4.0, 3.0, 2.0, 1.0]))
        >>> {share.path: s for share, s in Global()([large, small], 0.5).items()}
        {'a': 0.25, 'b': 0.75}
    """

    floor: float = 0.1

    def __post_init__(self) -> None:
        number = isinstance(self.floor, numbers.Real) and not isinstance(self.floor, bool)
        if not (number and 0 <= float(self.floor) < 1):
            raise ValueError(
                "`floor` must be a fraction of the overall density, in [0, 1). "
                f"Received: floor={self.floor!r}. For at least a tenth of the overall density in "
                "each weight pass floor=0.1."
            )

    def __call__(self, shares: Sequence[Share], sparsity: float) -> Sparsities:
        """The sparsity of each weight after one top-k over all of them."""
        scores = _scores(shares)
        # The floor does not bring pruned units back.
        least = [
            max(1, min(math.ceil(share.units * self.floor * (1 - sparsity)), each.count(_is_live)))
            for share, each in zip(shares, scores, strict=True)
        ]
        return _sparsities(shares, kept_by_one_cut(scores, least, _budget(shares, sparsity)))


FOUR_DIGITS = 5e-5
"""Tolerance between the requested sparsity and that of a mapping, which may have been rounded."""


@value
class PerWeight:
    """The sparsity of every weight from a mapping; a dict given as `allocation` becomes this.

    Args:
        sparsities: regex, searched in the weight's path -> final fraction of zeros, in [0, 1).
            The first regex that matches counts. Together they must give the final sparsity that
            is asked for, to four digits.

    Raises:
        ValueError: if the mapping is empty, or holds something else.

    Example:
        >>> allocation = PerWeight({"head": 0.5, "": 0.9})
        >>> shares = [Share("body/kernel", (9, 10), 90, None), Share("head", (3, 10), 30, None)]
        >>> {share.path: s for share, s in allocation(shares, 0.8).items()}
        {'body/kernel': 0.9, 'head': 0.5}
    """

    sparsities: Mapping[str, float]

    def __post_init__(self) -> None:
        if not self.sparsities:
            raise ValueError(
                "`allocation` must map regexes to sparsities. Received: an empty mapping. Pass for "
                'example {"head": 0.5, "": 0.9}.'
            )
        for regex, sparsity in self.sparsities.items():
            check_regex("allocation", regex)
            check_sparsity(f"allocation[{regex!r}]", sparsity)
        object.__setattr__(self, "sparsities", dict(self.sparsities))

    def __call__(self, shares: Sequence[Share], sparsity: float) -> Sparsities:
        """The mapping's sparsities, scaled down to the present overall sparsity.

        Raises:
            ValueError: if a weight is not in the mapping, or the mapping gives a lower sparsity
                than is asked for.
        """
        units = {share.path: share.units for share in shares}
        overall = self._overall(units)
        if sparsity > overall:
            self.check_final(units, sparsity)
        scale = sparsity / overall if overall else 0.0
        return {share: min(self._of(share.path) * scale, 1.0) for share in shares}

    def check_names(self, paths: Sequence[str]) -> None:
        """Raise unless every weight is matched, and every regex is needed."""
        used = {self._regex_for(path) for path in paths}
        for regex in self.sparsities:
            if regex not in used:
                raise ValueError(
                    f"`allocation[{regex!r}]` would have no effect: it matches none of the weights "
                    f"that share the budget, {list(paths)}, or an earlier regex matches first. "
                    f"Received: {list(self.sparsities)}. Take it out, or correct it."
                )

    def check_final(
        self, units: Mapping[str, int], sparsity: float, pattern: object = None
    ) -> None:
        """Raise unless the mapping gives an overall sparsity of `sparsity`.

        Args:
            units: path -> number of units, of the weights that share the budget.
            sparsity: the sparsity asked for.
            pattern: the pattern of these weights, where others have another pattern and budget.
        """
        overall = self._overall(units)
        if abs(sparsity - overall) <= max(len(units) / sum(units.values()), FOUR_DIGITS):
            return
        where, fix = "over the whole model", f"Pass {overall:.4g} as the sparsity"
        if pattern is not None:
            where = f"over the weights with {pattern!r}, which have a budget of their own"
            first = next(iter(units))
            fix = (
                f"Pass overrides={{{first!r}: ({self._of(first):.4g}, {pattern!r}), ...}} for them"
            )
        raise ValueError(
            f"The mapping given as `allocation` gives a sparsity of {overall:.4g} {where}. "
            f"Received: sparsity={sparsity:.4g}. {fix}, or "
            f"{'raise' if sparsity > overall else 'lower'} the mapping's values."
        )

    def _overall(self, units: Mapping[str, int]) -> float:
        return sum(n * self._of(path) for path, n in units.items()) / sum(units.values())

    def _of(self, path: str) -> float:
        return self.sparsities[self._regex_for(path)]

    def _regex_for(self, path: str) -> str:
        """The first regex that matches a weight."""
        for regex in self.sparsities:
            if re.search(regex, path):
                return regex
        raise ValueError(
            f"`allocation` must have a regex for every weight. Received: {list(self.sparsities)}, "
            f'none of which matches {path!r}. Add "": a sparsity for all others.'
        )


NAMED: dict[str, Allocation] = {"uniform": uniform, "erk": erk, "global": Global(), "lamp": lamp}


def as_allocation(allocation: object) -> Allocation:
    """An allocation from its name, a mapping regex -> sparsity, or a function."""
    if isinstance(allocation, str) and allocation in NAMED:
        return NAMED[allocation]
    if isinstance(allocation, Mapping):
        return PerWeight(allocation)
    if callable(allocation) and not isinstance(allocation, type):
        return allocation
    raise ValueError(
        f"`allocation` must be one of {sorted(NAMED)}, a mapping regex -> sparsity, or a "
        f"function (shares, sparsity) -> sparsities. Received: allocation={shown(allocation)}."
    )


HELD = 1 << 25
"""Up to this number of scores, they are computed once and held; more are computed twice."""


def _scores(shares: Sequence[Share]) -> list[Scores]:
    if sum(share.units for share in shares) > HELD:
        return [share.scores for share in shares]
    return [_held(share.scores) for share in shares]


def _held(scores: Scores) -> Scores:
    parts = list(scores.parts())
    return dataclasses.replace(scores, parts=lambda: parts)


def _is_live(scores: np.ndarray) -> np.ndarray:
    """The mask of the scores of units that are not pruned."""
    return scores > -np.inf


def _from_zero_up(path: str, scores: Scores) -> Iterator[np.ndarray]:
    """The scores, part by part; LAMP squares them, so they must not be negative."""
    for part in scores.parts():
        if part.min(initial=0) < 0:
            lowest = part.min(where=_is_live(part), initial=0)
            if lowest < 0:
                raise ValueError(
                    'With allocation="lamp", `criterion` must return scores of at least 0, which '
                    f"LAMP squares. Received: {lowest:.4g} for {path}. Use "
                    'allocation="global" or "uniform" for scores of any sign.'
                )
        yield part


def _sparsities(shares: Sequence[Share], kept: np.ndarray) -> Sparsities:
    return {share: float(1 - k / share.units) for share, k in zip(shares, kept, strict=True)}


def _budget(shares: Sequence[Share], sparsity: float) -> int:
    return kept_count(sum(share.units for share in shares), sparsity)
