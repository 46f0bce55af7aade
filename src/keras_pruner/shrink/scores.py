"""The error that removing a channel causes, after a refit of the layers that read it.

Structured Optimal Brain Surgeon: when some inputs of a linear layer are removed and its other
weights are refitted, the remaining squared error has a closed form (Hassibi and Stork 1993; for
whole structures ZipLM, Kurtic et al. 2023, arXiv:2302.04089). The channels with the lowest error
are removed first, then the errors of the others are computed again. The error of a channel is a sum
over all layers that read it, each relative to the variance of its outputs.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import numpy as np

from keras_pruner import backends
from keras_pruner.channels.classes import Channels, Group, Product
from keras_pruner.oneshot.linear_layers import Linear
from keras_pruner.oneshot.listen import Call, listening, run
from keras_pruner.oneshot.reconstruct import Recorder

_DAMPING = 1e-2  # ridge, relative to the mean of the covariance's diagonal
_WIDEST = 1152  # the most inputs of a layer for which all correlations are used
_ROWS = 16384  # the most rows of inputs that are used for one layer
_ROUNDS = 32  # the number of rounds in which the channels of a group are ranked


@dataclasses.dataclass(frozen=True, eq=False)
class Ranking:
    """The channels of a group, sorted by the error of removing them.

    Attributes:
        classes: the classes of the channels; the first is removed first.
        costs: costs[i] is the relative error, summed over the layers that read the channels, when
            the first i of them are removed; costs[0] is 0.
    """

    classes: np.ndarray
    costs: np.ndarray


def rankings(
    channels: Channels, recorder: Recorder, announce: Callable[[str], None]
) -> dict[Group, Ranking]:
    """Rank the channels of every group that may be cut and whose readers can be refitted."""
    readers = _readers(channels, recorder)
    found = {}
    for group in channels.groups:
        members = set(group.classes.tolist())
        mine = [r for r in readers if not members.isdisjoint(r.classes.reshape(-1).tolist())]
        if group.reason or group.mixes or not mine or len(members) < 2:
            continue
        announce(f"channels of {group.name}")
        found[group] = _rank(group, [_Elimination(reader) for reader in mine])
    return found


def _rank(group: Group, readers: Sequence["_Elimination"]) -> Ranking:
    """Remove the channels of a group in rounds, those with the lowest costs first."""
    left = group.classes.copy()
    order: list[int] = []
    costs = [0.0]
    at_once = -(-len(left) // _ROUNDS)
    while len(left):
        added = np.sum([reader.costs(left) for reader in readers], axis=0)
        first = np.argsort(added, kind="stable")[:at_once]
        for reader in readers:
            reader.remove(left[first])
        order += left[first].tolist()
        costs += (costs[-1] + np.cumsum(np.maximum(added[first], 0))).tolist()
        left = np.delete(left, first)
    return Ranking(np.array(order), np.array(costs))


# ---------------------------------------------------------------------- what a layer reads


@dataclasses.dataclass(frozen=True, eq=False)
class _Reader:
    """A linear layer as matrices, with the covariance of its inputs.

    Attributes:
        classes: the class of each input, shape (groups, inputs).
        covariance: of the inputs, shape (groups, inputs, inputs).
        weights: shape (groups, inputs, outputs).
        variance: the sum of the variances of the outputs.
    """

    classes: np.ndarray
    covariance: np.ndarray
    weights: np.ndarray
    variance: float


def _readers(channels: Channels, recorder: Recorder) -> list[_Reader]:
    """The linear layers with an input that may be removed."""
    blocked = channels.blocked() | channels.mixed()
    linears = {}
    for product in channels.products:
        linear = recorder.trace.linear_of(product.kernel)
        if linear is not None and not blocked[product.inputs].all():
            linears[linear] = product
    moments = {linear: _Moments(linear, product) for linear, product in linears.items()}
    _observe(moments, recorder)
    return [one.reader() for one in moments.values()]


class _Moments:
    """Sums over the inputs of a layer, batch by batch."""

    def __init__(self, linear: Linear, product: Product) -> None:
        to_matrix = linear.view.to_matrix
        kernel = backends.current().to_numpy(linear.kernel).astype(np.float32)
        along = [1] * kernel.ndim
        along[product.in_axis] = -1
        numbers = np.resize(product.inputs, kernel.shape[product.in_axis]).reshape(along)
        classes = to_matrix(np.broadcast_to(numbers, kernel.shape))[:, :, 0]
        self._weights = to_matrix(kernel)
        self._taps = _taps(classes) if classes.shape[1] > _WIDEST else None
        self.classes = classes if self._taps is None else classes[:, self._taps[:, 0]]
        self._count = 0
        self._sum: Any = 0.0
        self._square: Any = 0.0
        self._outputs: list[Any] = [0.0, 0.0]

    def add(self, rows: np.ndarray) -> None:
        """Add rows of inputs, of shape (groups, n, inputs)."""
        outputs = rows @ self._weights
        self._outputs[0] = self._outputs[0] + outputs.sum(axis=1)
        self._outputs[1] = self._outputs[1] + np.square(outputs).sum(axis=1)
        if self._taps is not None:
            rows = np.concatenate([rows[:, :, tap] for tap in self._taps.T], axis=1)
        self._count += rows.shape[1]
        self._sum = self._sum + rows.sum(axis=1)
        self._square = self._square + rows.swapaxes(1, 2) @ rows

    def reader(self) -> _Reader:
        """The layer with the covariance of the rows so far."""
        mean = self._sum / self._count
        covariance = self._square / self._count - mean[:, :, None] * mean[:, None]
        weights, seen = self._weights, self._count
        if self._taps is not None:
            taps = self._taps.shape[1]
            weights = weights[:, self._taps].reshape(len(weights), len(self._taps), -1)
            seen //= taps
        sums, squares = self._outputs
        variance = float((squares / seen - np.square(sums / seen)).sum())
        return _Reader(self.classes, covariance, weights, max(variance, 1e-12))


def _taps(classes: np.ndarray) -> np.ndarray:
    """The positions of each class of inputs in the window of a large convolution.

    The positions of one class are treated as more samples of the same input. This ignores the
    correlation between neighbours in the window.
    """
    order = np.argsort(classes[0], kind="stable")
    return order.reshape(len(np.unique(classes[0])), -1)


def _observe(moments: dict[Linear, _Moments], recorder: Recorder) -> None:
    """Run the dense model, and add some rows of each layer's inputs to its moments."""
    by_layer: dict[Any, list[Linear]] = {}
    for linear in moments:
        by_layer.setdefault(linear.layer, []).append(linear)
    batches = recorder.fit.batches()
    random = np.random.default_rng(0)

    def listener(linears: list[Linear]) -> Callable[[Call], None]:
        def hear(call: Call) -> None:
            for linear in linears:
                most = -(-_ROWS // (len(batches) * recorder.trace.calls[linear]))
                rows = linear.rows(call, _some(most, random))
                moments[linear].add(keras.ops.convert_to_numpy(rows).astype(np.float32))

        return hear

    with listening({layer: listener(linears) for layer, linears in by_layer.items()}):
        for batch in batches:
            run(recorder.model, batch)


def _some(most: int, random: np.random.Generator) -> Callable[[int], np.ndarray]:
    """A function that takes a number of rows and draws the indices of at most `most` of them."""

    def choose(count: int) -> np.ndarray:
        if count <= most:
            return np.arange(count)
        return np.sort(random.choice(count, most, replace=False))

    return choose


# ---------------------------------------------------------------------- elimination


class _Elimination:
    """A linear layer from which inputs are removed; each time the other weights are refitted."""

    def __init__(self, reader: _Reader) -> None:
        width = reader.covariance.shape[1]
        diagonal = np.einsum("gii->gi", reader.covariance).mean(axis=1)
        ridge = (_DAMPING * diagonal + 1e-12)[:, None, None] * np.eye(width)
        self._inverse = np.linalg.inv(reader.covariance.astype(np.float64) + ridge)
        self._weights = reader.weights.astype(np.float64)
        self._variance = reader.variance
        self._places: dict[int, list[tuple[int, int]]] = {}
        for group, numbers in enumerate(reader.classes):
            for place, number in enumerate(numbers.tolist()):
                self._places.setdefault(number, []).append((group, place))

    def costs(self, classes: np.ndarray) -> np.ndarray:
        """The increase of the outputs' relative error from removing each class by itself."""
        found = np.zeros(len(classes))
        for group, rows, at in self._blocks(classes):
            inverse = self._inverse[group][rows[:, :, None], rows[:, None, :]]
            weights = self._weights[group][rows]
            found[at] += (weights * np.linalg.solve(inverse, weights)).sum(axis=(1, 2))
        return found / self._variance

    def _blocks(self, classes: np.ndarray) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """Batches of classes with the same number of inputs in the same matrix.

        Yields:
            The matrix's index, the inputs of each of n classes, (n, inputs), and the positions of
            these classes in `classes`, (n,).
        """
        alike: dict[tuple[int, int], tuple[list[list[int]], list[int]]] = {}
        for at, number in enumerate(classes.tolist()):
            by_group: dict[int, list[int]] = {}
            for group, place in self._places.get(number, ()):
                by_group.setdefault(group, []).append(place)
            for group, rows in by_group.items():
                found = alike.setdefault((group, len(rows)), ([], []))
                found[0].append(rows)
                found[1].append(at)
        for (group, _), (places, which) in alike.items():
            yield group, np.array(places), np.array(which)

    def remove(self, classes: np.ndarray) -> None:
        """Remove the inputs of some classes, and refit the others."""
        for group in range(len(self._weights)):
            gone = [p for n in classes.tolist() for g, p in self._places.get(n, ()) if g == group]
            if not gone:
                continue
            inverse = self._inverse[group]
            columns = inverse[:, gone]
            share = np.linalg.solve(inverse[np.ix_(gone, gone)], columns.T)
            self._weights[group] -= share.T @ self._weights[group][gone]
            self._inverse[group] = inverse - columns @ share
            self._weights[group][gone] = 0
            for place in gone:  # keeps the inverse solvable for classes that are gone
                self._inverse[group][place, place] = 1.0
