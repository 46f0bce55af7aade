"""Selection: how many stay, and which."""

from decimal import ROUND_HALF_EVEN, Decimal

import ml_dtypes
import numpy as np
import pytest

from keras_pruner.selection import top_k
from keras_pruner.selection.top_k import kept_count, largest

pytestmark = pytest.mark.backend_free

TYPES = [np.float64, np.float32, np.float16, ml_dtypes.bfloat16, np.int8, np.uint8]


def slow_largest(scores, count):
    """The oracle: one after the other, the first of the highest that is not taken yet."""
    mask = [False] * len(scores)
    for _ in range(count):
        best = None
        for i, score in enumerate(scores):
            if not mask[i] and (best is None or float(score) > float(scores[best])):
                best = i
        mask[best] = True
    return mask


# TensorFlow Model Optimization 0.8.1, pruning_impl.py: k = max(round(n (1 - s)), 1).
@pytest.mark.parametrize(
    ("units", "sparsity", "kept"),
    [
        (10, 0.25, 8),  # 7.5, to even
        (10, 0.35, 6),  # 6.5, to even
        (6, 0.25, 4),  # 4.5, to even
        (3, 0.5, 2),
        (5, 0.5, 2),
        (7, 0.5, 4),
        (100, 0.9999, 1),
        (1, 0.0, 1),
        (1, 0.999, 1),
        (10, 0.0, 10),
    ],
)
def test_kept_counts_by_hand(units, sparsity, kept):
    assert kept_count(units, sparsity) == kept


@pytest.mark.parametrize("sparsity", [0.0, 0.1, 0.25, 0.35, 0.5, 0.8, 0.9, 0.975, 0.9999])
def test_kept_counts_are_round_half_even_in_float64(sparsity):
    for units in [*range(1, 200), 2**24 + 1, 2**24 + 3, 2**31 + 1]:
        exact = Decimal(units * (1 - sparsity)).to_integral_value(ROUND_HALF_EVEN)
        assert kept_count(units, sparsity) == max(1, exact)


@pytest.mark.parametrize("cast", [float, np.float64, np.float32, np.float16])
def test_kept_counts_above_2_to_the_24_are_exact_in_any_type(cast):
    # float32 has 24 bits: 2^24 + 1 is not among its numbers.
    assert kept_count(2**24 + 1, cast(0)) == 2**24 + 1
    assert kept_count(np.int64(2**25 + 2), cast(0.5)) == 2**24 + 1
    assert kept_count(2**26 + 4, cast(0.75)) == 2**24 + 1


def test_kept_counts_only_fall():
    for units in (1, 7, 64, 270, 1001):
        counts = [kept_count(units, s) for s in np.linspace(0, 0.9999, 1000)]
        assert (np.diff(counts) <= 0).all()


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("size", [1, 2, 7, 40])
def test_largest_is_the_slow_one(dtype, size):
    random = np.random.default_rng(size)
    for scores in (
        random.permutation(size).astype(dtype),
        random.integers(0, 4, size).astype(dtype),
        np.ones(size, dtype),
    ):
        for count in range(1, size + 1):
            mask = largest(scores, count)
            assert mask.dtype == bool
            assert mask.tolist() == slow_largest(scores, count)


def test_equal_scores_keep_the_lower_index():
    assert largest(np.array([1.0, 2, 1, 2, 1]), 3).tolist() == [True, True, False, True, False]


def test_minus_infinity_comes_last_and_zeros_of_either_sign_are_equal():
    scores = np.array([-np.inf, 0.0, -0.0, -np.inf, 5.0])
    assert largest(scores, 2).tolist() == [False, True, False, False, True]
    assert largest(scores, 4).tolist() == [True, True, True, False, True]


def test_counts_above_2_to_the_24_are_exact():
    units = 2**24 + 5
    scores = np.ones(units, np.int8)  # a byte each: all equal, the hardest case
    count = kept_count(units, 0.5)
    mask = largest(scores, count)
    assert np.count_nonzero(mask) == count == 2**23 + 2
    assert mask[:count].all()


@pytest.mark.parametrize("position", [0, 3, 6])
@pytest.mark.parametrize("count", [1, 3, 6])
def test_nan_is_refused_where_it_matters(position, count):
    scores = np.arange(7.0)
    scores[position] = np.nan
    with pytest.raises(ValueError, match="`scores` must hold no NaN"):
        largest(scores, count)


