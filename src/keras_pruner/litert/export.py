"""Export a Keras model to LiteRT, sparse where it pays, and compare the file with the model."""

import dataclasses
import os
import re
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_pruner.litert import flatbuffer
from keras_pruner.litert.agreement import Agreement, compare_outputs, worst_layers
from keras_pruner.litert.convert import Types, convert
from keras_pruner.litert.cost_model import RUNTIMES, SpeedupTable
from keras_pruner.litert.operators import missing_in_micro
from keras_pruner.litert.samples import Signature, batches_of, random_batch, signature_of
from keras_pruner.litert.sparse_tensors import DENSE_INT8, StoredWeight, store_sparse, table_of
from keras_pruner.model_file import atomic_write
from keras_pruner.model_weights import check_model, weights_of
from keras_pruner.reporting.console import Announce, show_progress
from keras_pruner.reporting.report import Report
from keras_pruner.reporting.tables import Table

# Largest difference of an output, in units of the largest output, by the type of the weights.
_TOLERANCE = {"float32": 1e-4, "float16": 2e-2, "int8": 0.2}
# Largest relative error of the outputs, by the type of the activations.
_LARGEST_ERROR = {"int8": 0.3, "int16": 0.05}


@dataclasses.dataclass(frozen=True)
class Export(Report):
    """The result of `export_litert`; prints as a table.

    Attributes:
        path: the file.
        size: size of the file in bytes.
        dense_size: size of the same file without sparse tensors.
        weights: how each weight is stored, and why.
        difference: largest difference between the outputs of file and model, divided by the
            largest output.
        error: root mean square of the differences, divided by that of the outputs.
        same_largest: fraction of samples for which file and model have the same largest output;
            None if the model has no output of several values.
        compared_on: a description of the inputs of the comparison.
        types: the types of weights, activations, and inputs and outputs.
        zeros: number of zero weights in the model's kernels and tables, and in the file.
        hints: operators of the file that other runtimes lack.

    Example:
        >>> print(Export("model.tflite", size=4000, dense_size=16000, weights=(), difference=1e-6))
        model.tflite: 4,000 bytes, 4.0x smaller than dense; outputs differ by 1.0e-06
    """

    path: str
    size: int
    dense_size: int
    weights: tuple[StoredWeight, ...]
    difference: float
    error: float = 0.0
    same_largest: float | None = None
    compared_on: str = ""
    types: Types = Types()  # noqa: RUF009 - frozen
    zeros: tuple[int, int] = (0, 0)
    hints: tuple[str, ...] = ()

    def headline(self) -> str:
        """The size of the file and the difference of its outputs."""
        if self.types.activations == "float32":
            smaller = f"{self.dense_size / self.size:.1f}x smaller than dense"
            return f"{self.path}: {self.size:,} bytes, {smaller}; outputs differ by " + (
                f"{self.difference:.1e}"
            )
        same = "" if self.same_largest is None else f", same largest in {self.same_largest:.1%}"
        integers = f"{self.types.weights} weights, {self.types.activations} activations"
        return (
            f"{self.path}: {self.size:,} bytes, {integers}; relative error of the outputs "
            f"{self.error:.3f}{same}"
        )

    def tables(self) -> list[Table]:
        """How each weight is stored."""
        return [table_of(self.weights)]

    def notes(self) -> list[str]:
        """The inputs of the comparison, the zeros of an integer file, and the hints."""
        found = [f"Compared on {self.compared_on}."] if self.compared_on else []
        if self.types.activations != "float32":
            found.append(
                f"Zero weights: {self.zeros[0]:,} in the model, {self.zeros[1]:,} here. "
                "`kp.litert.ethos_u` and `kp.litert.export_micro` make use of them."
            )
        elif any(weight.reason == DENSE_INT8 for weight in self.weights):
            found.append("LiteRT computes sparse int8 wrongly, or not at all: all is stored dense.")
        return [*found, *self.hints]


