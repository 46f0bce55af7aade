"""Samples made from samples, for a dense model that answers for any input."""

import dataclasses
from collections.abc import Sequence

import keras
import numpy as np

from keras_pruner.oneshot.calibration import Samples


def mixtures(samples: Samples, number: int, mixed: Sequence[bool]) -> Samples:
    """Weighted means of two samples each, as many as there are samples.

    The two are drawn at random, their shares uniformly from [0, 1] (mixup, Zhang et al. 2018,
    arXiv:1710.09412); all inputs of a model are mixed of the same two in the same shares.

    Args:
        samples: the samples.
        number: which set of mixtures; the same number gives the same set.
        mixed: for each array of the samples, flat, whether it is mixed; else it is that of one of
            the two.

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
    """For each array of the samples, flat, whether it is real-valued.

    In a model with an embedding, whole numbers are taken for indices, whatever their type.
    """
    layers = model._flatten_layers()
    has_indices = any(isinstance(layer, keras.layers.Embedding) for layer in layers)
    return [
        np.issubdtype(leaf.dtype, np.floating)
        and not (has_indices and np.array_equal(leaf, np.round(leaf)))
        for leaf in keras.tree.flatten(samples.inputs)
    ]
