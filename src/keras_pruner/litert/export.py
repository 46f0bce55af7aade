"""Export a Keras model to LiteRT, sparse where it pays, and compare the file with the model."""

import dataclasses
import os
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_pruner.litert import flatbuffer, interpreter
from keras_pruner.litert.convert import Signature, as_inputs, convert
from keras_pruner.litert.cost_model import RUNTIMES, SpeedupTable
from keras_pruner.litert.interpreter import largest_difference
from keras_pruner.litert.sparse_tensors import StoredWeight, store_sparse, table_of
from keras_pruner.model_weights import check_model
from keras_pruner.reporting.console import show_progress
from keras_pruner.reporting.report import Report
from keras_pruner.reporting.tables import Table
from keras_pruner.storage.model_file import atomic_write

# Largest difference of an output, in units of the largest output.
_TOLERANCE = {"float32": 1e-4, "float16": 2e-2, "int8": 0.2}


@dataclasses.dataclass(frozen=True)
class Export(Report):
    """The result of `export_litert`; prints as a table.

    Attributes:
        path: of the file.
        size: of the file, in bytes.
        dense_size: of the same file without sparse tensors.
        weights: how each is stored, and why.
        difference: largest difference of the outputs of file and model, in units of the largest
            output.

    Example:
        >>> print(Export("model.tflite", size=4000, dense_size=16000, weights=(), difference=1e-6))
        model.tflite: 4,000 bytes, 4.0x smaller than dense; outputs differ by 1.0e-06
    """

    path: str
    size: int
    dense_size: int
    weights: tuple[StoredWeight, ...]
    difference: float

    def headline(self) -> str:
        """The size of the file and the difference of its outputs."""
        return (
            f"{self.path}: {self.size:,} bytes, {self.dense_size / self.size:.1f}x smaller than "
            f"dense; outputs differ by {self.difference:.1e}"
        )

    def tables(self) -> list[Table]:
        """How each weight is stored."""
        return [table_of(self.weights)]


