"""The exact k-th order statistic of many scores, and the mask of those above it."""

import dataclasses
import itertools
import math
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np

_T = TypeVar("_T")
NOT_FINITE = "Weights must be finite: no order puts NaN before another."


def kept_count(units: int, sparsity: float) -> int:
    """How many of `units` stay at `sparsity`: max(1, round-half-even(units (1 - sparsity))).

    Example:
        >>> [kept_count(n, s) for n, s in [(10, 0.35), (3, 0.5), (5, 0.5), (100, 0.9999)]]
        [6, 2, 2, 1]
    """
    return max(1, round(units * (1 - float(sparsity))))


def largest(scores: np.ndarray, count: int) -> np.ndarray:
    """Mark the `count` largest scores; among equal ones those of lower index.

    Args:
        scores: of shape (n,); -inf for what is gone already.
        count: how many to mark, from 1 to n.

    Returns:
        Boolean array of shape (n,), exactly `count` of them True.

    Raises:
        ValueError: for NaN among the scores.
    """
    if count >= scores.size:
        return np.ones(scores.shape, bool)
    last = np.partition(scores, scores.size - count)[scores.size - count :]
    if np.isnan(last).any():  # NaN is sorted to the end
        raise ValueError("Scores must not be NaN: no order puts one before another.")
    threshold = last[0]
    mask = scores > threshold
    missing = count - np.count_nonzero(mask)
    mask[np.flatnonzero(scores == threshold)[:missing]] = True
    return mask


CHUNK = 1 << 17
"""Weights looked at in one go: their scores stay in the processor's second-level cache, and two
threads seldom wait for each other to begin with the next ones."""

SAMPLE = 1 << 16
"""Weights at most in the sample that brackets a cut: of n weights n^(2/3), so that to look at the
sample and at what it leaves inside the bracket both take less time than to go over the weights."""

THREADS = min(8, os.cpu_count() or 1)
"""That look at the chunks of a large weight."""


@dataclasses.dataclass(frozen=True)
class Cut:
    """Where the kept entries of a weight end, in the order of falling magnitude.

    An entry's score is its magnitude, or -1 if it is pruned already. Those above the cut's score
    are kept, and of those that equal it the ones that do not come after `last`.

    Attributes:
        score: of the last kept entry.
        last: its index in the flat weight, or that of any entry up to the next of its score.
    """

    score: float
    last: int


def largest_magnitudes(weights: np.ndarray, alive: np.ndarray, count: int) -> np.ndarray:
    """`largest` by absolute value, without making an array of the weights' size but the mask.

    Args:
        weights: of shape (n,), of any floating-point type.
        alive: boolean, shape (n,); what is False counts as below everything.
        count: how many to mark, from 1 to n.

    Returns:
        Boolean array of shape (n,), exactly `count` of them True.

    Raises:
        ValueError: for NaN or infinity among the weights.
    """
    return marked(weights, alive, magnitude_cut(weights, alive, count))


def marked(weights: np.ndarray, alive: np.ndarray, cut: Cut) -> np.ndarray:
    """The mask, of shape (n,), of what a cut keeps."""
    mask = np.empty(weights.shape, bool)

    def mark(chunk: slice) -> None:
        mask[chunk] = _kept(weights, alive, cut, chunk)

    _each_chunk(mark, weights.size)
    return mask


def cut_in_place(weights: np.ndarray, mask: np.ndarray, cut: Cut) -> None:
    """Make `mask` that of a cut, and the weights that it does not keep exactly 0.0.

    Args:
        weights: of shape (n,); written to.
        mask: boolean, shape (n,), of what is alive; written to.
        cut: from `magnitude_cut`.
    """
    bits = weights.view(f"i{weights.itemsize}")  # of which the product is 0 also for NaN

    def write(chunk: slice) -> None:
        mask[chunk] = _kept(weights, mask, cut, chunk)
        np.multiply(bits[chunk], mask[chunk].view(np.int8), out=bits[chunk])

    _each_chunk(write, weights.size)


def _kept(weights: np.ndarray, alive: np.ndarray, cut: Cut, chunk: slice) -> np.ndarray:
    """Which entries of a chunk a cut keeps."""
    scores = _scores(weights, alive, chunk)
    if cut.score <= 0:
        scores[~alive[chunk]] = -1
    kept = scores >= cut.score
    if chunk.stop > cut.last + 1:
        after = np.arange(chunk.start, chunk.stop) > cut.last
        kept &= ~(after & (scores == cut.score))
    return kept


def magnitude_cut(weights: np.ndarray, alive: np.ndarray, count: int) -> Cut:
    """The cut that keeps the `count` entries of the largest magnitude.

    A sample brackets the cut's score; one pass counts what is above the bracket and takes out
    what is inside, where the score is then found exactly. The result does not depend on the
    sample (after Floyd & Rivest 1975, doi:10.1145/360680.360691). Arguments and errors are those
    of `largest_magnitudes`.
    """
    low, high = _bracket(weights, alive, count)

    def look(chunk: slice) -> tuple[int, np.ndarray, np.floating]:
        scores = _scores(weights, alive, chunk)
        over = scores > high
        inside = scores[(scores >= low) ^ over]
        return int(np.count_nonzero(over)), inside, scores.max()

    above, inside, tops = zip(*_each_chunk(look, weights.size), strict=True)
    if not np.max(tops) < np.inf:
        raise ValueError(NOT_FINITE)
    candidates, missing = np.concatenate(inside), count - sum(above)
    if not 0 < missing <= candidates.size:  # the sample misled, or zeros must be kept
        return _cut_by_counting(weights, alive, count)
    place = candidates.size - missing
    score = np.partition(candidates, place)[place]
    missing -= int(np.count_nonzero(candidates > score))
    equal = np.cumsum([np.count_nonzero(part == score) for part in inside])
    if missing == equal[-1]:
        return Cut(float(score), weights.size - 1)
    first = int(np.searchsorted(equal, missing))  # the chunk where the last of them is
    chunk = _chunks(weights.size)[first]
    found = np.flatnonzero(_scores(weights, alive, chunk) == score)
    return Cut(float(score), chunk.start + int(found[missing - equal[first] - 1]))


