"""What a backend answers that has no weights in parts, or draws from nothing of its own."""

import keras
import numpy as np


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