def export_litert(
    model: keras.Model,
    path: str | os.PathLike[str],
    *,
    weights: str = "float32",
    runtime: str | SpeedupTable = "litert-x86",
    input_signature: Signature | None = None,
    samples: Any = None,
    tolerance: float | None = None,
    progress: bool = True,
) -> Export:
    """Write a model as a `.tflite` file that makes use of its zeros, compared with the model.

    Works on any backend; the conversion needs TensorFlow, which runs in a process of its own if
    the backend is another. Dense layers with zeros in `Block((4, 1))`, or with very many zeros,
    are stored for LiteRT's sparse kernels; other zeros make the file smaller.

    Args:
        model: a built Keras 3 model.
        path: of the file, ending in ".tflite".
        weights: "float32"; "float16" (half the size; sparse weights run densified); or "int8"
            (kernels quantized with dynamic ranges; zeros stay zero but are stored dense, because
            LiteRT computes sparse int8 wrongly or not at all).
        runtime: where the file will run: "litert-x86", "litert-wasm" or "litert-arm"; or the
            table that `measure_speedups` returned, for this machine.
        input_signature: a `keras.InputSpec` for each input. None: the model's own, for one
            sample at a time.
        samples: inputs used to compare the file with the model: an array, or one for each input;
            a last incomplete batch is dropped. None: one random batch (0 or 1 for integers).
        tolerance: largest difference of an output, in units of the largest output. None: 1e-4,
            2e-2 or 0.2 by `weights`.
        progress: whether to show the current step, on a terminal.

    Returns:
        How each weight is stored, and why.

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
    if not isinstance(runtime, SpeedupTable) and runtime not in RUNTIMES:
        raise ValueError(f"`runtime` must be one of {RUNTIMES}. Received: runtime={runtime!r}.")
    _check_unquantized(model)
    _check_float32(model)
    signature = _signature(model, input_signature)
    batches = _batches(signature, samples)
    flatbuffer.schema()
    with (
        atomic_write(path, ".tflite") as unfinished,
        show_progress("exporting", shown=progress) as announce,
    ):
        dense = unfinished.parent / "dense.tflite"
        announce(f"converting {model.name} with TensorFlow")
        convert(model, dense, signature, weights)
        announce(f"storing the zeros of {model.name}")
        content = flatbuffer.read(dense)
        stored = store_sparse(content, runtime, signature[0].shape[0] or 1)
        flatbuffer.write(content, unfinished)
        announce("comparing the outputs of file and model")
        difference = _difference(model, unfinished, batches)
        allowed = _TOLERANCE[weights] if tolerance is None else tolerance
        if not difference <= allowed:
            raise RuntimeError(
                f"The exported file computes something else: its outputs differ by "
                f"{difference:.2e} of the largest, and {allowed:.0e} is allowed. No file was "
                "written. A larger `tolerance` accepts it; `samples` compares on your own data."
            )
        size, dense_size = unfinished.stat().st_size, dense.stat().st_size
    return Export(str(path), size, dense_size, tuple(stored), difference)


def _check_unquantized(model: keras.Model) -> None:
    for layer in model._flatten_layers():
        mode = getattr(layer, "quantization_mode", None)
        if mode is not None:
            raise ValueError(
                f"{layer.name!r} is quantized by Keras ({mode}), which TensorFlow's converter does "
                'not take. Export the model as it was before, with weights="int8".'
            )


def _check_float32(model: keras.Model) -> None:
    for layer in model._flatten_layers():
        half = layer.compute_dtype in ("float16", "bfloat16")
        if half and not isinstance(layer, keras.Model | keras.layers.InputLayer):
            raise ValueError(
                f"{layer.name!r} computes in {layer.compute_dtype}, which LiteRT does not. Build "
                'the model again after keras.config.set_dtype_policy("float32"), and call '
                'new.set_weights(model.get_weights()); weights="float16" halves the file.'
            )


def _signature(model: keras.Model, given: Signature | None) -> Signature:
    """Shape and type of each input, with all sizes known."""
    inputs = getattr(model, "inputs", None)
    if given is None and not inputs:
        raise ValueError(
            "`input_signature` is needed for a model that does not know its inputs. Pass "
            '[keras.InputSpec(shape=(1, 224, 224, 3), dtype="float32", name="x")], one for each.'
        )
    if given is not None:
        if inputs and len(given) != len(inputs):
            raise ValueError(
                f"`input_signature` must have one keras.InputSpec for each of the {len(inputs)} "
                f"inputs. Received: {len(given)}."
            )
        names = [i.name for i in inputs or []] or [f"input_{i}" for i in range(len(given))]
        return [
            keras.InputSpec(spec.dtype, spec.shape, name=spec.name or name)
            for spec, name in zip(given, names, strict=True)
        ]
    assert inputs is not None
    for tensor in inputs:
        if None in tensor.shape[1:]:
            raise ValueError(
                f"The input {tensor.name!r} has the shape {tuple(tensor.shape)}, which is not "
                "known. Pass `input_signature=[keras.InputSpec(shape=(1, ...), "
                f'dtype="{tensor.dtype}")]` with the sizes the device will use.'
            )
    return [
        keras.InputSpec(tensor.dtype, (1, *tensor.shape[1:]), name=tensor.name) for tensor in inputs
    ]


def _batches(signature: Signature, samples: Any) -> list[list[np.ndarray]]:
    """Batches with one array for each input; a last incomplete batch is dropped."""
    shapes = [tuple(size or 1 for size in spec.shape) for spec in signature]
    if samples is None:
        rng = np.random.default_rng(0)
        drawn = [
            interpreter.random_input(rng, shape, np.dtype(spec.dtype))
            for shape, spec in zip(shapes, signature, strict=True)
        ]
        return [drawn]
    arrays = list(samples) if isinstance(samples, list | tuple) else [samples]
    if len(arrays) != len(signature):
        raise ValueError(
            f"`samples` must have one array for each of the {len(signature)} inputs. "
            f"Received: {len(arrays)}."
        )
    cut = []
    for array, shape, spec in zip(arrays, shapes, signature, strict=True):
        array = np.asarray(array)
        if array.shape[1:] != shape[1:] or len(array) < shape[0]:
            raise ValueError(
                f"`samples` must hold at least {shape[0]} of shape {shape[1:]} for "
                f"{spec.name!r}. Received: shape {array.shape}."
            )
        whole = array[: len(array) // shape[0] * shape[0]].astype(spec.dtype)
        cut.append(np.split(whole, len(whole) // shape[0]))
    lengths = [len(array) for array in arrays]
    if len(set(lengths)) > 1:
        raise ValueError(f"`samples` must hold as many of each input. Received: {lengths}.")
    return [list(batch) for batch in zip(*cut, strict=True)]


def _difference(model: keras.Model, path: Path, batches: list[list[np.ndarray]]) -> float:
    """The largest difference of an output, in units of the largest output; infinite for NaN."""
    runner = interpreter.load(path)
    names = next(iter(runner.get_signature_list().values()))["inputs"]
    both: list[tuple[list[np.ndarray], list[np.ndarray]]] = []
    for inputs in batches:
        outputs = model(as_inputs(model, inputs), training=False)
        expected = [keras.ops.convert_to_numpy(output) for output in keras.tree.flatten(outputs)]
        keys = sorted(outputs) if isinstance(outputs, dict) else ()  # as keras.tree.flatten
        got = interpreter.run(runner, _by_name(names, model, inputs), keys)
        shapes = [[array.shape for array in arrays] for arrays in (expected, got)]
        if shapes[0] != shapes[1]:
            raise RuntimeError(
                f"The outputs of the model have the shapes {shapes[0]}, "
                f"those of the file {shapes[1]}."
            )
        both.append((expected, got))
    of_all = [zip(*side, strict=True) for side in zip(*both, strict=True)]
    return max(largest_difference(*pair) for pair in zip(*of_all, strict=True))


def _by_name(
    names: list[str], model: keras.Model, inputs: list[np.ndarray]
) -> dict[str, np.ndarray]:
    """The inputs by the names that the file gives them."""
    if len(names) == 1:
        return {names[0]: inputs[0]}
    mine = [tensor.name for tensor in getattr(model, "inputs", None) or []]
    if set(mine) == set(names):
        return dict(zip(mine, inputs, strict=True))
    given = as_inputs(model, inputs)
    if isinstance(given, dict) and set(given) == set(names):
        return given
    return dict(zip(sorted(names), inputs, strict=True))
