"""The walk through the model: each layer once, in the order of its calls.

The targets are what the dense network computes; the inputs are those of the network as pruned
and refitted so far. That is what keeps errors from piling up.

Memory, beside the model and a copy of the weights that change: the targets of a group of layers
(256 MB at most, or those of one layer), the rows of one layer (256 MB at most, and as much again
to centre them), and inputs x inputs of one layer.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import keras
import numpy as np

from keras_pruner import backends
from keras_pruner.criteria import LayerInputs
from keras_pruner.oneshot import batch_norm as norms
from keras_pruner.oneshot import least_squares, sparsegpt
from keras_pruner.oneshot.calibration import Samples
from keras_pruner.oneshot.linear_layers import Choose, Linear
from keras_pruner.oneshot.listen import Call, Enough, Values, listening, run
from keras_pruner.oneshot.removal import Removal
from keras_pruner.oneshot.survey import Node, Survey

ROWS_BYTES = 2**28
TARGETS_BYTES = 2**28
_NOTHING_MISSING = 1e-9  # relative squared error below which there is nothing to make up for


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of one weight.

    Attributes:
        before: error of the layer's outputs on held-out samples with its mask alone, relative
            to their variance; None if it was not measured.
        after: the same after the refit.
        note: what was done, or why nothing was.
    """

    before: float | None = None
    after: float | None = None
    note: str = ""


@dataclasses.dataclass(frozen=True, eq=False)
class Walk:
    """All that is known before it begins.

    Attributes:
        model: at the beginning with its dense weights.
        fit: samples to fit on.
        held: samples to judge by.
        survey: of the model.
        masks: by the id of a kernel; the walk puts others in their place where it finds better.
        dense: value before anything was pruned, of each variable that may change.
        is_dense: whether the model holds these values when the walk begins.
        batch_norm: whether batch norms are re-estimated.
        refit: whether weights are refitted.
        announce: told the name of each layer.
        by_sparsegpt: the kernels that SparseGPT prunes in place of a refit, by id; with the
            groups of an N:M pattern.
        removals: the kernels whose masks are chosen in the course of their refit, by id.
    """

    model: keras.Model
    fit: Samples
    held: Samples
    survey: Survey
    masks: dict[int, np.ndarray]
    dense: Values
    is_dense: bool
    batch_norm: bool
    refit: bool
    announce: Callable[[str], None]
    by_sparsegpt: Mapping[int, sparsegpt.Groups | None]
    removals: Mapping[int, Removal]

    def nodes(self) -> list[Node]:
        """What has to be visited, in order."""
        return [node for node in self.survey.order if self._is_visited(node)]

    def _is_visited(self, node: Node) -> bool:
        if isinstance(node, Linear):
            return self._is_refitted(node)
        return self.batch_norm and not self._leads(node)

    def _is_refitted(self, node: Node) -> bool:
        return (
            self.refit
            and isinstance(node, Linear)
            and id(node.kernel) in self.masks
            and id(node.kernel) not in self.survey.reasons
        )

    def _leads(self, norm: keras.layers.BatchNormalization) -> bool:
        """Whether a refitted product leads into this norm and takes care of it."""
        return any(
            follower is norm and self._is_refitted(linear)
            for linear, follower in self.survey.followers.items()
        )


def go(walk: Walk) -> dict[int, Outcome]:
    """Prune, refit and re-estimate; the outcomes by the id of the kernel."""
    outcomes: dict[int, Outcome] = {}
    nodes = walk.nodes()
    refitted = {id(node.kernel) for node in nodes if isinstance(node, Linear)}
    for number, group in enumerate(_groups(nodes)):
        with contextlib.nullcontext() if walk.is_dense and number == 0 else _holding(walk.dense):
            targets = _targets(walk, group)
        if number == 0:
            _mask_the_others(walk, refitted)
        for node in group:
            if isinstance(node, Linear):
                walk.announce(node.layer.name)
                outcomes[id(node.kernel)] = _refit(walk, node, targets.pop(node))
            else:
                walk.announce(node.name)
                norms.shift(node, targets.pop(node), _moments(walk, node))
    if not nodes:
        _mask_the_others(walk, refitted)
    return outcomes


def _mask_the_others(walk: Walk, refitted: set[int]) -> None:
    to_numpy = backends.current().to_numpy
    for variable in walk.dense.variables:
        if id(variable) in walk.masks and id(variable) not in refitted:
            variable.assign(np.where(walk.masks[id(variable)], to_numpy(variable), 0))


@contextlib.contextmanager
def _holding(dense: Values) -> Iterator[None]:
    """The dense weights for a while."""
    present = Values.of(dense.variables)
    try:
        dense.restore()
        yield
    finally:
        present.restore()


# ---------------------------------------------------------------------- one layer


@dataclasses.dataclass(frozen=True, eq=False)
class _Pair:
    """Something for the samples to fit on, and for those to judge by."""

    fit: Any
    held: Any


