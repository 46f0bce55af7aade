"""Patterns: from scores to masks."""

import dataclasses
import re

import keras
import ml_dtypes
import numpy as np
import pytest
from models import label

from keras_pruner.patterns import (
    NM,
    Block,
    BudgetedPattern,
    Channel,
    FixedPattern,
    Unstructured,
    takes_sparsity,
)
from keras_pruner.selection.top_k import kept_count
from keras_pruner.testing import SHAPES, check_pattern

pytestmark = pytest.mark.backend_free


@keras.saving.register_keras_serializable("test_patterns")
@dataclasses.dataclass(frozen=True)
class Rows(BudgetedPattern):
    """A pattern as a user would write it: all outputs of one input, at one place."""

    def get_config(self):
        return dataclasses.asdict(self)

    @classmethod
    def from_config(cls, config):
        return cls(**config)

    def units(self, shape):
        return int(np.prod(shape[:-1]))

    def unit_scores(self, scores):
        return scores.reshape(-1, scores.shape[-1]).max(-1)

    def spread(self, kept, shape):
        return np.repeat(kept, shape[-1]).reshape(shape)


PATTERNS = [
    Unstructured(),
    Block((4, 1)),
    Block((2, 3)),
    Block((1, 1)),
    Block((1, 4)),
    Block((4, 1), "max"),
    Block((2, 3), "max"),
    NM(2, 4),
    NM(1, 4),
    NM(3, 4),
    NM(1, 2),
    NM(2, 3),
    Channel(),
    Channel(-2),
    Channel(pooling="max"),
    Channel(-2, pooling="max"),
    Rows(),
]
FREE = [pattern for pattern in PATTERNS if isinstance(pattern, BudgetedPattern)]
FIXED = [pattern for pattern in PATTERNS if isinstance(pattern, FixedPattern)]
SPARSITIES = [0.0, 0.25, 0.5, 0.8, 0.99]


def fits(pattern, shape):
    try:
        return pattern.units(shape) > 0
    except ValueError:
        return False


def pairs(patterns, shapes=SHAPES):
    """Each pattern with each shape it fits."""
    return pytest.mark.parametrize(
        ("pattern", "shape"),
        [(pattern, shape) for pattern in patterns for shape in shapes if fits(pattern, shape)],
        ids=label,
    )


def random_scores(shape, seed=0):
    return np.random.default_rng(seed).random(shape)


@pytest.mark.parametrize("pattern", PATTERNS, ids=label)
def test_laws_of_patterns(pattern):
    check_pattern(pattern)


# ---------------------------------------------------------------- oracles


def slow_units(pattern, shape):
    """The members of each unit, as lists of indices in order: loops over the definition."""
    if isinstance(pattern, Unstructured):
        return [[index] for index in np.ndindex(shape)]
    if isinstance(pattern, Channel):
        return [
            [index for index in np.ndindex(shape) if index[pattern.axis] == channel]
            for channel in range(shape[pattern.axis])
        ]
    height, width = pattern.shape
    rows = list(np.ndindex(shape[:-1]))
    return [
        [
            (*rows[i], j)
            for i in range(top, min(top + height, len(rows)))
            for j in range(left, min(left + width, shape[-1]))
        ]
        for top in range(0, len(rows), height)
        for left in range(0, shape[-1], width)
    ]


@pairs([pattern for pattern in FREE if not isinstance(pattern, Rows)])
def test_masks_are_those_of_the_slow_loop(pattern, shape):
    units = slow_units(pattern, shape)
    assert pattern.units(shape) == len(units)
    pool = max if getattr(pattern, "pooling", "mean") == "max" else np.mean
    for scores in (random_scores(shape), np.ones(shape), np.round(random_scores(shape) * 2)):
        pooled = [pool([scores[index] for index in unit]) for unit in units]
        np.testing.assert_allclose(pattern.unit_scores(scores), pooled)
        for sparsity in SPARSITIES:
            ranked = sorted(range(len(units)), key=lambda u: (-round(pooled[u], 12), u))
            expected = np.zeros(shape, bool)
            for unit in ranked[: kept_count(len(units), sparsity)]:
                for index in units[unit]:
                    expected[index] = True
            np.testing.assert_array_equal(pattern(scores, sparsity), expected)


@pairs(FIXED, [*SHAPES, (2, 7, 3), (4, 1), (2, 4, 3)])
def test_n_of_m_masks_are_those_of_the_slow_loop(pattern, shape):
    for scores in (random_scores(shape), np.ones(shape), np.round(random_scores(shape) * 2)):
        expected = np.zeros(shape, bool)
        for *rest, output in np.ndindex((*shape[:-2], shape[-1])):
            for start in range(0, shape[-2], pattern.m):
                group = range(start, min(start + pattern.m, shape[-2]))
                ranked = sorted(group, key=lambda i: (-scores[(*rest, i, output)], i))
                for i in ranked[: pattern.n]:
                    expected[(*rest, i, output)] = True
        mask = pattern(scores)
        np.testing.assert_array_equal(mask, expected)
        assert mask.sum() == pattern.kept(shape)


# ---------------------------------------------------------------- by hand


