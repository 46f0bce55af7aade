"""Checks of the laws of patterns, schedules and allocations, for your own ones in your tests.

Each check raises an AssertionError that names the law, the case and the values that break it.
"""

from collections.abc import Iterator, Sequence

import keras
import ml_dtypes
import numpy as np

from keras_pruner.allocations import Allocation, Share
from keras_pruner.patterns import FixedPattern, Pattern, Shape
from keras_pruner.schedules import Schedule
from keras_pruner.selection.top_k import kept_count

__all__ = [
    "check_allocation",
    "check_pattern",
    "check_schedule",
]

SHAPES: tuple[Shape, ...] = ((8, 8), (5, 4), (7, 3), (1, 9), (9, 1), (4, 6), (3, 3, 5, 6))
"""Shapes of kernels (..., inputs, outputs); most do not divide evenly."""

SPARSITIES = (0.0, 0.1, 0.25, 0.5, 0.8, 0.95, 0.999)
"""Fractions of zeros, in ascending order."""

_TYPES = (np.float64, np.float32, np.float16, ml_dtypes.bfloat16, np.int8)


def check_pattern(pattern: Pattern, shapes: Sequence[Shape] = SHAPES) -> None:
    """Check the laws of patterns.

    Every weight is in exactly one unit; counts are exact; the highest scores stay, and of equal
    ones those of lower index; masks nest; scores are not written to; the pattern can be saved.

    Args:
        pattern: the pattern.
        shapes: of kernels (..., inputs, outputs). Shapes that the pattern refuses with a
            ValueError are left out; it must accept at least one.

    Raises:
        AssertionError: naming the law that was broken.

    Example:
        >>> from keras_pruner import Block
        >>> check_pattern(Block((4, 1)))
    """
    _check_saving(pattern)
    fitting = [shape for shape in shapes if _fits(pattern, shape)]
    assert fitting, f"{pattern!r} fits none of the shapes {list(shapes)}."
    for shape in fitting:
        where = f"{pattern!r} on shape {shape}"
        owner = _owners(pattern, shape, where)
        for scores in _scores(shape):
            before = scores.copy()
            if isinstance(pattern, FixedPattern):
                _check_fixed_sparsity(pattern, scores, where)
            else:
                _check_counts_and_order(pattern, scores, owner, where)
            _check_nesting(pattern, scores, where)
            assert np.array_equal(scores, before), f"Read only: {where} wrote to the scores."


def check_schedule(schedule: Schedule, *, steps: int = 1000) -> None:
    """Check the laws of schedules.

    Masks are updated at `begin_step`, every `frequency` steps after it and at `end_step`, and at
    no other step; the sparsity is a fraction in [0, 1), and the final one at the end; resolving a
    resolved schedule changes nothing; the schedule can be saved.

    Args:
        schedule: the schedule.
        steps: the length of the training that an open schedule is resolved for.

    Raises:
        AssertionError: naming the law that was broken.

    Example:
        >>> from keras_pruner import PolynomialDecay
        >>> check_schedule(PolynomialDecay(0.8), steps=200)
    """
    _check_saving(schedule)
    settled = schedule.resolve(steps, 0.0)
    begin, end = settled.begin_step, settled.end_step
    assert end is not None, f"Settled: {schedule!r}.resolve({steps}, 0.0) leaves the end open."
    assert settled.resolve(2 * steps + 1, 0.5) == settled, (
        f"Settled once: resolving {settled!r} again changes it."
    )
    updates = [step for step in range(end + 2) if settled.updates_at(step)]
    assert updates, f"Updates: {settled!r} never updates."
    assert updates[0] == begin, f"Updates: {settled!r} is first at {updates[0]}, not {begin}."
    assert updates[-1] == end, f"Updates: {settled!r} is last at {updates[-1]}, not {end}."
    gaps = set(np.diff(updates[:-1]).tolist())
    assert len(gaps) <= 1, f"Updates: {settled!r} leaves gaps of {sorted(gaps)} steps."
    if settled.frequency is not None and gaps:
        assert gaps == {settled.frequency}, f"Updates: {settled!r} is every {gaps.pop()} steps."
    for step in updates:
        sparsity = settled.sparsity_at(step)
        assert 0 <= sparsity < 1, f"A fraction: {settled!r} asks for {sparsity!r} at step {step}."
    last = settled.sparsity_at(end)
    assert settled.sparsity_at_end == last, (
        f"The end: {settled!r} names {settled.sparsity_at_end!r} final and ends at {last!r}."
    )


def check_allocation(allocation: Allocation, sparsities: Sequence[float] = SPARSITIES) -> None:
    """Check the laws of allocations.

    Every weight gets a sparsity in [0, 1]; the number of kept units differs from the request by
    less than one per weight; every weight keeps at least one; a higher sparsity only removes,
    where pruned units are scored -inf.

    Args:
        allocation: the function (shares, sparsity) -> {share: sparsity}.
        sparsities: overall sparsities to ask for, in ascending order.

    Raises:
        AssertionError: naming the law that was broken.

    Example:
        >>> from keras_pruner.allocations import uniform
        >>> check_allocation(uniform)
    """
    for case, weights in _weights().items():
        gone = {path: np.zeros(scores.shape, bool) for path, scores in weights.items()}
        for sparsity in sparsities:
            where = f"{allocation!r} at {sparsity} over {case}"
            scores = {path: np.where(gone[path], -np.inf, s) for path, s in weights.items()}
            shares = [Share(path, s.shape, s.size, s.ravel) for path, s in scores.items()]
            kept = _kept(allocation, shares, sparsity, where)
            request = (1 - sparsity) * sum(share.units for share in shares)
            off = abs(sum(kept) - request)
            assert off < len(shares), f"Budget: {where} keeps {sum(kept)} units of {request:g}."
            for share, count in zip(shares, kept, strict=True):
                live = np.count_nonzero(~gone[share.path])
                assert count <= live, (
                    f"Nesting: {where} keeps {count} in {share.path}, where {live} are left."
                )
                order = np.argsort(-scores[share.path], axis=None, kind="stable")
                gone[share.path].ravel()[order[count:]] = True


