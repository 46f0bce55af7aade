"""Running a model and recording the calls of its layers from the outside.

For the time of a run, a layer's `call` is replaced on the instance. That works for functional,
sequential, nested and subclassed models alike, and sees each call of a shared layer.
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
    """Stops a run early. No `Exception`, so that an `except Exception` in a model passes it on."""


@contextlib.contextmanager
def listening(listeners: Mapping[keras.layers.Layer, Listener]) -> Iterator[None]:
    """Pass every call of a layer to its listener; the layers are left as they were."""
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


def run(model: keras.Model, batch: Any) -> Any:
    """The model's outputs for a batch, eagerly, in inference mode; None after `Enough`.

    Each run begins with the same states and restores them: what a layer draws at random is the
    same in every run, so that the dense and the pruned network can be compared.
    """
    with undisturbed(model), backends.current().without_gradients():
        try:
            inputs = keras.tree.map_structure(keras.ops.convert_to_tensor, batch)
            return model(inputs, training=False)
        except Enough:
            return None


@contextlib.contextmanager
def undisturbed(model: keras.Model) -> Iterator[None]:
    """Restore the states that a run changes (seeds, counters).

    Not those of batch norms: inference does not change them, and pruning does.
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

    def restore(self) -> None:
        """Assign the copied values."""
        for variable, array in zip(self.variables, self.arrays, strict=True):
            variable.assign(array)

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """The copied values for a while, then the present ones again."""
        present = Values.of(self.variables)
        try:
            self.restore()
            yield
        finally:
            present.restore()

    @contextlib.contextmanager
    def restored_after_error(self) -> Iterator[None]:
        """Assign the copied values if an error or Ctrl-C ends the block."""
        try:
            yield
        except BaseException:
            self.restore()
            raise
