"""Two models side by side: what pruning cost and what it bought."""

import dataclasses
from pathlib import Path
from typing import Any

import keras

from keras_pruner import files, tables
from keras_pruner.report import SparsityReport, summarize

COLUMNS = ["", ">dense", ">pruned", ">dense / pruned"]


@dataclasses.dataclass(frozen=True)
class Side:
    """One model of a comparison.

    Attributes:
        file: the file it is in.
        report: its zeros.
        layers: the class of each layer.
        plain_bytes: the size of the file.
        compressed_bytes: the size of the file after compression.
        scores: loss and metrics on the same data; empty if there was none.
    """

    file: str
    report: SparsityReport
    layers: tuple[str, ...]
    plain_bytes: int
    compressed_bytes: int
    scores: dict[str, float]

    def as_dict(self) -> dict[str, Any]:
        """Plain dicts, lists and numbers."""
        return {
            "file": self.file,
            "plain_bytes": self.plain_bytes,
            "compressed_bytes": self.compressed_bytes,
            "scores": self.scores,
            **self.report.as_dict(),
        }


@dataclasses.dataclass(frozen=True)
class Comparison:
    """A dense model and a pruned one. Prints as one table.

    Attributes:
        dense: the one before.
        pruned: the one after.
    """

    dense: Side
    pruned: Side

    @property
    def same_architecture(self) -> bool:
        """Whether both have the same layers, with weights of the same shapes."""
        shapes = [[row.shape for row in side.report.rows] for side in (self.dense, self.pruned)]
        return self.dense.layers == self.pruned.layers and shapes[0] == shapes[1]

    def overall(self) -> list[tuple[str, str, str, str]]:
        """What, dense, pruned, and how many times smaller; of the models as a whole."""
        a, b = self.dense, self.pruned
        rows = [
            (name, f"{a.scores[name]:.4f}", f"{b.scores[name]:.4f}", "")
            for name in a.scores
            if name in b.scores
        ]
        return [
            *rows,
            _sizes("weights", a.report.all.size, b.report.all.size),
            _sizes("weights that are not zero", _alive(a.report), _alive(b.report)),
            _sizes("file, bytes", a.plain_bytes, b.plain_bytes),
            _sizes("file compressed, bytes", a.compressed_bytes, b.compressed_bytes),
            _shares("sparsity, prunable weights", a.report.prunable, b.report.prunable),
            _shares("sparsity, all weights", a.report.all, b.report.all),
        ]

    def by_layer(self) -> list[tuple[str, str, str, str]]:
        """The sparsity of each prunable weight, dense and pruned."""
        return [_shares(f"  {path}", *pair) for path, pair in self._kernels().items()]

    def __str__(self) -> str:
        title = f"{self.dense.file} and {self.pruned.file}"
        if not self.same_architecture:
            title += "\nThey are not of the same architecture."
        return tables.render(title, COLUMNS, self.overall() + self.by_layer())

    def as_dict(self) -> dict[str, Any]:
        """Plain dicts, lists and numbers."""
        return {
            "same_architecture": self.same_architecture,
            "dense": self.dense.as_dict(),
            "pruned": self.pruned.as_dict(),
        }

    def _kernels(self) -> dict[str, tuple[Any, Any]]:
        """The prunable weights of both: by position, or by name where the models differ."""
        rows = [[r for r in s.report.rows if r.prunable] for s in (self.dense, self.pruned)]
        if self.same_architecture:
            return {a.path: (a, b) for a, b in zip(*rows, strict=True)}
        named = [{row.path: row for row in side} for side in rows]
        paths = {**named[0], **named[1]}
        return {path: (named[0].get(path), named[1].get(path)) for path in paths}


def describe(model: keras.Model, path: str | Path, scores: dict[str, float] | None = None) -> Side:
    """One side of a comparison: a model and the file it was loaded from or saved to."""
    return Side(
        file=str(path),
        report=summarize(model),
        layers=tuple(type(layer).__name__ for layer in model._flatten_layers()),
        plain_bytes=files.plain_size(path),
        compressed_bytes=files.compressed_size(path),
        scores=scores or {},
    )


def _alive(report: SparsityReport) -> int:
    return report.all.size - report.all.zeros


def _sizes(what: str, dense: int, pruned: int) -> tuple[str, str, str, str]:
    ratio = f"{dense / pruned:.2f}" if pruned else ""
    return what, f"{dense:,}", f"{pruned:,}", ratio


def _shares(what: str, dense: Any, pruned: Any) -> tuple[str, str, str, str]:
    cells = ["-" if side is None else f"{side.sparsity:.4f}" for side in (dense, pruned)]
    return what, cells[0], cells[1], ""
