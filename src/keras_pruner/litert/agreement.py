"""Compare a `.tflite` file with the Keras model that it was made from."""

import dataclasses
import math
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_pruner.litert import interpreter
from keras_pruner.litert.interpreter import largest_difference
from keras_pruner.litert.samples import as_inputs, by_name
from keras_pruner.model_graph import ModelGraph


@dataclasses.dataclass(frozen=True)
class Agreement:
    """How close the outputs of a file are to those of the model.

    Attributes:
        difference: largest difference of an output, in units of the largest output.
        error: root mean square of the differences, in units of that of the outputs; of the
            worst output if there are several. Infinite for NaN.
        same_largest: fraction of samples whose largest output is the same one, as the class that
            a classifier chooses; None if no output has more than one value.
    """

    difference: float
    error: float
    same_largest: float | None


def compare_outputs(model: keras.Model, path: Path, batches: list[list[np.ndarray]]) -> Agreement:
    """Run a file and a model on the same batches.

    Raises:
        RuntimeError: if the outputs have other shapes.
    """
    runner = interpreter.load(path)
    names = next(iter(runner.get_signature_list().values()))["inputs"]
    pairs: list[tuple[list[np.ndarray], list[np.ndarray]]] = []
    for inputs in batches:
        outputs = model(as_inputs(model, inputs), training=False)
        expected = [keras.ops.convert_to_numpy(output) for output in keras.tree.flatten(outputs)]
        keys = sorted(outputs) if isinstance(outputs, dict) else ()  # as keras.tree.flatten
        got = interpreter.run(runner, by_name(names, model, inputs), keys)
        shapes = [[array.shape for array in arrays] for arrays in (expected, got)]
        if shapes[0] != shapes[1]:
            raise RuntimeError(
                f"The outputs of the model have the shapes {shapes[0]}, "
                f"those of the file {shapes[1]}."
            )
        pairs.append((expected, got))
    sides = [[np.stack(arrays) for arrays in zip(*side, strict=True)]
             for side in zip(*pairs, strict=True)]  # fmt: skip
    both = list(zip(*sides, strict=True))
    same = [found for pair in both if (found := _same_largest(*pair)) is not None]
    return Agreement(
        max(largest_difference(*pair) for pair in both),
        max(relative_error(*pair) for pair in both),
        min(same, default=None),
    )


def relative_error(expected: np.ndarray, got: np.ndarray) -> float:
    """Root mean square of the differences, in units of that of `expected`; infinite for NaN.

    Example:
        >>> relative_error(np.array([3.0, 4.0]), np.array([3.0, 3.0]))
        0.2
    """
    expected, got = np.asarray(expected, np.float64), np.asarray(got, np.float64)
    error = float(np.linalg.norm(expected - got)) / max(float(np.linalg.norm(expected)), 1e-12)
    return math.inf if math.isnan(error) else error


def _same_largest(expected: np.ndarray, got: np.ndarray) -> float | None:
    if expected.ndim < 3 or expected.shape[-1] < 2:  # batches, samples, values
        return None
    return float(np.mean(expected.argmax(-1) == got.argmax(-1)))


def worst_layers(model: keras.Model, path: Path, inputs: list[np.ndarray]) -> dict[str, float]:
    """The relative error of each layer's output in a file, the largest first.

    Layers that the converter merged with the next one have no output of their own; none has one
    if the model is not a graph of layers.

    Args:
        model: the model.
        path: of the file.
        inputs: one batch, an array for each input.
    """
    try:
        graph = ModelGraph(model)
    except ValueError:
        return {}
    expected: dict[str, np.ndarray] = {}

    def record(call: Any, *args: Any, **kwargs: Any) -> Any:
        outputs = call.layer(*args, **kwargs)
        if len(call.outputs) == 1:
            expected[call.name] = keras.ops.convert_to_numpy(keras.tree.flatten(outputs)[0])
        return outputs

    graph.run([keras.ops.convert_to_tensor(array) for array in inputs], record)
    errors: dict[str, float] = {}
    for name, got in _tensors(path, model, inputs):
        layer = layer_of(name, expected)
        if layer is not None and expected[layer].size == got.size:
            errors[layer] = relative_error(expected[layer].reshape(got.shape), got)
    return dict(sorted(errors.items(), key=lambda item: -item[1]))


def _tensors(
    path: Path, model: keras.Model, inputs: list[np.ndarray]
) -> list[tuple[str, np.ndarray]]:
    """Name and value of every tensor that a file computes, in the order of execution."""
    runner = interpreter.load(path, keep_tensors=True)
    names = next(iter(runner.get_signature_list().values()))["inputs"]
    interpreter.run(runner, by_name(names, model, inputs))
    found = []
    for detail in runner.get_tensor_details():
        try:
            value = runner.get_tensor(detail["index"])
        except ValueError:
            continue  # not computed, as a part of a delegated operator
        if value.dtype.kind in "fi":
            found.append((detail["name"], interpreter.dequantize(value, detail)))
    return found


def layer_of(name: str, layers: Iterable[str]) -> str | None:
    """The layer that an operator or tensor of a file comes from, by its name; None if unknown.

    TensorFlow appends a number to the name of each layer, and joins merged operators by ";".

    Example:
        >>> layer_of("functional_1/conv_1/Relu;functional_1/conv_1/convolution", ["conv", "head"])
        'conv'
    """
    known = {layer.split("/")[-1]: layer for layer in layers}
    parts = name.split(";")[0].split("/")
    for part in [*(re.sub(r"_\d+$", "", part) for part in parts), *parts]:
        if part in known:
            return known[part]
    return None
