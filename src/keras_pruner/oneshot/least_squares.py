"""The least-squares refit of what a mask leaves, with matrix products only.

For each output c with surviving inputs S_c: minimise ||X_s w + b - t||^2 / n + lam ||w - w_0||^2
over w in S_c, by conjugate gradients for all outputs at once. All in float32, on the backend's
device. X is centred first; H is never formed as a difference, which would cancel.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import ops

DAMPING = 0.01
"""The ridge as a fraction of the mean of H's diagonal; it pulls towards the given weights."""
_ITERATIONS = 40
_CHECK_EVERY = 5
_TOLERANCE = 1e-4
"""Of the residual, relative to where it began, at which the solver stops."""
_TOLERANCE_FEW_ROWS = 1e-2
"""The same with fewer rows than inputs: what it would gain on these it loses on others."""
BLOCK = 1 << 22
"""Weights solved for at a time."""


@dataclasses.dataclass(frozen=True, eq=False)
class Fit:
    """New weights for a masked matrix.

    Attributes:
        matrix: shape (groups, inputs, outputs); zero where the mask is False.
        shift: to be added to the bias, shape (groups, 1, outputs).
    """

    matrix: Any
    shift: Any


def refit(rows: Any, targets: Any, matrix: Any, mask: Any, *, shift: bool) -> Fit:
    """The weights that best give `targets` from `rows` under a mask.

    Memory beside the arguments: one more copy of `rows`, the result twice, inputs x inputs if
    there are more rows than inputs, else nothing, as H is applied as two products; and a dozen
    arrays of one block of outputs, of 4 M weights together.

    Args:
        rows: inputs of the layer, shape (groups, n, inputs).
        targets: what it should give without its bias, shape (groups, n, outputs).
        matrix: its weights, to which the ridge pulls, shape (groups, inputs, outputs).
        mask: True = kept, of the same shape.
        shift: whether a bias can take up what is missing in the mean.

    Returns:
        The refitted weights; a full mask with exact rows gives `matrix` itself.
    """
    n, inputs = rows.shape[1:]
    centred, mean_rows = _centred(rows, shift=shift)
    turned = ops.transpose(centred, (0, 2, 1))
    product, diagonal = damped_gram(centred)
    tolerance = _TOLERANCE_FEW_ROWS if n < inputs else _TOLERANCE

    def block(matrix: Any, targets: Any, mask: Any) -> tuple[Any, Any]:
        mask = ops.cast(mask, "float32")
        matrix = ops.cast(matrix, "float32") * mask
        mean = ops.mean(targets, axis=1, keepdims=True) if shift else 0.0
        missing = targets - mean - ops.matmul(centred, matrix)
        force = mask * ops.matmul(turned, missing) / n
        matrix = matrix + conjugate_gradients(product, force, mask, diagonal, tolerance)
        return matrix, mean - ops.matmul(mean_rows, matrix)

    return Fit(*_in_blocks(block, matrix, targets, mask))


@dataclasses.dataclass(frozen=True, eq=False)
class System:
    """The equations of one layer, to be solved under one mask after another.

    Attributes:
        product: v -> (H + lam I) v.
        diagonal: of H + lam I, shape (groups, inputs, 1).
        right: C + lam w_0, shape (groups, inputs, outputs).
    """

    product: Callable[[Any], Any]
    diagonal: Any
    right: Any

    @classmethod
    def of(cls, rows: Any, targets: Any, matrix: Any, *, shift: bool) -> "System":
        """For the arguments of `refit`."""
        centred, _ = _centred(rows, shift=shift)
        product, diagonal = damped_gram(centred)
        missing = _centred(targets, shift=shift)[0] - ops.matmul(centred, matrix)
        force = ops.matmul(ops.transpose(centred, (0, 2, 1)), missing) / rows.shape[1]
        return cls(product, diagonal, force + product(matrix))

    def solve(self, matrix: np.ndarray, mask: np.ndarray, tolerance: float) -> np.ndarray:
        """The refit under a mask, begun at `matrix`."""

        def block(matrix: Any, mask: Any, right: Any) -> tuple[Any]:
            mask = ops.cast(mask, "float32")
            matrix = mask * ops.cast(matrix, "float32")
            force = mask * (right - self.product(matrix))
            found = conjugate_gradients(self.product, force, mask, self.diagonal, tolerance)
            return (matrix + found,)

        return ops.convert_to_numpy(_in_blocks(block, matrix, mask, self.right)[0])


