"""The exact k-th order statistic of many scores, and the mask of those above it."""

import dataclasses
from collections.abc import Callable

import numpy as np


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


CHUNK = 1 << 16
"""Weights looked at in one go: their scores stay in the processor's second-level cache."""


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
    for chunk in _chunks(weights):
        scores = _magnitudes(weights[chunk])
        if cut.score > 0:
            np.multiply(scores, alive[chunk], out=scores)
        else:
            scores[~alive[chunk]] = -1
        np.greater_equal(scores, cut.score, out=mask[chunk])
        if chunk.stop > cut.last + 1:
            after = np.arange(chunk.start, chunk.stop) > cut.last
            mask[chunk] &= ~(after & (scores == cut.score))
    return mask


def magnitude_cut(weights: np.ndarray, alive: np.ndarray, count: int) -> Cut:
    """The cut that keeps the `count` entries of the largest magnitude.

    A sample brackets the cut's score; one pass counts what is above the bracket and takes out
    what is inside, where the score is then found exactly. The result does not depend on the
    sample (after Floyd & Rivest 1975, doi:10.1145/360680.360691). Arguments and errors are those
    of `largest_magnitudes`.
    """

    def scores(chunk: slice) -> np.ndarray:
        magnitudes = _magnitudes(weights[chunk])
        return np.multiply(magnitudes, alive[chunk], out=magnitudes)

    low, high = _bracket(weights, alive, count)
    above, inside, top = 0, [], np.float32(0)
    for chunk in _chunks(weights):
        part = scores(chunk)
        top = np.maximum(top, part.max())
        over = part > high
        above += int(np.count_nonzero(over))
        inside.append(part[(part >= low) ^ over])
    if not top < np.inf:
        raise ValueError("Weights must be finite: no order puts NaN before another.")
    candidates = np.concatenate(inside)
    if not 0 < count - above <= candidates.size:  # the sample misled, or zeros must be kept
        candidates, above = np.concatenate([scores(chunk) for chunk in _chunks(weights)]), 0
    place = candidates.size - (count - above)
    score = float(np.partition(candidates, place)[place])
    missing = count - above - int(np.count_nonzero(candidates > score))
    equal = int(np.count_nonzero(candidates == score))

    def is_equal(chunk: slice) -> np.ndarray:
        return scores(chunk) == score

    if score == 0:  # zeros that are alive go before those that are not
        pruned = weights.size - int(np.count_nonzero(alive))
        zeros = equal - pruned
        score, equal = (0.0, zeros) if missing <= zeros else (-1.0, pruned)
        missing -= zeros if score else 0

        def is_equal(chunk: slice) -> np.ndarray:
            return ~alive[chunk] if score else alive[chunk] & (weights[chunk] == 0)

    if missing == equal:
        return Cut(score, weights.size - 1)
    for chunk in _chunks(weights):
        found = np.flatnonzero(is_equal(chunk))
        if missing <= found.size:
            return Cut(score, chunk.start + int(found[missing - 1]))
        missing -= found.size
    raise AssertionError("the weights changed while they were looked at")


def counted_cut(
    entries: int,
    count_from: Callable[[float], int],
    count_equal: Callable[[float, int], int],
    count: int,
) -> Cut:
    """`magnitude_cut` for weights that can be counted but not looked at, by bisection.

    For weights on an accelerator or in parts on several devices: at most 32 counts find the bits
    of the score, and as many the index.

    Args:
        entries: how many the weight has; their magnitudes are at most float32.
        count_from: score -> how many score that or more.
        count_equal: (score, index) -> how many up to this index have exactly that score.
        count: how many to keep, from 1 to `entries`.

    Raises:
        ValueError: for NaN or infinity among the weights.
    """

    def score_of(bits: int) -> float:  # in the order of the numbers; -1 stands before zero
        return float(np.uint32(bits).view(np.float32)) if bits >= 0 else -1.0

    infinity = int(np.float32(np.inf).view(np.uint32))
    if count_from(-1.0) != entries or count_from(np.inf):
        raise ValueError("Weights must be finite: no order puts NaN before another.")
    if count == entries:
        return Cut(-1.0, entries - 1)
    bits, too_high = -1, infinity
    while too_high - bits > 1:
        middle = (bits + too_high) // 2
        if count_from(score_of(middle)) >= count:
            bits = middle
        else:
            too_high = middle
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


def _chunks(weights: np.ndarray) -> list[slice]:
    return [slice(i, min(i + CHUNK, weights.size)) for i in range(0, weights.size, CHUNK)]


def _magnitudes(weights: np.ndarray) -> np.ndarray:
    magnitudes = np.abs(weights)
    return magnitudes.astype(np.float32) if magnitudes.dtype.itemsize < 4 else magnitudes


def _bracket(weights: np.ndarray, alive: np.ndarray, count: int) -> tuple[float, float]:
    """Two scores between which the threshold almost surely lies, from an even sample."""
    step = max(1, weights.size // CHUNK)
    sample = np.sort(np.abs(weights[::step].astype(np.float32)) * alive[::step])
    share = 1 - count / weights.size
    spread = 4 * np.sqrt(share * (1 - share) / sample.size) + 2 / sample.size
    first, last = ((share + side * spread) * sample.size for side in (-1, 1))
    # Zeros are left out: when most weights are pruned already they would all be inside.
    low = max(sample[int(first)] if first >= 0 else 0.0, np.finfo(np.float32).smallest_subnormal)
    high = sample[int(last)] if last < sample.size - 1 else np.inf
    return float(low), float(high)
