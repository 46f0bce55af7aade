"""The layer-wise reconstruction (refit): each layer once, in the order of the calls.

The targets are the outputs of the dense network; the inputs are those of the network as pruned
and refitted so far, so that each layer also corrects the errors of those before it.

Memory, beside the model and a copy of the weights that change: the targets of a group of layers
(256 MB at most, or those of one layer), the rows of one layer (256 MB at most, and as much again
to centre them), inputs x inputs of one layer, and twice the tensors in front of a layer (256 MB
at most).
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
from keras_pruner.oneshot.arrays import like, namespace, to_numpy
from keras_pruner.oneshot.calibration import Calibration, Samples, check_magnitude
from keras_pruner.oneshot.least_squares import Fit, System, mean_gap, rescale
from keras_pruner.oneshot.linear_layers import Choose, Linear
from keras_pruner.oneshot.listen import Call, Enough, Values, listening
from keras_pruner.oneshot.replay import Replay
from keras_pruner.oneshot.trace import Node, Trace, trace
from keras_pruner.patterns import BudgetedPattern
from keras_pruner.plan import Target
from keras_pruner.selection import top_k

ROWS_BYTES = 2**28
TARGETS_BYTES = 2**28
ROUNDS = 8
ROWS_FOR_EACH_INPUT = 2
"""With fewer, masks by magnitude did better on held-out samples up to 90% zeros."""
_TOLERANCE_OF_ROUNDS = 1e-2  # enough to tell small weights from large ones
_NO_ERROR = 1e-9  # relative squared error below which nothing has to be corrected


# ---------------------------------------------------------------------- rows and targets


@dataclasses.dataclass(frozen=True, eq=False)
class _Pair:
    """Arrays for the samples to fit on, and for the held-out ones."""

    fit: Any
    held: Any


@dataclasses.dataclass(frozen=True, eq=False)
class Recorder:
    """Runs a model on calibration samples and records the inputs of its layers.

    Attributes:
        model: as it is at each run.
        fit: samples to fit on.
        held: held-out samples.
        trace: of the dense model.
        replay: runs the model on the batches of both.
    """

    model: keras.Model
    fit: Samples
    held: Samples
    trace: Trace
    replay: Replay

    @classmethod
    def of(cls, model: keras.Model, samples: Samples) -> "Recorder":
        """Split the samples and trace the dense model."""
        fit, held = samples.split()
        found = trace(model, fit.batches()[0])
        return cls(model, fit, held, found, Replay(model, fit.batches() + held.batches()))

    def rows(self, linear: Linear) -> _Pair:
        """The present inputs of a layer, as rows (groups, n, inputs)."""
        rows = self._pair(self._record([linear], lambda _, rows: rows)[linear])
        check_magnitude(to_numpy(rows.fit), f"samples that lead to inputs of {linear.layer.name!r}")
        return rows

    def inputs(self, linear: Linear) -> LayerInputs:
        """The present inputs of a layer, for criteria."""
        return LayerInputs(to_numpy(self.rows(linear).fit))

    def moments(self, norm: norms.Norm) -> norms.Moments:
        """Mean and variance of the present inputs of a norm."""
        return norms.pooled(self._record([norm])[norm])

    def outputs(self, nodes: Sequence[Node]) -> dict[Node, Any]:
        """The present outputs of layers before bias and activation; the moments of norms."""
        found = self._record(nodes, _times_kernel)
        return {
            node: self._pair(parts) if isinstance(node, Linear) else norms.pooled(parts)
            for node, parts in found.items()
        }

    def _pair(self, parts: list[list[Any]]) -> _Pair:
        fitting = len(self.fit.batches())
        joined = (
            [part for batch in some for part in batch]
            for some in (parts[:fitting], parts[fitting:])
        )
        return _Pair(*(namespace(some[0]).concatenate(some, axis=1) for some in joined))

    def _record(
        self, nodes: Sequence[Node], keep: Callable[[Linear, Any], Any] | None = None
    ) -> dict[Node, list[list[Any]]]:
        """Run the model on all samples; what is kept of each call, by node and batch.

        Of norms the moments are kept.
        """
        found: dict[Node, list[list[Any]]] = {node: [] for node in nodes}
        by_layer: dict[Any, list[Node]] = {}
        for node in nodes:
            by_layer.setdefault(node.layer if isinstance(node, Linear) else node, []).append(node)
        share = 0.0

        def hear(node: Node, call: Call) -> None:
            parts = found[node][-1]
            if isinstance(node, Linear):
                rows = node.rows(call, self._chooser(node, share, found[node]))
                parts.append(keep(node, rows) if keep else rows)
            else:
                parts.append(norms.moments(node, call))
            if all(len(p[-1]) >= self.trace.calls[n] for n, p in found.items()):
                raise Enough

        listeners = {layer: _each(group, hear) for layer, group in by_layer.items()}
        with listening(listeners):
            for batch, run_batch in self.replay.runs(listeners):
                share = len(keras.tree.flatten(batch)[0]) / (len(self.fit) + len(self.held))
                for parts in found.values():
                    parts.append([])
                run_batch()
        return found

    def _chooser(self, linear: Linear, share: float, parts: list[list[Any]]) -> Choose:
        """Chooses the same rows of a layer, batch and call in the dense and the pruned run."""
        at_most = int(np.ceil(_row_limit(linear) * share / self.trace.calls[linear]))
        seed = (self.trace.order.index(linear), len(parts) - 1, len(parts[-1]))

        def choose(count: int) -> np.ndarray:
            if count <= at_most:
                return np.arange(count)
            return np.sort(np.random.default_rng(seed).choice(count, at_most, replace=False))

        return choose


def _each(nodes: list[Node], hear: Callable[[Node, Call], None]) -> Callable[[Call], None]:
    def listener(call: Call) -> None:
        for node in nodes:
            hear(node, call)

    return listener


def _row_limit(linear: Linear) -> int:
    """The number of rows to fit a layer on: 32 for each input, within bounds of time and memory."""
    count, inputs, outputs = linear.view.matrix_shape
    return min(
        max(8192, min(32 * inputs, 32768)), max(32, ROWS_BYTES // (4 * count * (inputs + outputs)))
    )


def _times_kernel(linear: Linear, rows: Any) -> Any:
    return namespace(rows).matmul(rows, like(rows, _matrix(linear)))


def _matrix(linear: Linear) -> np.ndarray:
    """The present kernel as matrices (groups, inputs, outputs), in float32."""
    kernel = backends.current().to_numpy(linear.kernel)
    return linear.view.to_matrix(kernel).astype(np.float32)


# ---------------------------------------------------------------------- which weights stay


@dataclasses.dataclass(frozen=True, eq=False)
class Removal:
    """Chooses the mask of a kernel in rounds: refit, then remove the lowest scores.

    Magnitudes do not show what the other weights of an output can make up for. So weights are
    removed in eight rounds. In each, the remaining weights are refitted; then those with the
    lowest scores are removed: w^2 mean(x^2), the squared score of Wanda (Sun et al. 2023,
    arXiv:2306.11695), of weights that already make up for those removed before them. The number
    that stays is given.

    Attributes:
        target: the kernel, with its pattern.
    """

    target: Target

    def choose(self, system: System, weights: np.ndarray, mask: np.ndarray, rows: int) -> Any:
        """Another mask for the kernel with as many units.

        Args:
            system: the equations of the layer.
            weights: the dense weights, shape (groups, inputs, outputs); units that are all zero
                stay zero.
            mask: True = kept, of the same shape.
            rows: the number of rows behind the equations.

        Returns:
            The mask; the given one if there are fewer than two rows for each input, too few to
            tell the value of a weight.
        """
        if rows < ROWS_FOR_EACH_INPUT * weights.shape[1]:
            return mask
        units = self._units(weights != 0)
        live, kept = (int(np.count_nonzero(u)) for u in (units, self._units(mask)))
        if kept >= live:
            return mask
        pattern, kernel_shape = self.target.pattern, self.target.view.kernel_shape
        left = self._to_matrix(pattern.spread(units, kernel_shape))
        fitted = like(system.right, weights)
        for count in _counts(live, kept):
            fitted = system.solve(fitted, left, _TOLERANCE_OF_ROUNDS)
            scores = np.square(to_numpy(fitted)) * to_numpy(system.diagonal)
            left = self._keep(np.where(left, scores, -np.inf), count)
        return left

    def _units(self, mask: np.ndarray) -> np.ndarray:
        """The units of the pattern that hold a kept weight."""
        return self.target.pattern.unit_scores(self._to_kernel(mask).astype(np.float32)) > 0

    def _keep(self, scores: np.ndarray, count: int) -> np.ndarray:
        """The mask of the best `count` units."""
        pattern, kernel = self.target.pattern, self._to_kernel(scores)
        if isinstance(pattern, BudgetedPattern):
            return self._to_matrix(pattern.keep(kernel, count))
        mask = pattern(kernel)  # stay to the end, beside the best of the others
        scores = np.where(mask, np.inf, kernel).reshape(-1)
        return self._to_matrix(top_k.largest(scores, count).reshape(kernel.shape))

    def _to_kernel(self, matrix: np.ndarray) -> np.ndarray:
        return self.target.view.to_kernel(self.target.view.from_matrix(matrix))

    def _to_matrix(self, kernel: np.ndarray) -> np.ndarray:
        return self.target.view.to_matrix(self.target.view.from_kernel(kernel))


def _counts(live: int, kept: int) -> list[int]:
    """The number of units after each round, each the same fraction of the one before."""
    counts = [round(live * (kept / live) ** (i / ROUNDS)) for i in range(1, ROUNDS)]
    return [*(max(kept, count) for count in counts), kept]


# ---------------------------------------------------------------------- the layers in turn


@dataclasses.dataclass(frozen=True)
class Outcome:
    """The result for one weight.

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
class LayerwisePass:
    """The reconstruction of a dense model under given masks.

    Attributes:
        recorder: of the model, which has its dense weights at the beginning.
        options: what to do.
        masks: by the id of a kernel; those chosen in rounds replace them.
        removals: the kernels whose masks are chosen in rounds, by id.
        dense: the dense value of each variable that may change.
    """

    recorder: Recorder
    options: Calibration
    masks: dict[int, np.ndarray]
    removals: Mapping[int, Removal]
    dense: Values

    @property
    def nodes(self) -> list[Node]:
        """The layers to visit, in order."""
        return [node for node in self.recorder.trace.order if self._is_visited(node)]

    def _is_visited(self, node: Node) -> bool:
        if isinstance(node, Linear):
            return self._is_refitted(node)
        return self.options.batch_norm and not self._is_behind_a_refit(node)

    def _is_refitted(self, linear: Linear) -> bool:
        is_known = id(linear.kernel) not in self.recorder.trace.reasons
        return self.options.refit and is_known and id(linear.kernel) in self.masks

    def _is_behind_a_refit(self, norm: norms.Norm) -> bool:
        """Whether a refitted layer leads into this norm, and corrects its statistics."""
        followers = self.recorder.trace.followers.items()
        return any(follower is norm and self._is_refitted(linear) for linear, follower in followers)

    def run(self, announce: Callable[[str], None]) -> dict[int, Outcome]:
        """Prune, refit and re-estimate; the outcomes by the id of the kernel."""
        outcomes: dict[int, Outcome] = {}
        nodes = self.nodes
        for number, group in enumerate(_groups(nodes)):
            with self.dense.held() if number else contextlib.nullcontext():
                targets = self.recorder.outputs(group)
            if number == 0:
                self._mask_the_others(nodes)
            for node in group:
                if isinstance(node, Linear):
                    announce(node.layer.name)
                    outcomes[id(node.kernel)] = self._refit(node, targets.pop(node))
                else:
                    announce(node.name)
                    norms.shift(node, targets.pop(node), self.recorder.moments(node))
                    self._hold_zeros(node.moving_mean)
        if not nodes:
            self._mask_the_others(nodes)
        return outcomes

    def _mask_the_others(self, nodes: Sequence[Node]) -> None:
        refitted = {id(node.kernel) for node in nodes if isinstance(node, Linear)}
        for variable in self.dense.variables:
            if id(variable) in self.masks and id(variable) not in refitted:
                self._hold_zeros(variable)

    def _hold_zeros(self, variable: keras.Variable | None) -> None:
        """Zero what a mask does not keep, as biases and means of removed channels."""
        if variable is not None and id(variable) in self.masks:
            values = backends.current().to_numpy(variable)
            variable.assign(np.where(self.masks[id(variable)], values, 0))

    def _refit(self, linear: Linear, targets: _Pair) -> Outcome:
        """Refit one layer, keep what is best on held-out samples, and write it into the model."""
        rows, weights = self.recorder.rows(linear), _matrix(linear)
        norm = self.recorder.trace.followers.get(linear) if self.options.batch_norm else None
        shift = linear.bias is not None or norm is not None
        system = System.of(rows.fit, targets.fit, like(rows.fit, weights), shift=shift)
        mask = linear.view.to_matrix(self.masks[id(linear.kernel)])
        if id(linear.kernel) in self.removals:
            removal = self.removals[id(linear.kernel)]
            mask = removal.choose(system, weights, mask, rows.fit.shape[1])
        self.masks[id(linear.kernel)] = linear.view.from_matrix(mask)

        masked = like(rows.fit, np.where(mask, weights, 0))
        best = _unfitted(masked, rows.fit, targets.fit, norm if linear.bias is None else None)
        before = _error(best, rows.held, targets.held)
        outcome = Outcome(before, before, "no error to correct")
        if before > _NO_ERROR:
            fits = _fits(system, masked, mask, rows.fit, targets.fit, shift=shift)
            constrained = ((note, _constrained(linear, fit, mask)) for note, fit in fits)
            best, outcome = _first_better(best, before, constrained, rows.held, targets.held)
        _write(linear, best, mask)
        self._hold_zeros(linear.bias)
        if norm is not None:
            moved = best.shift if linear.bias is not None else 0.0
            outputs = namespace(rows.fit).matmul(rows.fit, best.matrix) + moved
            norms.shift(norm, norms.moments_of(targets.fit), norms.moments_of(outputs))
            self._hold_zeros(norm.moving_mean)
        return outcome


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


