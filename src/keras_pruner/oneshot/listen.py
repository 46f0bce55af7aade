"""Run a model and record the calls of its layers, without changing the model.

During a run, the `call` of a layer is replaced on the instance. This works for functional,
sequential, nested and subclassed models, and sees each call of a shared layer.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
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
        kwargs: keyword arguments.
        output: the layer's output.
    """

    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: Any

    @property
    def input(self) -> Any:
        """The first argument."""
        return self.args[0] if self.args else next(iter(self.kwargs.values()))

    @property
    def is_traced(self) -> bool:
        """Whether a layer around it traces the call, so that its tensors have no values."""
        try:
            keras.ops.convert_to_numpy(self.input)
        except Exception:  # each backend raises an error of its own for a tracer
            return True
        return False


Listener = Callable[[Call], None]


class Enough(BaseException):
    """Stops a run early. Not an `Exception`, so that `except Exception` in a model lets it pass."""


@contextlib.contextmanager
def listening(listeners: Mapping[keras.layers.Layer, Listener]) -> Iterator[None]:
    """A context in which every call of a layer is passed to its listener."""
    own = {layer: layer.__dict__.get("call") for layer in listeners}
    try:
        for layer, listener in listeners.items():
            # Without Keras' attribute tracking: this is not the layer's state.
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


def run(model: keras.Model, batch: Any) -> Any:
    """The model's outputs for a batch, run eagerly in inference mode; None after `Enough`.

    The random states are restored afterwards, so that a layer draws the same numbers in every run,
    and the dense and the pruned model can be compared.
    """
    with undisturbed(model), backends.current().without_gradients():
        try:
            inputs = keras.tree.map_structure(keras.ops.convert_to_tensor, batch)
            return model(inputs, training=False)
        except Enough:
            return None


@contextlib.contextmanager
def undisturbed(model: keras.Model) -> Iterator["Values"]:
    """A context after which the states that a run changes (seeds, counters) are restored.

    It gives the states.

    The statistics of batch norms are not restored: inference does not change them, but pruning
    does.
    """
    kept = keras.layers.BatchNormalization
    layers = [layer for layer in model._flatten_layers() if not isinstance(layer, kept)]
    variables = [v for layer in layers for v in layer._non_trainable_variables]
    variables += [seeds.state for layer in layers for seeds in layer._seed_generators]
    states = Values.of(variables)
    try:
        yield states
    finally:
        states.restore()


@dataclasses.dataclass(frozen=True, eq=False)
class Values:
    """A copy of the values of some variables.

    Attributes:
        variables: the variables.
        arrays: the value that each had.
    """

    variables: Sequence[keras.Variable]
    arrays: Sequence[np.ndarray]

    @classmethod
    def of(cls, variables: Sequence[keras.Variable]) -> "Values":
        """Copy the present values."""
        to_numpy = backends.current().to_numpy
        return cls(variables, [np.array(to_numpy(variable)) for variable in variables])

    def have_changed(self) -> bool:
        """Whether a variable has another value now."""
        to_numpy = backends.current().to_numpy
        pairs = zip(self.variables, self.arrays, strict=True)
        return any(not np.array_equal(to_numpy(v), array) for v, array in pairs)

    def restore(self) -> None:
        """Assign the copied values."""
        for variable, array in zip(self.variables, self.arrays, strict=True):
            variable.assign(array)

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """A context in which the variables have the copied values."""
        present = Values.of(self.variables)
        try:
            self.restore()
            yield
        finally:
            present.restore()

    @contextlib.contextmanager
    def restored_after_error(self) -> Iterator[None]:
        """A context after which the copied values are assigned, if an error or Ctrl-C ends it."""
        try:
            yield
        except BaseException:
            self.restore()
            raise
