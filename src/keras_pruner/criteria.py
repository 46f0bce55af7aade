"""How much each weight deserves to stay: functions from weights to scores, higher is better."""

import inspect
from typing import Any

import numpy as np

from keras_pruner.validation import serializable


@serializable
def magnitude(weights: np.ndarray) -> np.ndarray:
    """The absolute value of each weight (Han et al. 2015, arXiv:1506.02626).

    Args:
        weights: of any shape and floating-point type.

    Returns:
        Scores of the same shape, in float32, or in float64 for float64 weights.
    """
    wide = weights.dtype == np.float64
    return np.abs(weights if wide else np.asarray(weights, np.float32))


def needs_inputs(criterion: Any) -> bool:
    """Whether a criterion takes two arguments: the weights, and their inputs."""
    if not callable(criterion):
        return False
    try:
        parameters = inspect.signature(criterion).parameters.values()
    except ValueError:  # builtins and NumPy's own functions tell nothing
        return False
    required = [p for p in parameters if p.default is p.empty and p.kind < p.VAR_POSITIONAL]
    return len(required) == 2
