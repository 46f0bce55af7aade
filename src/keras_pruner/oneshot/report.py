"""The report of one-shot pruning."""

import dataclasses
import math
import re

import keras

from keras_pruner.plan import Skip
from keras_pruner.reporting.report import Report
from keras_pruner.reporting.sparsity import TO_SHIP, summarize
from keras_pruner.reporting.tables import Table

NOTICEABLE = 0.3
"""The report explains a relative error of the outputs that is at least this large."""
USELESS = 1.0
"""The relative error of a model that gives the same outputs for every sample."""
_SHARE_OF_EMBEDDINGS = 0.1
"""From this share of all zeros on, the report mentions those in embeddings."""


@dataclasses.dataclass(frozen=True)
class PrunedWeight:
    """One weight after one-shot pruning.

    Attributes:
        path: its name in the model.
        shape: its shape.
        sparsity: the fraction of zeros it has now.
        before: relative error of the layer's outputs on held-out samples with the mask alone:
            the mean squared error over the variance; None if not measured.
        after: the same after the refit.
        note: what was done, or why nothing was.
    """

    path: str
    shape: tuple[int, ...]
    sparsity: float
    before: float | None
    after: float | None
    note: str

    @property
    def zeros(self) -> float:
        """The number of zeros."""
        return self.sparsity * math.prod(self.shape)


def is_embedding(path: str) -> bool:
    """Whether the weight of this path is the table of an Embedding layer."""
    return path.rsplit("/", 1)[-1].split(":")[0] == "embeddings"


@dataclasses.dataclass(frozen=True)
class Candidate:
    """An allocation that was tried.

    Attributes:
        name: the allocation, and the criterion if it is not the given one.
        relative_error: the error of the model's outputs on held-out samples.
        chosen: whether its pruned model was kept.
    """

    name: str
    relative_error: float
    chosen: bool


@dataclasses.dataclass(frozen=True)
class Distillation:
    """The result of training on the dense model's outputs.

    Attributes:
        epochs: the number of epochs over the samples.
        before: relative error of the model's outputs on held-out samples before it.
        after: the same after it.
    """

    epochs: int
    before: float
    after: float

    @property
    def kept(self) -> bool:
        """Whether the trained weights were kept; they are not if the outputs became worse."""
        return self.after < self.before

    def __str__(self) -> str:
        if self.kept:
            return f"{self.before:.3g} before {self.epochs} epochs of distillation"
        return f"{self.epochs} epochs of distillation led to {self.after:.3g}, and were undone"


