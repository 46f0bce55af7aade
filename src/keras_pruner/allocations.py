"""How one overall budget is split over the weights: functions from weights to their sparsities.

Laws: the units kept in all differ from the request by less than one for each weight, no weight
is left without any, and what is pruned already is not counted among what could be kept.
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
    """One weight among those that share a budget.

    Attributes:
        path: its name in the model.
        shape: of the weight.
        units: how many weights, blocks or channels it has.
        unit_scores: calling it gives their scores, shape (units,); -inf for the pruned ones.
        in_parts: the same scores where they are, for a weight on several devices, which
            `unit_scores` has to bring together. None: they are together.
    """

    path: str
    shape: tuple[int, ...]
    units: int
    unit_scores: Callable[[], np.ndarray]
    in_parts: Scores | None = None

    @property
    def scores(self) -> Scores:
        """The scores, where they are."""
        return self.in_parts or Scores(lambda: [self.unit_scores()])


Sparsities = dict[Share, float]
Allocation = Callable[[Sequence[Share], float], Sparsities]


@serializable
def uniform(shares: Sequence[Share], sparsity: float) -> Sparsities:
    """The same sparsity for every weight."""
    return dict.fromkeys(shares, sparsity)


@serializable
def erk(shares: Sequence[Share], sparsity: float) -> Sparsities:
    """Denser where a kernel is small: density in proportion to sum(shape) / prod(shape).

    Erdős-Rényi-kernel (Evci et al. 2020, arXiv:1911.11134). Densities are capped at 1, and what
    the cap frees goes to the others in proportion.
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
    """The weights that matter least to their own layer go first, over the whole model.

    score(u) = s_u^2 / sum of s_v^2 over v from u up, in ascending order of one weight's scores,
    then one top-k over all (Lee et al. 2021, arXiv:2010.07611, eq. 3). The largest score of
    every weight is 1, so that none is emptied.

    Raises:
        ValueError: if scores are negative, which has no meaning here.
    """
    scores = [
        dataclasses.replace(each, parts=functools.partial(_from_zero_up, share.path, each))
        for share, each in zip(shares, _scores(shares), strict=True)
    ]
    budget = _budget(shares, sparsity)
    return _sparsities(shares, kept_by_one_cut(scores, [1] * len(shares), budget, by_lamp))


@value
class Global:
    """One top-k over the scores of all weights, with a floor for each.

    Args:
        floor: no weight falls below this fraction of the overall density, in [0, 1): without
            it, plain global magnitude empties whole layers.
    """

    floor: float = 0.1

    def __post_init__(self) -> None:
        number = isinstance(self.floor, numbers.Real) and not isinstance(self.floor, bool)
        if not (number and 0 <= float(self.floor) < 1):
            raise ValueError(
                "`floor` must be a fraction of the overall density, in [0, 1). "
                f"Received: floor={self.floor!r}."
            )

    def __call__(self, shares: Sequence[Share], sparsity: float) -> Sparsities:
        """The sparsity of each weight after one top-k over all of them."""
        scores = _scores(shares)
        # A floor is no reason to bring back what is pruned already.
        least = [
            max(1, min(math.ceil(share.units * self.floor * (1 - sparsity)), each.count(_is_live)))
            for share, each in zip(shares, scores, strict=True)
        ]
        return _sparsities(shares, kept_by_one_cut(scores, least, _budget(shares, sparsity)))


FOUR_DIGITS = 5e-5
"""How far the sparsity asked for may be from what a mapping comes to: its error when rounded."""


