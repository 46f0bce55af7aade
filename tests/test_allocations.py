"""Allocations: how one overall budget is split over the weights."""

import itertools
import re

import numpy as np
import pytest
from models import label

from keras_pruner.allocations import (
    NAMED,
    Global,
    PerWeight,
    Share,
    as_allocation,
    erk,
    lamp,
    uniform,
)
from keras_pruner.selection.top_k import kept_count
from keras_pruner.testing import SPARSITIES, check_allocation

pytestmark = pytest.mark.backend_free


def sparing_the_first(shares, sparsity, part=0.9):
    """An allocation as a user would write it: the first weight loses less than the others."""
    first, *others = shares
    if not others:
        return {first: sparsity}
    total, mine = sum(s.units for s in shares), part * sparsity
    rest = (sparsity * total - mine * first.units) / (total - first.units)
    return {first: mine, **dict.fromkeys(others, rest)}


ALLOCATIONS = [
    uniform,
    erk,
    lamp,
    Global(),
    Global(floor=0),
    Global(floor=0.5),
    Global(floor=0.99),
    PerWeight({"": 0.999}),
    PerWeight({"layer_[01]": 0.999, "layer": 0.9995}),
]


def share(scores, path="layer_0/kernel", shape=None):
    scores = np.asarray(scores, float)
    return Share(path, shape or scores.shape, scores.size, scores.ravel)


def shares_of(*scores):
    return [share(s, f"layer_{i}/kernel") for i, s in enumerate(scores)]


def kept(allocation, shares, sparsity):
    given = allocation(shares, sparsity)
    return [kept_count(s.units, given[s]) for s in shares]


@pytest.mark.parametrize("allocation", ALLOCATIONS, ids=label)
def test_laws_of_allocations(allocation):
    check_allocation(allocation)


def test_laws_of_a_users_own():
    check_allocation(sparing_the_first, sparsities=(0.0, 0.1, 0.25, 0.5, 0.8))


@pytest.mark.parametrize("allocation", ALLOCATIONS, ids=label)
def test_sparsity_zero_keeps_everything(allocation):
    shares = shares_of(np.arange(12.0), np.zeros(5), np.ones((3, 7)))
    assert kept(allocation, shares, 0.0) == [12, 5, 21]


@pytest.mark.parametrize("allocation", ALLOCATIONS, ids=label)
def test_the_order_of_different_scores_does_not_matter(allocation):
    random = np.random.default_rng(0)
    shares = shares_of(random.random((4, 9)), 3 * random.random((5, 7)), random.random(64))
    expected = dict(zip(shares, kept(allocation, shares, 0.8), strict=True))
    for order in itertools.permutations(shares):
        assert dict(zip(order, kept(allocation, order, 0.8), strict=True)) == expected


def test_uniform_is_the_same_for_all():
    shares = shares_of(np.ones(10), np.ones(6))
    assert uniform(shares, 0.25) == dict.fromkeys(shares, 0.25)
    assert kept(uniform, shares, 0.25) == [8, 4]


class TestErk:
    # Evci et al. 2020, arXiv:1911.11134: density in proportion to sum(shape) / prod(shape).
    def test_by_hand(self):
        # (2, 2): 4 / 4 = 1; (4, 12): 16 / 48 = 1/3. Budget at 0.5: 26 = e (4 * 1 + 48 / 3),
        # e = 1.3: the first is capped at 1, and (26 - 4) / 48 is left for the second.
        small, large = share(np.ones((2, 2))), share(np.ones((4, 12)), "layer_1")
        found = erk([small, large], 0.5)
        assert found[small] == 0
        assert found[large] == pytest.approx(1 - 22 / 48)
        # At 0.75: 13 = e 20, e = 0.65; nothing is capped.
        found = erk([small, large], 0.75)
        assert found[small] == pytest.approx(1 - 0.65)
        assert found[large] == pytest.approx(1 - 0.65 / 3)

    def test_conv_kernels_by_hand(self):
        # (3, 3, 2, 4): 12 / 72 = 1/6; (6, 6): 12 / 36 = 1/3. At 0.9: 10.8 = e (12 + 12).
        conv, dense = share(np.ones((3, 3, 2, 4))), share(np.ones((6, 6)), "layer_1")
        found = erk([conv, dense], 0.9)
        assert found[conv] == pytest.approx(1 - 0.45 / 6)
        assert found[dense] == pytest.approx(1 - 0.45 / 3)

    def test_several_rounds_of_caps(self):
        # 1, 8/15 and 70/1200 with units 4, 15, 1200: at 0.2 the budget 975.2 caps the first two.
        shapes = [(2, 2), (3, 5), (30, 40)]
        shares = [share(np.ones(s), f"layer_{i}") for i, s in enumerate(shapes)]
        found = erk(shares, 0.2)
        assert [found[s] for s in shares[:2]] == [0, 0]
        assert found[shares[2]] == pytest.approx(1 - (0.8 * 1219 - 19) / 1200)

    def test_units_of_blocks_meet_the_budget_in_blocks(self):
        shares = [
            Share("a", (8, 8), 16, lambda: np.ones(16)),
            Share("b", (64, 64), 1024, lambda: np.ones(1024)),
        ]
        for sparsity in SPARSITIES:
            off = sum(kept(erk, shares, sparsity)) - (1 - sparsity) * 1040
            assert abs(off) < 2


