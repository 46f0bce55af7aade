"""Exact top-k over the scores of many weights, without sorting or holding them all.

A first pass over each weight counts its scores in a histogram whose bins are the leading 16 bits
of the floating-point numbers. This bounds the ranks in every bin. Only the few bins that the cut
may go through are read a second time and ranked score by score. The result equals that of sorting
all scores. Of a weight in parts on several processes, only counts are exchanged.
"""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np


@dataclasses.dataclass(frozen=True, eq=False)
class Scores:
    """The scores of one weight, in memory or in parts on several processes.

    Attributes:
        parts: returns the scores held by this process, as arrays of shape (n,); -inf for pruned
            units. No score is in two parts, or in two processes.
        gather: all-gather: stacks one array per process along a new first axis. None: this process
            holds all scores. If given, scores are float32 or narrower.
    """

    parts: Callable[[], Iterable[np.ndarray]]
    gather: Callable[[np.ndarray], np.ndarray] | None = None

    def count(self, which: Callable[[np.ndarray], np.ndarray]) -> int:
        """Count the scores that fulfil a condition, in all processes."""
        here = sum(int(np.count_nonzero(which(part))) for part in self.parts())
        return int(self.gathered(np.array([here])).sum())

    def gathered(self, numbers: np.ndarray) -> np.ndarray:
        """One array per process, stacked along a new first axis."""
        return numbers[None] if self.gather is None else self.gather(numbers)


