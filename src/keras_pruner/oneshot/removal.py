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

from keras_pruner import selection
from keras_pruner.oneshot import solver
from keras_pruner.oneshot.rows import Layout
from keras_pruner.plan import Target

ROUNDS = 8
_TOLERANCE = 1e-2
"""Of the refits in between, which only have to tell small from large."""


@dataclasses.dataclass(frozen=True, eq=False)
class Removal:
    """What may be removed from one kernel.

    Attributes:
        target: the kernel, with its pattern.
        layout: how it is a stack of matrices.
    """

    target: Target
    layout: Layout

    def choose(
        self, rows: Any, targets: Any, weights: Any, mask: np.ndarray, *, shift: bool
    ) -> Any:
        """Another mask for the kernel with as many units.

        Args:
            rows: inputs of the layer, shape (groups, n, inputs).
            targets: what it should give without its bias, shape (groups, n, outputs).
            weights: before anything is removed, shape (groups, inputs, outputs); zeros stay.
            mask: True = kept, of the same shape.
            shift: whether a bias can take up what is missing in the mean.

        Returns:
            The mask; the one given if there are fewer rows than inputs, which leave open what a
            weight is worth.
        """
        left, fitted = weights != 0, weights
        live, kept = self._units(left), self._units(mask)
        if rows.shape[1] < rows.shape[2] or kept >= live:
            return mask
        system = solver.System.of(rows, targets, weights, shift=shift)
        for round_ in range(1, ROUNDS + 1):
            count = kept if round_ == ROUNDS else round(live * (kept / live) ** (round_ / ROUNDS))
            fitted = system.solve(fitted, left, _TOLERANCE)
            scores = np.square(fitted) * keras.ops.convert_to_numpy(system.diagonal)
            left = self._keep(np.where(left, scores, -np.inf), max(kept, count), kept)
        return left

    def _units(self, mask: np.ndarray) -> int:
        """How many units of the pattern a mask keeps."""
        pattern = self.target.pattern
        if pattern.own_sparsity is not None:
            return int(np.count_nonzero(mask))
        return int(np.count_nonzero(pattern.unit_scores(self._kernel(mask).astype(np.float32))))

    def _keep(self, scores: np.ndarray, count: int, final: int) -> np.ndarray:
        """The mask of the best `count` units, on the way to `final` ones."""
        pattern, kernel = self.target.pattern, self._kernel(scores)
        if pattern.own_sparsity is None:
            mask = pattern.keep(kernel, count)
        else:
            mask = pattern.keep(kernel, final)  # stay to the end, beside the best of the others
            mask = selection.largest(np.where(mask, np.inf, kernel).reshape(-1), count)
        return self.layout.to_matrix(self.target.from_kernel(mask.reshape(kernel.shape)))

    def _kernel(self, matrix: np.ndarray) -> np.ndarray:
        return self.target.to_kernel(self.layout.from_matrix(matrix))
