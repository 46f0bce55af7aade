"""PyTorch."""

import contextlib
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import torch

CHUNK = 1 << 20
"""Entries zeroed in one go."""

_INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor's bits as integers: their product with 0 is 0, also of NaN and of -1."""
    return tensor.view(_INTEGERS[tensor.element_size()])


def mask_gradient(gradient: torch.Tensor, mask: keras.Variable) -> torch.Tensor:
    """The gradient with zeros where the mask is False; in place, for it is not used again.

    A new tensor of its size in every step would cost more than the product.
    """
    zero([gradient], mask.value)
    return gradient


def zero_pruned(variables: Sequence[keras.Variable], masks: Sequence[keras.Variable]) -> None:
    """Set the variables to exactly 0.0 where the masks are False, in place."""
    for variable, mask in zip(variables, masks, strict=True):
        zero([variable.value], mask.value)


@torch.no_grad()
def zero(tensors: Sequence[torch.Tensor], mask: torch.Tensor) -> None:
    """Set the tensors to exactly 0.0 where the mask is False, in place.

    By an integer product with the mask's bytes: exact also where the tensor is not finite. In
    parts, for PyTorch first widens the bytes to the tensor's type.
    """
    mask = mask.view(torch.uint8)
    for tensor in tensors:
        bits = _bits(tensor.detach())
        rows = max(1, CHUNK // max(1, bits[:1].numel()))
        for part, kept in zip(bits.split(rows), mask.split(rows), strict=True):
            part.mul_(kept)


def to_numpy(variable: keras.Variable) -> np.ndarray:
    """The value as a NumPy array; on a CPU a view of PyTorch's own memory."""
    value = variable.value.detach().cpu()
    if value.dtype == torch.bfloat16:  # which NumPy lacks
        return keras.ops.convert_to_numpy(variable.value)
    return value.numpy()


def variable_scope(model: keras.Model) -> contextlib.AbstractContextManager[Any]:
    """Nothing to enter."""
    del model
    return contextlib.nullcontext()


def is_readable(value: torch.Tensor) -> bool:
    """PyTorch runs what it is told to when it is told to."""
    del value
    return True


def eagerly() -> contextlib.AbstractContextManager[Any]:
    """Nothing to leave."""
    return contextlib.nullcontext()


def sync(model: keras.Model) -> None:
    """Nothing to do: variables are always up to date."""
    del model


def is_own_optimizer(optimizer: object) -> bool:
    """Whether the backend has optimizers of its own that can be pruned with, and this is one."""
    return isinstance(optimizer, torch.optim.Optimizer)


def without_gradients() -> contextlib.AbstractContextManager[Any]:
    """No graph of what is computed."""
    return torch.no_grad()
