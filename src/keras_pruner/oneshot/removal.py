"""A layer's mask, chosen in the course of its refit.

Magnitudes do not know what the other weights of an output can make up for. So the weights leave
in rounds. Before each, those that are left are refitted; then those go whose removal costs least
if nothing made up for it: w^2 mean(x^2), the score of Wanda (Sun et al. 2023, arXiv:2306.11695)
squared, but of weights that have already taken over the part of the ones before them. How many
stay in the layer is not decided here.
"""

import dataclasses
from typing import Any

import keras
import numpy as np

from keras_pruner.oneshot import least_squares
from keras_pruner.patterns import BudgetedPattern
from keras_pruner.plan import Target
from keras_pruner.selection import top_k

ROUNDS = 8
ROWS_FOR_EACH_INPUT = 2
"""With fewer, masks by magnitude did better on held-out samples up to 90% zeros."""
_TOLERANCE = 1e-2
"""Of the refits in between, which only have to tell small from large."""


@dataclasses.dataclass(frozen=True, eq=False)
class Removal:
    """What may be removed from one kernel.

    Attributes:
        target: the kernel, with its pattern.
    """

    target: Target

    def choose(
        self, rows: Any, targets: Any, weights: Any, mask: np.ndarray, *, shift: bool
    ) -> Any:
        """Another mask for the kernel with as many units.

        Args:
            rows: inputs of the layer, shape (groups, n, inputs).
            targets: what it should give without its bias, shape (groups, n, outputs).
            weights: before anything is removed, shape (groups, inputs, outputs); units that are
                all zero stay so.
            mask: True = kept, of the same shape.
            shift: whether a bias can take up what is missing in the mean.

        Returns:
            The mask; the one given if there are fewer than two rows for each input, which
            leave open what a weight is worth.
        """
        if rows.shape[1] < ROWS_FOR_EACH_INPUT * rows.shape[2]:
            return mask
        units = self._units(weights != 0)
        live, kept = (int(np.count_nonzero(u)) for u in (units, self._units(mask)))
        if kept >= live:
            return mask
        left, fitted = self._matrix(self.target.pattern.spread(units, self._shape)), weights
        system = least_squares.System.of(rows, targets, weights, shift=shift)
        for round_ in range(1, ROUNDS + 1):
            count = kept if round_ == ROUNDS else round(live * (kept / live) ** (round_ / ROUNDS))
            fitted = system.solve(fitted, left, _TOLERANCE)
            scores = np.square(fitted) * keras.ops.convert_to_numpy(system.diagonal)
            left = self._keep(np.where(left, scores, -np.inf), max(kept, count))
        return left

    def _units(self, mask: np.ndarray) -> np.ndarray:
        """Which units of the pattern hold something that a mask keeps."""
        return self.target.pattern.unit_scores(self._kernel(mask).astype(np.float32)) > 0

    def _keep(self, scores: np.ndarray, count: int) -> np.ndarray:
        """The mask of the best `count` units."""
        pattern, kernel = self.target.pattern, self._kernel(scores)
        if isinstance(pattern, BudgetedPattern):
            return self._matrix(pattern.keep(kernel, count))
        mask = pattern(kernel)  # stay to the end, beside the best of the others
        scores = np.where(mask, np.inf, kernel).reshape(-1)
        return self._matrix(top_k.largest(scores, count).reshape(kernel.shape))

    @property
    def _shape(self) -> tuple[int, ...]:
        return self.target.view.kernel_shape

    def _kernel(self, matrix: np.ndarray) -> np.ndarray:
        return self.target.view.to_kernel(self.target.view.from_matrix(matrix))

    def _matrix(self, kernel: np.ndarray) -> np.ndarray:
        return self.target.view.to_matrix(self.target.view.from_kernel(kernel))