def export_litert(
    model: keras.Model,
    path: str | os.PathLike[str],
    *,
    weights: str = "float32",
    activations: str = "float32",
    float_interface: bool = False,
    runtime: str | SpeedupTable = "litert-x86",
    input_signature: Signature | None = None,
    samples: Any = None,
    tolerance: float | None = None,
    progress: bool = True,
) -> Export:
    """Write a model as a `.tflite` file that uses its zeros, and compare the file with the model.

    Works on any backend; the conversion needs TensorFlow, which runs in a process of its own if
    the backend is another. Dense layers with zeros in `Block((4, 1))`, or with very many zeros,
    are stored for LiteRT's sparse kernels; other zeros make the file smaller.

    With integer activations the file computes in integers only, which microcontrollers and NPUs
    need. Weights are quantized symmetrically for each output channel, so that zeros stay
    zeros; compilers such as Arm's Vela code them in fewer bytes.

    Args:
        model: a built Keras 3 model.
        path: the file to write, ending in ".tflite".
        weights: "float32"; "float16" (half the size; sparse weights run densified); or "int8"
            (zeros stay zero but are stored dense, because LiteRT computes sparse int8 wrongly or
            not at all).
        activations: "float32"; or "int8" or "int16" for a file that computes in integers only,
            which needs weights="int8".
        float_interface: with integer activations, keep inputs and outputs in float32.
        runtime: where the file will run: "litert-x86", "litert-wasm" or "litert-arm"; or the
            table that `measure_speedups` returned, for this machine.
        input_signature: a `keras.InputSpec` for each input. None: the model's own, for one
            sample at a time.
        samples: inputs used to compare the file with the model, and to find the ranges of integer
            activations: an array, or one for each input; a last incomplete batch is dropped. 100
            typical ones suffice. None: one random batch; integers are drawn as valid indices of
            the Embedding that they reach.
        tolerance: with float32 activations, the largest difference of an output, divided by the
            largest output; None: 1e-4 for float32, 2e-2 for float16, 0.2 for int8 weights. With
            integer activations, the relative error of the outputs; None: 0.3 for int8, 0.05 for
            int16.
        progress: whether to show the current step.

    Returns:
        How each weight is stored, and why; and how close the outputs are.

    Raises:
        ValueError: for a wrong argument, a model with dynamic shapes and no signature, a model
            quantized by Keras, or one that computes in half precision.
        RuntimeError: if the conversion fails or the outputs differ; no file is left at `path`.
        ImportError: without the extras "litert" and "tensorflow".

    Example:
        >>> layers = [keras.layers.Dense(96, activation="relu"), keras.layers.Dense(10)]
        >>> model = keras.Sequential([keras.Input((64,)), *layers])
        >>> export = export_litert(model, "model.tflite")
        >>> export.size == Path("model.tflite").stat().st_size
        True
        >>> export.difference < 1e-4
        True
    """
    check_model(model)
    if weights not in _TOLERANCE:
        raise ValueError(
            f"`weights` must be one of {', '.join(map(repr, _TOLERANCE))}. "
            f"Received: weights={weights!r}."
        )
    _check_activations(weights, activations, samples, float_interface=float_interface)
    where = runtime.runtime if isinstance(runtime, SpeedupTable) else runtime
    if where not in RUNTIMES:
        raise ValueError(f"`runtime` must be one of {RUNTIMES}. Received: runtime={where!r}.")
    _check_convertible(model)
    types = Types(weights, activations, "float32" if float_interface else activations)
    signature = signature_of(model, input_signature)
    batches, compared_on = _batches(model, signature, samples)
    if activations != "float32":
        _check_typical(batches)
    flatbuffer.schema()
    with (
        atomic_write(path, ".tflite") as unfinished,
        show_progress("exporting", shown=progress) as announce,
    ):
        dense = unfinished.parent / "dense.tflite"
        announce(f"converting {model.name} with TensorFlow")
        convert(model, dense, signature, types, batches, announce)
        announce(f"storing the zeros of {model.name}")
        content = flatbuffer.read(dense)
        stored = store_sparse(content, runtime, signature[0].shape[0] or 1)
        flatbuffer.write(content, unfinished)
        found = _checked(model, unfinished, batches, types, tolerance, compared_on, announce)
        size, dense_size = unfinished.stat().st_size, dense.stat().st_size
    return Export(
        str(path),
        size,
        dense_size,
        tuple(stored),
        found.difference,
        found.error,
        found.same_largest,
        compared_on,
        types,
        (_zeros_of(model), sum(round(w.sparsity * w.size) for w in stored)),
        () if activations == "float32" else missing_in_micro(content, model),
    )


def _batches(
    model: keras.Model, signature: Signature, samples: Any
) -> tuple[list[list[np.ndarray]], str]:
    """The batches to compare the file on, and a description of them."""
    if samples is None:
        batch, description = random_batch(model, signature)
        return [batch], description
    batches = batches_of(signature, samples)
    return batches, f"{len(batches) * len(batches[0][0]):,} samples"


