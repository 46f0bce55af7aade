"""What holds for the weights of every sparse file, and for every damaged one."""

import tempfile
from pathlib import Path

import keras
import numpy as np
import pytest

pytest.importorskip("hypothesis", reason='needs pip install "keras-pruner[test]"')

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

import keras_pruner as kp

PLAIN = {"kernel_initializer": "zeros"}  # drawing numbers is compiled for each shape on JAX
BOUNDS = {"float16": 2**-11, "float8": 1 / 16, "shared": np.inf}
NM = st.sampled_from([None, (1, 2), (1, 4), (2, 4), (4, 8)])


def many(*strategies, examples=()):
    """The test as two: 50 examples, and 2,000 in the slow suite; the same in every run."""

    def decorate(check):
        @pytest.mark.parametrize("count", [50, pytest.param(2000, marks=pytest.mark.slow)])
        def test(count):
            drawn = given(*strategies)(check)
            for each in examples:
                drawn = example(each)(drawn)
            checks = [HealthCheck.too_slow, HealthCheck.data_too_large]
            limits = {"deadline": None, "database": None, "suppress_health_check": checks}
            settings(max_examples=count, derandomize=True, **limits)(drawn)()

        return test

    return decorate


def numbers(finite):
    width = {"width": 32, "allow_nan": not finite, "allow_infinity": not finite}
    few = st.sampled_from([0.0, -0.0, 1.0, -1.0, 1e-45, 2.0**-126])
    return st.one_of(few, st.floats(-16000, 16000, width=32) if finite else st.floats(**width))


@st.composite
def kernels(draw, finite=False):
    """A kernel of a Dense or a convolution, with any zeros or with those of N:M groups."""
    shape = draw(arrays.array_shapes(min_dims=2, max_dims=4, max_side=9))
    pattern = draw(NM)
    if pattern is not None:
        shape = (*shape[:-2], pattern[1] * (1 + shape[-2] // 4), shape[-1])
    weight = draw(arrays.arrays(np.float32, shape, elements=numbers(finite)))
    keep = draw(arrays.arrays(bool, shape)) if draw(st.booleans()) else np.True_
    if pattern is not None:
        n, m = pattern
        inputs = np.moveaxis(np.zeros(shape, bool), -2, -1)
        place = np.arange(inputs.shape[-1]) % m
        keep = np.moveaxis(np.broadcast_to(place < n, inputs.shape), -1, -2)
    return np.where(keep, weight, 0).astype(np.float32)


def model_of(weight):
    """A model with one layer whose kernel is the weight; a bias of -0.0 beside it."""
    *window, inputs, outputs = weight.shape
    if window:
        kind = keras.layers.Conv1D if len(window) == 1 else keras.layers.Conv2D
        size = window if len(window) > 1 else window[0]
        layer = kind(outputs, size, padding="same", name="layer", **PLAIN)
    else:
        layer = keras.layers.Dense(outputs, name="layer", **PLAIN)
    model = keras.Sequential([layer])
    model.build((None, *(4 for _ in window), inputs))
    layer.set_weights([weight, np.full(outputs, -0.0, np.float32)])
    return model


def bits(weight):
    """The weight's bits, for NaN is not equal to itself; without the sign of a zero."""
    return np.where(weight == 0, np.float32(0), weight).view(np.uint32)


def read(model):
    return model.layers[-1].get_weights()[0]


@many(kernels(), examples=[np.zeros((8, 3), np.float32), np.full((1, 1), np.nan, np.float32)])
def test_a_safetensors_file_gives_back_every_bit(weight):
    model, other = model_of(weight), model_of(np.ones_like(weight))
    with tempfile.TemporaryDirectory() as scratch:
        size = kp.storage.save_sparse(model, Path(scratch, "w.safetensors"))
        assert size <= Path(scratch, "w.safetensors").stat().st_size < 4 * weight.size + 2000
        kp.storage.load_sparse(other, Path(scratch, "w.safetensors"))
    np.testing.assert_array_equal(bits(read(other)), bits(weight))


@many(kernels(), st.sampled_from(["lzma", "deflate", None]))
def test_a_keras_file_gives_back_every_bit(weight, compression):
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch, "w.keras")
        kp.save_compressed(model_of(weight), path, compression=compression)
        loaded = keras.saving.load_model(path)
    np.testing.assert_array_equal(bits(read(loaded)), bits(weight))


@pytest.mark.slow
@many(kernels(finite=True), st.sampled_from(list(BOUNDS)))
def test_rounding_keeps_zeros_and_the_order_of_the_error(weight, stored):
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch, "w.keras")
        kp.save_compressed(model_of(weight), path, weights=stored)
        found = read(keras.saving.load_model(path))
    assert not found[weight == 0].any()
    assert np.isfinite(found).all()
    largest = np.abs(weight).max()
    normal = np.abs(weight) > max(largest / 8192, 2.0**-14)
    error = np.abs(found.astype(np.float64) - weight)[normal]
    assert (error <= BOUNDS[stored] * np.abs(weight[normal]) * (1 + 1e-6)).all()


@many(st.data())
def test_a_damaged_safetensors_file_is_refused_or_changes_no_weight(data):
    weight = (np.arange(48, dtype=np.float32).reshape(8, 6) % 5 == 0) * np.float32(0.5)
    model, other = model_of(weight), model_of(np.ones_like(weight))
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch, "w.safetensors")
        kp.storage.save_sparse(model, path)
        content = bytearray(path.read_bytes())
        for _ in range(data.draw(st.integers(1, 3))):
            content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
        cut = data.draw(st.one_of(st.just(len(content)), st.integers(0, len(content))))
        path.write_bytes(content[:cut])
        try:
            kp.storage.load_sparse(other, path)
        except kp.FileError:
            np.testing.assert_array_equal(read(other), 1)
        else:
            np.testing.assert_array_equal(read(other), weight)