def _cut_by_counting(weights: np.ndarray, alive: np.ndarray, count: int) -> Cut:
    """`magnitude_cut` by `counted_cut`: in many passes, whatever the weights are."""

    def total(which: Callable[[np.ndarray, slice], np.ndarray]) -> int:
        def count_in(chunk: slice) -> int:
            scores = np.where(alive[chunk], _scores(weights, alive, chunk), -1)
            return int(np.count_nonzero(which(scores, chunk)))

        return sum(_each_chunk(count_in, weights.size))

    def count_from(score: float) -> int:
        return total(lambda scores, _: scores >= score)

    def count_equal(score: float, last: int) -> int:
        def is_equal(scores: np.ndarray, chunk: slice) -> np.ndarray:
            return scores[: max(0, last + 1 - chunk.start)] == score

        return total(is_equal)

    dtype = _scores(weights, alive, slice(0)).dtype
    return counted_cut(weights.size, count_from, count_equal, count, dtype)


def counted_cut(
    entries: int,
    count_from: Callable[[float], int],
    count_equal: Callable[[float, int], int],
    count: int,
    dtype: np.dtype = np.dtype(np.float32),  # noqa: B008 - a constant
) -> Cut:
    """`magnitude_cut` for weights that can be counted but not looked at, by bisection.

    For weights on an accelerator or in parts on several devices: about 32 counts find the bits
    of the score, and at most as many the index.

    Args:
        entries: how many the weight has.
        count_from: score -> how many score that or more.
        count_equal: (score, index) -> how many up to this index have exactly that score.
        count: how many to keep, from 1 to `entries`.
        dtype: of the magnitudes.

    Raises:
        ValueError: for NaN or infinity among the weights.
    """
    integer = np.dtype(f"u{dtype.itemsize}").type

    def score_of(bits: int) -> float:  # in the order of the numbers; -1 stands before zero
        return float(integer(bits).view(dtype)) if bits >= 0 else -1.0

    infinity = int(dtype.type(np.inf).view(integer))
    if count_from(-1.0) != entries or count_from(np.inf):
        raise ValueError(NOT_FINITE)
    if count == entries:
        return Cut(-1.0, entries - 1)
    bits, too_high = -1, infinity
    middle = 1  # the smallest number above zero: where most weights are zero, it ends there
    while too_high - bits > 1:
        if count_from(score_of(middle)) >= count:
            bits = middle
        else:
            too_high = middle
        middle = (bits + too_high) // 2
    score, above = score_of(bits), count_from(score_of(too_high))
    missing = count - above
    first, last = 0, entries - 1
    if missing == count_equal(score, last):
        return Cut(score, last)
    while first < last:
        middle = (first + last) // 2
        if count_equal(score, middle) >= missing:
            last = middle
        else:
            first = middle + 1
    return Cut(score, last)


def _each_chunk(function: Callable[[slice], _T], size: int) -> list[_T]:
    """What a function gives for each chunk of a weight, in their order; in several threads.

    NumPy lets other threads run while it works on a chunk.
    """
    chunks = _chunks(size)
    threads = min(THREADS, len(chunks) // 16)  # to start one takes as long as some chunks
    if threads < 2:
        return list(map(function, chunks))
    ends = [len(chunks) * i // threads for i in range(threads + 1)]
    spans = [chunks[start:end] for start, end in itertools.pairwise(ends)]
    with ThreadPoolExecutor(threads) as pool:
        parts = pool.map(lambda span: list(map(function, span)), spans)
        return list(itertools.chain.from_iterable(parts))


def _chunks(size: int) -> list[slice]:
    return [slice(i, min(i + CHUNK, size)) for i in range(0, size, CHUNK)]


def _scores(weights: np.ndarray, alive: np.ndarray, chunk: slice) -> np.ndarray:
    """The magnitudes of a chunk, with 0 of what is pruned."""
    scores = np.abs(weights[chunk])
    scores = scores.astype(np.float32) if scores.dtype.itemsize < 4 else scores
    return np.multiply(scores, alive[chunk], out=scores)


def _bracket(weights: np.ndarray, alive: np.ndarray, count: int) -> tuple[float, float]:
    """Two scores between which the threshold almost surely lies, from an even sample."""
    step = max(1, weights.size // min(SAMPLE, math.ceil(weights.size ** (2 / 3))))
    sample = np.abs(weights[::step].astype(np.float32)) * alive[::step]
    share = 1 - count / weights.size
    spread = 4 * np.sqrt(share * (1 - share) / sample.size) + 2 / sample.size
    ends = [int(np.floor((share + side * spread) * sample.size)) for side in (-1, 1)]
    first, last = np.clip(ends, 0, sample.size - 1)
    sample.partition((first, last))
    # Zeros are left out: when most weights are pruned already they would all be inside.
    low = max(sample[first] if ends[0] >= 0 else 0.0, np.finfo(np.float32).smallest_subnormal)
    high = sample[last] if ends[1] < sample.size - 1 else np.inf
    return float(low), float(high)
