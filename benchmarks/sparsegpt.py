"""SparseGPT, the rival to the refit in `one_shot.py`: mask and update of a layer in one pass.

Frantar & Alistarh 2023, arXiv:2301.00774, algorithm 1, written from the paper. The inputs are
those of the network as pruned so far, the targets what the dense weights make of them. Time and
memory grow with inputs^3 and inputs^2, whatever the number of samples.
"""

import numpy as np

from keras_pruner import backends
from keras_pruner.criteria import magnitude
from keras_pruner.oneshot import batch_norm as norms
from keras_pruner.oneshot.arrays import to_numpy
from keras_pruner.oneshot.calibration import Calibration
from keras_pruner.oneshot.linear_layers import Linear
from keras_pruner.oneshot.prune import mask_alone
from keras_pruner.oneshot.reconstruct import Recorder
from keras_pruner.rules import Rules
from keras_pruner.selection.top_k import largest

DAMPING = 0.01  # as a fraction of the mean of H's diagonal, as in the paper
BLOCK = 128  # inputs for which the mask is chosen at once, as in the paper


def prune_model(model, sparsity, x, allocation="lamp"):
    """Prune a model's layers in turn, each to the sparsity that the allocation gives it."""
    recorder = Recorder.of(model, Calibration(x).read(model))
    plan = Rules(allocation=allocation, criterion=magnitude).plan(model, frozen=True)
    found = [node for node in recorder.trace.order if not isinstance(node, Linear)]
    dense_moments = recorder.outputs(found) if found else {}
    to_numpy_ = backends.current().to_numpy
    weights = [np.array(to_numpy_(variable)) for variable in plan.variables]
    mask_alone(plan, sparsity)
    counts = {id(v): int(np.count_nonzero(to_numpy_(v))) for v in plan.variables}
    for variable, value in zip(plan.variables, weights, strict=True):
        if recorder.trace.linear_of(variable) is not None:
            variable.assign(value)
    for node in recorder.trace.order:
        if not isinstance(node, Linear):
            norms.shift(node, dense_moments[node], recorder.moments(node))
        elif id(node.kernel) in counts and recorder.trace.linear_of(node.kernel) is node:
            matrix = node.view.to_matrix(to_numpy_(node.kernel)).astype(np.float32)
            kept = counts[id(node.kernel)] // len(matrix)
            rows = to_numpy(recorder.rows(node).fit)
            parts = [prune(*each, kept)[0] for each in zip(rows, matrix, strict=True)]
            node.kernel.assign(node.view.from_matrix(np.stack(parts)))


def prune(rows, matrix, kept):
    """Prune a matrix, moving each removed weight's part onto the inputs after it.

    Args:
        rows: inputs of the layer, shape (n, inputs).
        matrix: its weights, shape (inputs, outputs).
        kept: how many weights stay, spread evenly over blocks of inputs.

    Returns:
        The updated weights, zero where pruned, in float32, and the mask.
    """
    inputs, outputs = matrix.shape
    upper = inverse_factor(rows)
    weights = matrix.astype(np.float64)
    mask = np.zeros(matrix.shape, bool)
    for start in range(0, inputs, BLOCK):
        stop = min(inputs, start + BLOCK)
        # The first blocks together keep their part of the whole, to the nearest weight.
        count = round(kept * stop / inputs) - round(kept * start / inputs)
        mask[start:stop] = best(weights[start:stop], upper, start, count)
        errors = np.empty((stop - start, outputs))
        for i in range(start, stop):
            errors[i - start] = np.where(mask[i], 0, weights[i]) / upper[i, i]
            weights[i] *= mask[i]
            ahead = slice(i + 1, stop)
            weights[ahead] -= upper[i, ahead, None] * errors[i - start]
        weights[stop:] -= upper[start:stop, stop:].T @ errors
    return (weights * mask).astype(np.float32), mask


def inverse_factor(rows):
    """U, upper triangular, with U'U = (X'X / n + damping)^-1."""
    wide = rows.astype(np.float64)
    gram = wide.T @ wide / len(wide)
    at = np.diag_indices_from(gram)
    gram[at] += DAMPING * gram[at].mean() + 1e-20
    return np.linalg.cholesky(np.linalg.inv(gram)).T


def best(weights, upper, start, count):
    """The mask of the weights whose removal costs most (eq. 3 of the paper)."""
    if not count:
        return np.zeros(weights.shape, bool)
    diagonal = np.diagonal(upper)[start : start + len(weights)]
    saliency = np.square(weights / diagonal[:, None])
    return largest(saliency.reshape(-1), count).reshape(weights.shape)
