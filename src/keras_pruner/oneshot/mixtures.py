"""More samples for distillation, mixed from the given ones; the dense model labels any input."""

import dataclasses
from collections.abc import Sequence

import keras
import numpy as np

from keras_pruner.oneshot.calibration import Samples


def mixtures(samples: Samples, number: int, mixed: Sequence[bool]) -> Samples:
    """Weighted means of two samples each, as many as there are samples.

    The two samples are drawn at random, their weights uniformly from [0, 1] (mixup, Zhang et al.
    2018, arXiv:1710.09412). All inputs of a model use the same two samples and weights.

    Args:
        samples: the samples.
        number: the number of the set of mixtures; the same number gives the same set.
        mixed: for each input of the model, in flat order, whether to mix it. An input that is not
            mixed is that of the first of the two samples.

    Example:
        >>> x = np.arange(6, dtype="float32").reshape(3, 2)
        >>> found = mixtures(Samples(x), 0, [True]).inputs
        >>> found.shape, bool((found >= x.min()).all() and (found <= x.max()).all())
        ((3, 2), True)
    """
    random, count = np.random.default_rng(number), len(samples)
    one, other = random.permutation(count), random.integers(0, count, count)
    share = random.random(count)

    def mix(leaf: np.ndarray) -> np.ndarray:
        part = share.reshape(-1, *(1 for _ in leaf.shape[1:])).astype(leaf.dtype)
        return part * leaf[one] + (1 - part) * leaf[other]

    leaves = zip(keras.tree.flatten(samples.inputs), mixed, strict=True)
    found = [mix(leaf) if is_mixed else leaf[one] for leaf, is_mixed in leaves]
    return dataclasses.replace(samples, inputs=keras.tree.pack_sequence_as(samples.inputs, found))


def can_be_mixed(model: keras.Model, samples: Samples) -> list[bool]:
    """For each input of the model, in flat order, whether it is real-valued.

    If the model has an embedding, whole numbers count as indices, whatever their type.
    """
    layers = model._flatten_layers()
    has_indices = any(isinstance(layer, keras.layers.Embedding) for layer in layers)
    return [
        np.issubdtype(leaf.dtype, np.floating)
        and not (has_indices and np.array_equal(leaf, np.round(leaf)))
        for leaf in keras.tree.flatten(samples.inputs)
    ]
