"""What backends have in common that have no weights in parts, or no generators of their own."""

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops


def masking_updates(
    optimizer: keras.optimizers.Optimizer, masks: Mapping[object, keras.Variable]
) -> contextlib.AbstractContextManager[set[object]]:
    """None: zeroing them after the step costs no more."""
    del optimizer, masks
    return contextlib.nullcontext(set())


def track(optimizer: keras.optimizers.Optimizer, variables: Sequence[keras.Variable]) -> None:
    """Nothing to do: Keras saves what the optimizer carries."""
    del optimizer, variables


def is_in_parts(variable: keras.Variable) -> bool:
    """Never: every device has the whole."""
    del variable
    return False


def gather(variable: keras.Variable) -> None:
    """Nothing: all of the value is here."""
    del variable


def has_value(variable: keras.Variable) -> bool:
    """Always: a step does not give values away."""
    del variable
    return True


def forget_step(model: keras.Model) -> None:
    """Nothing to drop: a new `train_function` is traced anew."""
    del model


def jit_of_short_training() -> str:
    """As Keras chooses."""
    return "auto"


def is_tracing() -> bool:
    """Never: what is written is what is run."""
    return False


def random_states() -> dict[str, np.ndarray]:
    """None: every layer draws from a seed of its own."""
    return {}


def set_random_states(states: dict[str, np.ndarray]) -> None:
    """Nothing to set."""
    del states


def best_in_groups(scores: Any, n: int, m: int) -> Any:
    """`patterns.NM.keep` where the scores are, without a sort: by how many are ahead of each.

    Args:
        scores: of shape (..., inputs, outputs), from -1 up.
        n: how many to keep in a group.
        m: consecutive inputs of an output in a group.
    """
    inputs = scores.shape[-2]
    rows = ops.moveaxis(scores, -2, -1)
    behind = [(0, 0)] * (len(rows.shape) - 1) + [(0, -inputs % m)]
    groups = ops.pad(rows, behind, constant_values=-2)
    groups = ops.reshape(groups, (*rows.shape[:-1], -1, m))
    ahead = ops.zeros(groups.shape, "int32")
    for i in range(m):
        other = groups[..., i : i + 1]
        is_ahead = (other > groups) | ((other == groups) & (i < ops.arange(m)))
        ahead = ahead + ops.cast(is_ahead, "int32")
    kept = ops.reshape(ahead < n, (*rows.shape[:-1], -1))
    return ops.moveaxis(kept[..., :inputs], -1, -2)
