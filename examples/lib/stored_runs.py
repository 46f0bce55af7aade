"""Stored runs, one line of JSON each, and their statistics over the seeds."""

import dataclasses
import json
import os
from collections.abc import Sequence

import numpy as np


def append(path, line):
    """Append a line in one write, so that a killed run leaves only complete lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "ab", buffering=0) as file:
        file.write((json.dumps(line) + "\n").encode())
        os.fsync(file.fileno())


def read(path):
    """The lines of a file, or none if there is no file."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@dataclasses.dataclass(frozen=True)
class Interval:
    """A mean over seeds with its 95 % interval by Student's t; no bounds for a single value."""

    values: Sequence[float]

    def __post_init__(self):
        if not len(self.values):
            raise ValueError(f"`values` must not be empty. Received: values={self.values!r}.")

    @property
    def mean(self):
        return float(np.mean(self.values))

    @property
    def deviation(self):
        return float(np.std(self.values, ddof=1)) if len(self.values) > 1 else float("nan")

    @property
    def half(self):
        from scipy import stats

        n = len(self.values)
        return float(stats.t.ppf(0.975, n - 1) * self.deviation / n**0.5) if n > 1 else float("nan")

    @property
    def low(self):
        return self.mean - self.half

    @property
    def high(self):
        return self.mean + self.half

    @property
    def spread(self):
        """The mean and the standard deviation as text."""
        return f"{self.mean:.2f}" + (f" ± {self.deviation:.2f}" if len(self.values) > 1 else "")

    def __str__(self):
        if len(self.values) == 1:
            return f"{self.mean:.2f}"
        return f"{self.mean:.2f} ({self.low:.2f} to {self.high:.2f})"


def setting(line):
    """What runs of different seeds have in common: method, target, allocation, start, budget."""
    budget = tuple(sorted(line["budget"].items()))
    return line["method"], line["target"], line.get("allocation"), line.get("start"), budget


@dataclasses.dataclass(frozen=True)
class Summary:
    """All seeds of one method at one target.

    Attributes:
        method, target, allocation, start, budget: what these runs have in common.
        lines: one for each seed.
        dense: for each of them, the line of the better dense network.
        longer: for each of them, the line of the dense network that was trained as long.
    """

    method: str
    target: str
    allocation: str | None
    start: str | None
    budget: tuple
    lines: Sequence[dict]
    dense: Sequence[dict]
    longer: Sequence[dict]

    @property
    def way(self):
        """How it was pruned, without the method."""
        return self.allocation, self.start

    @property
    def label(self):
        """The method and how it pruned."""
        return ", ".join(said for said in (self.method, *self.way) if said)

    @property
    def measure(self):
        return self.lines[0]["measure"]

    @property
    def sparsity(self):
        """What was asked for, or None for a pattern that has its own."""
        try:
            return float(self.target)
        except ValueError:
            return None

    @property
    def target_name(self):
        """The target for people: "80 %", "2:4"."""
        return self.target if self.sparsity is None else f"{100 * self.sparsity:g} %"

    @property
    def epochs(self):
        """Before and while pruning, as "4 + 3"."""
        budget = dict(self.budget)
        return f"{budget['dense_epochs']} + {budget['pruning_epochs']}"

    @property
    def scores(self):
        return Interval([100 * line["score"] for line in self.lines])

    @property
    def dense_scores(self):
        return Interval([100 * line["score"] for line in self.dense])

    @property
    def retained(self):
        """Per cent of the better dense score."""
        return _per_cent(self.lines, self.dense)

    @property
    def retained_of_longer(self):
        """Per cent of the score of the dense network that was trained as long."""
        return _per_cent(self.lines, self.longer)

    def lost(self, score="score"):
        """Points lost against the better dense score; None if some seed was not measured so."""
        if any(score not in line for line in self.lines):
            return None
        pairs = zip(self.lines, self.dense, strict=True)
        return Interval([100 * (dense["score"] - line[score]) for line, dense in pairs])

    @property
    def published_retained(self):
        """Per cent, or None where nothing was published."""
        line = self.lines[0]
        if line["published"] is None or line["published dense"] is None:
            return None
        return 100 * line["published"] / line["published dense"]

    def ratio(self, size="bytes"):
        """Compressed bytes, dense / pruned."""
        pairs = zip(self.lines, self.dense, strict=True)
        return float(np.mean([dense["bytes"] / line[size] for line, dense in pairs]))

    def mean(self, field):
        """Over the runs of which it is known; a run that was stopped and went on has no time."""
        known = [line[field] for line in self.lines if line[field] is not None]
        return float(np.mean(known)) if known else float("nan")

    def dense_mean(self, field):
        return float(np.mean([line[field] for line in self.dense]))

    def by_seed(self):
        """Seed -> score in points."""
        return {line["seed"]: 100 * line["score"] for line in self.lines}


def _per_cent(lines, of):
    """The scores as per cent of others; nan of a network that has learnt nothing."""
    pairs = zip(lines, of, strict=True)
    nan = float("nan")
    return Interval([100 * line["score"] / (other["score"] or nan) for line, other in pairs])


def summaries(lines):
    """One `Summary` for each setting, of the seeds whose dense lines are there."""
    dense = {
        (line["seed"], line["method"], tuple(sorted(line["budget"].items()))): line
        for line in lines
        if "target" not in line
    }
    together = {}
    for line in (line for line in lines if "target" in line):
        key = setting(line)
        pair = [dense.get((line["seed"], name, key[-1])) for name in ("dense", "dense, longer")]
        if None not in pair:
            best = max(pair, key=lambda other: other["score"])
            together.setdefault(key, []).append((line, best, pair[1]))
    return [Summary(*key, *zip(*rows, strict=True)) for key, rows in together.items()]


def difference(one, other):
    """Points by which one summary is above another, paired by seed; None without pairs."""
    a, b = one.by_seed(), other.by_seed()
    pairs = [a[seed] - b[seed] for seed in sorted(a.keys() & b.keys())]
    return Interval(pairs) if pairs else None


COLUMNS = ["method", "zeros", ">seeds", ">dense", ">pruned", ">retained, %", ">bytes", ">ratio"]


def table(lines):
    """The runs of one recipe as text: what every method kept, the bytes, the seconds of a run."""
    from keras_pruner.reporting import tables

    rows = [
        (
            each.label,
            f"{each.target_name} ({each.mean('zeros'):.4f})",
            len(each.lines),
            f"{each.dense_scores.mean:.2f}",
            f"{each.scores.mean:.2f}",
            str(each.retained),
            f"{each.mean('bytes'):,.0f}",
            f"{each.ratio():.2f}",
            f"{each.mean('seconds'):.0f}",
        )
        for each in summaries(lines)
    ]
    title = f"{lines[0]['recipe']} ({lines[0]['measure']} x 100)" if lines else "no runs"
    return tables.render(title, [*COLUMNS, ">seconds"], rows, width=120)
