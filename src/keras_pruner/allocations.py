"""Allocations: how one overall budget of zeros is split over the weights.

An allocation is a function (shares, sparsity) -> {share: sparsity}. In the equations below, weight
i has n_i units and the density d_i = 1 - sparsity; d is the overall density.

Laws: the number of kept units differs from the request by less than one per weight; every weight
keeps at least one; units that are pruned already stay pruned. `kp.testing.check_allocation` checks
them.
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
        units: the number of its units. A unit is kept or removed as one: a single weight, a
            block or a channel.
        unit_scores: a function that returns the units' scores, of shape (units,); -inf for pruned
            units.
        in_parts: the same scores part by part, for a weight that is sharded over devices.

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
"""The fraction of units to remove from each weight, in [0, 1]."""

Allocation = Callable[[Sequence[Share], float], Sparsities]
"""The weights that share a budget, and the overall fraction of zeros -> the sparsity of each."""


@serializable
def uniform(shares: Sequence[Share], sparsity: float) -> Sparsities:
    """The same sparsity for every weight: d_i = d.

    Args:
        shares: the weights that share the budget.
        sparsity: overall fraction of units to remove, in [0, 1).

    Returns:
        The sparsity of each weight.

    Example:
        >>> shares = [Share("a", (50, 10), 500, None), Share("b", (10, 4), 40, None)]
        >>> {share.path: s for share, s in uniform(shares, 0.8).items()}
        {'a': 0.8, 'b': 0.8}
    """
    return dict.fromkeys(shares, sparsity)


@serializable
def erk(shares: Sequence[Share], sparsity: float) -> Sparsities:
    """Erdős-Rényi-kernel: small kernels stay denser than large ones.

    d_i = min(1, c sum(shape_i) / prod(shape_i)), where the factor c, the same for all weights, is
    such that the budget is met: sum of d_i n_i = d sum of n_i (Evci et al. 2020,
    arXiv:1911.11134).

    Args:
        shares: the weights that share the budget.
        sparsity: overall fraction of units to remove, in [0, 1).

    Returns:
        The sparsity of each weight.

    Example:
        >>> shares = [Share("a", (50, 10), 500, None), Share("b", (10, 4), 40, None)]
        >>> {share.path: round(s, 3) for share, s in erk(shares, 0.8).items()}
        {'a': 0.825, 'b': 0.489}
    """
    units = np.array([share.units for share in shares], float)
    ratio = np.array([sum(share.shape) / np.prod(share.shape, dtype=float) for share in shares])
    budget = units.sum() * (1 - sparsity)
    density = np.ones(len(shares))
    is_capped = np.zeros(len(shares), bool)
    while not is_capped.all():
        rest = ~is_capped
        factor = (budget - units[is_capped].sum()) / (units * ratio)[rest].sum()
        density[rest] = factor * ratio[rest]
        too_dense = rest & (density >= 1)
        if not too_dense.any():
            break
        density[too_dense] = 1
        is_capped |= too_dense
    return {share: float(1 - d) for share, d in zip(shares, density, strict=True)}


@serializable
def lamp(shares: Sequence[Share], sparsity: float) -> Sparsities:
    """Layer-adaptive magnitude: the units that matter least to their own layer go first.

    LAMP(u) = s_u^2 / sum of s_v^2 over all units v of the same weight with s_v >= s_u, where s is
    the score of a unit. The units with the highest LAMP scores of all weights stay (Lee et al.
    2021, arXiv:2010.07611, eq. 3). The best unit of every weight has a LAMP score of 1, so that
    no weight is emptied.

    Args:
        shares: the weights that share the budget.
        sparsity: overall fraction of units to remove, in [0, 1).

    Returns:
        The sparsity of each weight.

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

    The units with the highest scores stay, whichever weight they are in, but d_i >= floor d in
    every weight that has enough unpruned units.

    Args:
        floor: the least density of a weight as a fraction of the overall density, in [0, 1).
            Without a floor, global magnitude may empty whole layers.

    Raises:
        ValueError: unless `floor` is a number in [0, 1).

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
            The first regex that matches a path counts. Over all weights they must give the
            requested final sparsity, to four digits.

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
            ValueError: if no regex matches a weight, or the mapping gives a lower overall
                sparsity than `sparsity`.
        """
        units = {share.path: share.units for share in shares}
        overall = self._overall(units)
        if sparsity > overall:
            self.check_final(units, sparsity)
        scale = sparsity / overall if overall else 0.0
        return {share: min(self._final_of(share.path) * scale, 1.0) for share in shares}

    def check_names(self, paths: Sequence[str]) -> None:
        """Raise unless a regex matches every weight, and every regex is the first for one."""
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
            sparsity: the requested sparsity.
            pattern: the pattern of these weights, if other weights have another pattern, and so a
                budget of their own.
        """
        overall = self._overall(units)
        if abs(sparsity - overall) <= max(len(units) / sum(units.values()), FOUR_DIGITS):
            return
        where, fix = "over the whole model", f"Pass {overall:.4g} as the sparsity"
        if pattern is not None:
            where = f"over the weights with {pattern!r}, which have a budget of their own"
            first = next(iter(units))
            example = f"{{{first!r}: ({self._final_of(first):.4g}, {pattern!r}), ...}}"
            fix = f"Pass overrides={example} for them"
        raise ValueError(
            f"The mapping given as `allocation` gives a sparsity of {overall:.4g} {where}. "
            f"Received: sparsity={sparsity:.4g}. {fix}, or "
            f"{'raise' if sparsity > overall else 'lower'} the mapping's values."
        )

    def _overall(self, units: Mapping[str, int]) -> float:
        """The sparsity over all weights that the mapping gives."""
        return sum(n * self._final_of(path) for path, n in units.items()) / sum(units.values())

    def _final_of(self, path: str) -> float:
        """The final sparsity of a weight."""
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
"""Scores up to this number are computed once and kept in memory; more are computed twice."""


def _scores(shares: Sequence[Share]) -> list[Scores]:
    """The scores of each weight; they are read twice, so few of them are kept in memory."""
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
    """The scores, part by part; raises for negative ones, which LAMP would square."""
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
    """The sparsities from the number of kept units of each weight."""
    return {share: float(1 - k / share.units) for share, k in zip(shares, kept, strict=True)}


def _budget(shares: Sequence[Share], sparsity: float) -> int:
    """The number of units that stay, over all weights."""
    return kept_count(sum(share.units for share in shares), sparsity)
