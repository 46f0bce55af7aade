"""The least-squares refit of the weights that a mask keeps, with matrix products only.

For each output c with surviving inputs S_c: minimise ||X_s w + b - t||^2 / n + lam ||w - w_0||^2
over w in S_c, by conjugate gradients for all outputs at once, in float32. X is centred first;
H = X'X / n is never formed as a difference, which would cancel.

Memory beside the arguments: one copy of the rows and one of the weights; a matrix inputs x inputs
if there are more rows than inputs, else H is applied as two products; and a dozen arrays for one
block of outputs, of 4 million weights together.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from keras_pruner.oneshot.arrays import like, mean, namespace, to_numpy

DAMPING = 0.01
"""The ridge as a fraction of the mean of H's diagonal; it pulls towards the given weights."""
TOLERANCE = 1e-4
"""Residual, relative to the first one, at which the solver stops."""
TOLERANCE_FEW_ROWS = 1e-2
"""The same with fewer rows than inputs: more iterations would only fit the noise of these rows."""
BLOCK = 1 << 22
"""Number of weights solved for at a time."""
_ITERATIONS = 40
_CHECK_EVERY = 5


@dataclasses.dataclass(frozen=True, eq=False)
class Fit:
    """New weights for a masked matrix.

    Attributes:
        matrix: shape (groups, inputs, outputs); zero where the mask is False.
        shift: the change of the bias, shape (groups, 1, outputs).
    """

    matrix: Any
    shift: Any


@dataclasses.dataclass(frozen=True, eq=False)
class System:
    """The equations of one layer, to be solved under one mask after another.

    Attributes:
        product: v -> (H + lam I) v.
        diagonal: of H + lam I, shape (groups, inputs, 1).
        right: X'T / n + lam w_0, shape (groups, inputs, outputs).
        mean_rows: shape (groups, 1, inputs); zero without a shift.
        mean_targets: shape (groups, 1, outputs); zero without a shift.
        tolerance: the relative residual at which a refit stops.
    """

    product: Callable[[Any], Any]
    diagonal: Any
    right: Any
    mean_rows: Any
    mean_targets: Any
    tolerance: float

    @classmethod
    def of(cls, rows: Any, targets: Any, weights: Any, *, shift: bool) -> "System":
        """The equations for samples of a layer's inputs.

        Args:
            rows: the inputs of the layer, shape (groups, n, inputs).
            targets: the outputs to reach, without the bias, shape (groups, n, outputs).
            weights: w_0, to which the ridge pulls, shape (groups, inputs, outputs).
            shift: whether a bias can correct the error of the mean.
        """
        xp = namespace(rows)
        n, inputs = rows.shape[1:]
        mean_rows, mean_targets = (
            mean(a, axis=1) if shift else xp.zeros_like(a[:, :1]) for a in (rows, targets)
        )
        centred = rows - mean_rows
        product, diagonal = damped_gram(centred)

        def right(weights: Any, targets: Any, mean_targets: Any) -> tuple[Any]:
            missing = targets - mean_targets - xp.matmul(centred, weights)
            force = xp.matmul(xp.transpose(centred, (0, 2, 1)), missing) / n
            return (force + product(weights),)

        (sides,) = _in_blocks(right, weights, targets, mean_targets)
        tolerance = TOLERANCE_FEW_ROWS if n < inputs else TOLERANCE
        return cls(product, diagonal, sides, mean_rows, mean_targets, tolerance)

    def refit(self, start: Any, mask: np.ndarray) -> Fit:
        """The weights under a mask whose outputs are closest to the targets.

        Args:
            start: the initial weights; the closer to the solution, the faster.
            mask: True = kept, shape (groups, inputs, outputs).

        Returns:
            The refit. A full mask and the inputs of the dense model give back the dense weights.
        """
        matrix = self.solve(start, mask, self.tolerance)
        return Fit(matrix, self.mean_targets - namespace(matrix).matmul(self.mean_rows, matrix))

    def solve(self, start: Any, mask: np.ndarray, tolerance: float) -> Any:
        """The refitted weights without the change of the bias."""

        def block(matrix: Any, mask: Any, right: Any) -> tuple[Any]:
            matrix = mask * matrix
            force = mask * (right - self.product(matrix))
            found = conjugate_gradients(self.product, force, mask, self.diagonal, tolerance)
            return (matrix + found,)

        (matrix,) = _in_blocks(block, start, like(start, mask), self.right)
        return matrix


