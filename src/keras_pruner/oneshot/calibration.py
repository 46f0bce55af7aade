"""Calibration samples: a few unlabelled inputs of the model, in any form that Keras takes."""

import dataclasses
import itertools
import numbers
from collections.abc import Iterable, Iterator
from typing import Any

import keras
import numpy as np

from keras_pruner.validation import shown

LEAST = 16
"""Fewer samples than this say nothing; 512 real ones are a good number."""
MOST = 1024
"""So many are used of what is given, unless more are asked for."""
_ELEMENTS = 2**22  # input numbers in one batch, at most
_BATCH = 128
_EVERY = 8  # each eighth sample is held out


@dataclasses.dataclass(frozen=True, eq=False)
class Samples:
    """Inputs of a model, in memory.

    Attributes:
        inputs: the structure of arrays the model is called on; first axis: the samples.
    """

    inputs: Any

    def __len__(self) -> int:
        return len(keras.tree.flatten(self.inputs)[0])

    def batch_size(self, most: int) -> int:
        """So many samples at a time, fewer where the inputs are large."""
        elements = sum(leaf[:1].size for leaf in keras.tree.flatten(self.inputs))
        return max(1, min(most, _ELEMENTS // max(1, elements)))

    def batches(self) -> list[Any]:
        """Pieces of at most 128 samples, fewer where the inputs are large."""
        size = self.batch_size(_BATCH)
        return [self.take(slice(i, i + size)).inputs for i in range(0, len(self), size)]

    def split(self) -> tuple["Samples", "Samples"]:
        """Those to fit on, and each eighth one, which is held out."""
        held = np.arange(len(self)) % _EVERY == _EVERY // 2
        return self.take(~held), self.take(held)

    def take(self, index: Any) -> "Samples":
        """Those that an index of their first axis chooses."""
        return Samples(keras.tree.map_structure(lambda leaf: leaf[index], self.inputs))


def read(calibration: Any, model: keras.Model, limit: int = MOST) -> Samples:
    """The samples in `calibration`.

    Args:
        calibration: an array or a list or dict of them, as the model takes them; or batches of
            such: a `tf.data.Dataset`, a PyTorch `DataLoader`, a Keras `PyDataset`, a generator.
            Of batches (inputs, labels, ...) only the inputs are used.
        model: that the samples are for.
        limit: the most samples to use: of arrays evenly spaced ones, of batches the first.

    Raises:
        ValueError: if they are too few, all the same, NaN or infinite, or of the wrong shape, or
            the model is stateful.
    """
    if isinstance(calibration, list | tuple) and len(calibration) == 1:
        calibration = calibration[0]
    _check_no_numbers(calibration)
    if _is_array(calibration) or _holds_arrays(calibration):
        inputs = keras.tree.map_structure(_to_numpy, calibration)
        lengths = {len(leaf) if leaf.ndim else 0 for leaf in keras.tree.flatten(inputs)}
        if len(lengths) > 1:
            raise ValueError(
                "`calibration` must have as many samples in each of its arrays. "
                f"Received: arrays of {sorted(lengths)} samples.{_if_batches(inputs)}"
            )
        samples = Samples(inputs)
        if len(samples) > limit:
            samples = samples.take(np.linspace(0, len(samples) - 1, limit).astype(int))
    else:
        samples = _collect(_batches(calibration), model, limit)
    _check(samples, model)
    return samples


def _is_array(value: Any) -> bool:
    return hasattr(value, "shape") and hasattr(value, "dtype") and hasattr(value, "__getitem__")


def _holds_arrays(value: Any) -> bool:
    leaves = keras.tree.flatten(value) if isinstance(value, list | tuple | dict) else []
    return bool(leaves) and all(map(_is_array, leaves))


def _check_no_numbers(calibration: Any) -> None:
    """Refuse lists of Python's numbers, of which nobody knows where the arrays begin."""
    leaves = keras.tree.flatten(calibration) if isinstance(calibration, list | tuple | dict) else []
    if leaves and isinstance(leaves[0], numbers.Number) and not _is_array(leaves[0]):
        raise ValueError(
            "`calibration` must be arrays, not lists of numbers. Received: "
            f"{shown(calibration)}. Pass `np.asarray(calibration)`, or a list of such if the model "
            "has several inputs."
        )


def _if_batches(inputs: Any) -> str:
    """What to type if a list, which reads as one array for each input, holds batches."""
    if not isinstance(inputs, list | tuple):
        return ""
    shapes = {leaf.shape[1:] for leaf in keras.tree.flatten(inputs)}
    if len(shapes) == 1:
        return " If these are batches, pass `np.concatenate(calibration)`."
    if all(isinstance(part, list | tuple) for part in inputs):
        return " If these are batches, pass `iter(calibration)`."
    return ""


def _to_numpy(leaf: Any) -> np.ndarray:
    if hasattr(leaf, "toarray"):
        raise ValueError(
            "`calibration` must hold its zeros, too. Received: a sparse matrix of type "
            f"{type(leaf).__name__}. Call `.toarray()` on it."
        )
    return keras.ops.convert_to_numpy(leaf) if keras.ops.is_tensor(leaf) else np.asarray(leaf)


def _batches(calibration: Any) -> Iterator[Any]:
    if isinstance(calibration, keras.utils.PyDataset):
        endless = calibration.num_batches is None
        return (calibration[i] for i in (itertools.count() if endless else range(len(calibration))))
    if isinstance(calibration, Iterable) and not isinstance(calibration, str | dict):
        return iter(calibration)
    raise ValueError(
        "`calibration` must be arrays, a tf.data.Dataset, a PyTorch DataLoader, a Keras "
        "PyDataset, or a generator of batches. "
        f"Received: an object of type {type(calibration).__module__}.{type(calibration).__name__}."
    )


def _collect(batches: Iterator[Any], model: keras.Model, limit: int) -> Samples:
    """As many batches as it takes for `limit` samples, as one."""
    known = getattr(model, "inputs", None) or []
    wanted = len(known) or 1
    parts: list[Any] = []
    count = 0
    for element in batches:
        inputs = keras.tree.map_structure(_to_numpy, _inputs_of(element, wanted))
        leaves = keras.tree.flatten(inputs)
        one = len(known) == len(leaves) == 1 and _fits(known[0].shape[1:], leaves[0].shape)
        if one or not leaves or not leaves[0].ndim:
            raise ValueError(
                "`calibration` must give batches, whose first axis are the samples. "
                f"Received: an element of shapes {[leaf.shape for leaf in leaves]}. "
                "Batch it: `dataset.batch(32)`."
            )
        parts.append(inputs)
        count += len(leaves[0])
        if count >= limit:
            break
    if not parts:
        raise ValueError(
            "`calibration` gave no batch at all. Pass a fresh generator, or a data set that can "
            "be read again."
        )
    first, *others = ([leaf.shape[1:] for leaf in keras.tree.flatten(part)] for part in parts)
    for other in others:
        if other != first:
            raise ValueError(
                "`calibration` must have samples of one shape in all batches. Received: samples "
                f"of shape {first} in one, {other} in another. Pad them to one length."
            )
    joined = keras.tree.map_structure(lambda *leaves: np.concatenate(leaves)[:limit], *parts)
    return Samples(joined)


def _inputs_of(element: Any, wanted: int) -> Any:
    """The inputs in a batch of a data set, which may come with labels and weights."""
    if not isinstance(element, tuple | list):
        return element
    if wanted == 1 or isinstance(element[0], tuple | list | dict):
        return element[0]
    return list(element[:wanted])


def _check(samples: Samples, model: keras.Model) -> None:
    for layer in model._flatten_layers():
        if isinstance(layer, keras.layers.RNN) and layer.stateful:
            raise ValueError(
                f"`calibration` runs in batches of several sizes. Received: {model.name!r}, whose "
                f"stateful layer {layer.name!r} takes batches of one size only. Build the model "
                "with stateful=False and without a batch size, and `set_weights` back and forth."
            )
    if len(samples) < LEAST:
        raise ValueError(
            f"`calibration` must hold at least {LEAST} samples, and 512 are a good number. "
            f"Received: {len(samples)}. Pass more, or none at all."
        )
    leaves = keras.tree.flatten(samples.inputs)
    for leaf in leaves:
        if np.issubdtype(leaf.dtype, np.floating) and not np.isfinite(leaf).all():
            bad = int((~np.isfinite(leaf)).reshape(len(leaf), -1).any(axis=1).sum())
            raise ValueError(
                "`calibration` must be finite. Received: NaN or infinite values in "
                f"{bad} of {len(leaf)} samples. Leave those out, or clean them."
            )
    if all((leaf == leaf[:1]).all() for leaf in leaves):
        raise ValueError(
            "`calibration` must be real samples. Received: "
            f"{len(samples)} samples that are all the same. Pass inputs the model will meet."
        )
    _check_shapes(samples, model)


def _check_shapes(samples: Samples, model: keras.Model) -> None:
    """For models that know their inputs; the others say it themselves when they run."""
    leaves = keras.tree.flatten(samples.inputs)
    inputs = keras.tree.flatten(getattr(model, "inputs", None) or [])
    if not inputs:
        return
    if len(inputs) != len(leaves):
        raise ValueError(
            f"`calibration` must hold the {len(inputs)} inputs of {model.name!r}, and inputs "
            f"only. Received: {len(leaves)} arrays, of shapes {[leaf.shape for leaf in leaves]}."
            f"{_if_batches(samples.inputs)}"
        )
    if len(inputs) > 1:
        return  # a dict may be in another order than the inputs; the model says it when it runs
    wanted, shape = tuple(inputs[0].shape), leaves[0].shape
    if not _fits(wanted[1:], shape[1:]):
        raise ValueError(
            f"`calibration` must have the shape of the model's input, {wanted}. "
            f"Received: samples of shape {shape}."
        )


def _fits(wanted: tuple[int | None, ...], shape: tuple[int, ...]) -> bool:
    return len(wanted) == len(shape) and all(
        a in (None, b) for a, b in zip(wanted, shape, strict=True)
    )
