"""The zeros in a model, weight by weight."""

import dataclasses
from collections.abc import Mapping, Sequence

import keras
import numpy as np

from keras_pruner.model_weights import check_model, weights_of
from keras_pruner.reporting import html
from keras_pruner.reporting.report import Report
from keras_pruner.reporting.tables import Table

TO_SHIP: Mapping[str, str] = {
    "Save it; plain Keras opens the file:": 'kp.save_compressed(model, "small.keras")',
    "See what the zeros bring where it runs:": "print(kp.advise(model))",
}
"""The next steps for a model with zeros."""


@dataclasses.dataclass(frozen=True)
class Count:
    """The zeros among a number of weights.

    Attributes:
        size: the number of weights.
        zeros: the number of them that are exactly zero.
    """

    size: int
    zeros: int

    @property
    def sparsity(self) -> float:
        """The fraction of zeros, in [0, 1]."""
        return self.zeros / self.size if self.size else 0.0


@dataclasses.dataclass(frozen=True)
class Weight:
    """The zeros in one weight of a model.

    Attributes:
        path: its name in the model.
        shape: its shape.
        zeros: the number of its entries that are exactly zero.
        prunable: whether it is pruned by default: kernels and tables, but no biases.
    """

    path: str
    shape: tuple[int, ...]
    zeros: int
    prunable: bool

    @property
    def size(self) -> int:
        """The number of its entries."""
        return int(np.prod(self.shape, dtype=np.int64))

    @property
    def sparsity(self) -> float:
        """The fraction of zeros, in [0, 1]."""
        return self.zeros / self.size if self.size else 0.0


@dataclasses.dataclass(frozen=True)
class SparsityReport(Report):
    """The zeros in a model, weight by weight; what `kp.summarize` returns.

    Attributes:
        model: the model's name.
        weights: each weight once, in the order of the model's layers.
        picture: the mask of the largest prunable weight, drawn as HTML; empty if it has no zero.

    Example:
        >>> import keras, keras_pruner as kp
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2, name="head")])
        >>> report = kp.prune(model, 0.5)
        >>> print(kp.summarize(model))
        sparsity of sequential: 4 of 8 prunable weights are zero
          weight            shape   size  zeros  sparsity
          ───────────────────────────────────────────────
          prunable weights             8      4    0.5000
          all weights                 10      6    0.6000
          ───────────────────────────────────────────────
          head/kernel       (4, 2)     8      4    0.5000
          head/bias         (2,)       2      2    1.0000
    """

    model: str
    weights: tuple[Weight, ...]
    picture: str = dataclasses.field(default="", repr=False, compare=False)

    @property
    def prunable(self) -> Count:
        """All weights that are pruned by default: kernels and tables."""
        return _total([weight for weight in self.weights if weight.prunable])

    @property
    def all(self) -> Count:
        """All weights, biases and moving statistics included."""
        return _total(self.weights)

    def headline(self) -> str:
        """The sparsity of the prunable weights."""
        found = self.prunable
        zeros = f"{found.zeros:,} of {found.size:,} prunable weights are zero"
        return f"sparsity of {self.model}: {zeros}"

    def tables(self) -> list[Table]:
        """One table; its short form has the largest weights."""
        totals = {"prunable weights": self.prunable, "all weights": self.all}
        return [
            Table(
                "",
                ["weight", "shape", ">size", ">zeros", ">sparsity"],
                [(weight.path, weight.shape, *_cells(weight)) for weight in self.weights],
                [(name, "", *_cells(total)) for name, total in totals.items()],
                [weight.size for weight in self.weights],
                [bar(weight) for weight in self.weights],
            )
        ]

    def figures(self) -> list[tuple[str, str, str]]:
        """The sparsity."""
        found = self.prunable
        zeros = f"{found.zeros:,} of {found.size:,} prunable weights"
        return [(f"{found.sparsity:.1%}", "zeros", zeros)] if found.size else []

    def charts(self) -> list[str]:
        """The mask of the largest weight."""
        return [self.picture]

    def next_steps(self) -> Mapping[str, str]:
        """Commands that save the model and estimate its speed on a runtime."""
        if not self.prunable.zeros:
            return {"Prune while training:": "model.fit(..., callbacks=[kp.GradualPruning(0.8)])"}
        return TO_SHIP


def share(counted: Weight | Count) -> str:
    """The sparsity as a cell of a table; "-" for no weights."""
    return f"{counted.sparsity:.4f}" if counted.size else "-"


def bar(weight: Weight) -> list[tuple[str, float]]:
    """The kept entries and the zeros, as the bar of a table's row."""
    return [("kept", weight.size - weight.zeros), ("zero", weight.zeros)]


def summarize(model: keras.Model) -> SparsityReport:
    """Count the zeros in each weight of a model.

    Args:
        model: any built Keras 3 model or layer.

    Returns:
        A report with each weight; one that layers share is counted once.

    Raises:
        ValueError: if `model` is not a built Keras 3 model.

    Example:
        >>> import keras, numpy as np, keras_pruner as kp
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
        >>> model.layers[0].set_weights([np.array([[1, 0], [0, 2], [0, 0], [3, 4]]), np.ones(2)])
        >>> report = kp.summarize(model)
        >>> report.prunable.size, report.prunable.sparsity, report.all.size
        (8, 0.5, 10)
    """
    check_model(model)
    weights, largest, picture = [], 0, ""
    for owned in weights_of(model):
        values = np.asarray(keras.ops.convert_to_numpy(owned.variable.value))
        weight = Weight(
            path=owned.path,
            shape=tuple(values.shape),
            zeros=int(values.size - np.count_nonzero(values)),
            prunable=not owned.reason(by_default=True),
        )
        weights.append(weight)
        if weight.prunable and weight.zeros and weight.size > largest:
            largest, picture = weight.size, html.mask(weight.path, values)
    return SparsityReport(model.name, tuple(weights), picture)


def _cells(counted: Weight | Count) -> tuple[str, str, str]:
    return f"{counted.size:,}", f"{counted.zeros:,}", share(counted)


def _total(weights: Sequence[Weight]) -> Count:
    return Count(sum(weight.size for weight in weights), sum(weight.zeros for weight in weights))
