"""TFMOT's `block_size` and `sparsity_m_by_n` as patterns of this library."""

from collections.abc import Sequence
from typing import Any

from keras_pruner.patterns import NM, Block, Pattern, Unstructured
from keras_pruner.plan import Target
from keras_pruner.validation import check_integer

_POOLINGS = {"AVG": "mean", "MAX": "max"}


def pattern_of(
    block_size: Sequence[int] = (1, 1), pooling: str = "AVG", m_by_n: Sequence[int] | None = None
) -> Pattern:
    """The pattern for TFMOT's three arguments.

    Args:
        block_size: height and width of a block.
        pooling: "AVG" or "MAX", of the magnitudes in a block.
        m_by_n: (m, n) for m zeros in every n consecutive inputs.

    Raises:
        ValueError: unless the pairs are of integers of at least 1, with m < n.
    """
    if pooling not in _POOLINGS:
        raise ValueError(
            f"Unsupported pooling type {pooling!r}: `block_pooling_type` must be 'AVG' or 'MAX'."
        )
    block = _pair("block_size", block_size)
    if m_by_n is None:
        return Unstructured() if block == (1, 1) else Block(block, _POOLINGS[pooling])
    m, n = _pair("sparsity_m_by_n", m_by_n)
    if m >= n:
        raise ValueError(
            "`sparsity_m_by_n` = (m, n) sets m of every n weights to zero, 0 < m < n. "
            f"Received: sparsity_m_by_n={m_by_n!r}."
        )
    return NM(n - m, n)


def fitted(pattern: Pattern, target: Target) -> Pattern | None:
    """The pattern cut to the size of a weight; None if it would allow no zeros there.

    Raises:
        ValueError: for a block pattern and a weight that is not of rank 2.
    """
    inputs, outputs = target.view.kernel_shape[-2:]
    if isinstance(pattern, NM):
        group = min(pattern.m, inputs)
        return NM(pattern.n, group) if pattern.n < group else None
    if not isinstance(pattern, Block):
        return pattern
    if len(target.shape) != 2:
        raise ValueError(
            "Block Sparsity can only be used for layers which have 2-dimensional weights. "
            f"Received: block_size={pattern.shape} for {target.path} of shape {target.shape}. "
            "Apply `prune_low_magnitude` to the other layers only, or use "
            f"kp.GradualPruning(..., pattern=kp.Block({pattern.shape})), which prunes any rank."
        )
    height, width = pattern.shape
    return Block((min(height, inputs), min(width, outputs)), pattern.pooling)


def _pair(name: str, pair: Any) -> tuple[int, int]:
    if not isinstance(pair, list | tuple) or len(pair) != 2:
        raise ValueError(
            f"The {name} argument must be a tuple/list of 2 integers. Received: {name}={pair!r}."
        )
    for number in pair:
        check_integer(name, number, least=1)
    return int(pair[0]), int(pair[1])
