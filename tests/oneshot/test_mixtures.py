"""Samples made from samples."""

import keras
import numpy as np
import pytest

from keras_pruner.oneshot.calibration import Samples
from keras_pruner.oneshot.mixtures import can_be_mixed, mixtures

pytestmark = pytest.mark.backend_free

RANDOM = np.random.default_rng(0)


def test_each_is_a_weighted_mean_of_two_samples():
    x = np.eye(40, dtype="float32")
    mixed = mixtures(Samples(x), 0, [True]).inputs
    assert mixed.shape == x.shape
    assert mixed.dtype == np.float32
    np.testing.assert_allclose(mixed.sum(axis=1), 1, rtol=1e-6)
    assert set(np.count_nonzero(mixed, axis=1)) <= {1, 2}
    shares = mixed[mixed > 0]
    assert 0.4 < shares.mean() < 0.7
    assert (mixed.max(axis=0) > 0).all()  # each sample takes part


def test_a_number_gives_a_set_of_its_own():
    samples = Samples(RANDOM.normal(size=(32, 3)))
    first, again, second = (mixtures(samples, number, [True]).inputs for number in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert not np.isclose(first, second).any(axis=1).all()


def test_all_inputs_are_mixed_of_the_same_two_in_the_same_shares():
    x = RANDOM.normal(size=(32, 2, 2)).astype("float32")
    mixed = mixtures(Samples({"one": x, "double": 2 * x}), 3, [True, True]).inputs
    np.testing.assert_allclose(mixed["double"], 2 * mixed["one"], rtol=1e-5)


def test_what_is_not_mixed_is_that_of_a_sample():
    tokens, x = RANDOM.integers(0, 1000, (32, 5)), RANDOM.normal(size=(32, 2))
    found = mixtures(Samples([tokens, x]), 1, [False, True]).inputs
    assert {tuple(row) for row in found[0]} == {tuple(row) for row in tokens}
    assert not np.isclose(found[1][:, None], x).all(axis=2).any(axis=1).all()


def test_indices_are_not_mixed_whatever_their_type():
    x = keras.Input((4,))
    dense = keras.Model(x, keras.layers.Dense(2)(x))
    embedded = keras.Model(x, keras.layers.Embedding(256, 3)(x))
    pixels = Samples(RANDOM.integers(0, 256, (16, 4)).astype("float32"))
    assert can_be_mixed(dense, pixels) == [True]
    assert can_be_mixed(embedded, pixels) == [False]
    assert can_be_mixed(embedded, Samples(pixels.inputs / 255)) == [True]
    assert can_be_mixed(dense, Samples(pixels.inputs.astype("int32"))) == [False]