Rank = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""(scores divided by the highest of their weight, running sums of their squares) -> ranks."""

CHUNK = 1 << 17
_SLACK = 1e-9  # relative error allowed for the rounding of sums in float64


def by_lamp(scores: np.ndarray, sums: np.ndarray) -> np.ndarray:
    """The LAMP score: s^2 / sum of v^2 over all v >= s (Lee et al. 2021, arXiv:2010.07611)."""
    live = scores > -np.inf
    squares = np.square(scores, where=live, out=scores.astype(np.float64))
    return np.divide(squares, np.maximum(sums, 1), where=live, out=squares).astype(np.float32)


def kept_by_one_cut(
    scores: Sequence[Scores], least: Sequence[int], budget: int, rank: Rank | None = None
) -> np.ndarray:
    """Count, for each weight, its units among the `budget` highest ranks of all weights.

    Among equal ranks, those of earlier weights go first.

    Args:
        scores: of each weight; read twice.
        least: the number of units of each weight that are kept in any case.
        budget: the number of units to keep in all.
        rank: `by_lamp`, which takes scores from 0 up, or -inf. None: rank by the scores.

    Returns:
        The counts; they add up to `budget`, or to the sum of `least` if that is larger.

    Raises:
        ValueError: if the scores differ between two readings.
    """
    histograms = [_Histogram.of(each) for each in scores]
    floors, units = np.array(least), np.array([each.units for each in histograms])
    if budget >= units.sum():
        return units
    if budget <= floors.sum():
        return floors
    lows, highs = zip(*(each.bounds(rank) for each in histograms), strict=True)

    def level(bounds: Sequence[np.ndarray]) -> float:
        """The highest bound with at least `budget` units at or above it."""

        def enough(bound: float) -> bool:
            ends = [np.searchsorted(-each, -bound, side="right") for each in bounds]
            counts = [each.ends[end] for each, end in zip(histograms, ends, strict=True)]
            return bool(np.maximum(floors, counts).sum() >= budget)

        return _highest(np.unique(np.concatenate(bounds)), enough)

    # The cut lies between them. NumPy would round a plain float to the type of the bounds.
    low, high = np.float64(level(lows)), np.float64(level(highs))
    first = [int(np.count_nonzero(each > high)) for each in lows]
    last = [int(np.count_nonzero(each >= low)) for each in highs]
    certain = np.array([h.ends[i] for h, i in zip(histograms, first, strict=True)])
    kept = np.maximum(floors, certain)
    pools = [
        each.ranks(slice(*which), rank)[surplus:]
        for each, surplus, *which in zip(histograms, kept - certain, first, last, strict=True)
    ]
    return kept + _cut(pools, budget - int(kept.sum()))


def _highest(levels: np.ndarray, enough: Callable[[float], bool]) -> float:
    """The highest of ascending levels that is low enough, by bisection; the lowest always is."""
    first, last = 0, len(levels) - 1
    while first < last:
        middle = (first + last + 1) // 2
        first, last = (middle, last) if enough(levels[middle]) else (first, middle - 1)
    return float(levels[first])


def _cut(pools: Sequence[np.ndarray], free: int) -> np.ndarray:
    """Count, for each pool, its ranks among the `free` highest of all pools."""
    if not free:
        return np.zeros(len(pools), int)
    together = np.concatenate(pools)
    threshold = np.partition(together, together.size - free)[together.size - free]
    above = np.array([np.count_nonzero(pool > threshold) for pool in pools])
    equal = np.array([np.count_nonzero(pool == threshold) for pool in pools])
    before = np.concatenate([[0], np.cumsum(equal)[:-1]])
    return above + np.clip(free - above.sum() - before, 0, equal)


@dataclasses.dataclass(frozen=True, eq=False)
class _Histogram:
    """The scores of one weight counted in bins, from the highest bin down.

    Attributes:
        scores: of the weight.
        dtype: of the scores.
        top: the highest score.
        bins: the leading bits of the scores in each bin.
        ends: running counts: the scores before each bin, then all; one longer than `bins`.
        sums: running sums of squares, with scores divided by `top`; one longer than `bins`.
    """

    scores: Scores
    dtype: np.dtype
    top: float
    bins: np.ndarray
    ends: np.ndarray
    sums: np.ndarray

    @classmethod
    def of(cls, scores: Scores) -> "_Histogram":
        """Count the scores of a weight."""
        parts = [_wide(part) for part in scores.parts() if part.size]
        dtype = np.result_type(np.float32, *parts)
        extremes = [(-part.min(), part.max()) for part in parts] or [(-np.inf, -np.inf)]
        low, top = scores.gathered(np.max(extremes, axis=0).astype(np.float64)).max(0)
        first, last = (int(_leading(np.array([edge], dtype))[0]) for edge in (-low, top))
        counts, squares = np.zeros(last - first + 1, np.int64), np.zeros(last - first + 1)
        for chunk in (chunk for part in parts for chunk in _chunks(part)):
            bins = _leading(chunk) - first
            counts += np.bincount(bins, minlength=counts.size)
            relative = np.maximum(_relative(chunk, top), 0)
            squares += np.bincount(bins, np.square(relative), counts.size)
        counts, squares = (scores.gathered(each).sum(0) for each in (counts, squares))
        found = np.flatnonzero(counts)[::-1]
        ends, sums = (np.concatenate([[0], np.cumsum(each[found])]) for each in (counts, squares))
        return cls(scores, dtype, float(top), found + first, ends, sums)

    @property
    def units(self) -> int:
        """The number of scores."""
        return int(self.ends[-1])

    def bounds(self, rank: Rank | None) -> tuple[np.ndarray, np.ndarray]:
        """The lowest and the highest possible rank in each bin, in descending order."""
        low, high = (np.minimum(edge, self.top) for edge in _edges(self.bins, self.dtype))
        if rank is None:
            return low, high
        low, high = _relative(low, self.top), _relative(high, self.top)
        return (
            rank(low * (1 - _SLACK), self.sums[1:]),
            rank(high * (1 + _SLACK), self.sums[:-1] + np.square(np.maximum(high, 0))),
        )

    def ranks(self, which: slice, rank: Rank | None) -> np.ndarray:
        """The ranks in some consecutive bins, in descending order."""
        lows, highs = (bound[which] for bound in self.bounds(rank))
        sizes = np.diff(self.ends)[which]
        if (lows == highs).all():
            return np.repeat(lows, sizes)
        scores = self._between(self.bins[which])
        if len(scores) != sizes.sum():
            raise ValueError(
                "`criterion` must return the same scores for the same weights each time. Received: "
                "scores that changed between two calls. Take randomness out of it, or fix its seed."
            )
        if rank is None:
            return scores
        scores = _relative(scores, self.top)
        # Sums start anew in each bin, so that a rank does not depend on where the cut is.
        parts = np.split(scores, np.cumsum(sizes)[:-1])
        sums = [
            start + np.cumsum(np.square(np.maximum(part, 0)))
            for start, part in zip(self.sums[which], parts, strict=False)
        ]
        return rank(scores, np.concatenate(sums))

    def _between(self, bins: np.ndarray) -> np.ndarray:
        """The scores in some consecutive bins, in descending order."""
        found = [np.zeros(0, self.dtype)]
        for chunk in (chunk for part in self.scores.parts() for chunk in _chunks(_wide(part))):
            leading = _leading(chunk)
            found.append(chunk[(leading <= bins[0]) & (leading >= bins[-1])])
        scores = np.concatenate(found)
        if self.scores.gather is not None:
            scores = np.concatenate([self._counted(scores, each) for each in bins])
        scores.sort()
        return scores[::-1]

    def _counted(self, scores: np.ndarray, which: int) -> np.ndarray:
        """The scores of one bin in all processes, from the count of each number in it."""
        keys = _keys(scores[_leading(scores) == which]) & 0xFFFF
        counts = self.scores.gathered(np.bincount(keys, minlength=1 << 16)).sum(0)
        found = np.flatnonzero(counts)
        return np.repeat(_numbers((which << 16) + found, self.dtype), counts[found])


# ---------------------------------------------------------------------- floating-point numbers


def _wide(scores: np.ndarray) -> np.ndarray:
    return scores.astype(np.float32) if scores.dtype.itemsize < 4 else scores


def _chunks(scores: np.ndarray) -> Iterator[np.ndarray]:
    return (scores[i : i + CHUNK] for i in range(0, len(scores), CHUNK))


def _relative(scores: np.ndarray, top: float) -> np.ndarray:
    """Scores divided by the highest, in float64 so that squares neither overflow nor vanish."""
    wide = scores.astype(np.float64)
    return np.divide(wide, top, where=wide > -np.inf, out=wide) if top > 0 else wide


def _keys(scores: np.ndarray) -> np.ndarray:
    """Integers that are in the same order as the numbers."""
    integers = scores.view(_integer(scores.dtype))
    return integers ^ ((integers >> (8 * integers.dtype.itemsize - 1)) & _positive(scores.dtype))


def _numbers(keys: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """The numbers with these keys."""
    integers = keys.astype(_integer(dtype))
    signs = integers >> (8 * dtype.itemsize - 1)
    return (integers ^ (signs & _positive(dtype))).view(dtype)


def _leading(scores: np.ndarray) -> np.ndarray:
    """The leading 16 bits of the keys."""
    return (_keys(scores) >> (8 * scores.dtype.itemsize - 16)).astype(np.intp)


def _edges(bins: np.ndarray, dtype: np.dtype) -> tuple[np.ndarray, np.ndarray]:
    """The lowest and the highest number with these leading bits; -inf has a bin of its own."""
    size = 8 * dtype.itemsize
    low = bins.astype(_integer(dtype)) << (size - 16)
    high = low + low.dtype.type((1 << (size - 16)) - 1)
    edges = (_numbers(key, dtype) for key in (low, high))
    below, above = (np.where(np.isnan(edge), -np.inf, edge) for edge in edges)
    return below, above


def _positive(dtype: np.dtype) -> np.integer:
    integer = _integer(dtype).type
    return integer((1 << (8 * dtype.itemsize - 1)) - 1)


def _integer(dtype: np.dtype) -> np.dtype:
    return np.dtype(np.int32 if dtype.itemsize == 4 else np.int64)