@pytest.mark.parametrize(
    ("shape", "block", "sparsity", "units_kept"),
    [((10,), (1, 1), 0.25, 8), ((10,), (1, 1), 0.35, 6), ((6,), (1, 1), 0.25, 4)],
)
def test_counts_by_hand(shape, block, sparsity, units_kept):
    scores = random_scores((1, *shape))
    assert Unstructured()(scores, sparsity).sum() == units_kept
    assert Block(block)(scores, sparsity).sum() == units_kept


@pytest.mark.parametrize("pooling", ["mean", "max"])
def test_a_ragged_block_is_the_complement_not_the_remainder(pooling):
    # TensorFlow Model Optimization 0.8.1 shifts the blocks and zeroes a 10 here.
    mask = Block((1, 3), pooling)(np.array([[1.0, 1, 10, 10]]), 0.5)
    assert mask.tolist() == (
        [[False, False, False, True]] if pooling == "mean" else [[True] * 3 + [False]]
    )


def test_a_ragged_block_scores_by_the_mean_of_what_it_has():
    scores = np.array([[1.0, 1, 2], [1, 1, 2], [3, 3, 5]])
    assert Block((2, 2)).unit_scores(scores).tolist() == [1, 2, 3, 5]
    assert Block((2, 2), "max").unit_scores(scores).tolist() == [1, 2, 3, 5]


def test_blocks_of_a_conv_kernel_lie_on_its_matrix_view():
    scores = random_scores((3, 3, 5, 6))
    matrix = Block((4, 2))(scores.reshape(45, 6), 0.5)
    np.testing.assert_array_equal(Block((4, 2))(scores, 0.5), matrix.reshape(3, 3, 5, 6))


def test_two_of_four_by_hand():
    scores = np.array([[1.0, 4, 3, 2, 9, 7, 8]]).T
    assert NM(2, 4)(scores).T.tolist() == [[False, True, True, False, True, False, True]]


def test_n_of_m_keeps_a_ragged_tail_of_up_to_n():
    assert [NM(2, 4).kept((inputs, 3)) for inputs in (4, 5, 6, 7, 8)] == [6, 9, 12, 12, 12]
    assert NM(2, 4)(np.ones((5, 1))).T.tolist() == [[True, True, False, False, True]]


@pytest.mark.parametrize("shape", [(8, 3), (7, 3), (3, 3, 5, 6)])
def test_n_of_m_prefers_live_members_and_does_not_fall_into_the_padding(shape):
    pattern = NM(2, 4)
    scores = np.full(shape, -np.inf)
    mask = pattern(scores)
    assert mask.sum() == pattern.kept(shape)
    kept = pattern(random_scores(shape))
    np.testing.assert_array_equal(pattern(np.where(kept, random_scores(shape, 1), -np.inf)), kept)


@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize("m", [4, 5, 6, 10, 16])
def test_the_fixed_sparsity_is_what_a_user_writes(n, m):
    pattern, scores = NM(n, m), random_scores((2 * m, 3))
    for sparsity in ((m - n) / m, 1 - n / m, pattern.sparsity):
        np.testing.assert_array_equal(pattern(scores, sparsity), pattern(scores))
        assert takes_sparsity(pattern, sparsity)
    assert not takes_sparsity(pattern, 0.01)
    assert takes_sparsity(Unstructured(), 0.5)


def test_channels_by_hand():
    scores = np.array([[1.0, 5, 2], [1, 0, 2]])
    assert Channel()(scores, 0.5).tolist() == [[False, True, True]] * 2
    assert Channel(pooling="max")(scores, 0.66).tolist() == [[False, True, False]] * 2
    assert Channel(-2)(scores, 0.5).tolist() == [[True] * 3, [False] * 3]


# ---------------------------------------------------------------- laws


@pairs(PATTERNS)
def test_more_sparsity_only_removes(pattern, shape):
    sparsities = [None] * 3 if isinstance(pattern, FixedPattern) else SPARSITIES
    kept = np.ones(shape, bool)
    for step, sparsity in enumerate(sparsities):
        mask = pattern(np.where(kept, random_scores(shape, step), -np.inf), sparsity)
        assert not (mask & ~kept).any()
        kept = mask


@pytest.mark.parametrize("pattern", FREE, ids=label)
def test_sparsity_zero_keeps_everything(pattern):
    assert pattern(np.zeros((8, 8)), 0).all()


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("pattern", [Block((4, 1)), Block((64, 2)), Channel(), Channel(-2)])
def test_half_precision_is_pooled_in_single(pattern, dtype):
    # 4096 ones and one 3 more: a float16 sum would overflow or a bfloat16 one stand still.
    scores = np.full((64, 64), 1000.0)
    scores[60, 37] = 1003.0
    rounded = scores.astype(dtype)
    wide = rounded.astype(np.float64)
    np.testing.assert_array_equal(pattern(rounded, 0.5), pattern(wide, 0.5))
    np.testing.assert_allclose(pattern.unit_scores(rounded), pattern.unit_scores(wide), rtol=1e-6)


