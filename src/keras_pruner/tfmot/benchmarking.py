"""Small tools: prune for a benchmark, check m by n, compare zipped sizes."""

import gzip
import os
from collections.abc import Sequence
from pathlib import Path

import keras

from keras_pruner.litert.nm_check import Check, check_m_by_n
from keras_pruner.oneshot.prune import prune
from keras_pruner.patterns import Block, Unstructured

__all__ = ["Check", "check_m_by_n", "prune_for_benchmark", "zipped_sizes"]


def prune_for_benchmark(
    model: keras.Model, target_sparsity: float, block_size: Sequence[int] = (1, 1)
) -> keras.Model:
    """A copy of a model, pruned by magnitude at once: for speed and size, not for accuracy.

    Args:
        model: a built Keras 3 model; not changed.
        target_sparsity: fraction of zeros in every kernel, in [0, 1).
        block_size: height and width of blocks of zeros.
    """
    copy = keras.models.clone_model(model)
    copy.set_weights(model.get_weights())
    height, width = block_size
    pattern = Unstructured() if (height, width) == (1, 1) else Block((height, width))
    prune(copy, target_sparsity, pattern=pattern, allocation="uniform")
    return copy


def zipped_sizes(*paths: str | os.PathLike[str]) -> list[dict[str, object]]:
    """Bytes of files as they are, and after gzip at its strongest level.

    Raises:
        OSError: if one cannot be read.
    """
    return [
        {
            "file": str(path),
            "bytes": path.stat().st_size,
            "zipped": len(gzip.compress(path.read_bytes(), 9)),
        }
        for path in map(Path, paths)
    ]