WEIGHTS = {
    "normal": lambda rng, n: rng.standard_normal(n),
    "many ties": lambda rng, n: np.round(rng.standard_normal(n) * 2),
    "all equal": lambda rng, n: np.ones(n),
    "mostly zero": lambda rng, n: rng.standard_normal(n) * (rng.random(n) < 0.1),
    "sorted": lambda rng, n: np.sort(rng.standard_normal(n)),
    "periodic": lambda rng, n: np.tile(rng.standard_normal(97), n // 97 + 1)[:n],
}


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("n", [1, 7, 1000, top_k.CHUNK, 3 * top_k.CHUNK + 5])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_largest_magnitudes_marks_what_largest_marks(weights, n, dtype):
    rng = np.random.default_rng(n)
    values = WEIGHTS[weights](rng, n).astype(dtype)
    for alive in (np.ones(n, bool), rng.random(n) < 0.6):
        scores = np.where(alive, np.abs(values), -np.inf)
        for count in {1, n // 100, n // 5, n // 2, n - 1, n} - {0}:
            marked = top_k.largest_magnitudes(values * alive, alive, count)
            np.testing.assert_array_equal(marked, top_k.largest(scores, count))


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_a_cut_in_place_is_the_mask_and_the_zeros(dtype, threads, monkeypatch):
    monkeypatch.setattr(top_k, "THREADS", threads)
    monkeypatch.setattr(top_k, "CHUNK", 20)
    rng = np.random.default_rng(0)
    alive = rng.random(1005) < 0.9
    values = np.round(rng.standard_normal(1005) * 8).astype(dtype) * alive  # many equal ones
    for count in (1, 200, 500, 800):
        cut = top_k.magnitude_cut(values, alive, count)
        weights, mask = np.where(alive, values, dtype(np.nan)), alive.copy()
        top_k.cut_in_place(weights, mask, cut)
        scores = np.where(alive, np.abs(values), -np.inf)
        np.testing.assert_array_equal(mask, largest(scores, count))
        np.testing.assert_array_equal(weights, np.where(mask, values, 0))
        assert not np.signbit(weights[~mask]).any()


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_largest_magnitudes_refuses_what_is_not_finite(wrong):
    values = np.ones(100, np.float32)
    values[70] = wrong
    with pytest.raises(ValueError, match="must be finite"):
        top_k.largest_magnitudes(values, np.ones(100, bool), 5)


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("n", [1, 7, 1000])
def test_the_cut_found_by_counting_is_the_one_found_by_looking(weights, n):
    rng = np.random.default_rng(n)
    values = WEIGHTS[weights](rng, n).astype(np.float32)
    for alive in (np.ones(n, bool), rng.random(n) < 0.6):
        scores = np.where(alive, np.abs(values), np.float32(-1))

        def count_from(score, scores=scores):
            return np.count_nonzero(scores >= score)

        def count_equal(score, last, scores=scores):
            return np.count_nonzero(scores[: last + 1] == score)

        for count in {1, n // 5, n // 2, n - 1, n} - {0}:
            counted = top_k.counted_cut(n, count_from, count_equal, count)
            np.testing.assert_array_equal(
                top_k.marked(values, alive, counted),
                largest(np.where(alive, scores, -np.inf), count),
            )


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_counting_refuses_what_is_not_finite(wrong):
    scores = np.array([1, wrong, 2], np.float32)
    with pytest.raises(ValueError, match="must be finite"):
        top_k.counted_cut(
            3,
            lambda score: np.count_nonzero(scores >= score),
            lambda score, last: np.count_nonzero(scores[: last + 1] == score),
            1,
        )


def test_magnitudes_below_those_of_float32_are_no_zeros():
    weights = np.array([0.0] * 6 + [1.0] * 34 + [4.6e-63, 3e-118, 4.2e-120, 3.6e-127, 4.8e-160])
    alive = np.ones(weights.size, bool)
    for count in (36, 39, 40, weights.size):
        kept = top_k.largest_magnitudes(weights, alive, count)
        order = np.argsort(-np.abs(weights), kind="stable")
        assert sorted(np.flatnonzero(kept)) == sorted(order[:count])
