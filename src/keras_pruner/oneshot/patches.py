"""Which inputs each output position of a convolution sees: im2col as index arithmetic."""

import dataclasses
import math
from typing import Any

import keras
import numpy as np


@dataclasses.dataclass(frozen=True)
class Window:
    """The geometry of a convolution, or of a transposed one.

    Attributes:
        size: of the kernel, along each spatial axis.
        strides: along each.
        dilation: along each.
        padding: "valid", "same" or "causal".
        transposed: whether it is a transposed convolution.
        output_padding: of a transposed convolution, if given.
    """

    size: tuple[int, ...]
    strides: tuple[int, ...]
    dilation: tuple[int, ...]
    padding: str
    transposed: bool = False
    output_padding: tuple[int, ...] | None = None

    @property
    def taps(self) -> int:
        """Inputs seen by one output position."""
        return math.prod(self.size)

    def sources(
        self, positions: np.ndarray, in_shape: tuple[int, ...], out_shape: tuple[int, ...]
    ) -> np.ndarray:
        """The flat input positions that the given flat output positions see.

        Args:
            positions: shape (m,).
            in_shape: spatial shape of the input.
            out_shape: spatial shape of the output.

        Returns:
            Shape (m, taps), taps in the order of the kernel; -1 where there is only padding.
        """
        flat = np.zeros((len(positions), 1), np.int64)
        inside = np.ones((len(positions), 1), bool)
        for axis, at in enumerate(np.unravel_index(positions, out_shape)):
            source, valid = self._along(axis, at, in_shape[axis], out_shape[axis])
            flat = (flat[:, :, None] * in_shape[axis] + source[:, None, :]).reshape(len(at), -1)
            inside = (inside[:, :, None] & valid[:, None, :]).reshape(len(at), -1)
        return np.where(inside, flat, -1)

    def _along(
        self, axis: int, at: np.ndarray, in_size: int, out_size: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Source and validity along one axis, of shape (m, size of the kernel)."""
        stride = self.strides[axis]
        reach = np.arange(self.size[axis]) * self.dilation[axis]
        before = self._padding_before(axis, in_size, out_size)
        if self.transposed:
            ahead = at[:, None] + before - reach
            source, rest = np.divmod(ahead, stride)
            return source, (rest == 0) & (source >= 0) & (source < in_size)
        source = at[:, None] * stride - before + reach
        return source, (source >= 0) & (source < in_size)

    def _padding_before(self, axis: int, in_size: int, out_size: int) -> int:
        extent = (self.size[axis] - 1) * self.dilation[axis] + 1
        if self.padding == "causal":
            return extent - 1
        if self.padding == "valid":
            return 0
        if not self.transposed:
            return max((out_size - 1) * self.strides[axis] + extent - in_size, 0) // 2
        if self.output_padding is not None:
            return extent // 2
        return max(extent - self.strides[axis], 0) // 2


def gather(images: Any, window: Window, out_shape: tuple[int, ...], rows: np.ndarray) -> Any:
    """The patches behind some rows of the output.

    Args:
        images: shape (n, spatial..., channels).
        window: of the convolution.
        out_shape: spatial shape of the output.
        rows: flat indices into (n, spatial positions of the output), shape (m,).

    Returns:
        Shape (m, taps, channels).
    """
    in_shape, channels = tuple(images.shape[1:-1]), images.shape[-1]
    image, position = np.divmod(rows, math.prod(out_shape))
    sources = window.sources(position, in_shape, out_shape)
    pixels = keras.ops.reshape(images, (-1, channels))
    nothing = images.shape[0] * math.prod(in_shape)  # the row of zeros behind the last pixel
    index = np.where(sources < 0, nothing, image[:, None] * math.prod(in_shape) + sources)
    pixels = keras.ops.concatenate([pixels, keras.ops.zeros_like(pixels[:1])])
    return keras.ops.take(pixels, index, axis=0)
