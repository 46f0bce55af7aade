"""PyTorch."""

import contextlib
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import torch


def mask_gradient(gradient: torch.Tensor, mask: keras.Variable) -> torch.Tensor:
    """The gradient with zeros where the mask is False."""
    return torch.where(mask.value, gradient, 0.0)


def zero_pruned(variables: Sequence[keras.Variable], masks: Sequence[keras.Variable]) -> None:
    """Set the variables to exactly 0.0 where the masks are False, in place."""
    for variable, mask in zip(variables, masks, strict=True):
        zero([variable.value], mask.value)


@torch.no_grad()
def zero(tensors: Sequence[torch.Tensor], mask: torch.Tensor) -> None:
    """Set the tensors to exactly 0.0 where the mask is False, in place."""
    pruned = ~mask
    for tensor in tensors:
        tensor.masked_fill_(pruned, 0.0)


def to_numpy(variable: keras.Variable) -> np.ndarray:
    """The value as a NumPy array; on a CPU a view of PyTorch's own memory."""
    return keras.ops.convert_to_numpy(variable.value)


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


def without_gradients() -> contextlib.AbstractContextManager[Any]:
    """No graph of what is computed."""
    return torch.no_grad()
