"""Groups of weights for training: the entries that are zero if a channel is to be removed."""

import dataclasses

import keras
import numpy as np

from keras_pruner.channels import probing
from keras_pruner.channels.classes import Channels, Group
from keras_pruner.channels.layer_rules import channels_of
from keras_pruner.model_graph import Call, ModelGraph


@dataclasses.dataclass(frozen=True, eq=False)
class TiedAxis:
    """An axis of a weight, each index of which belongs to a unit.

    The entries of a removed unit are zero.

    Attributes:
        variable: the weight.
        axis: the index of the axis.
        units: the unit of each index along the axis; -1 for none.
        is_kernel: whether its entries count in the scores of the units.
    """

    variable: keras.Variable
    axis: int
    units: np.ndarray
    is_kernel: bool


@dataclasses.dataclass(frozen=True, eq=False)
class TiedGroup:
    """Channels, heads or units that are removed by one decision for all their weights.

    Attributes:
        name: the name of the layers that produce them.
        count: the number of units.
        axes: where they lie in each weight that is zeroed: kernel columns, biases, scales. The
            rows of kernels that read them are not included.
        reason: why none may be removed; empty if they may.
    """

    name: str
    count: int
    axes: tuple[TiedAxis, ...]
    reason: str


def tied_groups(model: keras.Model) -> list[TiedGroup]:
    """The groups of a model.

    Raises:
        ValueError: if the model is not a graph of layers.
    """
    channels = channels_of(ModelGraph(model))
    means = {id(mean) for mean, _ in _means_without_scale(channels.graph)}
    return [_tied(channels, group, means) for group in channels.groups]


def means_without_scale(model: keras.Model) -> list[tuple[keras.Variable, keras.Variable]]:
    """The moving means to zero with a channel, each with the offset of its batch normalization.

    Without a scale, a batch normalization turns a channel of zeros into a constant unless its mean
    is zero as well. Means are left out if the inputs of a removed channel are not zero, as after a
    sigmoid.
    """
    return _means_without_scale(ModelGraph(model))


def _means_without_scale(graph: ModelGraph) -> list[tuple[keras.Variable, keras.Variable]]:
    norms = [c for c in graph.calls if isinstance(c.layer, keras.layers.BatchNormalization)]
    plain = [c for c in norms if c.layer.gamma is None and c.layer.beta is not None]
    return [
        (call.layer.moving_mean, call.layer.beta)
        for call in plain
        if all(_stays_zero(producer) for producer in call.producers)
    ]


def _stays_zero(call: Call) -> bool:
    """Whether the outputs of a call are zero where its inputs, or else its weights, are zero."""
    layer = call.layer
    if call.is_input or isinstance(layer, keras.layers.BatchNormalization):
        return True
    if getattr(layer, "weights", None):
        return probing.keeps_zero(getattr(layer, "activation", None))
    at_zero = probing.outputs_for(call, lambda _, drawn: np.zeros_like(drawn))
    return not any(output.any() for output in at_zero) and all(map(_stays_zero, call.producers))


def _tied(channels: Channels, group: Group, means: set[int]) -> TiedGroup:
    numbers = np.full(channels.count, -1)
    numbers[group.classes] = np.arange(len(group.classes))
    read = {(id(p.kernel), p.in_axis) for p in channels.products}
    written = {(id(p.kernel), p.out_axis) for p in channels.products}
    axes = []
    for axis in group.axes:
        place, name = (id(axis.variable), axis.axis), axis.variable.name
        is_statistic = name.startswith("moving_") and id(axis.variable) not in means
        if place not in read and not is_statistic:
            is_kernel = place in written or axis.variable.name == "embeddings"
            units = numbers[axis.channels]
            axes.append(TiedAxis(axis.variable, axis.axis, units, is_kernel))
    return TiedGroup(group.name, len(group.classes), tuple(axes), group.reason or group.mixes)
