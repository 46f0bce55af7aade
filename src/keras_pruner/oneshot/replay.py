"""Runs of a model on the same batches; each begins at the first layer whose inputs may differ.

A refit visits one layer after another, and the layers before it do not change any more. So the
tensors in front of a layer are kept, and the next run begins with them: all runs together cost
about as much as two, not as many as there are layers.
"""

import contextlib
import dataclasses
import functools
import hashlib
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import keras
import numpy as np

from keras_pruner import backends
from keras_pruner.model_graph import Call, ModelGraph, Tensor, functional_form
from keras_pruner.oneshot.arrays import to_array, to_numpy
from keras_pruner.oneshot.listen import Enough, run, undisturbed

KEPT_BYTES = 2**28
"""Largest memory for kept tensors; if they take more, the next run begins at an earlier layer."""


@dataclasses.dataclass(frozen=True, eq=False)
class _Kept:
    """The tensors in front of a call.

    Attributes:
        position: the position of the call: the number of calls before it.
        weights: a digest of the weights of the calls before it.
        tensors: for each batch, the tensors that this call and later ones take.
    """

    position: int
    weights: bytes
    tensors: list[dict[Tensor, Any]]


class Replay:
    """Runs a model on batches as often as asked.

    Every run begins at the inputs if the model is neither functional nor Sequential, or if it draws
    random numbers: a run that begins later would draw other numbers.

    Args:
        model: any model.
        batches: inputs of the model.

    Example:
        >>> layers = [keras.Input((4,)), keras.layers.Dense(3), keras.layers.Dense(2)]
        >>> model = keras.Sequential(layers)
        >>> replay = Replay(model, [np.ones((8, 4), "float32")])
        >>> for batch, go in replay.runs([model.layers[1]]):
        ...     go()  # calls both layers
        >>> for batch, go in replay.runs([model.layers[1]]):
        ...     go()  # calls the second one
    """

    def __init__(self, model: keras.Model, batches: list[Any]) -> None:
        self._batches = batches
        self._model = model
        graph = _graph_of(model, batches[0])
        self._pieces = None if graph is None else _Pieces(model, graph)
        self._kept: _Kept | None = None

    def runs(
        self, layers: Iterable[keras.layers.Layer]
    ) -> Iterator[tuple[Any, Callable[[], None]]]:
        """For each batch: the batch, and a function that runs the model on it in inference mode.

        The run calls the given layers, all of their calls, and what comes after them. It ends
        where a listener raises `Enough`.
        """
        pieces = self._pieces
        first = None if pieces is None else pieces.first_call(set(layers))
        if pieces is None or first is None:
            for batch in self._batches:
                yield batch, functools.partial(run, self._model, batch)
            return
        weights = pieces.weights_before(first)
        kept = self._kept_before(first)
        found: list[dict[Tensor, Any]] = []

        def go(number: int) -> None:
            if kept is None:
                begin, given = 0, pieces.inputs(self._batches[number])
            else:
                begin, given = kept.position, kept.tensors[number]
            tensors = pieces.run(given, begin, first)
            if _size(tensors) * len(self._batches) <= KEPT_BYTES:
                found.append(tensors)

        for number, batch in enumerate(self._batches):
            yield batch, functools.partial(go, number)
        if len(found) == len(self._batches):
            self._kept = _Kept(first, weights, found)

    def _kept_before(self, first: int) -> _Kept | None:
        """The kept tensors; None if they come after the call, or if weights before them changed."""
        kept = self._kept
        if self._pieces is None or kept is None or kept.position > first:
            return None
        return kept if kept.weights == self._pieces.weights_before(kept.position) else None


