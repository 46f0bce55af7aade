"""Criteria: from weights to scores."""

import ml_dtypes
import numpy as np
import pytest

from keras_pruner.criteria import magnitude

pytestmark = pytest.mark.backend_free

TYPES = [np.float64, np.float32, np.float16, ml_dtypes.bfloat16]


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("shape", [(8, 8), (5, 4), (1, 9), (3, 3, 5, 6)])
def test_magnitude_is_the_absolute_value(dtype, shape):
    weights = np.random.default_rng(0).normal(size=shape).astype(dtype)
    before = weights.copy()
    scores = magnitude(weights)
    assert scores.shape == shape
    assert scores.dtype == (np.float64 if dtype is np.float64 else np.float32)
    np.testing.assert_array_equal(
        scores,
        [[abs(float(w)) for w in row] for row in weights]
        if len(shape) == 2
        else np.abs(weights.astype(np.float64)),
    )
    np.testing.assert_array_equal(weights, before)


def test_magnitude_by_hand():
    np.testing.assert_array_equal(magnitude(np.array([-2.0, 0.0, -0.0, 1.5])), [2, 0, 0, 1.5])


@pytest.mark.parametrize("dtype", TYPES)
def test_magnitude_does_not_hide_what_is_not_finite(dtype):
    scores = magnitude(np.array([np.nan, -np.inf], dtype))
    assert np.isnan(scores[0])
    assert scores[1] == np.inf


def test_magnitude_keeps_the_smallest_numbers_of_each_type_apart():
    for dtype in TYPES:
        tiny = np.array([0, ml_dtypes.finfo(dtype).smallest_subnormal, 0], dtype)
        assert magnitude(tiny)[1] > 0, dtype
