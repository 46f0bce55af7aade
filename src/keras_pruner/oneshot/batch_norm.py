"""Batch normalization: re-estimate the statistics after the inputs have changed."""

import dataclasses
import warnings
from typing import Any, TypeAlias

import keras
import numpy as np

from keras_pruner import backends
from keras_pruner.model_weights import check_model
from keras_pruner.oneshot.arrays import mean, namespace, to_array, to_numpy
from keras_pruner.oneshot.calibration import Calibration, Samples
from keras_pruner.oneshot.listen import Call, Enough, Values, listening, run
from keras_pruner.oneshot.replay import Replay

Norm: TypeAlias = keras.layers.BatchNormalization


@dataclasses.dataclass(frozen=True, eq=False)
class Moments:
    """Mean and variance of each channel, in float64.

    Attributes:
        count: the number of values in each channel.
        mean: shape (channels,).
        variance: shape (channels,).
    """

    count: int
    mean: np.ndarray
    variance: np.ndarray


def reestimate_batch_norm(model: keras.Model, calibration: Any) -> None:
    """Set every batch norm to the mean and variance of its present inputs, layer by layer.

    Pruning and refitting change the inputs of batch norms, and the moving averages of a short
    training lag behind. Use this after pruning without training, and after a short fine-tuning.

    Args:
        model: any built Keras model; only moving means and variances of trainable and frozen
            `BatchNormalization` layers change. Those in a loop that a backend traces do not
            change; a warning names them.
        calibration: a few hundred of the model's inputs, without labels, or a `Calibration` of
            them, of which only `data` and `samples` are used.

    Raises:
        ValueError: if the calibration cannot be used, or the model calls no batch norm whose
            inputs can be seen.

    Example:
        >>> layers = [keras.Input((4,)), keras.layers.BatchNormalization()]
        >>> model = keras.Sequential(layers)
        >>> x = np.random.default_rng(0).normal(3, 1, size=(512, 4))
        >>> reestimate_batch_norm(model, x)
        >>> moving_mean = model.layers[0].get_weights()[2]
        >>> bool(abs(moving_mean - x.mean(0)).max() < 1e-3)
        True
    """
    check_model(model)
    inputs = Calibration.of(calibration).read(model)
    calls = calls_of_norms(model, inputs.batches()[0])
    norms = {norm: count for norm, count in calls.items() if count}
    if not norms:
        raise ValueError(
            "`model` must have BatchNormalization layers that it calls, and not in a loop or a "
            f"function that is traced. Received: {model.name!r} without any; there is nothing to "
            "re-estimate."
        )
    traced = [norm.path for norm in calls if norm not in norms]
    if traced:
        warnings.warn(
            f"The statistics of these BatchNormalization layers were not re-estimated: {traced}. "
            "They are called in a loop or in a traced function, where their inputs cannot be "
            "recorded. To update them, train the model for some steps with kp.KeepZeros().",
            stacklevel=2,
        )
    reestimate(model, norms, inputs)


def reestimate(model: keras.Model, norms: dict[Norm, int], inputs: Samples) -> None:
    """Re-estimate norms one by one, given with their numbers of calls; all of them or none."""
    variables = [v for norm in norms for v in (norm.moving_mean, norm.moving_variance)]
    replay = Replay(model, inputs.batches())
    with Values.of(variables).restored_after_error():
        for norm, calls in norms.items():
            found = _moments_of_inputs(replay, norm, calls)
            norm.moving_mean.assign(found.mean)
            norm.moving_variance.assign(found.variance)


def calls_of_norms(model: keras.Model, batch: Any) -> dict[Norm, int]:
    """The batch norms in the order of their first call, with the number of calls in a run.

    The number is 0 for norms that are called in a trace, where their inputs have no values.
    """
    calls: dict[Norm, int] = {}

    def listener(norm: Norm) -> Any:
        def hear(call: Call) -> None:
            calls[norm] = calls.get(norm, 0) + (not call.is_traced)

        return hear

    kind = keras.layers.BatchNormalization
    norms = [layer for layer in model._flatten_layers() if isinstance(layer, kind)]
    with listening({norm: listener(norm) for norm in norms}):
        run(model, batch)
    return calls


def _moments_of_inputs(replay: Replay, norm: Norm, calls: int) -> Moments:
    parts: list[list[Moments]] = []

    def hear(call: Call) -> None:
        parts[-1].append(moments(norm, call))
        if len(parts[-1]) == calls:
            raise Enough

    with listening({norm: hear}):
        for _, run_batch in replay.runs([norm]):
            parts.append([])
            run_batch()
    return pooled(parts)


def moments(norm: Norm, call: Call) -> Moments:
    """The moments of the inputs of one call; masked time steps do not count."""
    values = to_array(call.input)
    xp = namespace(values)
    values = xp.moveaxis(values, norm.axis, -1)
    flat = xp.reshape(values, (-1, values.shape[-1]))
    mask = call.kwargs.get("mask")
    if mask is not None:
        live = np.flatnonzero(keras.ops.convert_to_numpy(mask))
        if len(live) and flat.shape[0] == mask.shape[0] * mask.shape[1]:
            flat = xp.take(flat, live, axis=0)
    return moments_of(flat[None])


def moments_of(rows: Any) -> Moments:
    """The moments of rows of shape (groups, n, channels of a group), computed in two passes."""
    means = mean(rows, axis=1)
    variances = mean(namespace(rows).square(rows - means), axis=1)
    found = (to_numpy(a).astype(np.float64).reshape(-1) for a in (means, variances))
    return Moments(rows.shape[1], *found)


def pooled(parts: list[list[Moments]]) -> Moments:
    """The moments over all calls in all batches."""
    all_ = [part for batch in parts for part in batch]
    counts = np.array([part.count for part in all_], float)[:, None]
    means = np.array([part.mean for part in all_])
    variances = np.array([part.variance for part in all_])
    centre = (counts * means).sum(0) / counts.sum()
    variance = (counts * (variances + np.square(means - centre))).sum(0) / counts.sum()
    return Moments(int(counts.sum()), centre, variance)


def shift(norm: Norm, dense: Moments, present: Moments) -> None:
    """Move the statistics by the difference between the dense and the present network.

    This keeps what training learned from more data than the calibration samples, and leaves a norm
    alone if its inputs have not changed.
    """
    to_numpy = backends.current().to_numpy
    ratio = np.where(
        dense.variance > 1e-12, present.variance / np.maximum(dense.variance, 1e-12), 1
    )
    norm.moving_mean.assign(to_numpy(norm.moving_mean) + (present.mean - dense.mean))
    norm.moving_variance.assign(to_numpy(norm.moving_variance) * ratio)
