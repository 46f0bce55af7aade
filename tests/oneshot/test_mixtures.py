"""Samples made from samples."""

import numpy as np
import pytest

from keras_pruner.oneshot.calibration import Samples
from keras_pruner.oneshot.mixtures import can_be_mixed, mixtures

pytestmark = pytest.mark.backend_free

RANDOM = np.random.default_rng(0)


def test_each_is_a_weighted_mean_of_two_samples():
    x = np.eye(40, dtype="float32")
    mixed = mixtures(Samples(x), 0).inputs
    assert mixed.shape == x.shape
    assert mixed.dtype == np.float32
    np.testing.assert_allclose(mixed.sum(axis=1), 1, rtol=1e-6)
    assert set(np.count_nonzero(mixed, axis=1)) <= {1, 2}
    shares = mixed[mixed > 0]
    assert 0.4 < shares.mean() < 0.7
    assert (mixed.max(axis=0) > 0).all()  # each sample takes part


def test_a_number_gives_a_set_of_its_own():
    samples = Samples(RANDOM.normal(size=(32, 3)))
    first, again, second = (mixtures(samples, number).inputs for number in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert not np.isclose(first, second).any(axis=1).all()


def test_all_inputs_are_mixed_of_the_same_two_in_the_same_shares():
    x = RANDOM.normal(size=(32, 2, 2)).astype("float32")
    mixed = mixtures(Samples({"one": x, "double": 2 * x}), 3).inputs
    np.testing.assert_allclose(mixed["double"], 2 * mixed["one"], rtol=1e-5)


def test_integers_stay_those_of_a_sample():
    tokens = RANDOM.integers(0, 1000, (32, 5))
    samples = Samples(tokens)
    assert not can_be_mixed(samples)
    rows = {tuple(row) for row in tokens}
    assert {tuple(row) for row in mixtures(samples, 1).inputs} == rows
    assert can_be_mixed(Samples([tokens, np.ones((32, 1), "float32")]))