@dataclasses.dataclass(frozen=True, eq=False)
class _Pieces:
    """A model as a list of calls of its layers."""

    model: keras.Model
    graph: ModelGraph

    def first_call(self, layers: set[keras.layers.Layer]) -> int | None:
        """The position of the first call of one of the layers, or of a layer that holds one."""
        calls = enumerate(self.graph.calls)
        return next((position for position, call in calls if layers & _layers_of(call)), None)

    def weights_before(self, position: int) -> bytes:
        """A digest of the present weights of the calls before a position."""
        digest = hashlib.blake2b()
        for layer in dict.fromkeys(call.layer for call in self.graph.calls[:position]):
            for variable in getattr(layer, "variables", ()):
                digest.update(backends.current().to_numpy(variable).tobytes())
        return digest.digest()

    def inputs(self, batch: Any) -> dict[Tensor, Any]:
        """The tensors that enter the graph."""
        return dict(zip(self.graph.inputs, _graph_inputs(self.model, batch), strict=True))

    def run(self, tensors: dict[Tensor, Any], begin: int, first: int) -> dict[Tensor, Any]:
        """Run the calls from `begin` on; return the tensors that those from `first` on take."""
        kept: dict[Tensor, Any] = {}
        with (
            undisturbed(self.model),
            backends.current().without_gradients(),
            contextlib.suppress(Enough),
        ):
            for position, call in enumerate(self.graph.calls[begin:], begin):
                tensors = {t: v for t, v in tensors.items() if self._last_use[t] >= position}
                if position == first:
                    kept = tensors
                if not call.is_input:
                    tensors = tensors | call.run(tensors, _call)
        return kept

    @functools.cached_property
    def _last_use(self) -> dict[Tensor, int]:
        """The position of the last call that takes a tensor; -1 if none does."""
        found = {tensor: -1 for call in self.graph.calls for tensor in call.outputs}
        for position, call in enumerate(self.graph.calls):
            found |= dict.fromkeys(call.inputs, position)
        return found


def _graph_of(model: keras.Model, batch: Any) -> ModelGraph | None:
    """The calls of the model; None if running them one by one gives other outputs."""
    if not (isinstance(model, keras.Sequential) or hasattr(model, "_nodes_by_depth")):
        return None
    with undisturbed(model) as states, backends.current().without_gradients():
        whole = model(keras.tree.map_structure(keras.ops.convert_to_tensor, batch), training=False)
        if states.have_changed():
            return None
        try:
            graph = ModelGraph(model)
            pieces = graph.run(_graph_inputs(model, batch), _call)
        except Exception:  # a nested model may do something else when its call is traced
            return None
    both = (keras.tree.flatten(outputs) for outputs in (whole, pieces))
    return graph if all(_same(a, b) for a, b in zip(*both, strict=True)) else None


def _same(a: Any, b: Any) -> bool:
    a, b = to_numpy(to_array(a)), to_numpy(to_array(b))
    scale = np.abs(a[np.isfinite(a)]).max(initial=0)
    return a.shape == b.shape and np.allclose(a, b, rtol=0, atol=1e-5 * scale, equal_nan=True)


def _graph_inputs(model: keras.Model, batch: Any) -> list[Any]:
    """The tensors that enter the graph of a model: a batch as the model's `call` prepares it."""
    form = functional_form(model)
    found: list[Any] = []

    def enter(inputs: Any, *_args: Any, **_kwargs: Any) -> None:
        found.extend(keras.tree.flatten(inputs))
        raise Enough

    object.__setattr__(form, "_run_through_graph", enter)  # as in `listening`
    try:
        run(model, batch)
    finally:
        form.__dict__.pop("_run_through_graph")
    return found


def _call(call: Call, *args: Any, **kwargs: Any) -> Any:
    """Call the layer as a model in inference mode does."""
    if "training" in getattr(call.layer, "_call_context_args", ()):
        kwargs = kwargs | {"training": False}
    return call.layer(*args, **kwargs)


def _layers_of(call: Call) -> set[Any]:
    inner = call.layer._flatten_layers() if isinstance(call.layer, keras.layers.Layer) else ()
    return {call.layer, *inner}


def _size(tensors: dict[Tensor, Any]) -> int:
    """The bytes of some tensors."""
    return sum(4 * math.prod(value.shape) for value in tensors.values() if value is not None)
