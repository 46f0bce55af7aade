"""How much each weight deserves to stay: functions from weights to scores, higher is better."""

import dataclasses
import inspect
from typing import Any

import numpy as np

from keras_pruner.validation import serializable, value

__all__ = [
    "LayerInputs",
    "PerOutput",
    "magnitude",
    "wanda",
]


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


@dataclasses.dataclass(frozen=True, eq=False)
class LayerInputs:
    """What the rows of a weight matrix are multiplied with, in the dense network.

    Attributes:
        rows: samples of the inputs, shape (groups, n, inputs), in float32; groups is 1 but for
            grouped and depthwise convolutions.
    """

    rows: np.ndarray

    @property
    def rms(self) -> np.ndarray:
        """The root mean square of each input, shape (groups, inputs)."""
        return np.sqrt(np.square(self.rows).mean(axis=1, dtype=np.float64)).astype(np.float32)

    @property
    def gram(self) -> np.ndarray:
        """X'X / n, shape (groups, inputs, inputs), in float64."""
        rows = self.rows.astype(np.float64)
        return np.matmul(rows.transpose(0, 2, 1), rows) / rows.shape[1]


@serializable
def wanda(weights: np.ndarray, inputs: LayerInputs) -> np.ndarray:
    """|w| times the root mean square of its input (Sun et al. 2023, arXiv:2306.11695).

    The paper compares within each output: that is `PerOutput(wanda)` with
    `allocation="uniform"`.

    Args:
        weights: shape (groups, inputs, outputs).
        inputs: what they are multiplied with.

    Returns:
        Scores of the same shape.
    """
    return np.abs(weights) * inputs.rms[:, :, None]


@value
class PerOutput:
    """Lets weights compete with those of the same output only.

    The scores become ranks within each output, from 0 to 1, so that at one sparsity each output
    keeps as many weights as any other.

    Args:
        criterion: weights, or weights and inputs, -> scores.
    """

    criterion: Any

    def __post_init__(self) -> None:
        if not callable(self.criterion):
            raise ValueError(
                "`criterion` must be a function of weights, or of weights and their inputs. "
                f"Received: criterion={self.criterion!r}."
            )

    def __call__(self, weights: np.ndarray, inputs: LayerInputs) -> np.ndarray:
        """The ranks, of the shape of `weights`, (groups, inputs, outputs)."""
        arguments = (weights, inputs) if needs_inputs(self.criterion) else (weights,)
        scores = self.criterion(*arguments)
        order = np.argsort(-scores, axis=1, kind="stable")
        ranks = np.empty(scores.shape, np.float32)
        places = np.arange(scores.shape[1], 0, -1, dtype=np.float32) / scores.shape[1]
        np.put_along_axis(ranks, order, np.broadcast_to(places[None, :, None], scores.shape), 1)
        return ranks


def scores_as_given(scores: np.ndarray) -> np.ndarray:
    """Stands for a criterion where a weight's values have been replaced by its scores."""
    return scores
