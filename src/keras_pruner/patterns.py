"""Which shapes of zeros are allowed; the only place that turns scores into a mask.

A pattern sees scores in the order of Keras kernels, (..., inputs, outputs). What it keeps or
removes as one is a unit: a weight, a block or a channel. There are two kinds: a `BudgetedPattern`
takes any sparsity, a `FixedPattern` has one of its own. Every other class here is final.
"""

import abc
import math

import numpy as np

from keras_pruner.selection import top_k
from keras_pruner.validation import check_integer, check_sparsity, is_integer, shown, value

__all__ = [
    "NM",
    "Block",
    "BudgetedPattern",
    "Channel",
    "FixedPattern",
    "Pattern",
    "Unstructured",
]

Shape = tuple[int, ...]
_POOLINGS = {"mean": np.add, "max": np.maximum}


class Pattern(abc.ABC):
    """Which shapes of zeros are allowed; either a `BudgetedPattern` or a `FixedPattern`.

    Its methods agree on the order of the units: `unit_scores(scores)[i]` is the score of the
    entries that `spread(kept, shape)` keeps where only `kept[i]` is True. `units(shape)` is the
    length of both.

    Example:
        >>> Block((4, 1)).units((3, 3, 8, 16))  # of a kernel (..., inputs, outputs)
        288
    """

    @abc.abstractmethod
    def units(self, shape: Shape) -> int:
        """The number of units in a weight of this shape.

        Args:
            shape: of the kernel, (..., inputs, outputs).

        Raises:
            ValueError: if the pattern cannot be laid on a weight of this shape.
        """

    @abc.abstractmethod
    def unit_scores(self, scores: np.ndarray) -> np.ndarray:
        """One score for each unit, of shape (units,), from scores (..., inputs, outputs)."""

    @abc.abstractmethod
    def spread(self, kept: np.ndarray, shape: Shape) -> np.ndarray:
        """The mask of shape `shape` that keeps the units marked in `kept`, of shape (units,)."""

    @abc.abstractmethod
    def __call__(self, scores: np.ndarray, sparsity: float | None = None) -> np.ndarray:
        """The mask that keeps the units with the highest scores.

        Args:
            scores: of shape (..., inputs, outputs); -inf for what is pruned already.
            sparsity: fraction of units to remove, in [0, 1). A fixed pattern needs none.

        Returns:
            Boolean mask of the shape of `scores`, True = kept.

        Raises:
            ValueError: if a budgeted pattern gets no sparsity or one outside [0, 1), or a fixed
                pattern another one than its own.
        """


class BudgetedPattern(Pattern):
    """A pattern that takes any sparsity. Subclass it for a pattern of your own.

    A subclass defines `units`, `unit_scores` and `spread`. Laws: exactly
    max(1, round-half-even(n (1 - s))) of n units are kept at sparsity s; among equal scores the
    unit of lower index is kept; units scored -inf are kept last. `kp.testing.check_pattern` checks
    them.

    Example:
        >>> class Rows(BudgetedPattern):  # all outputs of one input, at one tap
        ...     def units(self, shape):
        ...         return math.prod(shape[:-1])
        ...
        ...     def unit_scores(self, scores):
        ...         return scores.reshape(-1, scores.shape[-1]).mean(-1)
        ...
        ...     def spread(self, kept, shape):
        ...         return np.repeat(kept, shape[-1]).reshape(shape)
        >>> Rows()(np.array([[1.0, 2.0], [3.0, 4.0]]), 0.5)
        array([[False, False],
               [ True,  True]])
    """

    def __call__(self, scores: np.ndarray, sparsity: float | None = None) -> np.ndarray:
        """The mask that keeps the units with the highest scores at `sparsity`."""
        check_sparsity("sparsity", sparsity)
        assert sparsity is not None
        return self.keep(scores, self.count(self.units(scores.shape), sparsity))

    def count(self, units: int, sparsity: float) -> int:
        """The number of units that stay at `sparsity`, of `units` in all."""
        return top_k.kept_count(units, sparsity)

    def keep(self, scores: np.ndarray, count: int) -> np.ndarray:
        """The mask with the `count` highest-scored units."""
        return self.spread(top_k.largest(self.unit_scores(scores), count), scores.shape)


