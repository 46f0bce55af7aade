"""Calibration samples: a few unlabelled inputs of the model, in any form that Keras takes."""

import dataclasses
import itertools
import numbers
from collections.abc import Iterable, Iterator
from typing import Any

import keras
import numpy as np

from keras_pruner.validation import check_integer, shown

LEAST = 16
"""The fewest samples that say anything; 512 real ones are a good number."""
LARGEST = 1e15
"""Numbers from here on are refused, as sums of their squares would overflow float32."""
_ELEMENTS = 2**22  # input numbers in one batch, at most
_BATCH = 128
_LEAST_BATCH = 32
_EVERY = 8  # each eighth sample is held out


@dataclasses.dataclass(frozen=True, eq=False)
class Calibration:
    """Unlabelled samples, and what `prune` does with them.

    Data alone stands for `Calibration(data)`.

    Args:
        data: arrays as the model takes them, or batches of such: a `tf.data.Dataset`, a PyTorch
            `DataLoader`, a Keras `PyDataset`, a generator. Of batches (inputs, labels, ...) only
            the inputs are used. 512 samples are a good number.
        samples: use at most this many: of arrays evenly spaced ones, of batches the first.
        refit: whether to refit the remaining weights, layer by layer.
        batch_norm: whether to re-estimate the statistics of batch norms.
        distillation_epochs: after the refit, train the remaining weights for so many epochs to
            reproduce the dense model's outputs, each on as many mixtures of two samples as there
            are samples; no labels. It is undone if it makes the outputs on held-out samples
            worse. Some hundred steps of 64 bring a narrow network near to its dense accuracy:
            15 epochs of a few thousand samples, 85 of 512.
        progress: whether to show the progress on standard error.

    Raises:
        ValueError: for options of the wrong type or out of range, and for missing data.

    Example:
        >>> x = np.random.default_rng(0).normal(size=(4096, 8))
        >>> calibration = Calibration(x, samples=2048, distillation_epochs=15)
        >>> # report = kp.prune(model, 0.8, calibration=calibration)
        >>> calibration.refit, calibration.samples
        (True, 2048)
    """

    data: Any = dataclasses.field(repr=False)
    samples: int = 1024
    refit: bool = True
    batch_norm: bool = True
    distillation_epochs: int = 0
    progress: bool = True

    def __post_init__(self) -> None:
        if self.data is None:
            raise ValueError(
                "`data` must be inputs of the model. Received: data=None. To prune without "
                "samples, leave out `calibration`."
            )
        check_integer("samples", self.samples, least=LEAST)
        check_integer("distillation_epochs", self.distillation_epochs, least=0)
        for name in ("refit", "batch_norm", "progress"):
            value = getattr(self, name)
            if not isinstance(value, bool | np.bool_):
                raise ValueError(
                    f"`{name}` must be True or False. Received: {name}={shown(value)}."
                )

    @classmethod
    def of(cls, calibration: Any) -> "Calibration":
        """The calibration given, or that of data."""
        return calibration if isinstance(calibration, Calibration) else cls(calibration)

    def read(self, model: keras.Model) -> "Samples":
        """The samples, in memory.

        Raises:
            ValueError: if they are too few, all the same, NaN or infinite, or of the wrong shape,
                or the model is stateful.
        """
        data = self.data
        if isinstance(data, list | tuple) and len(data) == 1:
            data = data[0]
        _check_no_numbers(data)
        if _is_array(data) or _holds_arrays(data):
            samples = _evenly_spaced(data, self.samples)
        else:
            samples = _collect(_batches(data), model, self.samples)
        _check(samples, model)
        return samples