def _fits(pattern: Pattern, shape: Shape) -> bool:
    try:
        return pattern.units(shape) > 0
    except ValueError:
        return False


def _scores(shape: Shape) -> Iterator[np.ndarray]:
    """Scores that all differ, with many ties, and all equal; in every type."""
    random = np.random.default_rng(1)
    for dtype in _TYPES:
        yield random.permutation(np.prod(shape)).reshape(shape).astype(dtype)
        yield random.integers(0, 3, shape).astype(dtype)
        yield np.ones(shape, dtype)


def _owners(pattern: Pattern, shape: Shape, where: str) -> np.ndarray:
    """The unit that each weight belongs to."""
    units = pattern.units(shape)
    owner = np.full(shape, -1)
    for unit in range(units):
        alone = np.zeros(units, bool)
        alone[unit] = True
        mask = pattern.spread(alone, shape)
        assert mask.shape == shape, f"Shape: {where} makes masks of shape {mask.shape}."
        assert mask.dtype == bool, f"Boolean: {where} makes masks of type {mask.dtype}."
        assert mask.any(), f"Partition: {where} has nothing in unit {unit}."
        assert (owner[mask] == -1).all(), f"Partition: {where} has weights in two units."
        owner[mask] = unit
    assert (owner >= 0).all(), f"Partition: {where} has weights in no unit."
    return owner


def _check_counts_and_order(
    pattern: Pattern, scores: np.ndarray, owner: np.ndarray, where: str
) -> None:
    unit_scores = pattern.unit_scores(scores)
    units = pattern.units(scores.shape)
    assert unit_scores.shape == (units,), (
        f"Units: {where} has {units}, and scores of shape {unit_scores.shape}."
    )
    ranked = np.argsort(-unit_scores.astype(np.float64), kind="stable")
    for sparsity in SPARSITIES:
        mask = pattern(scores, sparsity)
        assert mask.shape == scores.shape, f"Shape: {where} makes masks of shape {mask.shape}."
        count = kept_count(units, sparsity)
        kept = set(owner[mask].tolist())
        assert len(kept) == count, (
            f"Exact counts: {where} keeps {len(kept)} of {units} units at {sparsity}, not {count}."
        )
        assert kept == set(ranked[:count].tolist()), (
            f"Order: {where} at {sparsity} does not keep the {count} highest scores, of equal "
            "ones those of lower index."
        )
        assert mask.sum() == np.isin(owner, list(kept)).sum(), (
            f"Whole units: {where} at {sparsity} keeps parts of units."
        )


def _check_fixed_sparsity(pattern: FixedPattern, scores: np.ndarray, where: str) -> None:
    count = pattern(scores, pattern.sparsity).sum()
    expected = pattern(np.ones(scores.shape)).sum()
    assert count == expected, f"Exact counts: {where} keeps {count} weights, and also {expected}."


def _check_nesting(pattern: Pattern, scores: np.ndarray, where: str) -> None:
    sparsities = (None, None) if isinstance(pattern, FixedPattern) else SPARSITIES
    kept = np.ones(scores.shape, bool)
    for sparsity in sparsities:
        mask = pattern(np.where(kept, scores.astype(np.float32), -np.inf), sparsity)
        assert not (mask & ~kept).any(), f"Nesting: {where} at {sparsity} brings weights back."
        kept = mask


def _weights() -> dict[str, dict[str, np.ndarray]]:
    """Scores by the path of their weight, for a few models."""
    random = np.random.default_rng(2)
    shapes = ((2, 2), (5, 7), (8, 8), (7, 1), (3, 3, 5, 6), (40, 25))
    scales = 10.0 ** random.uniform(-4, 2, len(shapes))
    apart = [scale * random.random(shape) for shape, scale in zip(shapes, scales, strict=True)]
    cases = {
        "weights of different scale": apart,
        "many zeros": [np.where(random.random(s.shape) < 0.7, 0, s) for s in apart],
        "a weight that is all zeros": [*apart[:-1], np.zeros(shapes[-1])],
        "equal scores": [np.ones(shape) for shape in shapes],
        "zeros alone": [np.zeros(shape) for shape in shapes],
        "many ties": [random.integers(0, 3, shape).astype(float) for shape in shapes],
        "one weight": [apart[-1]],
        "weights of one unit": [np.ones((1, 1)), np.full((1, 1), 2.0)],
    }
    return {
        case: {f"layer_{i}/kernel": scores for i, scores in enumerate(weights)}
        for case, weights in cases.items()
    }


def _kept(
    allocation: Allocation, shares: Sequence[Share], sparsity: float, where: str
) -> list[int]:
    given = allocation(shares, sparsity)
    missing = [share.path for share in shares if share not in given]
    assert not missing, f"Every weight: {where} leaves out {missing}."
    for share in shares:
        assert 0 <= given[share] <= 1, (
            f"A fraction: {where} gives {share.path} a sparsity of {given[share]!r}."
        )
    return [kept_count(share.units, given[share]) for share in shares]


def _check_saving(value: object) -> None:
    config = keras.saving.serialize_keras_object(value)
    loaded = keras.saving.deserialize_keras_object(config)
    assert loaded == value, f"Saving: {value!r} comes back as {loaded!r}."