def _centred(values: Any, *, shift: bool) -> tuple[Any, Any]:
    """Values (groups, n, ...) without their mean, if there is to be a shift, and the mean."""
    if not shift:
        return values, ops.zeros_like(values[:, :1])
    mean = ops.mean(values, axis=1, keepdims=True)
    return values - mean, mean


def _in_blocks(function: Callable[..., tuple[Any, ...]], *arrays: Any) -> tuple[Any, ...]:
    """The results of a function of some outputs, for all outputs."""
    groups, inputs, outputs = arrays[0].shape
    width = max(1, BLOCK // (groups * inputs))
    parts = [
        function(*(array[:, :, i : i + width] for array in arrays))
        for i in range(0, outputs, width)
    ]
    if len(parts) == 1:
        return parts[0]
    return tuple(ops.concatenate(part, axis=2) for part in zip(*parts, strict=True))


def rescale(rows: Any, targets: Any, matrix: Any) -> Fit:
    """One factor and one shift for each output: the cheap fall-back, for any width."""
    outputs = ops.matmul(rows, matrix)
    mean_outputs, mean_targets = (ops.mean(a, axis=1, keepdims=True) for a in (outputs, targets))
    centred = outputs - mean_outputs
    variance = ops.mean(ops.square(centred), axis=1, keepdims=True)
    covariance = ops.mean(centred * (targets - mean_targets), axis=1, keepdims=True)
    factor = ops.where(variance > 0, covariance / ops.where(variance > 0, variance, 1.0), 1.0)
    return Fit(matrix * factor, mean_targets - mean_outputs * factor)


def mean_gap(rows: Any, targets: Any, matrix: Any) -> Any:
    """What the outputs lack in the mean, shape (groups, 1, outputs)."""
    missing = targets - ops.matmul(rows, matrix)
    return ops.mean(missing, axis=1, keepdims=True)


def damped_gram(centred: Any) -> tuple[Callable[[Any], Any], Any]:
    """V -> (H + lam I) v, and its diagonal as (groups, inputs, 1), for H = X'X / n."""
    _, n, width = centred.shape
    turned = ops.transpose(centred, (0, 2, 1))
    diagonal = ops.mean(ops.square(centred), axis=1)[:, :, None]
    ridge = DAMPING * ops.mean(diagonal, axis=1, keepdims=True) + 1e-20
    if n < width:
        return lambda v: ops.matmul(turned, ops.matmul(centred, v)) / n + ridge * v, (
            diagonal + ridge
        )
    gram = ops.matmul(turned, centred) / n
    return lambda v: ops.matmul(gram, v) + ridge * v, diagonal + ridge


def conjugate_gradients(
    product: Callable[[Any], Any],
    force: Any,
    mask: Any,
    diagonal: Any,
    tolerance: float = _TOLERANCE,
) -> Any:
    """Solve M A M v = M f for every column, with its own step sizes, preconditioned by diag(A).

    Args:
        product: v -> A v for a symmetric positive definite A for each group.
        force: f, shape (groups, inputs, outputs), already masked.
        mask: M as 0.0 and 1.0, of the same shape.
        diagonal: of A, shape (groups, inputs, 1).
        tolerance: residual, relative to where it began, at which to stop.

    Returns:
        v, zero where the mask is.
    """
    solution = ops.zeros_like(force)
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
    return ops.sum(a * b, axis=1, keepdims=True)


def _ratio(a: Any, b: Any) -> Any:
    """A / b, and 0 for a column that has arrived."""
    return ops.where(b > 1e-30, a / ops.where(b > 1e-30, b, 1.0), 0.0)


def _largest(energy: Any) -> float:
    return float(np.max(keras.ops.convert_to_numpy(energy), initial=0.0))