class TestLamp:
    # Lee et al. 2021, arXiv:2010.07611, eq. 3: score(u) = W[u]^2 / sum over v >= u of W[v]^2.
    def test_by_hand(self):
        # 1, 2, 3: 1/14, 4/13, 1. 10, 20: 100/500 = 1/5, 1. In order: 1, 1, 4/13, 1/5, 1/14.
        shares = shares_of([1, 3, 2], [20, 10])
        assert [kept(lamp, shares, s) for s in (0.2, 0.4, 0.6)] == [[2, 2], [2, 1], [1, 1]]

    def test_equal_scores_by_hand(self):
        # Sorted by index, as in the paper: 1, 1/2, 1/3, 1/4 for both; the first goes first.
        shares = shares_of(np.ones(4), np.full(4, 100.0))
        assert [kept(lamp, shares, k / 8) for k in range(7)] == [
            [4, 4],
            [4, 3],
            [3, 3],
            [3, 2],
            [2, 2],
            [2, 1],
            [1, 1],
        ]

    def test_the_scale_of_a_weight_does_not_matter(self):
        random = np.random.default_rng(0)
        one, other = random.random(50), random.random(70)
        for factor in (1e-150, 1e-30, 1e-3, 1e3, 1e30, 1e150):
            found = kept(lamp, shares_of(one, factor * other), 0.7)
            assert found == kept(lamp, shares_of(one, other), 0.7)

    def test_the_pruned_count_for_nothing(self):
        random = np.random.default_rng(0)
        one, other = random.random(50), random.random(70)
        padded = np.concatenate([one, np.full(30, -np.inf)])
        alone = kept(lamp, shares_of(one, other), 0.5)
        assert kept(lamp, shares_of(padded, other), 1 - sum(alone) / 150) == alone

    def test_negative_scores_are_refused(self):
        with pytest.raises(ValueError, match=r"scores of at least 0.* Received: -2 for layer_1/k"):
            lamp(shares_of([1, 2], [3, -2]), 0.5)


class TestGlobal:
    def test_by_hand(self):
        # The four highest of all ten are 9, 8, 7, 6; without a floor the first keeps one anyway.
        shares = shares_of([1, 2, 3, 0], [9, 8, 7, 6, 5, 4])
        assert kept(Global(floor=0), shares, 0.6) == [1, 3]
        # Half of the density 0.4 is 0.8 units of the first and 1.2 of the second: 1 and 2.
        assert kept(Global(floor=0.5), shares, 0.6) == [1, 3]
        # 0.9 of the density 0.5: 1.8 and 2.7, so 2 and 3.
        assert kept(Global(floor=0.9), shares, 0.5) == [2, 3]

    def test_of_equal_scores_those_of_the_earlier_weights_stay(self):
        assert kept(Global(floor=0), shares_of(np.ones(4), np.ones(6)), 0.5) == [4, 1]

    @pytest.mark.parametrize("floor", [0, 0.1, 0.5, 0.99])
    @pytest.mark.parametrize("sparsity", [0.1, 0.5, 0.9, 0.99])
    def test_no_weight_falls_below_its_floor(self, floor, sparsity):
        random = np.random.default_rng(0)
        shares = shares_of(1e-6 * random.random(100), random.random(1000), np.zeros(50))
        for one, count in zip(shares, kept(Global(floor), shares, sparsity), strict=True):
            assert count >= floor * (1 - sparsity) * one.units

    def test_a_floor_brings_nothing_back(self):
        almost_gone = np.full(100, -np.inf)
        almost_gone[3] = 1.0
        shares = shares_of(almost_gone, np.arange(100.0))
        assert kept(Global(floor=0.9), shares, 0.6) == [1, 79]

    @pytest.mark.parametrize("sparsity", SPARSITIES)
    def test_it_is_the_slow_sort_where_no_floor_is_in_the_way(self, sparsity):
        random = np.random.default_rng(3)
        scores = [random.random(n) for n in (40, 70, 300)]
        ranked = sorted(
            ((s, i) for i, each in enumerate(scores) for s in each), key=lambda pair: -pair[0]
        )
        expected = [0, 0, 0]
        for _, i in ranked[: kept_count(410, sparsity)]:
            expected[i] += 1
        if min(expected):
            assert kept(Global(floor=0), shares_of(*scores), sparsity) == expected

    @pytest.mark.parametrize("floor", [1, -0.1, 10, "0.1", True, float("nan"), None])
    def test_a_floor_is_a_fraction(self, floor):
        with pytest.raises(ValueError, match=re.escape(f"Received: floor={floor!r}")):
            Global(floor)


