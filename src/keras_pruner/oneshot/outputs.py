"""The outputs of a model on calibration samples, and how far two of them differ."""

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from keras_pruner.oneshot.calibration import Samples
from keras_pruner.oneshot.listen import run

HUGE = 1e6
"""Magnitude from which an output is taken for a masked logit (attention masks add about -1e9)."""


def outputs_of(model: keras.Model, samples: Samples) -> list[np.ndarray]:
    """Every output of the model for all samples, in float32."""
    batches = [keras.tree.flatten(run(model, batch)) for batch in samples.batches()]
    return [
        np.concatenate([keras.ops.convert_to_numpy(part) for part in parts]).astype(np.float32)
        for parts in zip(*batches, strict=True)
    ]


def dense_outputs(model: keras.Model, samples: Samples) -> list[np.ndarray]:
    """The outputs that others are compared with.

    Raises:
        ValueError: if some are NaN.
    """
    outputs = outputs_of(model, samples)
    if any(np.isnan(output).any() for output in outputs):
        raise ValueError(
            f"`calibration` must be inputs on which {model.name!r} gives numbers. Received: "
            "samples for which some of its outputs are NaN. Look for NaN in the model's weights, "
            "and leave out samples outside the range it was trained on."
        )
    return outputs


def relative_error(outputs: Sequence[np.ndarray], dense: Sequence[np.ndarray]) -> float:
    """Mean squared difference from the dense outputs, relative to their variance.

    The mean over all outputs of a model. 0: equal; 1: no better than the mean of the dense
    outputs for every sample. Masked logits are left out. Infinite where one output is a number
    and the other is not.
    """
    pairs = zip(outputs, dense, strict=True)
    return float(np.mean([_relative_error(found, wanted) for found, wanted in pairs]))


def _relative_error(found: np.ndarray, dense: np.ndarray) -> float:
    return float(errors_of_samples(found, dense).mean())


def errors_of_samples(found: np.ndarray, dense: np.ndarray) -> np.ndarray:
    """The relative error of each sample; their mean is that of the output."""
    wanted = np.ma.array(dense, mask=masked_logits(found, dense))
    with np.errstate(invalid="ignore"):
        missing, spread = (
            np.ma.filled(np.square(difference).reshape(len(dense), -1).sum(axis=1), 0.0)
            for difference in (found - wanted, wanted - wanted.mean(axis=0))
        )
    errors = missing / max(float(spread.mean()), 1e-30)
    return np.where(np.isfinite(errors), errors, np.inf)


def masked_logits(a: Any, b: Any) -> Any:
    """Where two outputs hold masked logits, which carry no information: the same huge number.

    Both are NumPy arrays, or tensors of the backend.
    """
    return (a == b) & ~(abs(b) < HUGE)
