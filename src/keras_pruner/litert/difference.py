"""How far two outputs are apart."""

import math

import numpy as np
from numpy.typing import ArrayLike


def largest_difference(one: ArrayLike, other: ArrayLike) -> float:
    """The largest of two outputs, in units of the largest of the first; infinite for NaN."""
    first, second = np.asarray(one, np.float64), np.asarray(other, np.float64)
    difference = np.abs(first - second).max(initial=0) / max(np.abs(first).max(initial=0), 1e-6)
    return math.inf if np.isnan(difference) else float(difference)