class TestPerWeight:
    def test_by_hand(self):
        shares = shares_of(np.ones(10), np.ones(30))
        fixed = PerWeight({"layer_0": 0.5, "layer": 0.9})  # overall (5 + 27) / 40 = 0.8
        assert kept(fixed, shares, 0.8) == [5, 3]
        found = fixed(shares, 0.4)  # half way
        assert [found[s] for s in shares] == pytest.approx([0.25, 0.45])

    def test_the_first_that_fits_counts(self):
        shares = shares_of(np.ones(10), np.ones(30))
        assert set(PerWeight({"layer": 0.9, "layer_0": 0.5})(shares, 0.9).values()) == {0.9}

    def test_a_weight_that_is_not_named(self):
        with pytest.raises(ValueError, match=r"must have a regex for every weight.*layer_1/kernel"):
            PerWeight({"layer_0": 0.5})(shares_of(np.ones(4), np.ones(4)), 0.5)

    def test_more_than_the_mapping_comes_to(self):
        with pytest.raises(
            ValueError, match=r"gives a sparsity of 0.5 over .* Received: sparsity=0.8"
        ):
            PerWeight({"": 0.5})(shares_of(np.ones(40)), 0.8)
        with pytest.raises(ValueError, match=r"gives a sparsity of 0 over"):
            PerWeight({"": 0})(shares_of(np.ones(40)), 0.8)

    def test_what_the_message_says_to_pass_is_taken_however_many_weights_there_are(self):
        shares = [Share(f"layer_{i}", (n,), n, tuple) for i, n in enumerate((10**7, 3 * 10**6))]
        fixed = PerWeight({"layer_0": 0.9, "layer_1": 0.5})  # overall 0.807692...
        units = {share.path: share.units for share in shares}
        with pytest.raises(
            ValueError, match=r"gives a sparsity of 0.8077 .* lower the mapping's values"
        ):
            fixed.check_final(units, 0.7)
        with pytest.raises(ValueError, match=r"Pass 0.8077 as the sparsity, or raise"):
            fixed.check_final(units, 0.9)
        fixed.check_final(units, 0.8077)
        found = fixed(shares, 0.8077)
        assert [found[s] for s in shares] == pytest.approx([0.9, 0.5], abs=1e-4)

    @pytest.mark.parametrize(
        ("mapping", "message"),
        [
            ({"conv": 80}, r"`allocation\['conv'\]` .* For 80% zeros"),
            ({"(": 0.5}, r"`allocation` must hold regular expressions"),
            ({3: 0.5}, r"not a string. Received: 3"),
            ({}, r"Received: an empty mapping"),
        ],
    )
    def test_bad_mappings(self, mapping, message):
        with pytest.raises(ValueError, match=message):
            as_allocation(mapping)


def test_as_allocation():
    assert as_allocation("lamp") is lamp
    assert as_allocation("global") == Global()
    assert as_allocation({"": 0.5}) == PerWeight({"": 0.5})
    assert as_allocation(sparing_the_first) is sparing_the_first
    assert sorted(NAMED) == ["erk", "global", "lamp", "uniform"]


@pytest.mark.parametrize("given", ["LAMP", "layerwise", None, 0.5, ["lamp"], Global])
def test_as_allocation_refuses_the_rest(given):
    expected = re.escape(f"Received: allocation={given!r}")
    with pytest.raises(ValueError, match="must be one of .*'lamp'.*" + expected):
        as_allocation(given)


def give_all_to_one(shares, sparsity):
    return {**uniform(shares, 1.0), shares[-1]: sparsity}


@pytest.mark.parametrize(
    ("allocation", "law"),
    [
        (lambda shares, sparsity: dict.fromkeys(shares[1:], sparsity), "Every weight"),
        (lambda shares, sparsity: dict.fromkeys(shares, 100 * sparsity), "A fraction"),
        (lambda shares, sparsity: dict.fromkeys(shares, sparsity / 2), "Budget"),
        (give_all_to_one, "Budget"),
        (lambda shares, sparsity: sparing_the_first(shares, sparsity, sparsity < 0.5), "Nesting"),
    ],
)
def test_the_check_finds_what_is_broken(allocation, law):
    with pytest.raises(AssertionError, match=law):
        check_allocation(allocation, sparsities=(0.0, 0.25, 0.4, 0.5, 0.6))
