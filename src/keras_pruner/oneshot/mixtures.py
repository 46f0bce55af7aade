"""Samples made from samples, for a dense model that answers for any input."""

import dataclasses

import keras
import numpy as np

from keras_pruner.oneshot.calibration import Samples


def mixtures(samples: Samples, number: int) -> Samples:
    """Weighted means of two samples each, as many as there are samples.

    The two are drawn at random, their shares uniformly from [0, 1] (mixup, Zhang et al. 2018,
    arXiv:1710.09412); all inputs of a model are mixed of the same two in the same shares. Integers
    cannot be mixed: they are those of one of the two.

    Args:
        samples: the samples.
        number: which set of mixtures; the same number gives the same set.

    Example:
        >>> x = np.arange(6, dtype="float32").reshape(3, 2)
        >>> mixed = mixtures(Samples(x), 0).inputs
        >>> mixed.shape, bool((mixed >= x.min()).all() and (mixed <= x.max()).all())
        ((3, 2), True)
    """
    random, count = np.random.default_rng(number), len(samples)
    one, other = random.permutation(count), random.integers(0, count, count)
    share = random.random(count)

    def mixed(leaf: np.ndarray) -> np.ndarray:
        if not np.issubdtype(leaf.dtype, np.floating):
            return leaf[one]
        part = share.reshape(-1, *(1 for _ in leaf.shape[1:])).astype(leaf.dtype)
        return part * leaf[one] + (1 - part) * leaf[other]

    return dataclasses.replace(samples, inputs=keras.tree.map_structure(mixed, samples.inputs))


def can_be_mixed(samples: Samples) -> bool:
    """Whether an input is real-valued."""
    leaves = keras.tree.flatten(samples.inputs)
    return any(np.issubdtype(leaf.dtype, np.floating) for leaf in leaves)
