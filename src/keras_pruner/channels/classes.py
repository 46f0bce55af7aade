"""Which channels of a model belong together, and on which axes of which weights they lie.

Every channel of every tensor gets a number. Layers with weights give their outputs new numbers,
operations pass the numbers on, and numbers that must be removed together are tied. A class of tied
numbers is a channel that can be removed, by deleting its positions from every axis that it labels.
The numbers are sent through concatenation, flattening and splitting as if they were data, so there
are no formulas for their positions. `layer_rules.channels_of` has an example.
"""

import dataclasses
from collections.abc import Iterable, Iterator
from typing import Any, TypeAlias

import keras
import numpy as np

from keras_pruner.model_graph import Call, ModelGraph, Tensor

Numbers: TypeAlias = np.ndarray
"""For each channel along an axis, the number of its class."""


@dataclasses.dataclass(frozen=True, eq=False)
class Axis:
    """One axis of one weight.

    Attributes:
        variable: the weight.
        axis: the index of the axis.
        channels: the class of each position along it.
    """

    variable: keras.Variable
    axis: int
    channels: Numbers


@dataclasses.dataclass(frozen=True, eq=False)
class Product:
    """A kernel that computes each output from all of its inputs.

    Attributes:
        call: the call of the layer.
        layer: the layer that has the kernel and the bias.
        kernel: the weight.
        in_axis: the axis of the kernel that runs over the inputs.
        inputs: the classes of the inputs.
        out_axis: the axis that runs over the outputs.
        outputs: the classes of the outputs.
        source: the tensor that holds the inputs; None if they are inside the layer.
        foldable: whether a constant input can be replaced by a change of the bias. That needs an
            input without padding, and one bias for each output.
    """

    call: Call
    layer: Any
    kernel: keras.Variable
    in_axis: int
    inputs: Numbers
    out_axis: int
    outputs: Numbers
    source: Tensor | None
    foldable: bool = False

    def matrix(self, kernel: np.ndarray) -> np.ndarray:
        """A kernel with its inputs as the first axis and its outputs as the second."""
        return np.moveaxis(kernel, (self.in_axis, self.out_axis), (0, 1))


@dataclasses.dataclass(frozen=True, eq=False)
class Work:
    """The multiplications of one call: `times`, multiplied by the length of every axis.

    Attributes:
        layer: the layer that makes them.
        times: the number of positions or steps in one sample.
        sizes: the length of each axis; for an axis of channels, their classes.
    """

    layer: Any
    times: int
    sizes: tuple[int | Numbers, ...]

    def macs(self, kept: np.ndarray | None = None) -> int:
        """Their number; with `kept`, which says whether each class stays, the number after it."""
        total = self.times
        for size in self.sizes:
            total *= size if isinstance(size, int) else _count(size, kept)
        return int(total)


def _count(channels: Numbers, kept: np.ndarray | None) -> int:
    return len(channels) if kept is None else int(np.count_nonzero(kept[channels]))


@dataclasses.dataclass(frozen=True, eq=False)
class Group:
    """Channels that lie on the same axes of the same weights.

    Attributes:
        name: the name of the layers that produce them.
        classes: the class of each channel, head or unit.
        axes: the axes on which they lie.
        reason: why none of them may be removed; empty if they may.
        mixes: why removing one changes the others even if it is constant; empty if it does not.
    """

    name: str
    classes: np.ndarray
    axes: tuple[Axis, ...]
    reason: str
    mixes: str


@dataclasses.dataclass(frozen=True, eq=False)
class Channels:
    """A model's channels.

    Attributes:
        graph: the model's calls.
        of: tensor -> the class of each channel along its last axis.
        count: the number of classes.
        axes: the labelled axes of all weights.
        products: the kernels that read channels.
        work: the multiplications of the model.
        groups: all classes that label a weight, each in one group.
        behaviours: call -> how it treats channels: it "moves" them, works on "each" by itself,
            or "multiplies" them with a kernel; empty for anything else.
    """

    graph: ModelGraph
    of: dict[Tensor, Numbers]
    count: int
    axes: tuple[Axis, ...]
    products: tuple[Product, ...]
    work: tuple[Work, ...]
    groups: tuple[Group, ...]
    behaviours: dict[Call, str]

    def blocked(self) -> np.ndarray:
        """For each class, whether it must not be removed."""
        blocked = np.ones(self.count, bool)
        for group in self.groups:
            blocked[group.classes] = bool(group.reason)
        return blocked

    def mixed(self) -> np.ndarray:
        """For each class, whether removing it changes the others."""
        mixed = np.zeros(self.count, bool)
        for group in self.groups:
            mixed[group.classes] = bool(group.mixes)
        return mixed

    def with_share(self, share: float) -> np.ndarray:
        """For each class, whether it stays if each group keeps the fraction `share` of its own."""
        kept = np.ones(self.count, bool)
        for group in self.groups:
            if not group.reason and not group.mixes:
                kept[group.classes[max(1, round(share * len(group.classes))) :]] = False
        return kept

    def width(self, group: Group) -> int:
        """The number of channels of a tensor that one class of a group stands for."""
        first = group.classes[0]
        counts = [int(np.count_nonzero(numbers == first)) for numbers in self.of.values()]
        if any(counts):
            return min(count for count in counts if count)
        kernels = [a.variable for a in group.axes if len(a.variable.shape) == 3]
        return int(kernels[0].shape[2]) if kernels else 1  # of a head

    def by_variable(self) -> dict[int, list[Axis]]:
        """The labelled axes of each weight, by its id."""
        found: dict[int, list[Axis]] = {}
        for axis in self.axes:
            found.setdefault(id(axis.variable), []).append(axis)
        return found

    def macs(self, kept: np.ndarray | None = None) -> int:
        """Multiply-accumulates for one sample; with `kept`, those of the shrunk model."""
        return sum(work.macs(kept) for work in self.work)

    def entries(self) -> Iterator[Work]:
        """The number of entries of each labelled weight."""
        for axes in self.by_variable().values():
            sizes: list[int | Numbers] = [int(size) for size in axes[0].variable.shape]
            for axis in axes:
                sizes[axis.axis] = axis.channels
            yield Work(None, 1, tuple(sizes))


