"""Rounding that changes the outputs of each layer on samples least."""

import dataclasses
from typing import Any

import keras
import numpy as np

from keras_pruner.oneshot.arrays import to_numpy
from keras_pruner.oneshot.calibration import Calibration
from keras_pruner.oneshot.linear_layers import Linear
from keras_pruner.oneshot.reconstruct import Recorder
from keras_pruner.storage.rounding import Bytes

_SWEEPS = 2
_DAMPING = 1e-4  # of the mean square of the inputs


@dataclasses.dataclass(frozen=True, eq=False)
class SampleRounding:
    """Rounds the kernel of a layer so that its outputs on samples change least.

    Attributes:
        linear: the layer.
        recorder: runs the model on the samples.
    """

    linear: Linear
    recorder: Recorder

    def __call__(self, kernel: np.ndarray, rounded: Bytes) -> Bytes:
        """Choose among the values of the same grid; zeros stay zeros."""
        view = self.linear.view
        rows = to_numpy(self.recorder.rows(self.linear).fit)
        weights, values = (view.to_matrix(each) for each in (kernel, rounded.values()))
        best = keep_outputs(weights, values, rounded.grid(), rows)
        return rounded.with_values(view.from_matrix(best))


def roundings(model: keras.Model, samples: Any) -> dict[int, SampleRounding]:
    """How to round each kernel by samples, by its id; only kernels where that is possible."""
    recorder = Recorder.of(model, Calibration.of(samples).read(model))
    nodes = [node for node in recorder.trace.order if isinstance(node, Linear)]
    known = [node for node in nodes if id(node.kernel) not in recorder.trace.reasons]
    return {id(node.kernel): SampleRounding(node, recorder) for node in known}


def keep_outputs(
    weights: np.ndarray, values: np.ndarray, grid: np.ndarray, rows: np.ndarray
) -> np.ndarray:
    """Choose rounded weights with a small squared error of the outputs, by coordinate descent.

    The inputs are visited one after another. Each weight of an input takes the better of the two
    grid values around its exact value, while the other inputs stay. The error never grows.

    Args:
        weights: exact matrices (groups, inputs, outputs).
        values: the rounded matrices to start from; zeros stay.
        grid: the values to choose from, ascending, without zero.
        rows: inputs (groups, n, inputs).

    Example:
        >>> weights, grid = np.array([[[0.6], [0.6]]]), np.array([0.5, 0.7])
        >>> rounded = keep_outputs(weights, np.full((1, 2, 1), 0.5), grid, np.ones((1, 8, 2)))
        >>> rounded.reshape(-1).tolist()
        [0.7, 0.5]
    """
    rows = rows.astype(np.float64)
    gram = np.swapaxes(rows, 1, 2) @ rows
    diagonal = np.einsum("gii->gi", gram)
    diagonal += _DAMPING * diagonal.mean(-1, keepdims=True) + 1e-30
    values = values.astype(np.float64)
    gradient = gram @ (values - weights)
    place = np.clip(np.searchsorted(grid, weights, "right") - 1, 0, len(grid) - 1)
    below, above = grid[place], grid[np.minimum(place + 1, len(grid) - 1)]
    live = values != 0
    for _ in range(_SWEEPS):
        for i in range(weights.shape[1]):
            wanted = values[:, i] - gradient[:, i] / diagonal[:, i, None]
            nearer = wanted <= (below[:, i] + above[:, i]) / 2
            chosen = np.where(live[:, i], np.where(nearer, below[:, i], above[:, i]), 0)
            change = chosen - values[:, i]
            if change.any():
                gradient += gram[:, :, i, None] * change[:, None, :]
                values[:, i] = chosen
    return values
