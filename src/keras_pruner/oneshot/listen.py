"""Listening to the layers of a running model from the outside.

For the time of a run, a layer's `call` is replaced on the instance. That works for functional,
sequential, nested and subclassed models alike, and sees each call of a shared layer.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from typing import Any

import keras
import numpy as np

from keras_pruner import backends


@dataclasses.dataclass(frozen=True, eq=False)
class Call:
    """One call of a layer.

    Attributes:
        function: the layer's own `call`.
        args: positional arguments; the first is the input.
        kwargs: the others.
        output: what it returned.
    """

    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: Any

    @property
    def input(self) -> Any:
        """The first argument."""
        return self.args[0] if self.args else next(iter(self.kwargs.values()))


Listener = Callable[[Call], None]


class Enough(BaseException):
    """Ends a run early; no error, so that no model's `except Exception` swallows it."""


@contextlib.contextmanager
def listening(listeners: Mapping[keras.layers.Layer, Listener]) -> Iterator[None]:
    """Tell each listener of every call of its layer; the model is left as it was."""
    own = {layer: layer.__dict__.get("call") for layer in listeners}
    try:
        for layer, listener in listeners.items():
            # Past Keras' attribute tracking: this is not the layer's state.
            object.__setattr__(layer, "call", _heard(layer.call, listener))
        yield
    finally:
        for layer, call in own.items():
            if call is None:
                layer.__dict__.pop("call", None)
            else:
                object.__setattr__(layer, "call", call)


def _heard(function: Callable[..., Any], listener: Listener) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        output = function(*args, **kwargs)
        listener(Call(function, args, kwargs, output))
        return output

    return call


def is_seen(call: Call) -> bool:
    """Whether the input of a call has numbers; it has none where a layer around it traces."""
    try:
        keras.ops.convert_to_numpy(call.input)
    except Exception:  # each backend has errors of its own for this
        return False
    return True


def run(model: keras.Model, batch: Any) -> Any:
    """The model's outputs for a batch, eagerly, in inference mode; None after `Enough`.

    Each run begins with the states that the model has, and gives them back: what a layer draws
    at random is the same in every run, so that the dense and the pruned network can be compared.
    """
    with undisturbed(model), backends.current().without_gradients():
        try:
            inputs = keras.tree.map_structure(keras.ops.convert_to_tensor, batch)
            return model(inputs, training=False)
        except Enough:
            return None


@contextlib.contextmanager
def undisturbed(model: keras.Model) -> Iterator[None]:
    """Give states that a run changes (seeds, counters) their values back.

    Not those of batch norms: in inference they do not change, and pruning changes them.
    """
    kept = keras.layers.BatchNormalization
    layers = [layer for layer in model._flatten_layers() if not isinstance(layer, kept)]
    variables = [v for layer in layers for v in layer._non_trainable_variables]
    variables += [seeds.state for layer in layers for seeds in layer._seed_generators]
    states = Values.of(variables)
    try:
        yield
    finally:
        states.restore()


@dataclasses.dataclass(frozen=True, eq=False)
class Values:
    """Variables and the values they had.

    Attributes:
        variables: which.
        arrays: a copy of the value of each.
    """

    variables: Sequence[keras.Variable]
    arrays: Sequence[np.ndarray]

    @classmethod
    def of(cls, variables: Sequence[keras.Variable]) -> "Values":
        """The values they have now."""
        to_numpy = backends.current().to_numpy
        return cls(variables, [np.array(to_numpy(variable)) for variable in variables])

    def restore(self) -> None:
        """Give them back."""
        for variable, array in zip(self.variables, self.arrays, strict=True):
            variable.assign(array)

    def but(self, ids: Container[int]) -> "Values":
        """Those whose ids are not among `ids`."""
        kept = [i for i, variable in enumerate(self.variables) if id(variable) not in ids]
        return Values([self.variables[i] for i in kept], [self.arrays[i] for i in kept])