def _refit(walk: Walk, linear: Linear, targets: _Pair) -> Outcome:
    """Refit one layer, keep what is best on held-out samples, and write it into the model."""
    rows = _rows(walk, linear)
    norm = walk.survey.followers.get(linear) if walk.batch_norm else None
    to_matrix = linear.view.to_matrix
    mask = to_matrix(walk.masks[id(linear.kernel)])
    weights = to_matrix(backends.current().to_numpy(linear.kernel)).astype(np.float32)
    updated = None
    if id(linear.kernel) in walk.by_sparsegpt and not mask.all():
        groups = walk.by_sparsegpt[id(linear.kernel)]
        updated, mask = _by_sparsegpt(rows.fit, weights, mask, groups)
    shifts = linear.bias is not None or norm is not None
    if id(linear.kernel) in walk.removals:
        removal = walk.removals[id(linear.kernel)]
        mask = removal.choose(rows.fit, targets.fit, weights, mask, shift=shifts)
    walk.masks[id(linear.kernel)] = linear.view.from_matrix(mask)
    masked = keras.ops.convert_to_tensor(np.where(mask, weights, 0))
    del weights

    def unfitted(matrix: Any) -> least_squares.Fit:
        """With the shift that the statistics of a norm behind it will bring about."""
        if norm is not None and linear.bias is None:
            return least_squares.Fit(matrix, least_squares.mean_gap(rows.fit, targets.fit, matrix))
        return least_squares.Fit(matrix, keras.ops.zeros_like(matrix[:, :1]))

    best = unfitted(masked)
    before = after = _error(best, rows.held, targets.held)
    note = "nothing to make up for"
    if before > _NOTHING_MISSING:
        note, worse = "", np.inf
        for name in _ways(updated is not None, shifts):
            if name == _REFITTED:
                fit = least_squares.refit(rows.fit, targets.fit, masked, mask, shift=shifts)
            elif name == _RESCALED:
                fit = least_squares.rescale(rows.fit, targets.fit, masked)
            else:
                fit = unfitted(keras.ops.convert_to_tensor(updated))
            fit = _constrained(linear, fit, mask)
            error = _error(fit, rows.held, targets.held)
            if error < before:
                best, after, note = fit, error, name
                break
            worse = min(worse, error)
        note = note or f"undone: the refit's error is {worse:.3g}"
    _write(linear, best, mask)
    if norm is not None:
        shift = best.shift if linear.bias is not None else 0.0
        outputs = keras.ops.matmul(rows.fit, best.matrix) + shift
        norms.shift(norm, norms.moments_of(targets.fit), norms.moments_of(outputs))
    return Outcome(before, after, note)


_REFITTED = "refitted"
_RESCALED = "rescaled: a refit was worse"
_SPARSEGPT = "SparseGPT"


def _ways(by_sparsegpt: bool, shifts: bool) -> tuple[str, ...]:
    """What to try, until one is better than the mask alone."""
    if by_sparsegpt:
        return (_SPARSEGPT,)
    return (_REFITTED, _RESCALED) if shifts else (_REFITTED,)


def _by_sparsegpt(
    rows: Any, weights: np.ndarray, mask: np.ndarray, groups: sparsegpt.Groups | None
) -> tuple[np.ndarray, np.ndarray]:
    """Updated weights and their mask, with as many kept as in the mask given."""
    inputs = keras.ops.convert_to_numpy(rows)
    kept = [int(np.count_nonzero(part)) for part in mask]
    pruned = [sparsegpt.prune(*each, groups) for each in zip(inputs, weights, kept, strict=True)]
    return tuple(np.stack(parts) for parts in zip(*pruned, strict=True))  # type: ignore[return-value]


def _write(linear: Linear, fit: least_squares.Fit, mask: np.ndarray) -> None:
    matrix = np.where(mask, keras.ops.convert_to_numpy(fit.matrix), 0)
    linear.kernel.assign(linear.view.from_matrix(matrix))
    if linear.bias is not None:
        shift = keras.ops.convert_to_numpy(fit.shift).reshape(linear.bias.shape)
        linear.bias.assign(backends.current().to_numpy(linear.bias) + shift)


def _constrained(linear: Linear, fit: least_squares.Fit, mask: np.ndarray) -> least_squares.Fit:
    """The weights as the layer's constraints would leave them after a step of training."""
    matrix, shift = fit.matrix, fit.shift
    bias, view = linear.bias, linear.view
    if linear.kernel.constraint is not None:
        kernel = view.from_matrix(np.where(mask, keras.ops.convert_to_numpy(matrix), 0))
        kernel = linear.kernel.constraint(keras.ops.convert_to_tensor(kernel))
        kept = np.where(mask, view.to_matrix(keras.ops.convert_to_numpy(kernel)), 0)
        matrix = keras.ops.convert_to_tensor(kept)
    if bias is not None and bias.constraint is not None:
        present = keras.ops.convert_to_tensor(backends.current().to_numpy(bias), "float32")
        wanted = bias.constraint(present + keras.ops.reshape(shift, bias.shape))
        shift = keras.ops.reshape(wanted - present, shift.shape)
    return least_squares.Fit(matrix, shift)


