"""Exact top-k of one weight: the k-th largest score, and the mask of what is above it."""

import dataclasses
import itertools
import math
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np

_T = TypeVar("_T")
NOT_FINITE = "Weights must be finite: NaN and infinities cannot be ranked."


def kept_count(units: int, sparsity: float) -> int:
    """The number of `units` that stay at `sparsity`: max(1, round-half-even(units (1 - sparsity))).

    Example:
        >>> [kept_count(n, s) for n, s in [(10, 0.35), (3, 0.5), (5, 0.5), (100, 0.9999)]]
        [6, 2, 2, 1]
    """
    return max(1, round(units * (1 - float(sparsity))))


def largest(scores: np.ndarray, count: int) -> np.ndarray:
    """Mark the `count` largest scores; among equal ones those of lower index.

    Args:
        scores: of shape (n,); -inf for what is pruned already.
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
        raise ValueError(
            "`scores` must hold no NaN, which cannot be ranked. Received: "
            f"{np.isnan(scores).sum()} NaN among {scores.size} scores. Look for NaN in the "
            "weights, in the calibration samples, or in what `criterion` returns."
        )
    threshold = last[0]
    mask = scores > threshold
    missing = count - np.count_nonzero(mask)
    mask[np.flatnonzero(scores == threshold)[:missing]] = True
    return mask


CHUNK = 1 << 17
"""Number of weights read at a time: their scores fit into the second-level cache of a processor
core, and a thread seldom waits for another."""

SAMPLE = 1 << 16
"""Largest sample that brackets a cut. Of n weights n^(2/3) are sampled: sorting the sample, and
what it leaves inside the bracket, both take less time than one pass over the weights."""

THREADS = min(8, os.cpu_count() or 1)
"""Number of threads that scan a large weight."""


@dataclasses.dataclass(frozen=True)
class Cut:
    """The last entry of a weight that is kept, in the order of falling magnitude.

    An entry's score is its magnitude, or -1 if it is pruned already. Entries with a higher score
    than the cut's are kept, and of those with the same score the ones up to index `last`.

    Attributes:
        score: of the last kept entry.
        last: its index in the flat weight, or a higher one below the next entry of this score.
    """

    score: float
    last: int


def largest_magnitudes(weights: np.ndarray, alive: np.ndarray, count: int) -> np.ndarray:
    """`largest` by absolute value; the mask is the only array of the weights' size that is made.

    Args:
        weights: of shape (n,), of any floating-point type.
        alive: boolean, shape (n,); entries that are False rank below all others.
        count: how many to mark, from 1 to n.

    Returns:
        Boolean array of shape (n,), exactly `count` of them True.

    Raises:
        ValueError: for NaN or infinity among the weights.
    """
    return marked(weights, alive, magnitude_cut(weights, alive, count))


def marked(weights: np.ndarray, alive: np.ndarray, cut: Cut) -> np.ndarray:
    """The mask of a cut, of shape (n,): True for the entries that it keeps."""
    mask = np.empty(weights.shape, bool)

    def mark(chunk: slice) -> None:
        mask[chunk] = _kept(weights, alive, cut, chunk)

    _each_chunk(mark, weights.size)
    return mask


def cut_in_place(weights: np.ndarray, mask: np.ndarray, cut: Cut) -> None:
    """Set `mask` to the mask of a cut, and the weights that it does not keep to exactly 0.0.

    Args:
        weights: of shape (n,); written to.
        mask: boolean, shape (n,), True for the entries that are not pruned yet; written to.
        cut: from `magnitude_cut`.
    """
    bits = weights.view(f"i{weights.itemsize}")  # integers: 0 times the bits of NaN is 0.0

    def write(chunk: slice) -> None:
        mask[chunk] = _kept(weights, mask, cut, chunk)
        np.multiply(bits[chunk], mask[chunk].view(np.int8), out=bits[chunk])

    _each_chunk(write, weights.size)


def _kept(weights: np.ndarray, alive: np.ndarray, cut: Cut, chunk: slice) -> np.ndarray:
    """The mask of a cut for the entries of a chunk."""
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

    A sample brackets the cut's score. One pass over the weights counts the entries above the
    bracket and collects those inside it, among which the score is then found exactly: the result
    does not depend on the sample (after Floyd & Rivest 1975, doi:10.1145/360680.360691).
    Arguments and errors are those of `largest_magnitudes`.
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
    """`magnitude_cut` by `counted_cut`: more passes, for weights that mislead a sample."""

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
    """`magnitude_cut` by bisection, from counts alone.

    For weights on an accelerator, or in parts on several devices: about 32 counts find the bits
    of the score, and at most as many find the index.

    Args:
        entries: the number of entries of the weight.
        count_from: score -> number of entries with this score or a higher one.
        count_equal: (score, index) -> number of entries up to this index with exactly this score.
        count: the number of entries to keep, from 1 to `entries`.
        dtype: of the magnitudes.

    Raises:
        ValueError: for NaN or infinity among the weights.
    """
    integer = np.dtype(f"u{dtype.itemsize}").type

    def score_of(bits: int) -> float:  # rises with the bits; the score of pruned entries is -1
        return float(integer(bits).view(dtype)) if bits >= 0 else -1.0

    infinity = int(dtype.type(np.inf).view(integer))
    if count_from(-1.0) != entries or count_from(np.inf):
        raise ValueError(NOT_FINITE)
    if count == entries:
        return Cut(-1.0, entries - 1)
    bits, too_high = -1, infinity
    middle = 1  # the smallest positive number: the cut where most weights are zero
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
    """Apply a function to each chunk of a weight, in several threads; the results in order.

    NumPy lets other threads run while it works on a chunk.
    """
    chunks = _chunks(size)
    threads = min(THREADS, len(chunks) // 16)  # starting a thread takes as long as some chunks
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
    """The magnitudes of a chunk; 0 for pruned entries."""
    scores = np.abs(weights[chunk])
    scores = scores.astype(np.float32) if scores.dtype.itemsize < 4 else scores
    return np.multiply(scores, alive[chunk], out=scores)


def _bracket(weights: np.ndarray, alive: np.ndarray, count: int) -> tuple[float, float]:
    """Two scores between which the cut almost surely lies, from an evenly spaced sample."""
    step = max(1, weights.size // min(SAMPLE, math.ceil(weights.size ** (2 / 3))))
    with np.errstate(over="ignore"):  # float64 beyond float32: infinity is a bracket, too
        sample = np.abs(weights[::step].astype(np.float32))
    sample = np.where(alive[::step], sample, np.float32(0))
    share = 1 - count / weights.size
    spread = 4 * np.sqrt(share * (1 - share) / sample.size) + 2 / sample.size
    ends = [int(np.floor((share + side * spread) * sample.size)) for side in (-1, 1)]
    first, last = np.clip(ends, 0, sample.size - 1)
    sample.partition((first, last))
    # Zeros stay outside the bracket: where most weights are pruned they would all be inside.
    low = max(sample[first] if ends[0] >= 0 else 0.0, np.finfo(np.float32).smallest_subnormal)
    high = sample[last] if ends[1] < sample.size - 1 else np.inf
    return float(low), float(max(low, high))  # the sample rounds tiny float64 to 0
