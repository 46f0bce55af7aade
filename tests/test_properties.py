"""Laws of selection, patterns and allocations on drawn cases: 50 of each here, 2,000 when slow."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from keras_pruner.allocations import Global, Share, erk, lamp, uniform
from keras_pruner.patterns import NM, Block, Channel, Unstructured
from keras_pruner.selection import top_k
from keras_pruner.selection.across_weights import Scores, by_lamp, kept_by_one_cut
from keras_pruner.selection.top_k import kept_count

pytestmark = pytest.mark.backend_free

DTYPES = st.sampled_from(["float16", "float32", "float64"])
SPARSITIES = st.floats(0, 1, exclude_max=True)
FEW = st.sampled_from([0.0, 0.5, 1.0, 2.0, 1e-7, 3e4])  # many ties


def numbers(dtype, *, least=None):
    """Finite numbers of a type, or a few that are equal again and again."""
    width = 8 * np.dtype(dtype).itemsize
    drawn = st.floats(least, allow_nan=False, allow_infinity=False, width=width)
    return st.one_of(drawn, FEW.map(lambda x: float(np.dtype(dtype).type(x))))


def vectors(*, least=None, smallest=1):
    """One-dimensional arrays of any floating-point type."""
    return DTYPES.flatmap(
        lambda dtype: arrays.arrays(
            dtype, st.integers(smallest, 60), elements=numbers(dtype, least=least)
        )
    )


LAWS = []


def law(*strategies):
    """List a function that checks a law on cases drawn from these strategies."""

    def listed(check):
        LAWS.append(pytest.param(strategies, check, id=check.__name__))
        return check

    return listed


def check_drawn(strategies, check, cases):
    """Check a law on so many drawn cases, the same ones in every run."""
    limits = settings(
        max_examples=cases,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
    )
    limits(given(*strategies)(check))()


# ---------------------------------------------------------------- one weight


@law(vectors(), st.data())
def largest_marks_what_a_sort_does(scores, data):
    count = data.draw(st.integers(1, scores.size))
    order = np.argsort(-scores.astype(np.float64), kind="stable")
    expected = np.zeros(scores.size, bool)
    expected[order[:count]] = True
    np.testing.assert_array_equal(top_k.largest(scores, count), expected)


@law(vectors(), st.data())
def a_cut_by_magnitude_marks_what_a_sort_does(weights, data):
    alive = data.draw(arrays.arrays(bool, weights.size))
    count = data.draw(st.integers(1, weights.size))
    scores = np.where(alive, np.abs(weights.astype(np.float64)), -1)
    order = np.argsort(-scores, kind="stable")
    expected = np.zeros(weights.size, bool)
    expected[order[:count]] = True
    np.testing.assert_array_equal(top_k.largest_magnitudes(weights, alive, count), expected)
    cut = top_k.magnitude_cut(weights, alive, count)
    written, mask = weights.copy(), alive.copy()
    top_k.cut_in_place(written, mask, cut)
    np.testing.assert_array_equal(mask, expected)
    np.testing.assert_array_equal(written, np.where(expected, weights, 0))


@law(st.integers(1, 10**12), SPARSITIES)
def counts_are_within_one_of_the_request(units, sparsity):
    kept = kept_count(units, sparsity)
    assert 1 <= kept <= units
    assert kept == 1 or abs(kept - units * (1 - sparsity)) <= 0.5 + 1e-9 * units


# ---------------------------------------------------------------- many weights


def slow_lamp(scores):
    """The LAMP scores of one weight by the definition, in float64."""
    wide = scores.astype(np.float64)
    top = wide.max(initial=0)
    relative = wide / top if top > 0 else wide
    order = np.argsort(-relative, kind="stable")
    sums = np.cumsum(np.square(relative[order]))
    ranks = np.empty(wide.size, np.float32)
    ranks[order] = by_lamp(relative[order], sums)
    return ranks


@law(st.lists(vectors(least=0), min_size=1, max_size=5), st.data())
def one_cut_keeps_what_sorting_all_scores_does(weights, data):
    units = [weight.size for weight in weights]
    budget = data.draw(st.integers(0, sum(units)))
    least = [data.draw(st.integers(0, size)) for size in units]
    parts = [Scores(lambda weight=weight: np.array_split(weight, 2)) for weight in weights]
    kept = kept_by_one_cut(parts, least, budget)
    assert kept.sum() == max(budget, sum(least)) if budget < sum(units) else sum(units)
    assert (kept >= least).all()
    if 0 < budget < sum(units) and not any(least):
        together = np.concatenate([weight.astype(np.float64) for weight in weights])
        owner = np.repeat(np.arange(len(weights)), units)
        order = np.argsort(-together, kind="stable")[:budget]
        np.testing.assert_array_equal(kept, np.bincount(owner[order], minlength=len(weights)))


@law(st.lists(vectors(least=0), min_size=1, max_size=5), st.data())
def lamp_keeps_within_rounding_what_its_definition_does(weights, data):
    weights = [np.minimum(weight, 1e4).astype(np.float32) for weight in weights]
    budget = data.draw(st.integers(len(weights), sum(weight.size for weight in weights)))
    ranks = [slow_lamp(weight) for weight in weights]
    kept = kept_by_one_cut(
        [Scores(lambda weight=weight: [weight]) for weight in weights],
        [1] * len(weights),
        budget,
        by_lamp,
    )
    assert kept.sum() == budget
    falling = [np.sort(rank)[::-1] for rank in ranks]
    chosen = [rank[k - 1] for rank, k in zip(falling, kept, strict=True) if k > 1]
    left = [rank[k] for rank, k in zip(falling, kept, strict=True) if k < rank.size]
    assert max(left, default=0.0) <= min(chosen, default=1.0) * (1 + 1e-5)


# ---------------------------------------------------------------- patterns

POOLINGS = st.sampled_from(["mean", "max"])
PATTERNS = st.one_of(
    st.just(Unstructured()),
    st.builds(
        Block, st.tuples(st.integers(1, 5), st.integers(1, 5)), st.sampled_from(["mean", "max"])
    ),
    st.builds(Channel, st.sampled_from([-1, -2]), st.sampled_from(["mean", "max"])),
)
SHAPES = st.lists(st.integers(1, 9), min_size=2, max_size=4).map(tuple)


def kernels(shape):
    return arrays.arrays(
        np.float32, shape, elements=numbers("float32", least=0).filter(lambda x: x < 1e6)
    )


@law(PATTERNS, SHAPES, SPARSITIES, st.data())
def patterns_keep_exactly_the_best_units(pattern, shape, sparsity, data):
    try:
        units = pattern.units(shape)
    except ValueError:
        return
    scores = data.draw(kernels(shape))
    mask = pattern(scores, sparsity)
    kept = np.flatnonzero(pattern.unit_scores(np.where(mask, 1.0, 0.0)) > 0)
    assert len(kept) == kept_count(units, sparsity)
    order = np.argsort(-pattern.unit_scores(scores), kind="stable")
    np.testing.assert_array_equal(kept, np.sort(order[: len(kept)]))
    higher = data.draw(st.floats(sparsity, 1, exclude_max=True))
    again = pattern(np.where(mask, data.draw(kernels(shape)), -np.inf), higher)
    assert not (again & ~mask).any()


@law(st.integers(1, 6), st.integers(1, 6), SHAPES, st.data())
def n_of_m_keeps_n_in_each_group(n, more, shape, data):
    pattern = NM(n, n + more)
    if shape[-2] < pattern.m:
        return
    scores = data.draw(kernels(shape))
    mask = pattern(scores)
    assert mask.sum() == pattern.kept(shape)
    for start in range(0, shape[-2], pattern.m):
        group, values = (x[..., start : start + pattern.m, :] for x in (mask, scores))
        assert (group.sum(-2) == min(n, group.shape[-2])).all()
        lowest = np.where(group, values, np.inf).min(-2)
        assert (np.where(group, -np.inf, values).max(-2) <= lowest).all()


# ---------------------------------------------------------------- allocations


@law(
    st.sampled_from([uniform, erk, lamp, Global(), Global(0.0)]),
    st.lists(SHAPES, min_size=1, max_size=5),
    st.lists(SPARSITIES, min_size=1, max_size=3),
    st.data(),
)
def allocations_meet_their_budget_and_nest(allocation, shapes, sparsities, data):
    weights = [data.draw(kernels(shape)).ravel() for shape in shapes]
    for sparsity in sorted(sparsities):
        shares = [
            Share(f"w{i}", shape, weight.size, lambda weight=weight: weight)
            for i, (shape, weight) in enumerate(zip(shapes, weights, strict=True))
        ]
        given_ = allocation(shares, sparsity)
        kept = [kept_count(share.units, given_[share]) for share in shares]
        request = (1 - sparsity) * sum(share.units for share in shares)
        assert abs(sum(kept) - request) <= len(shares)
        for i, (weight, count) in enumerate(zip(weights, kept, strict=True)):
            assert 1 <= count <= max(1, np.count_nonzero(weight > -np.inf))
            weights[i] = np.where(top_k.largest(weight, count), weight, -np.inf)


# ---------------------------------------------------------------- all of them


@pytest.mark.parametrize(("strategies", "check"), LAWS)
def test_a_law_holds_on_drawn_cases(strategies, check):
    check_drawn(strategies, check, 50)


@pytest.mark.slow
@pytest.mark.parametrize(("strategies", "check"), LAWS)
def test_a_law_holds_on_many_drawn_cases(strategies, check):
    check_drawn(strategies, check, 2000)
