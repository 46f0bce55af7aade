"""What a model's weights look like: data first, then text, JSON and one HTML page."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np

from keras_pruner.model_weights import check_model, weights_of
from keras_pruner.reporting import html, tables
from keras_pruner.validation import as_json


@dataclasses.dataclass(frozen=True)
class Row:
    """One weight of a model.

    Attributes:
        path: its name in the model.
        shape: of the weight.
        zeros: how many of its entries are exactly zero.
        prunable: whether it would be pruned by default.
    """

    path: str
    shape: tuple[int, ...]
    zeros: int
    prunable: bool

    @property
    def size(self) -> int:
        """How many entries it has."""
        return int(np.prod(self.shape, dtype=np.int64))

    @property
    def sparsity(self) -> float:
        """The fraction of zeros."""
        return self.zeros / self.size if self.size else 0.0


@dataclasses.dataclass(frozen=True)
class Total:
    """The sum over some weights.

    Attributes:
        size: how many entries they have.
        zeros: how many of them are exactly zero.
    """

    size: int
    zeros: int

    @property
    def sparsity(self) -> float:
        """The fraction of zeros."""
        return self.zeros / self.size if self.size else 0.0


@dataclasses.dataclass(frozen=True)
class SparsityReport:
    """The zeros in a model, weight by weight. Prints as a table.

    Attributes:
        model: the model's name.
        rows: one for each weight, in the order of the model's layers; each weight once.
    """

    model: str
    rows: tuple[Row, ...]

    @property
    def prunable(self) -> Total:
        """Over what is pruned by default: kernels and tables."""
        return _total([row for row in self.rows if row.prunable])

    @property
    def all(self) -> Total:
        """Over all weights, biases and moving statistics among them."""
        return _total(self.rows)

    def __str__(self) -> str:
        rows = self._row_cells() + self._total_cells()
        return tables.render(f"sparsity of {self.model}", COLUMNS, rows)

    def as_dict(self) -> dict[str, Any]:
        """Plain dicts, lists and numbers."""
        rows = [
            {
                "path": row.path,
                "shape": list(row.shape),
                "size": row.size,
                "zeros": row.zeros,
                "sparsity": row.sparsity,
                "prunable": row.prunable,
            }
            for row in self.rows
        ]
        return {
            "model": self.model,
            "prunable": _total_as_dict(self.prunable),
            "all": _total_as_dict(self.all),
            "weights": rows,
        }

    def to_json(self) -> str:
        """`as_dict` as JSON text; null for what is not finite."""
        return as_json(self.as_dict())

    def to_html(
        self,
        *,
        history: Mapping[str, Sequence[float]] | keras.callbacks.History | None = None,
        facts: str = "",
        plots: bool = True,
    ) -> str:
        """One page that needs nothing else: no script, no request.

        Args:
            history: what `fit` returned; plotted are "sparsity" and each metric of
                the validation data, epoch by epoch.
            facts: HTML to stand before the plots, such as a `html.table`.
            plots: False leaves them out.

        Returns:
            The text of the page.

        Raises:
            ImportError: if plots are asked for and matplotlib is not installed.
        """
        kernels = [row for row in self.rows if row.prunable]
        parts = [facts] if facts else []
        if plots and kernels:
            bars = [(row.path, row.sparsity) for row in kernels]
            parts.append(html.figure("Sparsity by layer", html.bars("sparsity", bars)))
        if plots and (drawn := curves(history)):
            parts.append(html.figure("While training", html.lines("epoch", drawn)))
        if not plots:
            parts.append(html.note(f"There are no plots here. {html.INSTALL}"))
        parts.append(html.table("Every weight", COLUMNS, self._row_cells(), self._total_cells()))
        return html.document(f"Sparsity of {self.model}", parts)

    def _row_cells(self) -> list[tuple[str, ...]]:
        return [_cells(row.path, str(row.shape), row) for row in self.rows]

    def _total_cells(self) -> list[tuple[str, ...]]:
        totals = {"prunable weights": self.prunable, "all weights": self.all}
        return [_cells(name, "", total) for name, total in totals.items()]


COLUMNS = ["weight", "shape", ">size", ">zeros", ">sparsity"]


def summarize(model: keras.Model) -> SparsityReport:
    """Count the zeros in a model.

    Args:
        model: any built Keras 3 model or layer.

    Returns:
        A report with a row for each weight; one that is shared is counted once.

    Raises:
        ValueError: if `model` is no built Keras 3 model.

    Example:
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
        >>> model.layers[0].kernel.assign([[1, 0], [0, 2], [0, 0], [3, 0]])  # doctest: +SKIP
        >>> report = summarize(model)
        >>> report.prunable.size, report.all.size
        (8, 10)
    """
    check_model(model)
    rows = []
    for owned in weights_of(model):
        weight = np.asarray(keras.ops.convert_to_numpy(owned.variable.value))
        rows.append(
            Row(
                path=owned.path,
                shape=tuple(weight.shape),
                zeros=int(weight.size - np.count_nonzero(weight)),
                prunable=not owned.reason(by_default=True),
            )
        )
    return SparsityReport(model.name, tuple(rows))


def _total(rows: Sequence[Row]) -> Total:
    return Total(sum(row.size for row in rows), sum(row.zeros for row in rows))


def _total_as_dict(total: Total) -> dict[str, Any]:
    return {"size": total.size, "zeros": total.zeros, "sparsity": total.sparsity}


def _cells(name: str, shape: str, counted: Row | Total) -> tuple[str, ...]:
    return name, shape, f"{counted.size:,}", f"{counted.zeros:,}", share(counted)


def share(counted: Row | Total) -> str:
    """The sparsity as a cell; of nothing there is none."""
    return f"{counted.sparsity:.4f}" if counted.size else "-"


def numbers(name: str, value: Any) -> list[tuple[str, float]]:
    """A metric as numbers: itself, or each of its entries, `name[0]` and so on."""
    array = np.asarray(keras.ops.convert_to_numpy(value))
    if not array.ndim:
        return [(name, float(array))]
    return [(f"{name}{list(at)}", float(array[at])) for at in np.ndindex(array.shape)]


def curves(
    history: Mapping[str, Sequence[float]] | keras.callbacks.History | None,
) -> dict[str, Sequence[float]]:
    """What to plot of a history: sparsity, and the metrics of the validation data, or any."""
    given = history.history if isinstance(history, keras.callbacks.History) else history
    found: dict[str, list[float]] = {}
    for name, values in (given or {}).items():
        for each in values:
            for entry, number in numbers(name, each):
                found.setdefault(entry, []).append(number)
    validated = [name for name in found if name.startswith("val_")]
    measured = validated or [name for name in found if name != "sparsity"]
    chosen = [name for name in measured if "loss" not in name] or measured
    order = [name for name in ("sparsity",) if name in found] + chosen
    return {name.removeprefix("val_"): found[name] for name in order}
