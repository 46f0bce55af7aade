"""Sparse inference on a server's CPU with PyTorch's own kernels for matrices in CSR form.

With the weight on the left, `csr @ x.T`, PyTorch multiplies by zeros faster than a dense product
from about 85 % zeros and a few rows on; with the weight on the right it is slower than dense.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from keras_pruner.litert.agreement import relative_error
from keras_pruner.litert.cost_model import LEAST_SPEEDUP, SpeedupTable, speedups_of
from keras_pruner.litert.samples import as_inputs, batches_of, random_batch, signature_of
from keras_pruner.litert.torch_kernels import (
    form_of,
    is_product,
    product,
    summed_letters,
    to_csr,
)
from keras_pruner.model_weights import OwnedWeight, WeightView, check_model, weights_of
from keras_pruner.oneshot.prune import copy_of
from keras_pruner.reporting.report import Report
from keras_pruner.reporting.tables import Table
from keras_pruner.validation import check_integer

__all__ = ["sparse_inference"]

_TOLERANCE = 1e-4


@dataclasses.dataclass(frozen=True)
class SparseLayer:
    """How one weight is used.

    Attributes:
        path: of the weight, as in a plan.
        sparsity: fraction of zeros.
        is_sparse: whether its layer runs through `csr @ x.T`.
        reason: why.
    """

    path: str
    sparsity: float
    is_sparse: bool
    reason: str


@dataclasses.dataclass(frozen=True)
class SparseInference(Report):
    """The result of `sparse_inference`; prints as a table.

    Attributes:
        layers: each kernel.
        error: relative error of the outputs: root mean square of the differences, in units of
            that of the outputs.
        model: the copy, for inference only.

    Example:
        >>> row = SparseLayer("dense/kernel", 0.9, True, "")
        >>> print(SparseInference((row,), 1e-7, None))
        1 of 1 kernels run sparse; relative error of the outputs 1.0e-07
          weight        zeros  runs       why
          ───────────────────────────────────
          dense/kernel  90.0%  csr @ x.T
    """

    layers: tuple[SparseLayer, ...]
    error: float
    model: Any = dataclasses.field(repr=False)

    def headline(self) -> str:
        """How many kernels run sparse, and how exactly."""
        count = sum(layer.is_sparse for layer in self.layers)
        return (
            f"{count} of {len(self.layers)} kernels run sparse; relative error of the outputs "
            f"{self.error:.1e}"
        )

    def tables(self) -> list[Table]:
        """How each kernel runs."""
        rows = [
            (x.path, f"{x.sparsity:.1%}", "csr @ x.T" if x.is_sparse else "dense", x.reason)
            for x in self.layers
        ]
        return [Table("", ["weight", ">zeros", "runs", "why"], rows)]


def sparse_inference(
    model: keras.Model,
    *,
    batch_size: int = 8,
    speedups: SpeedupTable | None = None,
    samples: Any = None,
) -> SparseInference:
    """Copy a pruned model so that its sparse layers run on PyTorch's sparse kernels.

    Dense layers, projections by EinsumDense (as in MultiHeadAttention) and 1x1 convolutions with
    enough zeros use `csr @ x.T`; everything else runs as it did. The model itself is not changed.
    Needs KERAS_BACKEND=torch and a CPU.

    Args:
        model: a trained and pruned Keras 3 model that computes in float32.
        batch_size: samples of a typical call, which decides what pays.
        speedups: of this machine, from `kp.litert.measure_speedups(runtime="torch-cpu")`; None: a
            rough table for x86-64.
        samples: inputs to compare the outputs on: an array, or one for each input. None: one
            random batch.

    Returns:
        A report, whose `model` is the copy. Its weights are fixed: do not train it.

    Raises:
        ValueError: on another backend, for a wrong argument, or for a model that cannot be copied.
        RuntimeError: if the outputs differ.

    Example:
        >>> import keras_pruner as kp
        >>> layers = [keras.layers.Dense(512, activation="relu"), keras.layers.Dense(10)]
        >>> model = keras.Sequential([keras.Input((512,)), *layers])
        >>> report = kp.prune(model, 0.95, allocation="uniform")
        >>> if keras.backend.backend() == "torch":
        ...     fast = sparse_inference(model, batch_size=64).model
    """
    check_model(model)
    check_integer("batch_size", batch_size, least=1)
    if keras.backend.backend() != "torch":
        raise ValueError(
            "`sparse_inference` uses PyTorch's kernels. Received: a model of the backend "
            f"{keras.backend.backend()!r}. Save it, set KERAS_BACKEND=torch, and load it again."
        )
    table = speedups_of("torch-cpu" if speedups is None else speedups)
    if table.runtime != "torch-cpu":
        raise ValueError(
            "`speedups` must be those of PyTorch: kp.litert.measure_speedups(runtime="
            f'"torch-cpu"). Received: a table of {table.runtime!r}.'
        )
    copied = copy_of(model)
    copied.trainable = False
    sizes = [_size(owned) for owned in weights_of(copied) if len(owned.variable.shape) >= 2]
    kernels = [
        owned
        for owned in weights_of(copied)
        if len(owned.variable.shape) >= 2 and owned.variable.name == "kernel"
    ]
    signature = signature_of(model, None)
    batches = (
        [random_batch(model, signature)[0]] if samples is None else batches_of(signature, samples)
    )
    counts = _rows_of(kernels, copied, batches[0])
    rows = [
        _replace(owned, table, batch_size * counts.get(id(owned.layer), 1), 4.0 * sum(sizes))
        for owned in kernels
    ]
    error = max(_error(model, copied, batch) for batch in batches)
    if not error <= _TOLERANCE:
        raise RuntimeError(
            f"The relative error of the sparse outputs is {error:.1e}, and {_TOLERANCE:.0e} is "
            "allowed. A subclass of Dense or a convolution may compute more than its base class: "
            "serve this model dense."
        )
    return SparseInference(tuple(rows), error, copied)


def _size(owned: OwnedWeight) -> int:
    return math.prod(owned.variable.shape)


def _error(model: keras.Model, copied: keras.Model, batch: list[np.ndarray]) -> float:
    inputs = as_inputs(model, batch)
    pairs = [
        [keras.ops.convert_to_numpy(output) for output in keras.tree.flatten(found)]
        for found in (model(inputs, training=False), copied(inputs, training=False))
    ]
    return max(relative_error(one, other) for one, other in zip(*pairs, strict=True))


def _rows_of(
    kernels: list[OwnedWeight], model: keras.Model, batch: list[np.ndarray]
) -> dict[int, int]:
    """How many rows each layer multiplies by its kernel for one sample, by the layer's id."""
    counts: dict[int, int] = {}

    def listen(layer: Any, outputs: int) -> None:
        original = layer.call

        def call(*args: Any, **kwargs: Any) -> Any:
            made = original(*args, **kwargs)
            counts[id(layer)] = made.numel() // outputs
            return made

        layer.call = call

    heard = [owned for owned in kernels if is_product(owned.layer, owned.view)]
    for owned in heard:
        listen(owned.layer, owned.view.matrix_shape[2])
    try:
        model(as_inputs(model, batch), training=False)
    finally:
        for layer in {id(owned.layer): owned.layer for owned in heard}.values():
            del layer.call
    return counts


