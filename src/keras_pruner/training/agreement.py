"""Whether replicas and processes hold the same weights and masks."""

import hashlib
from collections.abc import Sequence

import keras
import numpy as np

from keras_pruner import backends
from keras_pruner.masks import MaskedWeight

_SIZE = 16


def check(model: keras.Model, masked: Sequence[MaskedWeight]) -> int:
    """Compare digests of all copies of the targets' weights and masks.

    Returns:
        How many copies there are of the part that has most of them.

    Raises:
        RuntimeError: if some differ, naming the weights.
    """
    ops = backends.current()
    ops.sync(model)
    variables = [(m.target.path, v) for m in masked for v in (m.variable, m.mask)]
    owners, rows = {}, []
    for i, (path, variable) in enumerate(variables):
        for part, copy in ops.copies(variable):
            key = _digest(np.frombuffer(f"{i} {part}".encode(), np.uint8))
            owners[key] = path
            rows.append(np.frombuffer(key + _digest(copy), np.uint8))
    copies: dict[bytes, list[bytes]] = {}
    for row in ops.gather_copies(model, np.stack(rows)):
        copies.setdefault(row[:_SIZE].tobytes(), []).append(row[_SIZE:].tobytes())
    wrong = {
        owners.get(key, "a part elsewhere") for key, all_ in copies.items() if len({*all_}) > 1
    }
    if wrong:
        raise RuntimeError(
            f"Weights or masks are not the same wherever they are copied, in {sorted(wrong)}. "
            "Something has set them in one place only: begin every process with the same weights, "
            "and apply the same gradients in all of them."
        )
    return max(map(len, copies.values()))


def _digest(array: np.ndarray) -> bytes:
    content = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    return hashlib.blake2b(content.data, digest_size=_SIZE).digest()
