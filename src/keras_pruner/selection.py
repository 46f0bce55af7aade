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