@value
class PerWeight:
    """A sparsity of its own for every weight, from a mapping.

    Args:
        sparsities: regex searched in the weight's path -> fraction of zeros at the end, in
            [0, 1). The first that fits counts. Over all weights they have to come to the final
            sparsity that is asked for, to four digits.
    """

    sparsities: Mapping[str, float]

    def __post_init__(self) -> None:
        if not self.sparsities:
            raise ValueError("`allocation` must name the weights. Received: an empty mapping.")
        for regex, sparsity in self.sparsities.items():
            check_regex("allocation", regex)
            check_sparsity(f"allocation[{regex!r}]", sparsity)
        object.__setattr__(self, "sparsities", dict(self.sparsities))

    def __call__(self, shares: Sequence[Share], sparsity: float) -> Sparsities:
        """The mapping's sparsities, in proportion to how far the schedule has come.

        Raises:
            ValueError: if a weight is not in the mapping, or the mapping cannot be brought to
                the sparsity asked for.
        """
        units = {share.path: share.units for share in shares}
        overall = self._overall(units)
        if sparsity > overall:
            self.check_final(units, sparsity)
        scale = sparsity / overall if overall else 0.0
        return {share: min(self._of(share.path) * scale, 1.0) for share in shares}

    def check_names(self, paths: Sequence[str]) -> None:
        """Raise unless every weight is named, and every name is needed."""
        used = {self._regex_for(path) for path in paths}
        for regex in self.sparsities:
            if regex not in used:
                raise ValueError(
                    f"`allocation[{regex!r}]` would have no effect: the weights that share the "
                    f"budget are {list(paths)}, and the first name that fits one counts. "
                    f"Received: {list(self.sparsities)}. Take it out, or correct it."
                )

    def check_final(
        self, units: Mapping[str, int], sparsity: float, pattern: object = None
    ) -> None:
        """Raise unless this mapping comes to `sparsity` over weights, path -> units.

        `pattern`: theirs, if there are weights with another, which share another budget.
        """
        overall = self._overall(units)
        if abs(sparsity - overall) <= max(len(units) / sum(units.values()), FOUR_DIGITS):
            return
        where, fix = "the whole model", f"Pass {overall:.4g} as the sparsity"
        if pattern is not None:
            where = f"the weights under {pattern!r}, which have a budget of their own"
            first = next(iter(units))
            fix = (
                f"Say theirs by overrides={{{first!r}: ({self._of(first):.4g}, {pattern!r}), ...}}"
            )
        raise ValueError(
            f"The mapping given as `allocation` comes to {overall:.4g} over {where}. "
            f"Received: sparsity={sparsity:.4g}. {fix}, or "
            f"{'raise' if sparsity > overall else 'lower'} the mapping's values."
        )

    def _overall(self, units: Mapping[str, int]) -> float:
        return sum(n * self._of(path) for path, n in units.items()) / sum(units.values())

    def _of(self, path: str) -> float:
        return self.sparsities[self._regex_for(path)]

    def _regex_for(self, path: str) -> str:
        """The regex that counts for a weight."""
        for regex in self.sparsities:
            if re.search(regex, path):
                return regex
        raise ValueError(
            f"`allocation` must name every weight. Received: {list(self.sparsities)}, of which "
            f"none is found in {path!r}."
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
"""Up to so many scores in all are asked for once and held; more are asked for twice."""


def _scores(shares: Sequence[Share]) -> list[Scores]:
    if sum(share.units for share in shares) > HELD:
        return [share.scores for share in shares]
    return [_held(share.scores) for share in shares]


def _held(scores: Scores) -> Scores:
    parts = list(scores.parts())
    return dataclasses.replace(scores, parts=lambda: parts)


def _is_live(scores: np.ndarray) -> np.ndarray:
    """Which are not those of pruned units."""
    return scores > -np.inf


def _from_zero_up(path: str, scores: Scores) -> Iterator[np.ndarray]:
    """The scores, which "lamp" squares."""
    for part in scores.parts():
        if part.min(initial=0) < 0:
            lowest = part.min(where=_is_live(part), initial=0)
            if lowest < 0:
                raise ValueError(
                    'The "lamp" allocation squares scores, so that they must not be negative. '
                    f"Received: {lowest:.4g} for {path}. Give `criterion` values from 0 up, or "
                    'use allocation="global" or "uniform".'
                )
        yield part


def _sparsities(shares: Sequence[Share], kept: np.ndarray) -> Sparsities:
    return {share: float(1 - k / share.units) for share, k in zip(shares, kept, strict=True)}


def _budget(shares: Sequence[Share], sparsity: float) -> int:
    return kept_count(sum(share.units for share in shares), sparsity)
