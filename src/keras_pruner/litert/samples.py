"""The inputs of an exported model: their shapes, and samples that are given or drawn."""

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from keras_pruner.litert.interpreter import random_input
from keras_pruner.model_graph import ModelGraph, Tensor

Signature = list[keras.InputSpec]


def signature_of(model: keras.Model, given: Signature | None) -> Signature:
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
                f"inputs. Received: {len(given)}. The inputs are {[i.name for i in inputs]}."
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


def batches_of(signature: Signature, samples: Any) -> list[list[np.ndarray]]:
    """Cut samples into batches with one array for each input; a last incomplete one is dropped.

    Args:
        signature: shape and type of each input.
        samples: an array, or one for each input.
    """
    shapes = [_shape(spec) for spec in signature]
    arrays = list(samples) if isinstance(samples, list | tuple) else [samples]
    if len(arrays) != len(signature):
        raise ValueError(
            f"`samples` must have one array for each of the {len(signature)} inputs. "
            f"Received: {len(arrays)}. Pass them in this order: "
            f"{[spec.name for spec in signature]}."
        )
    cut = []
    for array, shape, spec in zip(arrays, shapes, signature, strict=True):
        array = np.asarray(array)
        if array.shape[1:] != shape[1:] or len(array) < shape[0]:
            fix = "The first axis numbers the samples; the others must be those of the input."
            if (*array.shape[1:], 1) == shape[1:]:
                fix = "Add the last axis: x[..., None]."
            raise ValueError(
                f"`samples` must hold at least {shape[0]} of shape {shape[1:]} for "
                f"{spec.name!r}. Received: shape {array.shape}. {fix}"
            )
        whole = array[: len(array) // shape[0] * shape[0]].astype(spec.dtype)
        cut.append(np.split(whole, len(whole) // shape[0]))
    lengths = [len(array) for array in arrays]
    if len(set(lengths)) > 1:
        raise ValueError(
            f"`samples` must hold as many of each input. Received: {lengths}. Cut the longer ones."
        )
    return [list(batch) for batch in zip(*cut, strict=True)]


def random_batch(model: keras.Model, signature: Signature) -> tuple[list[np.ndarray], str]:
    """Draw one random batch for a model.

    Integers are drawn over the rows of the Embedding that they reach, bytes over their range, and
    other integers from 0 and 1.

    Returns:
        The arrays, and how they were drawn.
    """
    rng = np.random.default_rng(0)
    limits = index_limits(model, len(signature))
    drawn, words = [], []
    for spec, limit in zip(signature, limits, strict=True):
        dtype = np.dtype(spec.dtype)
        if limit is None and dtype.kind in "iu":
            limit = 256 if dtype.itemsize == 1 else 2
        drawn.append(random_input(rng, _shape(spec), dtype, limit))
        if limit is not None:
            words.append(f"{spec.name!r} of integers from 0 to {limit - 1}")
    return drawn, f"one random batch{', ' if words else ''}{', '.join(words)}"


def index_limits(model: keras.Model, count: int) -> list[int | None]:
    """For each input that reaches a table by its values, the number of rows; None for the others.

    The graph of the model tells: an input may pass through reshapes and the like before an
    Embedding, a one-hot encoding, or a layer that holds an Embedding.

    Args:
        model: a built model.
        count: number of its inputs.

    Example:
        >>> words = keras.Input((8,), dtype="int32")
        >>> model = keras.Model(words, keras.layers.Embedding(100, 4)(words))
        >>> index_limits(model, 1)
        [100]
    """
    try:
        graph = ModelGraph(model)
    except ValueError:
        return [None] * count
    return [_limit(graph, tensor) for tensor in graph.inputs]


# Layers and operations that pass indices on unchanged.
_PASSING = {
    "Cast", "ConvertToTensor", "ExpandDims", "Flatten", "GetItem", "Identity", "Permute",
    "RepeatVector", "Reshape", "Split", "Squeeze", "Stack", "Concatenate", "Transpose", "Unstack",
    "BroadcastTo", "Repeat", "Tile",
}  # fmt: skip

_SIZES = {"CategoryEncoding": "num_tokens", "OneHot": "num_classes"}


def _limit(graph: ModelGraph, tensor: Tensor) -> int | None:
    """The least number of rows among the tables that a tensor reaches."""
    is_index = "int" in tensor.dtype
    waiting, seen, limits = [tensor], set(), []
    while waiting:
        current = waiting.pop()
        if current in seen:
            continue
        seen.add(current)
        for call in graph.consumers_of(current):
            if type(call.layer).__name__ in _PASSING:
                waiting += call.outputs
            else:
                limits += _rows(call.layer, is_index=is_index)
    return min(limits, default=None)


def _rows(layer: Any, *, is_index: bool) -> list[int]:
    """The rows of the tables in a layer; of a layer around them only for integer inputs."""
    kind = type(layer).__name__
    if isinstance(layer, keras.layers.Embedding) or kind in _SIZES:
        return [getattr(layer, _SIZES.get(kind, "input_dim"))]
    if not is_index or not isinstance(layer, keras.layers.Layer):
        return []
    inside = layer._flatten_layers(include_self=False)
    return [each.input_dim for each in inside if isinstance(each, keras.layers.Embedding)]


def _shape(spec: keras.InputSpec) -> tuple[int, ...]:
    return tuple(size or 1 for size in spec.shape)


def as_inputs(model: keras.Model, flat: Sequence[Any]) -> Any:
    """Pack one entry for each input into the structure that the model takes: one, list, dict."""
    structure = getattr(model, "_inputs_struct", None)  # of functional models
    if structure is None or len(keras.tree.flatten(structure)) != len(flat):
        return flat[0] if len(flat) == 1 else list(flat)
    return keras.tree.pack_sequence_as(structure, list(flat))


def by_name(
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
