"""Batch norms after their inputs have changed."""

import dataclasses
import warnings
from typing import Any

import keras
import numpy as np

from keras_pruner import backends
from keras_pruner.model_weights import check_model
from keras_pruner.oneshot import calibration as samples_of
from keras_pruner.oneshot.calibration import Samples
from keras_pruner.oneshot.listen import Call, Enough, Values, is_seen, listening, run
from keras_pruner.validation import check_integer


@dataclasses.dataclass(frozen=True, eq=False)
class Moments:
    """Of each channel, in float64.

    Attributes:
        count: values seen in each channel.
        mean: shape (channels,).
        variance: shape (channels,).
    """

    count: int
    mean: np.ndarray
    variance: np.ndarray


def reestimate_batch_norm(model: keras.Model, calibration: Any, *, samples: int = 1024) -> None:
    """Give every batch norm the mean and variance that its inputs have now, layer by layer.

    Pruned or refitted weights change them; the moving averages of training lag behind. Use it
    after pruning without training, and again after a short fine-tuning.

    Args:
        model: any built Keras model; only moving means and variances of trainable and frozen
            `BatchNormalization` layers change. Those in a loop that a backend traces do not, and
            are warned of.
        calibration: a few hundred of the model's inputs, as for `prune`; no labels.
        samples: the most of them to use.

    Raises:
        ValueError: if the calibration cannot be used, or the model has no batch norm that is
            called and whose inputs can be looked at.
    """
    check_model(model)
    check_integer("samples", samples, least=samples_of.LEAST)
    inputs = samples_of.read(calibration, model, samples)
    calls = in_order(model, inputs.batches()[0])
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
            f"Batch norms keep the statistics they have: {traced}. They are called in a loop or a "
            "function that is traced, where nobody sees their inputs.",
            stacklevel=2,
        )
    reestimate(model, norms, inputs)


def reestimate(
    model: keras.Model, norms: dict[keras.layers.BatchNormalization, int], inputs: Samples
) -> None:
    """Do that with these norms, one after another in their order; all of them or none."""
    variables = [v for norm in norms for v in (norm.moving_mean, norm.moving_variance)]
    before = Values.of(variables)
    try:
        for norm, calls in norms.items():
            found = _heard(model, norm, calls, inputs)
            norm.moving_mean.assign(found.mean)
            norm.moving_variance.assign(found.variance)
    except BaseException:
        before.restore()
        raise


def in_order(model: keras.Model, batch: Any) -> dict[keras.layers.BatchNormalization, int]:
    """The batch norms by their first call, and how often each is called.

    0 for those that are called where a backend traces: nobody sees their inputs.
    """
    calls: dict[keras.layers.BatchNormalization, int] = {}

    def listener(norm: keras.layers.BatchNormalization) -> Any:
        def hear(call: Call) -> None:
            calls[norm] = calls.get(norm, 0) + is_seen(call)

        return hear

    found = [
        layer
        for layer in model._flatten_layers()
        if isinstance(layer, keras.layers.BatchNormalization)
    ]
    with listening({norm: listener(norm) for norm in found}):
        run(model, batch)
    return calls


def _heard(
    model: keras.Model,
    norm: keras.layers.BatchNormalization,
    calls: int,
    inputs: Samples,
) -> Moments:
    parts: list[list[Moments]] = []

    def hear(call: Call) -> None:
        parts[-1].append(moments(norm, call))
        if len(parts[-1]) == calls:
            raise Enough

    with listening({norm: hear}):
        for batch in inputs.batches():
            parts.append([])
            run(model, batch)
    return pooled(parts)


def moments(norm: keras.layers.BatchNormalization, call: Call) -> Moments:
    """Of one call's inputs; masked steps left out."""
    values = keras.ops.cast(keras.ops.moveaxis(call.input, norm.axis, -1), "float32")
    mask = call.kwargs.get("mask")
    flat = keras.ops.reshape(values, (-1, values.shape[-1]))
    if mask is not None:
        live = np.flatnonzero(keras.ops.convert_to_numpy(mask).reshape(-1))
        if len(live) and flat.shape[0] == mask.shape[0] * mask.shape[1]:
            flat = keras.ops.take(flat, live, axis=0)
    return moments_of(flat[None])


def moments_of(rows: Any) -> Moments:
    """Of rows (groups, n, channels of a group): centred, in two passes."""
    mean = keras.ops.mean(rows, axis=1, keepdims=True)
    variance = keras.ops.mean(keras.ops.square(rows - mean), axis=1)
    mean, variance = (
        keras.ops.convert_to_numpy(a).astype(np.float64).reshape(-1) for a in (mean, variance)
    )
    return Moments(rows.shape[1], mean, variance)


def pooled(parts: list[list[Moments]]) -> Moments:
    """Of all calls in all batches."""
    all_ = [part for batch in parts for part in batch]
    counts = np.array([part.count for part in all_], float)[:, None]
    means = np.array([part.mean for part in all_])
    variances = np.array([part.variance for part in all_])
    mean = (counts * means).sum(0) / counts.sum()
    variance = (counts * (variances + np.square(means - mean))).sum(0) / counts.sum()
    return Moments(int(counts.sum()), mean, variance)


def shift(norm: keras.layers.BatchNormalization, dense: Moments, present: Moments) -> None:
    """Move the statistics by what has changed between the dense and the present network.

    What training knows beyond the calibration samples is kept, and nothing changes where the
    inputs have not.
    """
    to_numpy = backends.current().to_numpy
    ratio = np.where(
        dense.variance > 1e-12, present.variance / np.maximum(dense.variance, 1e-12), 1
    )
    norm.moving_mean.assign(to_numpy(norm.moving_mean) + (present.mean - dense.mean))
    norm.moving_variance.assign(to_numpy(norm.moving_variance) * ratio)