class FixedPattern(Pattern):
    """A pattern that fixes its own sparsity and takes no part in a budget, such as `NM`.

    Subclass it for a pattern of your own: define `units`, `sparsity` and `mask`. Its units are the
    single weights.

    Example:
        >>> class Checkerboard(FixedPattern):
        ...     sparsity = 0.5
        ...
        ...     def units(self, shape):
        ...         return math.prod(shape)
        ...
        ...     def mask(self, scores):
        ...         return np.indices(scores.shape).sum(axis=0) % 2 == 0
        >>> Checkerboard()(np.ones((2, 3)))
        array([[ True, False,  True],
               [False,  True, False]])
    """

    @property
    @abc.abstractmethod
    def sparsity(self) -> float:
        """The fraction of zeros, in [0, 1), that the pattern fixes."""

    @abc.abstractmethod
    def mask(self, scores: np.ndarray) -> np.ndarray:
        """The mask for scores (..., inputs, outputs), True = kept; -inf marks pruned weights."""

    def unit_scores(self, scores: np.ndarray) -> np.ndarray:
        """The scores themselves: each weight is a unit."""
        return scores.reshape(-1)

    def spread(self, kept: np.ndarray, shape: Shape) -> np.ndarray:
        """The mask itself: the units are the weights."""
        return kept.reshape(shape)

    def __call__(self, scores: np.ndarray, sparsity: float | None = None) -> np.ndarray:
        """The mask of these scores; a sparsity may be given if it is the pattern's own."""
        settle_sparsity("sparsity", sparsity, self)
        return self.mask(scores)


@value
class Unstructured(BudgetedPattern):
    """Any single weight may be zero.

    Example:
        >>> import numpy as np
        >>> Unstructured()(np.array([[4.0, 1.0], [2.0, 3.0]]), 0.5)
        array([[ True, False],
               [False,  True]])
    """

    def units(self, shape: Shape) -> int:
        """The number of weights."""
        return math.prod(shape)

    def unit_scores(self, scores: np.ndarray) -> np.ndarray:
        """The scores themselves: each weight is a unit."""
        return scores.reshape(-1)

    def spread(self, kept: np.ndarray, shape: Shape) -> np.ndarray:
        """The mask itself: each weight is a unit."""
        return kept.reshape(shape)


@value
class Block(BudgetedPattern):
    """Zeros come in rectangles of the kernel as a matrix (taps and inputs, outputs).

    `Block((4, 1))`, four consecutive inputs of one output, is the shape that LiteRT's sparse
    kernels run fast. Where the shape does not divide evenly, the blocks at the far edges are
    smaller and are scored by the entries that they have.

    Args:
        shape: height (along the inputs) and width (along the outputs) of a block, in weights.
        pooling: "mean" or "max" of the scores in a block.

    Raises:
        ValueError: if the shape is not two integers of at least 1, or the pooling is unknown.

    Example:
        >>> Block((2, 1))(np.array([[5.0, 1], [5, 1], [2, 9], [2, 9]]), 0.5)
        array([[ True, False],
               [ True, False],
               [False,  True],
               [False,  True]])
    """

    shape: tuple[int, int]
    pooling: str = "mean"

    def __post_init__(self) -> None:
        is_pair = isinstance(self.shape, (tuple, list)) and len(self.shape) == 2
        if not is_pair or not all(is_integer(side, least=1) for side in self.shape):
            raise ValueError(
                "`shape` must be the height and width of a block, two integers of at least 1, like "
                f"(4, 1). Received: shape={shown(self.shape)}."
            )
        object.__setattr__(self, "shape", tuple(map(int, self.shape)))
        _check_pooling(self.pooling)

    def units(self, shape: Shape) -> int:
        """The number of rectangles that cover the matrix."""
        return math.prod(self._grid(shape))

    def unit_scores(self, scores: np.ndarray) -> np.ndarray:
        """The mean or the maximum of the entries in each rectangle."""
        self._grid(scores.shape)  # raises where no rectangle fits
        pooled = _wide(scores).reshape(-1, scores.shape[-1])
        pool = _POOLINGS[self.pooling]
        for axis, side in enumerate(self.shape):
            if side > 1:
                starts = np.arange(0, pooled.shape[axis], side)
                pooled = pool.reduceat(pooled, starts, axis=axis)
        if self.pooling == "mean":
            pooled = pooled / self._entries(scores.shape).astype(pooled.dtype)
        return pooled.reshape(-1)

    def spread(self, kept: np.ndarray, shape: Shape) -> np.ndarray:
        """Each weight is kept with its rectangle."""
        mask = kept.reshape(self._grid(shape))
        for axis, (side, size) in enumerate(zip(self.shape, self._matrix(shape), strict=True)):
            mask = mask.repeat(side, axis).take(np.arange(size), axis) if side > 1 else mask
        return mask.reshape(shape)

    def _entries(self, shape: Shape) -> np.ndarray:
        """The number of entries of each rectangle, in the form of the grid; fewer at far edges."""
        heights, widths = (
            np.minimum(side, size - np.arange(0, size, side))
            for side, size in zip(self.shape, self._matrix(shape), strict=True)
        )
        return heights[:, None] * widths

    def _matrix(self, shape: Shape) -> tuple[int, int]:
        """The rows (taps and inputs) and columns (outputs) of a kernel of this shape."""
        return math.prod(shape[:-1]), shape[-1]

    def _grid(self, shape: Shape) -> tuple[int, int]:
        """How many rectangles lie below and beside each other."""
        rows, columns = self._matrix(shape)
        height, width = self.shape
        if height > rows or width > columns:
            raise ValueError(
                f"A block must fit into the ({rows}, {columns}) matrix of the weight. "
                f"Received: shape={self.shape}. Use a smaller block, or leave this weight alone "
                "with overrides={its_name: None}."
            )
        return math.ceil(rows / height), math.ceil(columns / width)


