"""What pruning at once has done, as data; printing is a method of it."""

import dataclasses
from typing import Any

import keras

from keras_pruner.plan import Skip
from keras_pruner.reporting import tables


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

    def as_dict(self) -> dict[str, Any]:
        """What it came to, as JSON can hold it."""
        return {**dataclasses.asdict(self), "kept": self.kept}

    def __str__(self) -> str:
        if self.kept:
            return f"{self.before:.3g} before {self.epochs} epochs of distillation"
        return f"{self.epochs} epochs of distillation made that {self.after:.3g}, and were undone"


@dataclasses.dataclass(frozen=True)
class PruneReport:
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

    def as_dict(self) -> dict[str, Any]:
        """What was done, as JSON can hold it."""
        return {
            "sparsity": self.sparsity,
            "weights": [dataclasses.asdict(weight) for weight in self.weights],
            "skipped": [dataclasses.asdict(skip) for skip in self.skipped],
            "divergence": self.divergence,
            "candidates": [dataclasses.asdict(candidate) for candidate in self.candidates],
            "distillation": self.distillation and self.distillation.as_dict(),
            "seconds": self.seconds,
        }

    def __str__(self) -> str:
        title = f"pruned to a sparsity of {self.sparsity:.4g} in {self.seconds:.1f} s"
        if self.divergence is not None:
            title += f"; outputs on held-out samples differ by {self.divergence:.3g}"
        if self.distillation is not None:
            title += f" ({self.distillation})"
        rows = [
            (w.path, w.shape, f"{w.sparsity:.4f}", _number(w.before), _number(w.after), w.note)
            for w in self.weights
        ]
        columns = ["weight", "shape", ">sparsity", ">error, mask", ">refitted", "note"]
        parts = [tables.render(title, columns, rows, width=140)]
        if self.candidates:
            tried = [
                (c.name, f"{c.divergence:.4g}", "chosen" if c.chosen else "")
                for c in self.candidates
            ]
            parts.append(tables.render("tried", ["allocation", ">divergence", ""], tried))
        if self.skipped:
            left = [(s.path, s.shape, s.reason) for s in self.skipped]
            parts.append(tables.render("left alone", ["weight", "shape", "why"], left, width=140))
        return "\n".join(parts)


def _number(error: float | None) -> str:
    return "-" if error is None else f"{error:.4g}"
