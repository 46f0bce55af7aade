"""The few operations that each backend does its own way."""

import keras
import numpy as np
import pytest

from keras_pruner import backends

OPS = backends.current()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_zero_pruned_writes_exact_positive_zeros_over_anything(dtype):
    weights = np.array([1.5, -1.5, np.nan, -np.nan, np.inf, -np.inf, -0.0, 3.0])
    mask = np.array([True, False, False, False, False, False, False, True])
    variable = keras.Variable(weights, dtype=dtype)
    OPS.zero_pruned([variable], [keras.Variable(mask, dtype="bool", trainable=False)])
    zeroed = np.asarray(keras.ops.convert_to_numpy(keras.ops.cast(variable, "float32")))
    np.testing.assert_array_equal(zeroed, [1.5, 0, 0, 0, 0, 0, 0, 3])
    assert not np.signbit(zeroed).any()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_masked_gradients_are_exactly_zero(dtype):
    gradient = keras.ops.convert_to_tensor(np.array([[1.0, -2.0], [np.nan, 4.0]]), dtype)
    mask = keras.Variable(np.array([[True, False], [False, True]]), dtype="bool", trainable=False)
    masked = OPS.mask_gradient(gradient, mask)
    assert keras.backend.standardize_dtype(masked.dtype) == dtype
    as_float = np.asarray(keras.ops.convert_to_numpy(keras.ops.cast(masked, "float32")))
    np.testing.assert_array_equal(as_float, [[1, 0], [0, 4]])


def test_to_numpy_gives_the_value():
    variable = keras.Variable(np.arange(6.0).reshape(2, 3))
    np.testing.assert_array_equal(OPS.to_numpy(variable), np.arange(6.0).reshape(2, 3))


def test_a_backend_without_training_is_refused(monkeypatch):
    monkeypatch.setattr(keras.backend, "backend", lambda: "numpy")
    with pytest.raises(NotImplementedError, match="KERAS_BACKEND='numpy'"):
        backends.current()