@value
class NM(FixedPattern):
    """`n` weights stay in every `m` consecutive inputs of an output; 2:4 is `NM(2, 4)`.

    The pattern fixes the sparsity at 1 - n/m (Mishra et al. 2021, arXiv:2104.08378). Where the
    inputs do not divide by `m`, the last group of an output has fewer: of r weights it keeps
    min(r, n).

    Args:
        n: weights kept in a group.
        m: weights in a group; more than `n`.

    Raises:
        ValueError: unless `n` and `m` are integers with 1 <= n < m.

    Example:
        >>> NM(2, 4)(np.array([[4.0], [1.0], [3.0], [2.0]])).T
        array([[ True, False,  True, False]])
    """

    n: int
    m: int

    def __post_init__(self) -> None:
        check_integer("n", self.n, least=1)
        check_integer("m", self.m, least=2)
        if self.n >= self.m:
            raise ValueError(
                "`n` weights are kept in every `m`, so n must be below m. "
                f"Received: n={self.n}, m={self.m}. For 2:4 sparsity pass kp.NM(2, 4)."
            )

    @property
    def sparsity(self) -> float:
        """1 - n/m."""
        return (self.m - self.n) / self.m

    def units(self, shape: Shape) -> int:
        """The number of weights."""
        if len(shape) < 2 or shape[-2] < self.m:
            raise ValueError(
                f"`m` must be at most the number of inputs of the weight, of shape {shape}. "
                f"Received: m={self.m}. Use a smaller group, or leave this weight alone with "
                "overrides={its_name: None}."
            )
        return math.prod(shape)

    def kept(self, shape: Shape) -> int:
        """The number of weights that stay in a kernel of this shape."""
        groups, tail = divmod(shape[-2], self.m)
        per_output = groups * self.n + min(tail, self.n)
        return self.units(shape) // shape[-2] * per_output

    def mask(self, scores: np.ndarray) -> np.ndarray:
        """The mask with the `n` highest scores of every group."""
        self.units(scores.shape)
        inputs = scores.shape[-2]
        rows = np.moveaxis(_wide(scores), -2, -1)
        tail = -inputs % self.m
        # Padding scores -inf and comes last, so the weights of a ragged group are kept before it.
        rows = np.pad(rows, [(0, 0)] * (rows.ndim - 1) + [(0, tail)], constant_values=-np.inf)
        groups = rows.reshape(*rows.shape[:-1], -1, self.m)
        best = np.argsort(-groups, axis=-1, kind="stable")[..., : self.n]
        mask = np.zeros(groups.shape, bool)
        np.put_along_axis(mask, best, True, axis=-1)
        mask = mask.reshape(rows.shape)[..., :inputs]
        return np.ascontiguousarray(np.moveaxis(mask, -1, -2))


