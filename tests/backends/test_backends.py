"""The few operations that each backend does its own way."""

import itertools
import logging

import keras
import numpy as np
import pytest

import keras_pruner as kp
from keras_pruner import backends
from keras_pruner.masks import MaskedWeight, find_cut
from keras_pruner.model_weights import WeightView
from keras_pruner.plan import Target
from keras_pruner.selection import top_k

OPS = backends.current()


def weight(variable, mask, pattern=kp.Unstructured()):  # noqa: B008 - a frozen value
    """A target of which the first axis is the inputs' and all others are the outputs'."""
    outputs = tuple(range(1, len(variable.shape)))
    view = WeightView(variable.shape, (), (), (0,), outputs)
    return MaskedWeight(Target("weight", view, pattern), variable, mask)


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


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("parts", [1, 7])
def test_weights_are_cut_where_they_are_as_in_memory(dtype, parts, monkeypatch):
    """On any device a weight is counted, not read; here that is made to happen on a CPU."""
    rng = np.random.default_rng(0)
    values = np.round(rng.standard_normal((23, 5)) * 4)  # many equal ones
    alive = rng.random(values.shape) < 0.7
    monkeypatch.setattr(OPS, "CHUNK", values.size // parts, raising=False)
    # In NumPy's threads on PyTorch, if it is in memory; on a device in PyTorch itself.
    for in_memory, count in itertools.product([True, False], [1, 20, 60, 100, values.size]):
        monkeypatch.setattr(OPS, "is_in_memory", lambda _, answer=in_memory: answer)
        variable = keras.Variable(values, dtype=dtype)
        mask = keras.Variable(alive, dtype="bool", trainable=False)
        weight(variable, mask).apply(find_cut(variable, mask, count))
        expected = top_k.largest(np.where(alive, np.abs(values), -np.inf).ravel(), count)
        kept = np.asarray(keras.ops.convert_to_numpy(mask))
        np.testing.assert_array_equal(kept.ravel(), expected)
        left = np.asarray(keras.ops.convert_to_numpy(keras.ops.cast(variable, "float32")))
        np.testing.assert_array_equal(left, np.where(kept, values, 0))


def test_weights_of_many_shapes_are_cut_without_a_warning(caplog, monkeypatch):
    """TensorFlow warns when functions of the same code are traced in five of eight calls."""
    monkeypatch.setattr(logging.getLogger("tensorflow"), "propagate", True)
    for side in range(2, 12):
        variable = keras.Variable(np.arange(1.0, side + 1))
        mask = keras.Variable(np.ones(side, bool), dtype="bool", trainable=False)
        weight(variable, mask).apply(top_k.Cut(2.0, side - 1))
        assert np.count_nonzero(keras.ops.convert_to_numpy(variable)) == side - 1
    assert not caplog.records


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize(("pattern", "shape"), [(kp.NM(2, 4), (10, 4, 3)), (kp.NM(1, 3), (9, 12))])
def test_groups_decide_where_they_are_as_in_memory(dtype, pattern, shape):
    rng = np.random.default_rng(0)
    values = np.round(rng.standard_normal(shape) * 3)  # many equal ones
    alive = rng.random(shape) < 0.7
    variable = keras.Variable(values, dtype=dtype)
    mask = keras.Variable(alive, dtype="bool", trainable=False)
    kernel = shape[0], int(np.prod(shape[1:]))  # as an EinsumDense has several output axes
    weight(variable, mask, pattern).apply(pattern)
    scores = np.where(alive, np.abs(values), -np.inf).reshape(kernel)
    kept = np.asarray(keras.ops.convert_to_numpy(mask))
    np.testing.assert_array_equal(kept.reshape(kernel), pattern(scores))


def test_what_was_read_before_a_cut_is_not_written_over():
    values = np.linspace(-1, 1, 40, dtype=np.float32).reshape(8, 5)
    variable = keras.Variable(values)
    mask = keras.Variable(np.ones((8, 5), bool), dtype="bool", trainable=False)
    read = [keras.ops.copy(variable)]
    if keras.backend.backend() != "torch":  # whose arrays are the variable's own memory
        read += [keras.ops.convert_to_numpy(variable), variable.value + 0]
    weight(variable, mask).apply(find_cut(variable, mask, 10))
    assert np.count_nonzero(keras.ops.convert_to_numpy(variable)) == 10
    for each in read:
        np.testing.assert_array_equal(keras.ops.convert_to_numpy(each), values)


def test_large_weights_are_zeroed_too(monkeypatch):
    monkeypatch.setattr(OPS, "LARGE", 1, raising=False)
    variable = keras.Variable(np.ones((4, 3)))
    OPS.zero_pruned(
        [variable], [keras.Variable(np.eye(4, 3, dtype=bool), dtype="bool", trainable=False)]
    )
    np.testing.assert_array_equal(keras.ops.convert_to_numpy(variable), np.eye(4, 3))


def test_large_weights_that_others_hold_are_not_overwritten(monkeypatch):
    """A variable and its average may be one array, and what is handed in is the caller's."""
    monkeypatch.setattr(OPS, "LARGE", 1, raising=False)
    mask = keras.Variable(np.eye(4, 3, dtype=bool), dtype="bool", trainable=False)
    weight, average = keras.Variable(np.ones((4, 3))), keras.Variable(np.ones((4, 3)))
    average.assign(weight.value)
    OPS.zero_pruned([weight, average], [mask, mask])
    with keras.StatelessScope([(weight, weight.value)]):
        OPS.zero_pruned([weight], [mask])
    for variable in (weight, average):
        np.testing.assert_array_equal(keras.ops.convert_to_numpy(variable), np.eye(4, 3))


def test_to_numpy_gives_the_value():
    variable = keras.Variable(np.arange(6.0).reshape(2, 3))
    np.testing.assert_array_equal(OPS.to_numpy(variable), np.arange(6.0).reshape(2, 3))


def test_a_backend_without_training_is_refused(monkeypatch):
    monkeypatch.setattr(keras.backend, "backend", lambda: "numpy")
    with pytest.raises(NotImplementedError, match="KERAS_BACKEND='numpy'"):
        backends.current()
