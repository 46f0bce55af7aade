"""What a backend answers that has no weights in parts, or draws from nothing of its own."""

import contextlib
from collections.abc import Mapping

import keras
import numpy as np


def masking_updates(
    optimizer: keras.optimizers.Optimizer, masks: Mapping[object, keras.Variable]
) -> contextlib.AbstractContextManager[set[object]]:
    """None: zeroing them after the step costs no more."""
    del optimizer, masks
    return contextlib.nullcontext(set())


def is_in_parts(variable: keras.Variable) -> bool:
    """Never: every device has the whole."""
    del variable
    return False


def gather(variable: keras.Variable) -> None:
    """Nothing: all of the value is here."""
    del variable


def random_states() -> dict[str, np.ndarray]:
    """None: every layer draws from a seed of its own."""
    return {}


def set_random_states(states: dict[str, np.ndarray]) -> None:
    """Nothing to set."""
    del states
