"""What is in a `.tflite` file: the zeros of each weight, how they are stored, what runs sparse."""

import dataclasses
import os
from pathlib import Path
from typing import Any

import numpy as np

from keras_pruner.litert import encoding, flatbuffer
from keras_pruner.litert.sparse_tensors import Encoded, table_of
from keras_pruner.litert.xnnpack import Eligibility, eligibility
from keras_pruner.reporting.report import Report
from keras_pruner.reporting.tables import Table


@dataclasses.dataclass(frozen=True)
class Contents(Report):
    """The weights of a `.tflite` file; prints as a table.

    Attributes:
        path: of the file.
        size: of the file, in bytes.
        weights: each constant of rank 2 and more, with its zeros, encoding and execution.
        xnnpack: whether its convolutions run sparse on ARM and in WebAssembly.
    """

    path: str
    size: int
    weights: tuple[Encoded, ...]
    xnnpack: Eligibility

    @property
    def sparsity(self) -> float:
        """Fraction of zeros over all weights."""
        sizes = [int(np.prod(w.shape)) for w in self.weights]
        zeros = sum(w.sparsity * size for w, size in zip(self.weights, sizes, strict=True))
        return zeros / max(1, sum(sizes))

    def headline(self) -> str:
        """The size of the file and its sparsity."""
        return f"{self.path}: {self.size:,} bytes, {self.sparsity:.1%} zeros"

    def tables(self) -> list[Table]:
        """How each weight is stored."""
        return [table_of(self.weights)]

    def notes(self) -> list[str]:
        """Whether XNNPACK runs its convolutions sparse."""
        return [f"XNNPACK: {self.xnnpack}"]


def inspect(path: str | os.PathLike[str]) -> Contents:
    """Read any `.tflite` file and say what its zeros are worth; nothing of it is run.

    Args:
        path: of the file, from any producer.

    Raises:
        ValueError: if it is no such file, or a damaged one.
        ImportError: without the extra "litert".
    """
    model = flatbuffer.read(path)
    try:
        with np.errstate(invalid="ignore"):  # a damaged file may hold signalling NaNs
            weights = _weights(model)
            found = eligibility(model)
    except (ValueError, TypeError, IndexError, AttributeError, KeyError, OverflowError) as error:
        raise ValueError(f"{str(path)!r} is damaged: {error}") from None
    return Contents(str(path), Path(path).stat().st_size, tuple(weights), found)


def _weights(model: Any) -> list[Encoded]:
    found = []
    for graph in model.subgraphs:
        for index, tensor in enumerate(graph.tensors or []):
            data = model.buffers[tensor.buffer].data
            if data is None or not len(data) or len(flatbuffer.listed(tensor.shape)) < 2:
                continue
            if flatbuffer.dtype_of(tensor) is not None:
                found.append(_describe(model, graph, index, tensor, data))
    return found


def _describe(model: Any, graph: Any, index: int, tensor: Any, data: np.ndarray) -> Encoded:
    weight = encoding.decode(tensor, data)
    form = encoding.name_of(tensor)
    known = flatbuffer.schema().BuiltinOperator
    users = [o for o in graph.operators or [] if index in flatbuffer.listed(o.inputs)]
    if form == "dense":
        execution, reason = "dense", ""
    elif any(flatbuffer.code_of(model, o) == known.DENSIFY for o in users):
        execution, reason = "densified", "unpacked when loaded"
    else:
        execution, reason = "native sparse", ""
    if form == "dense" and (blocks := encoding.block_density(weight)) < 0.9:
        reason = f"{1 - blocks:.0%} of its 1x4 blocks are zeros, and stored"
    sparsity = float(np.mean(weight == 0)) if weight.size else 0.0
    return Encoded(flatbuffer.name_of(tensor), weight.shape, sparsity, form, execution, reason)
