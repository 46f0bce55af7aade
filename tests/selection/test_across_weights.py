"""The cut through many weights against sorting everything."""

import functools
import itertools
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from keras_pruner.allocations import Share, lamp
from keras_pruner.selection import across_weights
from keras_pruner.selection.across_weights import Scores, by_lamp, kept_by_one_cut
from keras_pruner.selection.top_k import kept_count

pytestmark = pytest.mark.backend_free


def lamp_ranks(scores):
    """Lee et al. 2021, arXiv:2010.07611, eq. 3, one score after another, from the highest."""
    ranks, total, top = [], 0.0, max(scores)
    for score in sorted(map(float, scores), reverse=True):
        square = (score / float(top)) ** 2 if top > 0 and score > -np.inf else 0.0
        total += square
        ranks.append(score if score == -np.inf else square / total if total else 0.0)
    return np.array(ranks, np.float32)


def slow(weights, least, budget, lamp):
    """Take the highest of all that is left, again and again."""
    ranked = [lamp_ranks(w) if lamp else np.sort(w.astype(float))[::-1] for w in weights]
    kept = list(least)
    for _ in range(budget - sum(least)):
        heads = [r[k] if k < len(r) else np.nan for r, k in zip(ranked, kept, strict=True)]
        kept[int(np.nanargmax(heads))] += 1
    return kept


def scores(kind, random, size, scale):
    values = scale * np.abs(random.normal(size=size))
    return {
        "smooth": values,
        "zeros": np.where(random.random(size) < 0.6, 0, values),
        "ties": random.integers(0, 3, size).astype(float),
        "equal": np.ones(size),
        "all zeros": np.zeros(size),
        "pruned": np.where(random.random(size) < 0.6, -np.inf, values),
        "all pruned": np.full(size, -np.inf),
        "tiny and huge": values * 10.0 ** random.integers(-30, 8, size),
        "almost equal": 1 + 1e-6 * values / scale,
    }[kind]


def together(weights):
    return [Scores(lambda w=w: [w]) for w in weights]


KINDS = [
    ("smooth", "smooth", "smooth"),
    ("zeros", "smooth", "all zeros"),
    ("ties", "equal", "ties"),
    ("equal", "equal", "equal"),
    ("all zeros", "all zeros", "all zeros"),
    ("pruned", "pruned", "smooth"),
    ("pruned", "all pruned", "zeros"),
    ("tiny and huge", "tiny and huge", "smooth"),
    ("almost equal", "smooth", "almost equal"),
]


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("lamp", [True, False], ids=["lamp", "score"])
@pytest.mark.parametrize("kinds", KINDS, ids="-".join)
def test_the_same_as_sorting_everything(monkeypatch, kinds, lamp, dtype):
    monkeypatch.setattr(across_weights, "CHUNK", 37)
    random = np.random.default_rng(0)
    sizes, scales = (90, 1, 151), (1.0, 30.0, 1e-3)
    with np.errstate(over="ignore"):
        weights = [
            np.minimum(scores(*case), 6e4).astype(dtype)
            for case in zip(kinds, [random] * 3, sizes, scales, strict=True)
        ]
    for sparsity, least in itertools.product((0.0, 0.1, 0.5, 0.8, 0.95), ([1] * 3, [40, 1, 5])):
        budget = max(kept_count(242, sparsity), sum(least))
        found = kept_by_one_cut(together(weights), least, budget, by_lamp if lamp else None)
        assert found.tolist() == slow(weights, least, budget, lamp)


def test_scores_below_zero_are_ranked_too():
    random = np.random.default_rng(1)
    weights = [random.normal(size=n).astype("float32") for n in (60, 75)]
    for budget in (3, 50, 80, 134):
        found = kept_by_one_cut(together(weights), [1, 1], budget)
        assert found.tolist() == slow(weights, [1, 1], budget, lamp=False)


@pytest.mark.parametrize("largest", [0.3, 3.40282357e38])  # no numbers of float32
def test_scores_of_several_types_are_compared_in_the_widest(largest):
    weights = [np.zeros(1, "float16"), np.array([0.25, 0.3], "float32"), np.array([largest])]
    for budget in range(1, 4):
        found = kept_by_one_cut(together(weights), [0, 0, 0], budget)
        assert found.tolist() == slow(weights, [0, 0, 0], budget, lamp=False)


def test_few_scores_are_ranked_one_by_one():
    """The point of it: what is read again is a small part."""
    random = np.random.default_rng(2)
    weights = [random.normal(size=100_000).astype("float32") ** 2 for _ in range(3)]
    seen = []

    def watched(scores, sums):
        seen.append(len(scores))
        return by_lamp(scores, sums)

    found = kept_by_one_cut(together(weights), [1] * 3, 60_000, watched)
    assert found.sum() == 60_000
    assert max(seen) < 8_000


def test_scores_that_change_between_readings_are_refused():
    random = np.random.default_rng(3)
    with pytest.raises(ValueError, match="must return the same scores"):
        kept_by_one_cut([Scores(lambda: [random.random(1000)])] * 2, [1, 1], 500)


def test_weights_that_are_not_held_give_the_same(monkeypatch):
    random = np.random.default_rng(4)
    weights = [random.random(n) for n in (400, 50)]
    shares = [Share(str(i), w.shape, w.size, w.ravel) for i, w in enumerate(weights)]
    held = lamp(shares, 0.8)
    monkeypatch.setattr("keras_pruner.allocations.HELD", 0)
    assert lamp(shares, 0.8) == held


class Processes:
    """Some processes that gather, each in a thread of its own."""

    def __init__(self, count):
        self.barrier = threading.Barrier(count)
        self.given = [None] * count
        self.sent = 0

    def gather(self, process, numbers):
        self.given[process] = numbers
        self.barrier.wait()
        together = np.stack(self.given)
        self.barrier.wait()
        self.sent += numbers.nbytes
        return together


@pytest.mark.parametrize("lamp", [True, False], ids=["lamp", "score"])
@pytest.mark.parametrize("kinds", KINDS, ids="-".join)
def test_weights_in_parts_in_several_processes_give_the_same(monkeypatch, kinds, lamp):
    monkeypatch.setattr(across_weights, "CHUNK", 37)
    random = np.random.default_rng(0)
    weights = [
        scores(kind, random, size, scale).astype("float32")
        for kind, size, scale in zip(kinds, (900, 7, 1510), (1.0, 30.0, 1e-3), strict=True)
    ]
    rank = by_lamp if lamp else None
    expected = kept_by_one_cut(together(weights), [1, 1, 1], 700, rank)
    processes = Processes(3)

    def of(process):
        """Two parts of each weight in the first two processes, nothing in the third."""
        gather = functools.partial(processes.gather, process)
        parts = [np.array_split(w, 4)[2 * process :][:2] for w in weights]
        return [Scores(lambda p=p: p, gather) for p in parts]

    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(lambda p: kept_by_one_cut(of(p), [1, 1, 1], 700, rank), range(3)))
    for each in found:
        assert each.tolist() == expected.tolist()
