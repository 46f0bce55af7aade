"""Read a `.tflite` file: the zeros of each weight, how they are stored, and what runs sparse."""

import dataclasses
import os
from pathlib import Path
from typing import Any

import numpy as np

from keras_pruner.litert import flatbuffer
from keras_pruner.litert.flatbuffer import Graph
from keras_pruner.litert.sparse_tensors import (
    StoredWeight,
    block_density,
    decode,
    encoding_of,
    most_in_group,
    table_of,
)
from keras_pruner.litert.tflm_decode import encoded_weights
from keras_pruner.litert.xnnpack import Eligibility, eligibility
from keras_pruner.reporting.report import Report
from keras_pruner.reporting.tables import Table
from keras_pruner.validation import check_integer

_COMPILED = b"ethos-u"  # the operator of what Vela compiled


@dataclasses.dataclass(frozen=True)
class Contents(Report):
    """The weights of a `.tflite` file; prints as a table.

    Attributes:
        path: of the file.
        size: of the file, in bytes.
        weights: each constant of rank 2 or more, with its zeros, encoding and execution.
        xnnpack: whether its convolutions run sparse on ARM and in WebAssembly.
        group: size of the groups of inputs in which non-zero weights were counted.
        is_compiled: whether Vela has compiled it for an Ethos-U, which hides weights and zeros.

    Example:
        >>> weight = StoredWeight("dense", (4, 8), 0.5, "dense", "dense", "", most_in_group=2)
        >>> print(Contents("a.tflite", 1000, (weight,), Eligibility(False, "no convolutions")))
        a.tflite: 1,000 bytes, 50.0% zeros
          weight  shape   zeros  of 4  stored  runs   why
          ───────────────────────────────────────────────
          dense   (4, 8)  50.0%  <= 2  dense   dense
        XNNPACK: not eligible: no convolutions
    """

    path: str
    size: int
    weights: tuple[StoredWeight, ...]
    xnnpack: Eligibility
    group: int = 4
    is_compiled: bool = False

    @property
    def sparsity(self) -> float:
        """Fraction of zeros over all weights."""
        zeros = sum(weight.sparsity * weight.size for weight in self.weights)
        return zeros / max(1, sum(weight.size for weight in self.weights))

    def headline(self) -> str:
        """The size of the file and its sparsity."""
        if self.is_compiled:
            return f"{self.path}: {self.size:,} bytes, compiled for an Ethos-U"
        return f"{self.path}: {self.size:,} bytes, {self.sparsity:.1%} zeros"

    def tables(self) -> list[Table]:
        """How each weight is stored."""
        return [table_of(self.weights, self.group)]

    def notes(self) -> list[str]:
        """Whether XNNPACK runs the convolutions sparse."""
        if self.is_compiled:
            return [
                "Vela has encoded the weights for the NPU; their zeros cannot be counted here. "
                "Inspect the file that it compiled."
            ]
        return [f"XNNPACK: {self.xnnpack}"]


def inspect(path: str | os.PathLike[str], *, group: int = 4) -> Contents:
    """Read any `.tflite` file and report what its zeros are worth, without running it.

    Args:
        path: of the file, from any producer.
        group: a weight has N:M zeros if at most N of every `group` = M consecutive inputs of an
            output are not zero; the report has that N of each weight.

    Raises:
        ValueError: if it is not a `.tflite` file, or a damaged one.
        ImportError: without the extra "litert".

    Example:
        >>> import keras, keras_pruner as kp
        >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(4)])
        >>> report = kp.prune(model, pattern=kp.NM(2, 4))
        >>> export = kp.export_litert(model, "two_by_four.tflite")
        >>> contents = inspect("two_by_four.tflite")
        >>> contents.sparsity, contents.weights[0].most_in_group
        (0.5, 2)
    """
    check_integer("group", group, least=1)
    model = flatbuffer.read(path)
    try:
        with np.errstate(invalid="ignore"):  # a damaged file may hold signalling NaNs
            weights = _weights(model, group)
            found = eligibility(model)
        is_compiled = any(code.customCode == _COMPILED for code in model.operatorCodes or ())
    except flatbuffer.DAMAGE as error:
        raise ValueError(f"{str(path)!r} is damaged: {error}. Copy or export it again.") from None
    size = Path(path).stat().st_size
    return Contents(str(path), size, tuple(weights), found, group, is_compiled)


def _weights(model: Any, group: int) -> list[StoredWeight]:
    found = []
    for each in model.subgraphs:
        graph = Graph(model, each)
        for index, tensor in enumerate(graph.tensors):
            is_stored = len(graph.data(index)) or tensor.sparsity is not None  # all zeros: no data
            if (
                is_stored
                and len(graph.shape(index)) >= 2
                and flatbuffer.dtype_of(tensor) is not None
            ):
                found.append(_describe(graph, index, group))
        for index, form, weight in encoded_weights(graph):
            is_grouped = _has_inputs_last(graph, index)
            found.append(
                StoredWeight(
                    graph.name(index),
                    weight.shape,
                    float(np.mean(weight == 0)) if weight.size else 0.0,
                    form,
                    "dense",
                    "unpacked in each run, by TensorFlow Lite Micro",
                    most_in_group=most_in_group(weight, group) if is_grouped else None,
                )
            )
    return found


def _describe(graph: Graph, index: int, group: int) -> StoredWeight:
    weight = decode(graph.tensors[index], graph.data(index))
    form = encoding_of(graph.tensors[index])
    users = [graph.code(source) for source in graph.users(index)]
    execution, reason = "native sparse", ""
    if form == "dense":
        execution = "dense"
        if (blocks := block_density(weight)) < 0.9:
            reason = f"{1 - blocks:.0%} of its 1x4 blocks are zeros, and stored"
    elif "DENSIFY" in users:
        execution, reason = "densified", "unpacked when loaded"
    sparsity = float(np.mean(weight == 0)) if weight.size else 0.0
    most = most_in_group(weight, group) if _has_inputs_last(graph, index) else None
    return StoredWeight(
        graph.name(index), weight.shape, sparsity, form, execution, reason, most_in_group=most
    )


def _has_inputs_last(graph: Graph, index: int) -> bool:
    """Whether the last axis of a weight is its inputs, also behind DENSIFY and DEQUANTIZE."""
    users = graph.users(index)
    while users and graph.code(users[0]) in ("DENSIFY", "DEQUANTIZE"):
        users = graph.users(graph.outputs_of(users[0])[0])
    return bool(users) and {graph.code(user) for user in users} <= {"CONV_2D", "FULLY_CONNECTED"}
