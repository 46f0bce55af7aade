"""JAX."""

import contextlib
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import keras
import numpy as np


def mask_gradient(gradient: jax.Array, mask: keras.Variable) -> jax.Array:
    """The gradient with zeros where the mask is False."""
    return jnp.where(mask.value, gradient, 0)


def zero_pruned(variables: Sequence[keras.Variable], masks: Sequence[keras.Variable]) -> None:
    """Set the variables to exactly 0.0 where the masks are False."""
    for variable, mask in zip(variables, masks, strict=True):
        variable.assign(jnp.where(mask.value, variable.value, 0))


def to_numpy(variable: keras.Variable) -> np.ndarray:
    """The value as a NumPy array; on a CPU a view of JAX's own memory."""
    return np.asarray(variable.value)


def variable_scope(model: keras.Model) -> contextlib.AbstractContextManager[Any]:
    """Nothing to enter: Keras places variables by their layout."""
    del model
    return contextlib.nullcontext()


def is_readable(value: Any) -> bool:
    """Whether a value is an array, not a tracer."""
    return not isinstance(value, jax.core.Tracer)


def eagerly() -> contextlib.AbstractContextManager[Any]:
    """Nothing to leave: what is traced cannot be looked at."""
    return contextlib.nullcontext()


def sync(model: keras.Model) -> None:
    """Bring the variables up to date: in `fit` JAX keeps their values elsewhere."""
    model.jax_state_sync()


def is_own_optimizer(optimizer: object) -> bool:
    """Whether the backend has optimizers of its own that can be pruned with, and this is one."""
    del optimizer
    return False


def without_gradients() -> contextlib.AbstractContextManager[Any]:
    """Nothing to leave: gradients are recorded only where they are asked for."""
    return contextlib.nullcontext()