def _error(fit: least_squares.Fit, rows: Any, targets: Any) -> float:
    """Squared error of the outputs, relative to the variance of the targets."""
    missing = targets - keras.ops.matmul(rows, fit.matrix) - fit.shift
    spread = targets - keras.ops.mean(targets, axis=1, keepdims=True)
    both = [float(keras.ops.sum(keras.ops.square(a))) for a in (missing, spread)]
    return both[0] / max(both[1], 1e-30)


# ---------------------------------------------------------------------- running the model


def _groups(nodes: Sequence[Node]) -> list[list[Node]]:
    """Consecutive layers whose targets fit into memory together."""
    groups: list[list[Node]] = []
    room = 0
    for node in nodes:
        size = 0
        if isinstance(node, Linear):
            count, _, outputs = node.view.matrix_shape
            size = 4 * count * outputs * _row_limit(node)
        if not groups or size > room:
            groups.append([])
            room = TARGETS_BYTES
        groups[-1].append(node)
        room -= size
    return groups


def _row_limit(linear: Linear) -> int:
    """How many rows to fit a layer on: 32 for each input, within bounds of time and memory."""
    count, inputs, outputs = linear.view.matrix_shape
    return min(
        max(8192, min(32 * inputs, 32768)), max(32, ROWS_BYTES // (4 * count * (inputs + outputs)))
    )


def _targets(walk: Walk, group: Sequence[Node]) -> dict[Node, Any]:
    """What the dense network computes for each of the group."""
    products = [node for node in group if isinstance(node, Linear)]
    batch_norms = [node for node in group if isinstance(node, keras.layers.BatchNormalization)]
    found = _hear(walk, products, batch_norms, _times_kernel)
    return {
        node: _pair(walk, parts) if isinstance(node, Linear) else norms.pooled(parts)
        for node, parts in found.items()
    }


def _times_kernel(linear: Linear, rows: Any) -> np.ndarray:
    matrix = linear.view.to_matrix(backends.current().to_numpy(linear.kernel))
    product = keras.ops.matmul(rows, keras.ops.convert_to_tensor(matrix.astype(np.float32)))
    return keras.ops.convert_to_numpy(product)


def _rows(walk: Walk, linear: Linear) -> _Pair:
    """The layer's inputs in the network as it is now."""
    return _pair(walk, _hear(walk, [linear], [], lambda _, rows: rows)[linear])


def inputs_of(walk: Walk, linear: Linear) -> LayerInputs:
    """The layer's inputs as criteria see them."""
    return LayerInputs(keras.ops.convert_to_numpy(_rows(walk, linear).fit))


def _moments(walk: Walk, norm: keras.layers.BatchNormalization) -> Any:
    return norms.pooled(_hear(walk, [], [norm], lambda _, rows: rows)[norm])


def _pair(walk: Walk, parts: list[list[Any]]) -> _Pair:
    """Join the parts of each batch, apart for the two kinds of samples."""
    fitting = len(walk.fit.batches())
    joined = [
        keras.ops.concatenate([part for batch in some for part in batch], axis=1)
        for some in (parts[:fitting], parts[fitting:])
    ]
    return _Pair(*joined)


def _hear(
    walk: Walk,
    products: Sequence[Linear],
    batch_norms: Sequence[keras.layers.BatchNormalization],
    keep: Callable[[Linear, Any], Any],
) -> dict[Node, list[list[Any]]]:
    """Run the model on all samples; what was kept of each call, by node and batch."""
    batches = walk.fit.batches() + walk.held.batches()
    total = len(walk.fit) + len(walk.held)
    wanted: dict[Node, list[list[Any]]] = {node: [] for node in [*products, *batch_norms]}
    by_layer: dict[Any, list[Node]] = {}
    for node in wanted:
        by_layer.setdefault(node.layer if isinstance(node, Linear) else node, []).append(node)

    for number, batch in enumerate(batches):
        size = len(keras.tree.flatten(batch)[0])
        for parts in wanted.values():
            parts.append([])

        def hear(node: Node, call: Call, number: int = number, share: float = size / total) -> None:
            parts = wanted[node][-1]
            if isinstance(node, Linear):
                at_most = int(np.ceil(_row_limit(node) * share / walk.survey.calls[node]))
                seed = (walk.survey.order.index(node), number, len(parts))
                rows = keras.ops.cast(node.rows(call, _chooser(at_most, seed)), "float32")
                parts.append(keep(node, rows))
            else:
                parts.append(norms.moments(node, call))
            if all(len(p[-1]) >= walk.survey.calls[n] for n, p in wanted.items()):
                raise Enough

        listeners = {layer: _each(nodes, hear) for layer, nodes in by_layer.items()}
        with listening(listeners):
            run(walk.model, batch)
    return wanted


def _each(nodes: list[Node], hear: Callable[[Node, Call], None]) -> Callable[[Call], None]:
    def listener(call: Call) -> None:
        for node in nodes:
            hear(node, call)

    return listener


def _chooser(at_most: int, seed: tuple[int, ...]) -> Choose:
    """The same rows for the same layer, batch and call, in the dense and in the pruned run."""

    def choose(count: int) -> np.ndarray:
        if count <= at_most:
            return np.arange(count)
        return np.sort(np.random.default_rng(seed).choice(count, at_most, replace=False))

    return choose