def _in_blocks(function: Callable[..., tuple[Any, ...]], *arrays: Any) -> tuple[Any, ...]:
    """Split the last axis, the outputs, into blocks, apply a function to each, and join them."""
    groups, inputs, outputs = arrays[0].shape
    width = max(1, BLOCK // (groups * inputs))
    parts = [
        function(*(array[:, :, i : i + width] for array in arrays))
        for i in range(0, outputs, width)
    ]
    if len(parts) == 1:
        return parts[0]
    xp = namespace(arrays[0])
    return tuple(xp.concatenate(part, axis=2) for part in zip(*parts, strict=True))


def rescale(rows: Any, targets: Any, matrix: Any) -> Fit:
    """Fit one factor and one shift for each output: a cheap fallback for layers of any width."""
    xp = namespace(rows)
    outputs = xp.matmul(rows, matrix)
    mean_outputs, mean_targets = mean(outputs, axis=1), mean(targets, axis=1)
    centred = outputs - mean_outputs
    variance = mean(xp.square(centred), axis=1)
    covariance = mean(centred * (targets - mean_targets), axis=1)
    factor = xp.where(variance > 0, covariance / xp.where(variance > 0, variance, 1.0), 1.0)
    return Fit(matrix * factor, mean_targets - mean_outputs * factor)


def mean_gap(rows: Any, targets: Any, matrix: Any) -> Any:
    """The mean error of each output, shape (groups, 1, outputs)."""
    return mean(targets - namespace(rows).matmul(rows, matrix), axis=1)


def damped_gram(centred: Any) -> tuple[Callable[[Any], Any], Any]:
    """V -> (H + lam I) v, and its diagonal as (groups, inputs, 1), for H = X'X / n."""
    xp = namespace(centred)
    _, n, width = centred.shape
    turned = xp.transpose(centred, (0, 2, 1))
    diagonal = xp.transpose(mean(xp.square(centred), axis=1), (0, 2, 1))
    ridge = DAMPING * mean(diagonal, axis=1) + 1e-20
    if n < width:

        def apply(v: Any) -> Any:
            return xp.matmul(turned, xp.matmul(centred, v)) / n + ridge * v

        return apply, diagonal + ridge
    gram = xp.matmul(turned, centred) / n
    return lambda v: xp.matmul(gram, v) + ridge * v, diagonal + ridge


def conjugate_gradients(
    product: Callable[[Any], Any], force: Any, mask: Any, diagonal: Any, tolerance: float
) -> Any:
    """Solve M A M v = M f for every column, with its own step sizes, preconditioned by diag(A).

    Args:
        product: v -> A v for a symmetric positive definite A for each group.
        force: f, shape (groups, inputs, outputs), already masked.
        mask: M as 0.0 and 1.0, of the same shape.
        diagonal: of A, shape (groups, inputs, 1).
        tolerance: residual, relative to the first one, at which to stop.

    Returns:
        v, zero where the mask is.
    """
    xp = namespace(force)
    solution = xp.zeros_like(force)
    residual = force
    scaled = residual / diagonal
    direction = scaled
    energy = _columns(residual, scaled)
    enough = tolerance**2 * _largest(energy)
    for iteration in range(_ITERATIONS):
        if iteration % _CHECK_EVERY == 0 and _largest(energy) <= enough:
            break
        image = mask * product(direction)
        step = _ratio(energy, _columns(direction, image))
        solution = solution + step * direction
        residual = residual - step * image
        scaled = residual / diagonal
        before, energy = energy, _columns(residual, scaled)
        direction = scaled + _ratio(energy, before) * direction
    return solution


def _columns(a: Any, b: Any) -> Any:
    return namespace(a).sum(a * b, axis=1, keepdims=True)


def _ratio(a: Any, b: Any) -> Any:
    """The ratio a / b; 0 for a column that has converged."""
    xp = namespace(a)
    return xp.where(b > 1e-30, a / xp.where(b > 1e-30, b, 1.0), 0.0)


def _largest(energy: Any) -> float:
    return float(np.max(to_numpy(energy), initial=0.0))
