"""SparseGPT: mask and update of one layer in a single pass over its inputs.

Frantar & Alistarh 2023, arXiv:2301.00774, algorithm 1, written from the paper. The inputs are
those of the network as pruned so far, the targets what the dense weights make of them. Time and
memory grow with inputs^3 and inputs^2, whatever the number of samples.
"""

import dataclasses

import numpy as np

from keras_pruner.selection.top_k import largest

DAMPING = 0.01
"""As a fraction of the mean of H's diagonal, as in the paper."""
BLOCK = 128
"""Inputs for which the mask is chosen at once, as in the paper."""


@dataclasses.dataclass(frozen=True, eq=False)
class Groups:
    """The inputs that an N:M pattern compares.

    Attributes:
        numbers: of the group of each input, ascending, shape (inputs,).
        kept: how many stay in each.
    """

    numbers: np.ndarray
    kept: int


def prune(
    rows: np.ndarray, matrix: np.ndarray, kept: int, groups: Groups | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Prune a matrix, moving each removed weight's part onto the inputs after it.

    Args:
        rows: inputs of the layer, shape (n, inputs).
        matrix: its weights, shape (inputs, outputs).
        kept: how many weights stay, spread evenly over blocks of inputs; not used with groups.
        groups: of N:M.

    Returns:
        The updated weights, zero where pruned, in float32, and the mask.
    """
    inputs, outputs = matrix.shape
    upper = inverse_factor(rows)
    weights = matrix.astype(np.float64)
    mask = np.zeros(matrix.shape, bool)
    for start in range(0, inputs, BLOCK):
        stop = min(inputs, start + BLOCK)
        if groups is None:
            # The first blocks together keep their part of the whole, to the nearest weight.
            count = round(kept * stop / inputs) - round(kept * start / inputs)
            mask[start:stop] = _best(weights[start:stop], upper, start, count)
        errors = np.empty((stop - start, outputs))
        for i in range(start, stop):
            if groups is not None and (i == 0 or groups.numbers[i] != groups.numbers[i - 1]):
                end = int(np.searchsorted(groups.numbers, groups.numbers[i], side="right"))
                mask[i:end] = _best_of_each(weights[i:end], upper, i, groups.kept)
            errors[i - start] = np.where(mask[i], 0, weights[i]) / upper[i, i]
            weights[i] *= mask[i]
            ahead = slice(i + 1, stop)
            weights[ahead] -= upper[i, ahead, None] * errors[i - start]
        weights[stop:] -= upper[start:stop, stop:].T @ errors
    return (weights * mask).astype(np.float32), mask


def inverse_factor(rows: np.ndarray) -> np.ndarray:
    """U, upper triangular, with U'U = (X'X / n + damping)^-1."""
    wide = rows.astype(np.float64)
    gram = wide.T @ wide / len(wide)
    at = np.diag_indices_from(gram)
    gram[at] += DAMPING * gram[at].mean() + 1e-20
    return np.linalg.cholesky(np.linalg.inv(gram)).T


def _saliency(weights: np.ndarray, upper: np.ndarray, start: int) -> np.ndarray:
    """What removing each of the weights costs (eq. 3 of the paper)."""
    diagonal = np.diagonal(upper)[start : start + len(weights)]
    return np.square(weights / diagonal[:, None])


def _best(weights: np.ndarray, upper: np.ndarray, start: int, count: int) -> np.ndarray:
    if not count:
        return np.zeros(weights.shape, bool)
    saliency = _saliency(weights, upper, start)
    return largest(saliency.reshape(-1), count).reshape(weights.shape)


def _best_of_each(weights: np.ndarray, upper: np.ndarray, start: int, kept: int) -> np.ndarray:
    """The `kept` best inputs of each output."""
    order = np.argsort(-_saliency(weights, upper, start), axis=0, kind="stable")
    mask = np.zeros(weights.shape, bool)
    np.put_along_axis(mask, order[:kept], True, axis=0)
    return mask