@dataclasses.dataclass(frozen=True, eq=False)
class Samples:
    """Inputs of a model, in memory.

    Attributes:
        inputs: the structure of arrays the model is called on; first axis: the samples.
        most: the largest batch.
    """

    inputs: Any
    most: int = _BATCH

    def __len__(self) -> int:
        return len(keras.tree.flatten(self.inputs)[0])

    def batch_size(self, most: int) -> int:
        """The number of samples in a batch: at most `most`, fewer where the inputs are large."""
        elements = sum(leaf[:1].size for leaf in keras.tree.flatten(self.inputs))
        return max(1, min(most, _ELEMENTS // max(1, elements)))

    def batches(self) -> list[Any]:
        """The samples in batches of one size, but for the last one."""
        size = self.batch_size(self.most)
        return [self.take(slice(i, i + size)).inputs for i in range(0, len(self), size)]

    def split(self, held: np.ndarray | None = None) -> tuple["Samples", "Samples"]:
        """Those to fit on, and those to hold out: each eighth one, or a mask.

        Both come in batches of one size where that is possible, as JAX compiles for each size.
        """
        if held is None:
            held = np.arange(len(self)) % _EVERY == _EVERY // 2
        most = min(_BATCH, max(_LEAST_BATCH, int(held.sum())))
        whole = dataclasses.replace(self, most=most)
        return whole.take(~held), whole.take(held)

    def take(self, index: Any) -> "Samples":
        """The samples that an index of the first axis chooses."""
        inputs = keras.tree.map_structure(lambda leaf: leaf[index], self.inputs)
        return dataclasses.replace(self, inputs=inputs)


def _evenly_spaced(data: Any, limit: int) -> Samples:
    """The samples in arrays, at most `limit` of them."""
    inputs = keras.tree.map_structure(_to_numpy, data)
    lengths = {len(leaf) if leaf.ndim else 0 for leaf in keras.tree.flatten(inputs)}
    if len(lengths) > 1:
        raise ValueError(
            "`calibration` must have as many samples in each of its arrays. "
            f"Received: arrays of {sorted(lengths)} samples.{_if_batches(inputs)}"
        )
    samples = Samples(inputs)
    if len(samples) > limit:
        samples = samples.take(np.linspace(0, len(samples) - 1, limit).astype(int))
    return samples


def _is_array(value: Any) -> bool:
    return hasattr(value, "shape") and hasattr(value, "dtype") and hasattr(value, "__getitem__")


def _holds_arrays(value: Any) -> bool:
    leaves = keras.tree.flatten(value) if isinstance(value, list | tuple | dict) else []
    return bool(leaves) and all(map(_is_array, leaves))


def _check_no_numbers(calibration: Any) -> None:
    """Reject nested lists of Python numbers: their array structure is ambiguous."""
    leaves = keras.tree.flatten(calibration) if isinstance(calibration, list | tuple | dict) else []
    if leaves and isinstance(leaves[0], numbers.Number) and not _is_array(leaves[0]):
        raise ValueError(
            "`calibration` must be arrays, not lists of numbers. Received: "
            f"{shown(calibration)}. Pass `np.asarray(calibration)`, or a list of such if the model "
            "has several inputs."
        )


def _if_batches(inputs: Any) -> str:
    """The fix if a list, which is read as one array for each input, holds batches."""
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
            "`calibration` must be dense arrays. Received: a sparse matrix of type "
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
    """The first `limit` samples of some batches, joined."""
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
                "`calibration` must give batches, whose first axis numbers the samples. "
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
            "be iterated again."
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
            f"`calibration` must hold at least {LEAST} samples; 512 are a good number. "
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
        if np.issubdtype(leaf.dtype, np.floating):
            check_magnitude(leaf, "values")
    if all((leaf == leaf[:1]).all() for leaf in leaves):
        raise ValueError(
            "`calibration` must be real samples. Received: "
            f"{len(samples)} samples that are all the same. Pass inputs like those in use."
        )
    _check_shapes(samples, model)


def check_magnitude(array: np.ndarray, what: str) -> None:
    """Raise for numbers whose squares overflow float32 when they are summed.

    Raises:
        ValueError: naming `what` is so large.
    """
    largest = max(abs(float(array.max(initial=0))), abs(float(array.min(initial=0))))
    if not largest < LARGEST:
        raise ValueError(
            "`calibration` must be inputs in the range that the model was trained on. "
            f"Received: {what} up to {largest:.3g}, whose squares overflow float32. Scale the "
            "samples as for training, or leave out those that are wrong."
        )


def _check_shapes(samples: Samples, model: keras.Model) -> None:
    """Check the shapes for models with known inputs; the others raise when they run."""
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
        return  # a dict may be in another order than the inputs; the model raises when it runs
    wanted, shape = tuple(inputs[0].shape), leaves[0].shape
    if not _fits(wanted[1:], shape[1:]):
        raise ValueError(
            f"`calibration` must have the shape of the model's input, {wanted}. "
            f"Received: samples of shape {shape}. The first axis numbers the samples; the others "
            "must be those of the model's input."
        )


def _fits(wanted: tuple[int | None, ...], shape: tuple[int, ...]) -> bool:
    return len(wanted) == len(shape) and all(
        a in (None, b) for a, b in zip(wanted, shape, strict=True)
    )