@value
class Channel(BudgetedPattern):
    """Whole channels are zero.

    Output channels (axis -1) as the pattern of a whole model are decided on in groups: a channel,
    a unit or a head is zero in every weight that it is tied to, biases and scales included. The
    outputs of the model stay, and so do channels that go through a layer normalization.
    `kp.shrink` then removes the zero channels.

    Args:
        axis: -1 for output channels, -2 for input channels, of a kernel (..., inputs, outputs).
        pooling: "mean" or "max" of the scores of a channel.
        multiple: the number of channels that stay is rounded to a multiple of this, at least to
            `multiple` itself. A layer with no more channels than that keeps all of them. 8 is
            fast on all runtimes.

    Raises:
        ValueError: for another axis or pooling, or if `multiple` is not a positive integer.

    Example:
        >>> Channel()(np.array([[1.0, 5, 2], [1, 0, 3]]), 1 / 3)
        array([[False,  True,  True],
               [False,  True,  True]])
    """

    axis: int = -1
    pooling: str = "mean"
    multiple: int = 1

    def __post_init__(self) -> None:
        check_integer("multiple", self.multiple, least=1)
        if self.axis not in (-1, -2):
            raise ValueError(
                "`axis` must be -1 (outputs) or -2 (inputs), whatever the rank of the kernel. "
                f"Received: axis={self.axis!r}."
            )
        _check_pooling(self.pooling)

    def units(self, shape: Shape) -> int:
        """The number of channels."""
        if len(shape) < 2:
            raise ValueError(
                "`Channel` needs a kernel of shape (..., inputs, outputs). Received: "
                f"shape={shape}. Leave this weight alone with overrides={{its_name: None}}."
            )
        return shape[self.axis]

    def count(self, units: int, sparsity: float) -> int:
        """The number of channels that stay at `sparsity`, rounded to a multiple of `multiple`."""
        nearest = round(top_k.kept_count(units, sparsity) / self.multiple) * self.multiple
        return min(units, max(self.multiple, nearest))

    def unit_scores(self, scores: np.ndarray) -> np.ndarray:
        """The mean or the maximum over each channel."""
        others = tuple(a for a in range(scores.ndim) if a != scores.ndim + self.axis)
        wide = _wide(scores)
        return wide.mean(others) if self.pooling == "mean" else wide.max(others)

    def spread(self, kept: np.ndarray, shape: Shape) -> np.ndarray:
        """Each weight is kept with its channel."""
        along = [1] * len(shape)
        along[self.axis] = shape[self.axis]
        return np.broadcast_to(kept.reshape(along), shape).copy()


def _wide(scores: np.ndarray) -> np.ndarray:
    """The scores in float32 or wider: float16 cannot hold their sums, integers no -inf."""
    return np.asarray(scores, np.result_type(scores.dtype, np.float32))


def _check_pooling(pooling: object) -> None:
    if not isinstance(pooling, str) or pooling not in _POOLINGS:
        raise ValueError(f'`pooling` must be "mean" or "max". Received: pooling={pooling!r}.')


# ---------------------------------------------------------------------- fixed sparsities


def takes_sparsity(pattern: Pattern, sparsity: float) -> bool:
    """Whether a pattern can have this sparsity.

    That of a fixed pattern is compared up to rounding: 1 - 2/3 and 1/3 differ as floats.
    """
    return not isinstance(pattern, FixedPattern) or math.isclose(pattern.sparsity, sparsity)


def settle_sparsity(name: str, sparsity: float | None, pattern: Pattern) -> float | None:
    """The sparsity that the user gave for a pattern, or else the one that the pattern fixes.

    Args:
        name: the name of the argument, for the error.
        sparsity: what the user gave; None for nothing.
        pattern: the pattern.

    Returns:
        The sparsity; None if none was given and the pattern takes any.

    Raises:
        ValueError: if the user gave another sparsity than the pattern fixes.
    """
    if not isinstance(pattern, FixedPattern):
        return sparsity
    if sparsity is not None and not takes_sparsity(pattern, sparsity):
        raise fixed_conflict(pattern, name, sparsity)
    return pattern.sparsity


LEAVE_OUT = "Leave it out, or use another pattern."


def fixed_conflict(
    pattern: FixedPattern, name: str, received: object, fix: str = LEAVE_OUT
) -> ValueError:
    """The error for an argument that has no effect together with a fixed pattern.

    Args:
        pattern: the fixed pattern.
        name: the name of the argument.
        received: its value.
        fix: what to do instead.
    """
    return ValueError(
        f"{pattern!r} fixes the sparsity at {pattern.sparsity:g}, so that `{name}` has nothing to "
        f"decide. Received: {name}={shown(received)}. {fix}"
    )