def _replace(
    owned: OwnedWeight, table: SpeedupTable, count: int, model_bytes: float
) -> SparseLayer:
    """Make a layer use a sparse matrix, if that pays with `count` rows."""
    layer = owned.layer
    weight = keras.ops.convert_to_numpy(owned.variable.value)
    sparsity = float(np.mean(weight == 0)) if weight.size else 0.0
    maker = _maker_of(layer, owned.view)
    if maker is None:
        return SparseLayer(owned.path, sparsity, False, "no product with a matrix")
    if layer.compute_dtype != "float32":
        return SparseLayer(owned.path, sparsity, False, f"computes in {layer.compute_dtype}")
    form = form_of(layer)
    if table.dense_speedup(form, sparsity, model_bytes, count) < LEAST_SPEEDUP:
        least = table.break_even(form, model_bytes, count, LEAST_SPEEDUP)
        reason = f"pays only above {least:.0%} zeros with {count} rows"
        return SparseLayer(owned.path, sparsity, False, reason)
    layer.call = maker(layer, to_csr(owned.view.to_matrix(weight)[0].T))
    return SparseLayer(owned.path, sparsity, True, f"{count} rows")


def _maker_of(layer: Any, view: WeightView) -> Callable[[Any, Any], Callable] | None:
    """Makes the sparse call of a layer; None if its kernel is no matrix."""
    if not is_product(layer, view):
        return None
    return _convolution if form_of(layer) == "csr 1x1" else _dense


def _dense(layer: Any, matrix: Any) -> Callable:
    contracted = len(summed_letters(layer) or "x")
    made = tuple(layer.kernel.shape[contracted:])

    def call(inputs: Any, training: bool | None = None) -> Any:  # noqa: ARG001 - Keras passes it
        lead = inputs.shape[: inputs.ndim - contracted]
        outputs = product(matrix, inputs.reshape(-1, matrix.shape[1]))
        return _finished(layer, outputs.reshape(*lead, *made))

    return call


def _convolution(layer: Any, matrix: Any) -> Callable:
    first = layer.data_format == "channels_first"
    steps = tuple(slice(None, None, stride) for stride in layer.strides)

    def call(inputs: Any) -> Any:
        last = inputs.movedim(1, -1) if first else inputs
        rows = last[(slice(None), *steps)]
        made = product(matrix, rows.reshape(-1, matrix.shape[1]))
        outputs = _finished(layer, made.reshape(*rows.shape[:-1], -1))
        return outputs.movedim(-1, 1) if first else outputs

    return call


def _finished(layer: Any, outputs: Any) -> Any:
    """With the bias and the activation."""
    if layer.bias is not None:
        outputs = outputs + layer.bias.value.reshape(layer.bias.shape)
    return outputs if layer.activation is None else layer.activation(outputs)
