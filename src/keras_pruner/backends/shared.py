"""Functions that several backends have in common, most of them because there is nothing to do."""

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops


def masking_updates(
    optimizer: keras.optimizers.Optimizer, masks: Mapping[object, keras.Variable]
) -> contextlib.AbstractContextManager[set[object]]:
    """Does nothing, since zeroing after the step costs no more: yields an empty set."""
    del optimizer, masks
    return contextlib.nullcontext(set())


def track(optimizer: keras.optimizers.Optimizer, variables: Sequence[keras.Variable]) -> None:
    """Does nothing: Keras saves the variables of the optimizer."""
    del optimizer, variables


def is_in_parts(variable: keras.Variable) -> bool:
    """Always False: every device has the whole value."""
    del variable
    return False


def gather(variable: keras.Variable) -> None:
    """Always None: this process has the whole value."""
    del variable


def has_value(variable: keras.Variable) -> bool:
    """Always True: variables keep their values during a step."""
    del variable
    return True


def forget_step(model: keras.Model) -> None:
    """Does nothing: a new `train_function` is traced anew."""
    del model


def jit_of_short_training() -> str:
    """Leave the choice to Keras."""
    return "auto"


def is_tracing() -> bool:
    """Always False: operations run at once."""
    return False


def random_states() -> dict[str, np.ndarray]:
    """Always empty: every layer draws from a seed of its own."""
    return {}


def set_random_states(states: dict[str, np.ndarray]) -> None:
    """Does nothing: there are no states."""
    del states


def best_in_groups(scores: Any, n: int, m: int) -> Any:
    """The mask of `patterns.NM(n, m)`, computed where the scores are.

    Without a sort: an entry is kept if fewer than `n` of its group are ahead of it.

    Args:
        scores: shape (..., inputs, outputs), at least -1.
        n: the number of entries to keep in a group.
        m: the number of consecutive inputs in a group.
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
