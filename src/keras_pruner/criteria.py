"""Criteria: functions from weights, and possibly their inputs, to scores; high scores stay."""

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

    Example:
        >>> magnitude(np.array([[-3.0, 0.5]]))
        array([[3. , 0.5]])
    """
    wide = weights.dtype == np.float64
    return np.abs(weights if wide else np.asarray(weights, np.float32))


def needs_inputs(criterion: Any) -> bool:
    """Whether a criterion takes two arguments: the weights and their inputs."""
    if not callable(criterion):
        return False
    try:
        parameters = inspect.signature(criterion).parameters.values()
    except ValueError:  # built-in functions and those of NumPy have no signature
        return False
    required = [p for p in parameters if p.default is p.empty and p.kind < p.VAR_POSITIONAL]
    return len(required) == 2


@dataclasses.dataclass(frozen=True, eq=False)
class LayerInputs:
    """The inputs that a layer's weight matrix is multiplied with, in the dense model.

    Attributes:
        rows: samples of the inputs, shape (groups, n, inputs), in float32. There is one group,
            except in grouped and depthwise convolutions and einsums with a shared axis.

    Example:
        >>> inputs = LayerInputs(np.array([[[3.0, 0.0], [4.0, 0.0]]], np.float32))
        >>> inputs.gram.tolist()
        [[[12.5, 0.0], [0.0, 0.0]]]
        >>> inputs.rms.round(2)
        array([[3.54, 0.  ]], dtype=float32)
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

    The paper compares weights of the same output only: pass `PerOutput(wanda)` with
    `allocation="uniform"` for this. It needs calibration inputs, so it is for `kp.prune`.

    Args:
        weights: shape (groups, inputs, outputs).
        inputs: the inputs of the layer, from the calibration samples.

    Returns:
        Scores of the same shape.

    Example:
        >>> inputs = LayerInputs(np.array([[[2.0, 0.5]]], np.float32))
        >>> wanda(np.array([[[1.0], [-3.0]]]), inputs)[0].T
        array([[2. , 1.5]])
    """
    return np.abs(weights) * inputs.rms[:, :, None]


@value
class PerOutput:
    """Compare weights with those of the same output only.

    Scores are replaced by their ranks within each output, from 0 to 1, so that at one sparsity
    every output keeps the same number of weights.

    Args:
        criterion: a function of the weights, or of the weights and their inputs, to scores.

    Raises:
        ValueError: if `criterion` is no function.

    Example:
        >>> scores = np.array([[[0.1, 9.0], [0.2, 7.0], [0.3, 8.0], [0.4, 6.0]]])
        >>> PerOutput(magnitude)(scores, LayerInputs(np.ones((1, 1, 4))))[0]
        array([[0.25, 1.  ],
               [0.5 , 0.5 ],
               [0.75, 0.75],
               [1.  , 0.25]], dtype=float32)
    """

    criterion: Any

    def __post_init__(self) -> None:
        if not callable(self.criterion):
            raise ValueError(
                "`criterion` must be a function of weights, or of weights and their inputs. "
                f"Received: criterion={self.criterion!r}."
            )

    def __call__(self, weights: np.ndarray, inputs: LayerInputs) -> np.ndarray:
        """The ranks, of the same shape as `weights`: (groups, inputs, outputs)."""
        arguments = (weights, inputs) if needs_inputs(self.criterion) else (weights,)
        scores = self.criterion(*arguments)
        order = np.argsort(-scores, axis=1, kind="stable")
        ranks = np.empty(scores.shape, np.float32)
        places = np.arange(scores.shape[1], 0, -1, dtype=np.float32) / scores.shape[1]
        np.put_along_axis(ranks, order, np.broadcast_to(places[None, :, None], scores.shape), 1)
        return ranks


def scores_as_given(scores: np.ndarray) -> np.ndarray:
    """The criterion for weights whose values have been replaced by their scores."""
    return scores