# ---------------------------------------------------------------------- one layer


def _unfitted(masked: Any, rows: Any, targets: Any, norm: norms.Norm | None) -> Fit:
    """The masked weights, with the shift that a norm right behind them will make up for."""
    if norm is not None:
        return Fit(masked, mean_gap(rows, targets, masked))
    return Fit(masked, namespace(masked).zeros_like(masked[:, :1]))


def _fits(
    system: System, masked: Any, mask: np.ndarray, rows: Any, targets: Any, *, shift: bool
) -> Iterator[tuple[str, Fit]]:
    """What to try in turn, until one is better than the mask alone."""
    yield "refitted", system.refit(masked, mask)
    if shift:
        yield "rescaled: a refit was worse", rescale(rows, targets, masked)


def _first_better(
    unfitted: Fit, before: float, fits: Iterator[tuple[str, Fit]], rows: Any, targets: Any
) -> tuple[Fit, Outcome]:
    """The first fit with a lower error on held-out samples than `before`; else the unfitted."""
    lowest = np.inf
    for note, fit in fits:
        error = _error(fit, rows, targets)
        if error < before:
            return fit, Outcome(before, error, note)
        lowest = min(lowest, error)
    return unfitted, Outcome(before, before, f"undone: the refit's error is {lowest:.3g}")


