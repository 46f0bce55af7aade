"""The arrays of the refit: NumPy arrays if the backend runs on a CPU, else the backend's tensors.

A backend that compiles an operation for each new shape takes seconds for what NumPy does at once,
and every layer has a shape of its own. On an accelerator, values stay on the device. The functions
used here have the same names in NumPy and in `keras.ops`, so the same code works with both.
"""

from typing import Any

import keras
import numpy as np

from keras_pruner import backends


def to_array(tensor: Any) -> Any:
    """A tensor's values in float32: a NumPy array, or a tensor on an accelerator."""
    if isinstance(tensor, np.ndarray):
        return tensor.astype(np.float32, copy=False)
    if backends.current().is_on_cpu(tensor):
        return keras.ops.convert_to_numpy(tensor).astype(np.float32, copy=False)
    return keras.ops.cast(tensor, "float32")


def namespace(array: Any) -> Any:
    """The module whose functions take the array: `numpy` or `keras.ops`."""
    return np if isinstance(array, np.ndarray) else keras.ops


def like(array: Any, values: np.ndarray) -> Any:
    """NumPy values as an array of the same kind as `array`, in float32."""
    values = values.astype(np.float32, copy=False)
    return values if isinstance(array, np.ndarray) else keras.ops.convert_to_tensor(values)


def to_numpy(array: Any) -> np.ndarray:
    """Either kind of array as a NumPy array."""
    return array if isinstance(array, np.ndarray) else keras.ops.convert_to_numpy(array)


def mean(array: Any, axis: int) -> Any:
    """The mean along an axis, which is kept with length 1."""
    if isinstance(array, np.ndarray):  # NumPy adds up rows one by one: float32 would not do
        return array.mean(axis=axis, keepdims=True, dtype=np.float64).astype(np.float32)
    return keras.ops.mean(array, axis=axis, keepdims=True)
