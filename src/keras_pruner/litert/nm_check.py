"""Whether the weights of a model, or of a `.tflite` file, have m zeros in every n inputs."""

import dataclasses
import os
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_pruner import backends
from keras_pruner.litert import flatbuffer
from keras_pruner.litert.xnnpack import _Graph
from keras_pruner.model_weights import check_model, weights_of
from keras_pruner.reporting import tables
from keras_pruner.validation import check_integer


@dataclasses.dataclass(frozen=True)
class Check:
    """Which weights are pruned m by n; prints as a table.

    Attributes:
        m_by_n: m zeros in every n consecutive inputs of an output.
        weights: name -> whether it is; a last group of fewer than n may hold n - m that are not
            zero.
    """

    m_by_n: tuple[int, int]
    weights: dict[str, bool]

    @property
    def passed(self) -> bool:
        """Whether all of them are."""
        return bool(self.weights) and all(self.weights.values())

    def __str__(self) -> str:
        rows = [(name, "yes" if passed else "no") for name, passed in self.weights.items()]
        m, n = self.m_by_n
        return tables.render(f"{m} zeros in every {n}", ["weight", "holds"], rows)


def check_m_by_n(
    model: keras.Model | str | os.PathLike[str], m_by_n: tuple[int, int] = (2, 4)
) -> Check:
    """Look for m zeros in every n consecutive inputs of an output, weight by weight.

    Args:
        model: a Keras model, or the path of a `.tflite` file (which needs the extra "litert").
        m_by_n: (m, n), as `sparsity_m_by_n`; in this library's words `NM(n - m, n)`.

    Raises:
        ValueError: for other numbers than 0 < m < n, and a file that cannot be read.
    """
    m, n = m_by_n
    check_integer("m_by_n", m, least=1)
    check_integer("m_by_n", n, least=m + 1)
    found = _of_model(model) if isinstance(model, keras.layers.Layer) else _of_file(Path(model))
    return Check((m, n), {name: _holds(rows, m, n) for name, rows in found.items()})


def _holds(rows: np.ndarray, m: int, n: int) -> bool:
    """Whether no group of n along the last axis has more than n - m that are not zero."""
    padded = np.pad(rows != 0, [(0, 0), (0, -rows.shape[1] % n)])
    return bool(padded.reshape(len(rows), -1, n).sum(-1).max(initial=0) <= n - m)


def _of_model(model: keras.Model) -> dict[str, np.ndarray]:
    """Each prunable kernel as rows of inputs."""
    check_model(model)
    rows = {}
    for owned in weights_of(model):
        if not owned.reason(by_default=True):
            kernel = owned.view.to_kernel(backends.current().to_numpy(owned.variable))
            rows[owned.path] = np.moveaxis(kernel, -2, -1).reshape(-1, kernel.shape[-2])
    return rows


def _of_file(path: Path) -> dict[str, np.ndarray]:
    graph: Any = _Graph(flatbuffer.read(path))
    rows = {}
    for operator in graph.operators:
        if graph.kind(operator) in ("CONV_2D", "FULLY_CONNECTED"):
            index = graph.weight(operator)
            weight = graph.constant(index)
            if weight.size:
                rows[graph.name(index)] = weight.reshape(-1, graph.shape(index)[-1])
    return rows