def _write(linear: Linear, fit: Fit, mask: np.ndarray) -> None:
    matrix = np.where(mask, to_numpy(fit.matrix), 0)
    linear.kernel.assign(linear.view.from_matrix(matrix))
    if linear.bias is not None:
        shift = to_numpy(fit.shift).reshape(linear.bias.shape)
        linear.bias.assign(backends.current().to_numpy(linear.bias) + shift)


def _constrained(linear: Linear, fit: Fit, mask: np.ndarray) -> Fit:
    """The weights as the layer's constraints would leave them after a step of training."""
    matrix, shift = fit.matrix, fit.shift
    bias, view = linear.bias, linear.view
    if linear.kernel.constraint is not None:
        kernel = view.from_matrix(np.where(mask, to_numpy(matrix), 0))
        kernel = linear.kernel.constraint(keras.ops.convert_to_tensor(kernel))
        kept = np.where(mask, view.to_matrix(keras.ops.convert_to_numpy(kernel)), 0)
        matrix = like(matrix, kept)
    if bias is not None and bias.constraint is not None:
        present = backends.current().to_numpy(bias).astype(np.float32)
        wanted = bias.constraint(
            keras.ops.convert_to_tensor(present + to_numpy(shift).reshape(bias.shape))
        )
        moved = keras.ops.convert_to_numpy(wanted) - present
        shift = like(shift, moved.reshape(shift.shape))
    return Fit(matrix, shift)


def _error(fit: Fit, rows: Any, targets: Any) -> float:
    """Squared error of the outputs, relative to the variance of the targets."""
    xp = namespace(rows)
    missing = targets - xp.matmul(rows, fit.matrix) - fit.shift
    spread = targets - xp.mean(targets, axis=1, keepdims=True)
    both = [float(xp.sum(xp.square(a))) for a in (missing, spread)]
    return both[0] / max(both[1], 1e-30)