@dataclasses.dataclass(frozen=True)
class PruneReport(Report):
    """What `prune` has done; prints as tables.

    Attributes:
        sparsity: the fraction of zeros over all pruned weights.
        weights: the pruned weights, in the model's order.
        skipped: the weights left alone, and why.
        relative_error: mean squared difference of the model's outputs from the dense model's on
            held-out samples, relative to their variance; None without calibration. 0: equal;
            1: no better than the same outputs for every sample.
        candidates: the allocations that were tried; empty if only one was.
        distillation: its result; None without `distillation_epochs`.
        seconds: the time it took.
        model: the pruned model; with `copy=True` a new one.
        remarks: a sentence on the share of the model that was left alone, and one if the
            sparsity is not the requested one.

    Example:
        >>> weight = PrunedWeight("dense/kernel", (8, 4), 0.75, 0.9, 0.6, "refitted")
        >>> report = PruneReport(0.75, (weight,), (), 0.6, (), None, 1.2, model=None)
        >>> print(report.headline())
        pruned to a sparsity of 0.75 in 1.2 s; relative error of the outputs on held-out samples 0.6
        >>> report.as_dict()["weights"][0]["zeros"]
        24.0
    """

    sparsity: float
    weights: tuple[PrunedWeight, ...]
    skipped: tuple[Skip, ...]
    relative_error: float | None
    candidates: tuple[Candidate, ...]
    distillation: Distillation | None
    seconds: float
    model: keras.Model = dataclasses.field(repr=False, compare=False)
    remarks: tuple[str, ...] = ()

    def headline(self) -> str:
        """The sparsity, and the error of the outputs."""
        text = f"pruned to a sparsity of {self.sparsity:.4g} in {self.seconds:.1f} s"
        if self.relative_error is not None:
            text += f"; relative error of the outputs on held-out samples {self.relative_error:.3g}"
        return text if self.distillation is None else f"{text} ({self.distillation})"

    def tables(self) -> list[Table]:
        """The pruned weights, the allocations that were tried, the weights left alone."""
        rows = [
            (w.path, w.shape, f"{w.sparsity:.4f}", _number(w.before), _number(w.after), w.note)
            for w in self.weights
        ]
        tried = [
            (c.name, f"{c.relative_error:.4g}", "chosen" if c.chosen else "")
            for c in self.candidates
        ]
        left = [(s.path, s.shape, s.reason) for s in self.skipped]
        columns = ["weight", "shape", ">sparsity", ">error, mask", ">refitted", "note"]
        sizes = [float(math.prod(w.shape)) for w in self.weights]
        bars = [
            [("kept", size - w.zeros), ("zero", w.zeros)]
            for size, w in zip(sizes, self.weights, strict=True)
        ]
        return [
            Table("", columns, rows, importance=sizes, bars=bars),
            Table("tried", ["allocation", ">relative error", ""], tried),
            Table("left alone", ["weight", "shape", "why"], left),
        ]

    def figures(self) -> list[tuple[str, str, str]]:
        """The sparsity, and the error of the outputs."""
        zeros = sum(w.zeros for w in self.weights)
        size = sum(math.prod(w.shape) for w in self.weights)
        shown = [(f"{self.sparsity:.1%}", "zeros", f"{zeros:,.0f} of {size:,} pruned weights")]
        if self.relative_error is not None:
            detail = "of the outputs on held-out samples; 0 is equal, 1 is useless"
            shown.append((f"{self.relative_error:.2g}", "relative error", detail))
        return shown

    def charts(self) -> list[str]:
        """The mask of the largest weight."""
        return [summarize(self.model).picture]

    def next_steps(self) -> dict[str, str]:
        """How to train on, and how to store the zeros."""
        return {
            "Train on, with the zeros kept:": "model.fit(..., callbacks=[kp.KeepZeros()])",
            **TO_SHIP,
        }

    def notes(self) -> list[str]:
        """What was not pruned as requested, what a large error means, zeros in embeddings."""
        notes = [*self.remarks, *self._on_error(), *self._on_embeddings()]
        if any(weight.sparsity for weight in self.weights):
            notes.append(
                "To train on, pass callbacks=[kp.KeepZeros()] to `fit`; without it training fills "
                "the zeros."
            )
        return notes

    def _on_error(self) -> list[str]:
        error = self.relative_error or 0.0
        fixes = "a lower sparsity, more samples"
        fixes += "" if self.distillation else ", Calibration(..., distillation_epochs=15)"
        worst = max(self.weights, key=lambda weight: weight.after or 0.0)
        if worst.after:
            fixes += f", or an override for the worst layer, {{{re.escape(worst.path)!r}: None}}"
        if error >= USELESS:
            return [
                "WARNING: the model is most likely useless: its outputs differ from the dense "
                "model's by more than those vary from sample to sample (relative error "
                f"{error:.3g}; 1 is a model that answers the same for every sample). "
                f"What helps: {fixes}."
            ]
        if error >= NOTICEABLE:
            return [
                f"A relative error of {error:.2g} is large: {error:.0%} of what the dense model "
                f"says about its inputs is lost or wrong. Check the accuracy. What helps: {fixes}."
            ]
        return []

    def _on_embeddings(self) -> list[str]:
        tables = [weight for weight in self.weights if is_embedding(weight.path)]
        total = sum(weight.zeros for weight in self.weights)
        share = sum(weight.zeros for weight in tables) / max(total, 1.0)
        if share < _SHARE_OF_EMBEDDINGS:
            return []
        regexes = ", ".join(f"{re.escape(weight.path)!r}: None" for weight in tables)
        return [
            f"{share:.0%} of the zeros are in embeddings. These cannot be refitted, and zeros do "
            f"not make them faster. To leave them alone: overrides={{{regexes}}}."
        ]


def _number(error: float | None) -> str:
    return "-" if error is None else f"{error:.4g}"
