"""Operators that TensorFlow Lite Micro and NPUs lack, with the layer they come from."""

from collections.abc import Iterable
from typing import Any

import keras

from keras_pruner.litert.agreement import layer_of
from keras_pruner.litert.flatbuffer import Graph

# Operators of TensorFlow Lite Micro's resolver for Python, read in its repository.
MICRO = {
    "ABS", "ADD", "ADD_N", "ARG_MAX", "ARG_MIN", "ASSIGN_VARIABLE", "AVERAGE_POOL_2D",
    "BATCH_MATMUL", "DYNAMIC_UPDATE_SLICE", "EMBEDDING_LOOKUP", "REDUCE_ALL", "REDUCE_MIN",
    "REVERSE_V2",
    "BATCH_TO_SPACE_ND", "BROADCAST_ARGS", "BROADCAST_TO", "CALL_ONCE", "CAST", "CEIL",
    "CONCATENATION", "CONV_2D", "COS", "CUMSUM", "DEPTH_TO_SPACE", "DEPTHWISE_CONV_2D",
    "DEQUANTIZE", "DIV", "ELU", "EQUAL", "EXP", "EXPAND_DIMS", "FILL", "FLOOR", "FLOOR_DIV",
    "FLOOR_MOD", "FULLY_CONNECTED", "GATHER", "GATHER_ND", "GREATER", "GREATER_EQUAL",
    "HARD_SWISH", "IF", "L2_NORMALIZATION", "L2_POOL_2D", "LEAKY_RELU", "LESS", "LESS_EQUAL",
    "LOG", "LOGICAL_AND", "LOGICAL_NOT", "LOGICAL_OR", "LOGISTIC", "LOG_SOFTMAX", "MAX_POOL_2D",
    "MAXIMUM", "MEAN", "MINIMUM", "MIRROR_PAD", "MUL", "NEG", "NOT_EQUAL", "PACK", "PAD",
    "PADV2", "PRELU", "QUANTIZE", "READ_VARIABLE", "REDUCE_MAX", "RELU", "RELU6", "RESHAPE",
    "RESIZE_BILINEAR", "RESIZE_NEAREST_NEIGHBOR", "ROUND", "RSQRT", "SELECT_V2", "SHAPE", "SIN",
    "SLICE", "SOFTMAX", "SPACE_TO_BATCH_ND", "SPACE_TO_DEPTH", "SPLIT", "SPLIT_V", "SQRT",
    "SQUARE", "SQUARED_DIFFERENCE", "SQUEEZE", "STRIDED_SLICE", "SUB", "SUM", "SVDF", "TANH",
    "TRANSPOSE", "TRANSPOSE_CONV", "UNIDIRECTIONAL_SEQUENCE_LSTM", "UNPACK", "VAR_HANDLE",
    "WHILE", "ZEROS_LIKE",
}  # fmt: skip


# What helps where a runtime lacks an operator, or its integer form.
HELP = {
    "GELU": 'use activation="relu" or "hard_swish"',
    "SELECT": "an Embedding reads its table through it: look the rows up in the application",
    "TILE": "use UpSampling or broadcasting in place of RepeatVector",
    "POW": "use keras.ops.square or a product",
    "SIGN": "leave it to the application",
    "REDUCE_PROD": "use sums of logarithms",
    "TOPK_V2": "leave the choice of the largest to the application",
    "CONV_3D": "use Conv2D over stacked channels",
}


def help_for(names: Iterable[str]) -> str:
    """A sentence that says how to replace these operators, with a leading space, or ""."""
    known = [f"{name}: {HELP[name]}" for name in dict.fromkeys(names) if name in HELP]
    return f" {'; '.join(known)}." if known else ""


def missing_in_micro(content: Any, model: keras.Model) -> tuple[str, ...]:
    """The operators that TensorFlow Lite Micro lacks, each with its layer and a replacement."""
    names = [layer.name for layer in model._flatten_layers(include_self=False)]
    found: dict[str, str] = {}
    for each in content.subgraphs:
        graph = Graph(content, each)
        for source in graph.sources:
            code = graph.code(source)
            if code not in MICRO and (outputs := graph.outputs_of(source)):
                layer = layer_of(graph.name(outputs[0]), names)
                found[f"{code} (layer {layer!r})" if layer else code] = code
    if not found:
        return ()
    listed = ", ".join(found)
    return (f"TensorFlow Lite Micro has no operator for {listed}.{help_for(found.values())}",)