def _checked(
    model: keras.Model,
    path: Path,
    batches: list[list[np.ndarray]],
    types: Types,
    tolerance: float | None,
    compared_on: str,
    announce: Announce,
) -> Agreement:
    """Compare the file with the model; raises if the outputs differ by more than allowed."""
    announce("comparing the outputs of file and model")
    found = compare_outputs(model, path, batches)
    end = f"Compared on {compared_on}. No file was written; a larger `tolerance` allows it"
    if types.activations == "float32":
        allowed = _TOLERANCE[types.weights] if tolerance is None else tolerance
        if not found.difference <= allowed:
            raise RuntimeError(
                "The outputs of the exported file are not those of the model: they differ by "
                f"{found.difference:.2e} of the largest output, and {allowed:.0e} is allowed. "
                f"{end}. Pass `samples` to compare on your own data."
            )
        return found
    allowed = _LARGEST_ERROR[types.activations] if tolerance is None else tolerance
    if not found.error <= allowed:
        announce("finding the layers that differ most")
        worst = list(worst_layers(model, path, batches[0]).items())[:3]
        layers = ", ".join(f"{name} ({error:.2f})" for name, error in worst)
        most = f" The layers that differ most: {layers}." if layers else ""
        raise RuntimeError(
            f"The relative error of the outputs is {found.error:.3f}, and {allowed:g} is allowed."
            f"{most} {end}. What helps: samples that cover the range of the real inputs, "
            'activations="int16", or leaving these layers unpruned.'
        )
    return found


def _check_activations(
    weights: str, activations: str, samples: Any, *, float_interface: bool
) -> None:
    if activations not in ("float32", *_LARGEST_ERROR):
        raise ValueError(
            '`activations` must be "float32", "int8" or "int16". '
            f"Received: activations={activations!r}."
        )
    if activations == "float32":
        if float_interface:
            raise ValueError(
                "`float_interface` is for integer activations. Received: float_interface=True, "
                'activations="float32". Leave it out, or pass activations="int8".'
            )
        return
    if weights != "int8":
        raise ValueError(
            f'activations={activations!r} needs weights="int8". Received: weights={weights!r}. '
            'Pass weights="int8" too, or leave out `activations`.'
        )
    if samples is None:
        raise ValueError(
            f"activations={activations!r} needs `samples`: typical inputs, from which the range of "
            "every tensor is found. Received: samples=None. Pass about 100, samples=x[:100]."
        )


def _check_typical(batches: list[list[np.ndarray]]) -> None:
    """Raise for samples from which no range can be found: not finite, or all the same."""
    floats = [array for batch in batches for array in batch if array.dtype.kind == "f"]
    if not all(np.isfinite(array).all() for array in floats):
        raise ValueError(
            "`samples` must be finite. Received: samples with NaN or infinity. Leave those out."
        )
    values = {value for array in floats for value in (array.min(), array.max())}
    if len(values) == 1:
        raise ValueError(
            "`samples` must be typical inputs, from which ranges can be found. Received: samples "
            f"of the constant {values.pop():g}. Pass about 100 real ones."
        )


def _zeros_of(model: keras.Model) -> int:
    weights = [owned.variable for owned in weights_of(model) if len(owned.variable.shape) >= 2]
    return sum(int((keras.ops.convert_to_numpy(w.value) == 0).sum()) for w in weights)


def _check_convertible(model: keras.Model) -> None:
    """Raise for a model that TensorFlow's converter or LiteRT does not take."""
    _check_unquantized(model)
    _check_float32(model)
    _check_names(model)


def _check_unquantized(model: keras.Model) -> None:
    for layer in model._flatten_layers():
        mode = getattr(layer, "quantization_mode", None)
        if mode is not None:
            raise ValueError(
                f"{layer.name!r} is quantized by Keras ({mode}), which TensorFlow's converter does "
                'not take. Export the model as it was before, with weights="int8".'
            )


def _check_names(model: keras.Model) -> None:
    """Raise for names of layers that TensorFlow refuses, before the conversion begins."""
    refused = [
        layer.name
        for layer in model._flatten_layers()
        if not isinstance(layer, keras.layers.InputLayer) and not _SCOPE.match(layer.name)
    ]
    if refused:
        raise ValueError(
            "TensorFlow converts the model, and its names of layers may have only ASCII letters, "
            f"digits and _.\\/>-. Received: {', '.join(refused)}. Build the model with other names "
            "and copy the weights: `renamed.set_weights(model.get_weights())`."
        )


_SCOPE = re.compile(r"[A-Za-z0-9_.\\/>-]*$", re.ASCII)


def _check_float32(model: keras.Model) -> None:
    for layer in model._flatten_layers():
        half = layer.compute_dtype in ("float16", "bfloat16")
        if half and not isinstance(layer, keras.Model | keras.layers.InputLayer):
            raise ValueError(
                f"{layer.name!r} computes in {layer.compute_dtype}, which LiteRT does not. Build "
                'the model again after keras.config.set_dtype_policy("float32"), and call '
                'new.set_weights(model.get_weights()); weights="float16" halves the file.'
            )
