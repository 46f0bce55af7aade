"""What pruning at once has done, as data; printing is a method of it."""

import dataclasses
import math

import keras

from keras_pruner.plan import Skip
from keras_pruner.reporting.report import Report
from keras_pruner.reporting.tables import Table


@dataclasses.dataclass(frozen=True)
class PrunedWeight:
    """One weight after pruning at once.

    Attributes:
        path: its name in the model.
        shape: of the weight.
        sparsity: the fraction of zeros it has now.
        before: squared error of the layer's outputs on held-out samples with the mask alone,
            relative to their variance; None if not measured.
        after: the same after the refit.
        note: what was done, or why nothing was.
    """

    path: str
    shape: tuple[int, ...]
    sparsity: float
    before: float | None
    after: float | None
    note: str


@dataclasses.dataclass(frozen=True)
class Candidate:
    """One of the allocations that were tried.

    Attributes:
        name: of the allocation, and of the criterion if it is another one.
        divergence: mean squared difference of the model's outputs from the dense model's on
            held-out samples, relative to their variance.
        chosen: whether it was kept.
    """

    name: str
    divergence: float
    chosen: bool


@dataclasses.dataclass(frozen=True)
class Distillation:
    """What training by the dense model's outputs came to.

    Attributes:
        epochs: over the samples.
        before: the divergence before it, as in `PruneReport`.
        after: the divergence after it.
    """

    epochs: int
    before: float
    after: float

    @property
    def kept(self) -> bool:
        """Whether it was kept; if it made the outputs worse, it was undone."""
        return self.after < self.before

    def __str__(self) -> str:
        if self.kept:
            return f"{self.before:.3g} before {self.epochs} epochs of distillation"
        return f"{self.epochs} epochs of distillation made that {self.after:.3g}, and were undone"


@dataclasses.dataclass(frozen=True)
class PruneReport(Report):
    """What `prune` has done; prints as tables.

    Attributes:
        sparsity: the fraction of zeros over all pruned weights.
        weights: what was pruned, in the model's order.
        skipped: what was left alone, and why.
        divergence: mean squared difference of the model's outputs from the dense model's on
            held-out samples, relative to their variance; None without calibration.
        candidates: the allocations that were tried, if there was a choice.
        distillation: what that came to, if it was asked for.
        seconds: it took.
        model: the pruned model; with `copy=True` a new one.
    """

    sparsity: float
    weights: tuple[PrunedWeight, ...]
    skipped: tuple[Skip, ...]
    divergence: float | None
    candidates: tuple[Candidate, ...]
    distillation: Distillation | None
    seconds: float
    model: keras.Model = dataclasses.field(repr=False, compare=False)

    def headline(self) -> str:
        """The sparsity, and what it did to the outputs."""
        text = f"pruned to a sparsity of {self.sparsity:.4g} in {self.seconds:.1f} s"
        if self.divergence is not None:
            text += f"; outputs on held-out samples differ by {self.divergence:.3g}"
        return text if self.distillation is None else f"{text} ({self.distillation})"

    def tables(self) -> list[Table]:
        """The pruned weights, the allocations that were tried, the weights left alone."""
        rows = [
            (w.path, w.shape, f"{w.sparsity:.4f}", _number(w.before), _number(w.after), w.note)
            for w in self.weights
        ]
        tried = [
            (c.name, f"{c.divergence:.4g}", "chosen" if c.chosen else "") for c in self.candidates
        ]
        left = [(s.path, s.shape, s.reason) for s in self.skipped]
        columns = ["weight", "shape", ">sparsity", ">error, mask", ">refitted", "note"]
        sizes = [float(math.prod(w.shape)) for w in self.weights]
        return [
            Table("", columns, rows, importance=sizes),
            Table("tried", ["allocation", ">divergence", ""], tried),
            Table("left alone", ["weight", "shape", "why"], left),
        ]


def _number(error: float | None) -> str:
    return "-" if error is None else f"{error:.4g}"
