"""Groups of weights for training: what must be zero together so that a channel can be removed."""

import dataclasses

import keras
import numpy as np

from keras_pruner.channels.classes import Channels, Group
from keras_pruner.channels.layer_rules import channels_of
from keras_pruner.model_graph import ModelGraph


@dataclasses.dataclass(frozen=True, eq=False)
class TiedAxis:
    """One axis of a weight whose entries are zero where a unit is removed.

    Attributes:
        variable: the weight.
        axis: of the weight.
        units: of each index along the axis the number of its unit; -1 for none.
        is_kernel: whether its entries have a part in the score of a unit.
    """

    variable: keras.Variable
    axis: int
    units: np.ndarray
    is_kernel: bool


@dataclasses.dataclass(frozen=True, eq=False)
class TiedGroup:
    """Channels, heads or units on which one decision is made.

    Attributes:
        name: of the layers that produce them.
        count: how many there are.
        axes: what is zero in each weight for a removed one: kernel columns, biases, scales.
            Rows of kernels that read it are not among them.
        reason: why none may be removed; empty if they may.
    """

    name: str
    count: int
    axes: tuple[TiedAxis, ...]
    reason: str


def tied_groups(model: keras.Model) -> list[TiedGroup]:
    """The groups of a model.

    Raises:
        ValueError: if the model is no graph of layers.
    """
    channels = channels_of(ModelGraph(model))
    return [_tied(channels, group) for group in channels.groups]


def _tied(channels: Channels, group: Group) -> TiedGroup:
    numbers = np.full(channels.count, -1)
    numbers[group.classes] = np.arange(len(group.classes))
    read = {(id(p.kernel), p.in_axis) for p in channels.products}
    written = {(id(p.kernel), p.out_axis) for p in channels.products}
    axes = []
    for axis in group.axes:
        place = (id(axis.variable), axis.axis)
        if place not in read and axis.variable.name != "moving_variance":
            is_kernel = place in written or axis.variable.name == "embeddings"
            units = numbers[axis.channels]
            axes.append(TiedAxis(axis.variable, axis.axis, units, is_kernel))
    return TiedGroup(group.name, len(group.classes), tuple(axes), group.reason or group.mixes)
