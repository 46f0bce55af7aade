"""How many multiplications a model makes."""

from typing import Any

import keras

from keras_pruner.channels.layer_rules import channels_of, rule_for
from keras_pruner.model_graph import ModelGraph


def macs(model: keras.Model, inputs: Any = None) -> int:
    """Count the multiply-accumulates of one sample in one forward pass.

    Those of Dense, EinsumDense, convolutional, recurrent and attention layers are counted,
    borders included; biases, activations and normalizations are not.

    Args:
        model: a functional, Sequential or traceable subclassed model.
        inputs: `keras.Input` tensors in the structure that the model takes, where its own have
            axes of unknown length. Without it such an axis counts as 1.

    Raises:
        ValueError: if the model is no graph of layers, or has layers with weights of which it is
            not known how often they are used.

    Example:
        >>> layers = [keras.Input((8, 8, 3)), keras.layers.Conv2D(4, 3), keras.layers.Flatten()]
        >>> macs(keras.Sequential(layers))  # 6 * 6 positions, 3 * 3 * 3 inputs, 4 outputs
        3888
    """
    graph = ModelGraph(model, inputs)
    unknown = [call.name for call in graph.calls if _is_unknown(call.layer)]
    if unknown:
        raise ValueError(
            f"`model` has layers with weights whose multiplications are not known: {unknown}. "
            "Pass `weights`, the fraction of weights to keep, in place of `macs`."
        )
    return channels_of(graph).macs()


def _is_unknown(layer: Any) -> bool:
    """Whether a layer may multiply with its weights in a way that no rule knows."""
    has_kernel = any(len(weight.shape) > 1 for weight in getattr(layer, "weights", ()))
    return has_kernel and rule_for(layer) is None
