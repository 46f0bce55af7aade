"""Replicas: checks that every device and process holds the same weights and masks."""

import hashlib
from collections.abc import Sequence

import keras
import numpy as np

from keras_pruner import backends
from keras_pruner.masks import MaskedWeight

_DIGEST_SIZE = 16


def check_agreement(model: keras.Model, masked: Sequence[MaskedWeight]) -> int:
    """Compare digests of all copies of the targets' weights and masks.

    Args:
        model: the model that is trained.
        masked: its targets with their masks.

    Returns:
        The largest number of copies of a weight, over all devices and processes.

    Raises:
        RuntimeError: naming the weights whose copies differ.
    """
    ops = backends.current()
    ops.sync(model)
    variables = [(m.target.path, v) for m in masked for v in (m.variable, m.mask)]
    paths, rows = {}, []
    for i, (path, variable) in enumerate(variables):
        for part, copy in ops.copies(variable):
            key = _digest(np.frombuffer(f"{i} {part}".encode(), np.uint8))
            paths[key] = path
            rows.append(np.frombuffer(key + _digest(copy), np.uint8))
    digests: dict[bytes, list[bytes]] = {}  # of each part, from all devices and processes
    for row in ops.gather_copies(model, np.stack(rows)):
        digests.setdefault(row[:_DIGEST_SIZE].tobytes(), []).append(row[_DIGEST_SIZE:].tobytes())
    wrong = {
        paths.get(key, "a part elsewhere") for key, found in digests.items() if len({*found}) > 1
    }
    if wrong:
        raise RuntimeError(
            f"Weights or masks are not the same wherever they are copied, in {sorted(wrong)}. "
            "Something has set them in one place only: begin every process with the same weights, "
            "and apply the same gradients in all of them."
        )
    return max(map(len, digests.values()))


def _digest(array: np.ndarray) -> bytes:
    """The digest of an array's bytes."""
    content = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    return hashlib.blake2b(content.data, digest_size=_DIGEST_SIZE).digest()