@pytest.mark.parametrize("pattern", PATTERNS, ids=label)
@pytest.mark.parametrize("order", ["F", "strided"])
def test_the_layout_in_memory_does_not_matter(pattern, order):
    scores = random_scores((8, 12))
    other = np.asfortranarray(scores) if order == "F" else np.repeat(scores, 2, 1)[:, ::2]
    sparsity = None if isinstance(pattern, FixedPattern) else 0.5
    np.testing.assert_array_equal(pattern(other, sparsity), pattern(scores, sparsity))


@pytest.mark.parametrize("pattern", [Block((1000, 1000)), Channel(-2), Unstructured()], ids=label)
def test_above_2_to_the_24_weights(pattern):
    rows, columns = 1, 2**24 + 3
    if not isinstance(pattern, Unstructured):
        rows, columns = 4099, 4099
    scores = np.broadcast_to(np.float32(1), (rows, columns))
    mask = pattern(scores, 0.5)
    kept = kept_count(pattern.units((rows, columns)), 0.5)
    assert np.count_nonzero(pattern.unit_scores(mask)) == kept


# ---------------------------------------------------------------- errors


@pytest.mark.parametrize("sparsity", [80, 1.0, -0.5, None])
@pytest.mark.parametrize("pattern", FREE, ids=label)
def test_percent_is_refused(pattern, sparsity):
    with pytest.raises(ValueError, match=re.escape(f"Received: sparsity={sparsity!r}")):
        pattern(np.ones((8, 8)), sparsity)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Block(4), r"`shape` must be the height and width.* Received: shape=4"),
        (lambda: Block((4, 1, 1)), r"Received: shape=\(4, 1, 1\)"),
        (
            lambda: Block((0, 1)),
            r"`shape` must be .* two integers of at least 1.* Received: shape=\(0, 1\)",
        ),
        (lambda: Block((1.5, 1)), r"Received: shape=\(1\.5, 1\)"),
        (lambda: Block((4, 1), "AVG"), '`pooling` must be "mean" or "max". .*\'AVG\''),
        (lambda: Block((4, 1), ["mean"]), r"Received: pooling=\['mean'\]"),
        (lambda: Channel(pooling="sum"), "Received: pooling='sum'"),
        (lambda: Channel(0), r"`axis` must be -1 \(outputs\) or -2 .* Received: axis=0"),
        (lambda: NM(4, 2), "n must be below m. Received: n=4, m=2"),
        (lambda: NM(4, 4), "n must be below m"),
        (lambda: NM(0, 4), "`n` must be an integer of at least 1"),
        (lambda: NM(2, 4.0), "Received: m=4.0"),
        (lambda: Block((9, 1)).units((8, 8)), r"must fit into the \(8, 8\) matrix of the weight"),
        (lambda: Block((1, 9))(np.ones((8, 8)), 0.5), r"Received: shape=\(1, 9\)"),
        (lambda: NM(2, 4).units((3, 8)), "`m` must be at most the number of inputs.*m=4"),
        (lambda: NM(2, 4)(np.ones((3, 8))), "leave this weight alone"),
        (lambda: NM(2, 4).units((8,)), "`m` must be at most"),
        (
            lambda: NM(2, 4)(np.ones((8, 8)), 0.8),
            "NM.* fixes the sparsity at 0.5.* Received: sparsity=0.8",
        ),
        (lambda: Channel(-2).units((8,)), r"`Channel` needs a kernel .* Received: shape=\(8,\)"),
    ],
)
def test_bad_arguments_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_nan_is_refused():
    scores = np.ones((8, 8))
    scores[3, 3] = np.nan
    for pattern in (Unstructured(), Block((4, 1)), Channel()):
        with pytest.raises(ValueError, match="NaN"):
            pattern(scores, 0.1)


# ---------------------------------------------------------------- the check


@keras.saving.register_keras_serializable("test_patterns")
@dataclasses.dataclass(frozen=True)
class BrokenRows(Rows):
    """Broken in the one way that the test asks for."""

    broken: str = ""

    def unit_scores(self, scores):
        if self.broken == "writes":
            scores[...] = 0
        found = super().unit_scores(scores)
        return found[1:] if self.broken == "units" else found

    def spread(self, kept, shape):
        mask = super().spread(kept, shape)
        if self.broken == "partition":
            mask[..., -1] = False
        if self.broken == "float":
            return mask.astype(float)
        return mask

    def keep(self, scores, count):
        if self.broken == "count":
            count += 1
        if self.broken == "order":
            scores = -scores.astype(float)
        return super().keep(scores, count)


@pytest.mark.parametrize(
    ("broken", "law"),
    [
        ("writes", "Read only|Order"),
        ("units", "Units"),
        ("partition", "Partition"),
        ("float", "Boolean"),
        ("count", "Exact counts"),
        ("order", "Order"),
    ],
)
def test_the_check_finds_what_is_broken(broken, law):
    check_pattern(BrokenRows())
    with pytest.raises(AssertionError, match=law):
        check_pattern(BrokenRows(broken))


def test_the_check_wants_a_shape_that_fits():
    with pytest.raises(AssertionError, match="fits none of the shapes"):
        check_pattern(NM(2, 4), shapes=[(3, 3)])
