"""Train biases and normalization vectors beside rounded kernels, without labels.

They learn to reproduce the outputs of the exact model. This removes much of the error that the
rounding of kernels causes. The kernels stay as they were rounded.
"""

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence

import keras
import numpy as np

from keras_pruner import backends
from keras_pruner.oneshot.calibration import Calibration
from keras_pruner.oneshot.distillation import Teacher
from keras_pruner.oneshot.listen import Values
from keras_pruner.oneshot.outputs import dense_outputs, outputs_of, relative_error
from keras_pruner.oneshot.report import Distillation
from keras_pruner.reporting.console import show_progress

_RATE = 1e-3


def train_vectors(
    model: keras.Model,
    rounded: keras.Model,
    kernels: Sequence[keras.Variable],
    options: Calibration,
) -> Distillation:
    """Train all but the kernels of a rounded model, in place, on the outputs of the exact one.

    If that makes the outputs on held-out samples worse, as where the statistics of batch norms lag
    far behind, the model is trained as it is used: with the statistics that it has.

    The values that training has changed keep 12 significant bits, so that they take less space.

    Args:
        model: the exact model.
        rounded: the rounded model; unchanged if no training makes these outputs better.
        kernels: the weights of `rounded` that are not trained.
        options: the samples, of which one in eight is held out, and the number of epochs.

    Raises:
        ValueError: if all vectors are frozen.
    """
    epochs = options.distillation_epochs
    fit, held = options.read(model).split()
    wanted = dense_outputs(model, held)

    def error() -> float:
        return relative_error(outputs_of(rounded, held), wanted)

    title = f"training the vectors of {model.name}"
    with _fixed(kernels), show_progress(title, epochs, shown=options.progress) as announce:
        if not rounded.trainable_variables:
            raise ValueError(
                "`distillation_epochs` trains the biases and the vectors of normalization layers. "
                f"Received: {model.name!r}, in which all of them are frozen. Set their layers' "
                "`trainable` to True, or leave it out."
            )
        untrained = Values.of(rounded.variables)
        teacher, before = Teacher.of(model, fit, epochs, rate=_RATE), error()
        result = teacher.improve(rounded, before, error, announce)
        if not result.kept:
            again = dataclasses.replace(teacher, as_in_use=True)
            result = again.improve(rounded, before, error, announce)
        if not result.kept:
            return result
        _shorten_changed(untrained)
        return dataclasses.replace(result, after=error())


def _shorten_changed(untrained: Values) -> None:
    """Round the variables that have changed to 12 significant bits: by at most 1/4096."""
    for variable, before in zip(untrained.variables, untrained.arrays, strict=True):
        values = backends.current().to_numpy(variable)
        if values.dtype == np.float32 and not np.array_equal(values, before):
            fraction, exponent = np.frexp(values)
            variable.assign(np.ldexp(np.round(fraction * 2**12) / 2**12, exponent))


@contextlib.contextmanager
def _fixed(variables: Sequence[keras.Variable]) -> Iterator[None]:
    """A context in which some variables are not trained."""
    before = [variable.trainable for variable in variables]
    for variable in variables:
        variable.trainable = False
    try:
        yield
    finally:
        for variable, trainable in zip(variables, before, strict=True):
            variable.trainable = trainable
