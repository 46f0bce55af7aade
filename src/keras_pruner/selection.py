"""The exact k-th order statistic of many scores, and the mask of those above it."""

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


def largest_magnitudes(weights: np.ndarray, alive: np.ndarray, count: int) -> np.ndarray:
    """`largest` by absolute value, without making an array of the weights' size but the mask.

    A sample brackets the threshold; one pass counts what is above the bracket and takes out what
    is inside, where the threshold is then found exactly; a second pass marks. The result does
    not depend on the sample (after Floyd & Rivest 1975, doi:10.1145/360680.360691).

    Args:
        weights: of shape (n,), of any floating-point type.
        alive: boolean, shape (n,); what is False counts as below everything.
        count: how many to mark, from 1 to n.

    Returns:
        Boolean array of shape (n,), exactly `count` of them True.

    Raises:
        ValueError: for NaN or infinity among the weights.
    """
    chunks = [slice(i, i + CHUNK) for i in range(0, weights.size, CHUNK)]

    def scores(chunk: slice) -> np.ndarray:
        score = np.abs(weights[chunk])
        if score.dtype.itemsize < 4:
            score = score.astype(np.float32)
        return np.multiply(score, alive[chunk], out=score)

    low, high = _bracket(weights, alive, count)
    above, inside, top = 0, [], np.float32(0)
    for chunk in chunks:
        score = scores(chunk)
        top = np.maximum(top, score.max())
        over = score > high
        above += int(np.count_nonzero(over))
        inside.append(score[(score >= low) ^ over])
    if not top < np.inf:
        raise ValueError("Weights must be finite: no order puts NaN before another.")
    candidates = np.concatenate(inside)
    missing = count - above
    if not 0 < missing <= candidates.size:  # the sample misled, or zeros must be kept
        candidates, missing = np.concatenate([scores(chunk) for chunk in chunks]), count
    threshold = np.partition(candidates, candidates.size - missing)[candidates.size - missing]
    if threshold == 0:  # zeros that are alive go before those that are not
        return largest(np.where(alive, np.abs(weights), -np.inf), count)

    mask = np.empty(weights.shape, bool)
    for chunk in chunks:
        np.greater_equal(scores(chunk), threshold, out=mask[chunk])
    surplus = np.count_nonzero(mask) - count
    if surplus:  # of equal scores at the threshold, the last ones go
        ties = [np.flatnonzero(scores(chunk) == threshold) + chunk.start for chunk in chunks]
        mask[np.concatenate(ties)[-surplus:]] = False
    return mask


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
