"""The positions of non-zero weights: one bit for each weight, or fewer bits for N:M groups."""

import dataclasses
import itertools
import math

import numpy as np

from keras_pruner.model_weights import WeightView


def bits_of(weight: np.ndarray) -> np.ndarray:
    """The weight as unsigned integers of its own width."""
    return np.ascontiguousarray(weight).view(f"u{weight.dtype.itemsize}")


def pack_mask(mask: np.ndarray) -> np.ndarray:
    """One bit for each element, lowest first, as bytes."""
    return np.packbits(mask.reshape(-1), bitorder="little")


def unpack_mask(packed: np.ndarray, count: int) -> np.ndarray:
    """The inverse of `pack_mask`, flat.

    Raises:
        ValueError: if `packed` is no bitmap of `count` elements.
    """
    if packed.size != math.ceil(count / 8):
        raise ValueError(f"a bitmap of {packed.size} bytes does not describe {count} weights")
    bits = np.unpackbits(packed, bitorder="little")
    if bits[count:].any():
        raise ValueError("the bitmap marks weights behind the last one")
    return bits[:count].astype(bool)


@dataclasses.dataclass(frozen=True)
class Groups:
    """An index for kernels (..., inputs, outputs) with at most `n` of every `m` inputs kept.

    A group is stored as a number: the place of its kept inputs among all subsets of n of m, in
    the order of `itertools.combinations`. If fewer than n are kept, some zeros are stored as
    values. For 2:4 the number takes 3 bits, where a bitmap takes 4.
    """

    n: int
    m: int

    @property
    def width(self) -> int:
        """Number of bits for a group."""
        return max(1, math.ceil(math.log2(math.comb(self.m, self.n))))

    def subsets(self) -> np.ndarray:
        """All subsets of n of m, as a boolean array of shape (comb(m, n), m)."""
        table = np.zeros((math.comb(self.m, self.n), self.m), bool)
        for row, chosen in enumerate(itertools.combinations(range(self.m), self.n)):
            table[row, list(chosen)] = True
        return table

    def fits(self, mask: np.ndarray, view: WeightView) -> bool:
        """Whether groups divide the inputs of the weight, with at most n of m kept in each."""
        if view.kernel_shape[-2] % self.m:
            return False
        return bool((self._grouped(mask, view).sum(-1) <= self.n).all())

    def _grouped(self, weight: np.ndarray, view: WeightView) -> np.ndarray:
        return np.moveaxis(view.to_kernel(weight), -2, -1).reshape(-1, self.m)

    def encode(self, weight: np.ndarray, view: WeightView) -> tuple[np.ndarray, np.ndarray]:
        """The packed numbers of the groups, and their values of shape (groups * n,)."""
        groups = self._grouped(weight, view)
        kept = bits_of(groups) != 0
        # A stable sort puts the kept ones first, in order; the first n then include all of them.
        chosen = np.zeros_like(kept)
        first = np.argsort(~kept, axis=-1, kind="stable")[:, : self.n]
        np.put_along_axis(chosen, first, True, axis=-1)
        powers = 1 << np.arange(self.m)
        number_of = np.zeros(1 << self.m, np.uint16)
        number_of[self.subsets() @ powers] = np.arange(math.comb(self.m, self.n))
        numbers = number_of[chosen @ powers]
        bits = (numbers[:, None] >> np.arange(self.width)) & 1
        return np.packbits(bits.astype(bool).reshape(-1), bitorder="little"), groups[chosen]

    def decode(self, packed: np.ndarray, values: np.ndarray, view: WeightView) -> np.ndarray:
        """The inverse of `encode`.

        Raises:
            ValueError: if the index is not one of such groups, or does not fit the values.
        """
        shape = view.kernel_shape
        if shape[-2] % self.m:
            raise ValueError(f"groups of {self.m} do not divide shape {shape}")
        count = math.prod(shape) // self.m
        bits = unpack_mask(packed, count * self.width).reshape(count, self.width)
        numbers = bits @ (1 << np.arange(self.width))
        subsets = self.subsets()
        if values.size != count * self.n or (count and numbers.max() >= len(subsets)):
            raise ValueError("the index of its groups does not fit its values")
        groups = np.zeros((count, self.m), values.dtype)
        groups[subsets[numbers]] = values
        moved = (*shape[:-2], shape[-1], shape[-2])
        kernel = np.moveaxis(groups.reshape(moved), -1, -2)
        return np.ascontiguousarray(view.from_kernel(kernel))


GROUPS = (Groups(1, 2), Groups(1, 4), Groups(2, 4), Groups(1, 8), Groups(2, 8), Groups(4, 8))
"""The groups that `save_sparse` tries, in this order."""
