"""Stored runs: a line of JSON each, and what is made of them over the seeds."""

import dataclasses
import json
import os
from collections.abc import Sequence

import numpy as np


def append(path, line):
    """Add a line in one write, so that a run that is killed leaves whole lines only."""
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

    def __str__(self):
        if len(self.values) == 1:
            return f"{self.mean:.2f}"
        return f"{self.mean:.2f} ({self.low:.2f} to {self.high:.2f})"


def settings(lines):
    """The methods with their targets and settings, in the order of their first lines."""
    pruned = [line for line in lines if "target" in line]
    return list(dict.fromkeys(setting(line) for line in pruned))


def setting(line):
    """What runs of different seeds have in common: method, target, allocation, start, budget."""
    budget = tuple(sorted(line["budget"].items()))
    return line["method"], line["target"], line.get("allocation"), line.get("start"), budget


@dataclasses.dataclass(frozen=True)
class Summary:
    """All seeds of one method at one target.

    Attributes:
        method, target, allocation, start: of these runs.
        lines: one for each seed.
        dense: for each seed, the better one of the two dense lines.
    """

    method: str
    target: str
    allocation: str | None
    start: str | None
    lines: Sequence[dict]
    dense: Sequence[dict]

    @property
    def label(self):
        """The method, with its allocation if it is not the usual one."""
        said = [s for s in (self.allocation, self.start) if s not in (None, "lamp", "gradual")]
        return ", ".join([self.method, *said])

    @property
    def scores(self):
        return Interval([100 * line["score"] for line in self.lines])

    @property
    def dense_scores(self):
        return Interval([100 * line["score"] for line in self.dense])

    @property
    def retained(self):
        """Per cent of the dense score."""
        pairs = zip(self.lines, self.dense, strict=True)
        return Interval([100 * line["score"] / dense["score"] for line, dense in pairs])

    @property
    def lost(self):
        """Points lost against the dense score."""
        pairs = zip(self.lines, self.dense, strict=True)
        return Interval([100 * (dense["score"] - line["score"]) for line, dense in pairs])

    @property
    def published_retained(self):
        """Per cent, or None where nothing was published."""
        line = self.lines[0]
        if line["published"] is None or line["published dense"] is None:
            return None
        return 100 * line["published"] / line["published dense"]

    @property
    def ratio(self):
        """Compressed bytes, dense / pruned."""
        pairs = zip(self.lines, self.dense, strict=True)
        return float(np.mean([dense["bytes"] / line["bytes"] for line, dense in pairs]))

    def mean(self, field):
        return float(np.mean([line[field] for line in self.lines]))

    def by_seed(self):
        """Seed -> score in points."""
        return {line["seed"]: 100 * line["score"] for line in self.lines}


def summaries(lines):
    """One `Summary` for each setting whose dense lines are there."""
    found = []
    for key in settings(lines):
        mine, dense = [], []
        for line in (line for line in lines if "target" in line and setting(line) == key):
            same = ("seed", "budget")
            both = [
                other
                for other in lines
                if "target" not in other and all(other[k] == line[k] for k in same)
            ]
            if both:
                mine.append(line)
                dense.append(max(both, key=lambda other: other["score"]))
        if mine:
            found.append(Summary(*key[:4], mine, dense))
    return found


def difference(one, other):
    """Points by which one summary is above another, paired by seed; None without pairs."""
    a, b = one.by_seed(), other.by_seed()
    pairs = [a[seed] - b[seed] for seed in sorted(a.keys() & b.keys())]
    return Interval(pairs) if pairs else None


COLUMNS = ["method", "zeros", ">seeds", ">dense", ">pruned", ">retained, %", ">bytes", ">ratio"]


def table(lines):
    """The runs of one recipe as text: what every method kept, the bytes, the seconds of a run."""
    from keras_pruner import tables

    rows = [
        (
            each.label,
            f"{each.target} ({each.mean('zeros'):.4f})",
            len(each.lines),
            f"{each.dense_scores.mean:.2f}",
            f"{each.scores.mean:.2f}",
            str(each.retained),
            f"{each.mean('bytes'):,.0f}",
            f"{each.ratio:.2f}",
            f"{each.mean('seconds'):.0f}",
        )
        for each in summaries(lines)
    ]
    title = f"{lines[0]['recipe']} ({lines[0]['measure']} x 100)" if lines else "no runs"
    return tables.render(title, [*COLUMNS, ">seconds"], rows, width=120)