class Labels:
    """Collects the numbers of channels and their ties, call by call; `finish` makes `Channels`."""

    def __init__(self, graph: ModelGraph) -> None:
        self.graph = graph
        self.of: dict[Tensor, Numbers] = {}
        self.products: list[Product] = []
        self.work: list[Work] = []
        self.behaviours: dict[Call, str] = {}
        self._axes: dict[tuple[int, int], Axis] = {}
        self._parent: list[int] = []
        self._frozen: dict[int, str] = {}
        self._mixed: dict[int, str] = {}
        self._made: dict[tuple[int, str], Numbers] = {}
        self._makers: dict[int, str] = {}

    # ------------------------------------------------------------------ for the rules of layers

    def new(self, count: int, layer: Any = None, what: str = "") -> Numbers:
        """New numbers for `count` channels; a layer gets the same ones in each of its calls."""
        key = (id(layer), what)
        if layer is not None and key in self._made:
            return self._made[key]
        numbers = np.arange(len(self._parent), len(self._parent) + count)
        self._parent.extend(numbers.tolist())
        if layer is not None:
            self._made[key] = numbers
            self._makers |= dict.fromkeys(numbers.tolist(), layer.name)
        return numbers

    def tie(self, one: Numbers, other: Numbers) -> None:
        """Remove position i of the one only together with position i of the other."""
        for a, b in zip(one.tolist(), other.tolist(), strict=True):
            a, b = self._root(a), self._root(b)
            self._parent[max(a, b)] = min(a, b)

    def label(self, variable: keras.Variable | None, axis: int, channels: Numbers) -> None:
        """Record the channels along an axis of a weight, tied to those recorded earlier."""
        if variable is None:
            return
        axis %= len(variable.shape)
        before = self._axes.setdefault((id(variable), axis), Axis(variable, axis, channels))
        self.tie(before.channels, channels)

    def freeze(self, channels: Numbers | None, reason: str) -> None:
        """Forbid removing these channels."""
        for number in [] if channels is None else channels.tolist():
            self._frozen.setdefault(number, reason)

    def mix(self, channels: Numbers, reason: str) -> None:
        """Note that each of these channels influences the others."""
        for number in channels.tolist():
            self._mixed.setdefault(number, reason)

    def give(self, call: Call, *channels: Numbers | None, behaviour: str = "") -> None:
        """Set the channels of the outputs of a call."""
        for tensor, numbers in zip(call.outputs, channels, strict=True):
            if numbers is not None:
                self.of[tensor] = numbers
        self.behaviours[call] = behaviour

    def opaque(self, call: Call, reason: str) -> None:
        """Freeze the inputs and the outputs of a call."""
        for tensor in call.inputs:
            self.freeze(self.of.get(tensor), reason)
        for tensor in call.outputs:
            last = tensor.shape[-1] if len(tensor.shape) > 1 else None
            if last is not None:
                self.of[tensor] = self.new(last)
                self.freeze(self.of[tensor], reason)
        self.behaviours[call] = ""

    # ------------------------------------------------------------------ the result

    def _root(self, number: int) -> int:
        while self._parent[number] != number:
            self._parent[number] = self._parent[self._parent[number]]
            number = self._parent[number]
        return number

    def finish(self) -> Channels:
        """Number the classes of tied channels, and group them by the axes they lie on."""
        roots = np.array([self._root(number) for number in range(len(self._parent))], int)
        _, classes = np.unique(roots, return_inverse=True)
        count = int(classes.max(initial=-1)) + 1
        axes = tuple(
            Axis(axis.variable, axis.axis, classes[axis.channels]) for axis in self._axes.values()
        )
        products = tuple(
            dataclasses.replace(p, inputs=classes[p.inputs], outputs=classes[p.outputs])
            for p in self.products
        )
        work = tuple(
            dataclasses.replace(w, sizes=tuple(_renumbered(w.sizes, classes))) for w in self.work
        )
        of = {tensor: classes[numbers] for tensor, numbers in self.of.items()}
        groups = tuple(self._groups(axes, classes))
        return Channels(self.graph, of, count, axes, products, work, groups, self.behaviours)

    def _groups(self, axes: tuple[Axis, ...], classes: np.ndarray) -> Iterator[Group]:
        frozen, mixed = ({classes[n]: r for n, r in d.items()} for d in (self._frozen, self._mixed))
        makers: dict[int, dict[str, None]] = {}
        for number, name in self._makers.items():
            makers.setdefault(classes[number], {})[name] = None
        places: dict[int, list[int]] = {}
        for place, axis in enumerate(axes):
            for number in np.unique(axis.channels).tolist():
                places.setdefault(number, []).append(place)
        together: dict[Any, list[int]] = {}
        for number in sorted(places):
            key = (tuple(places[number]), frozen.get(number, ""), mixed.get(number, ""))
            together.setdefault(key, []).append(number)
        for (where, reason, mixes), members in together.items():
            names = makers.get(members[0], {"?": None})
            group = tuple(axes[place] for place in where)
            yield Group(" + ".join(names), np.array(members), group, reason, mixes)


def _renumbered(sizes: Iterable[int | Numbers], classes: np.ndarray) -> Iterator[int | Numbers]:
    for size in sizes:
        yield size if isinstance(size, int) else classes[size]
