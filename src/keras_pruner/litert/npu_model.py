"""Estimated cycles of a model on an Arm Ethos-U NPU, from the shapes of its layers alone.

A layer takes the longer of two times: one to multiply, one to read its weights. The NPU multiplies
in units of a few pixels by eight outputs. Vela stores weights in fewer bytes the more zeros they
have. The numbers describe the estimates of Vela 5.2 for its default system configurations, not a
chip; `benchmarks/edge.py` compares them with Vela.
"""

import dataclasses
import math
from typing import Any

import numpy as np

from keras_pruner.litert.vela import ACCELERATORS
from keras_pruner.model_graph import Call, ModelGraph
from keras_pruner.model_weights import view_of

#: Bytes of a weight as Vela stores it, at each of these fractions of zeros.
_SPARSITIES = (0.0, 0.5, 0.8, 0.9, 0.95, 1.0)
_BYTES = (1.0, 0.63, 0.307, 0.128, 0.085, 0.03)
_BIAS = 10  # bytes of the bias and the scale of an output


@dataclasses.dataclass(frozen=True)
class Npu:
    """An Ethos-U in Vela's default system configuration.

    Attributes:
        macs: multiplications per cycle.
        unit: pixels (height, width) that are computed together.
        least: number of units that a smaller layer is counted as.
        least_of_one: the same for a layer of a single unit, such as Dense.
        bandwidth: bytes of weights read per cycle.
        output: cycles per output value of a convolution.
        added: cycles per value of an elementwise layer.
        overhead: cycles of a layer's multiplications, divided by the least possible.
        halves: whether 2:4 zeros halve the multiplications.
    """

    macs: int
    unit: tuple[int, int]
    least: float
    least_of_one: float
    bandwidth: float
    output: float
    added: float
    overhead: float
    halves: bool


def npu_of(accelerator: str) -> Npu:
    """The numbers of an accelerator, such as "ethos-u55-128"."""
    if accelerator not in ACCELERATORS:
        raise ValueError(
            f"`accelerator` must be one of {', '.join(ACCELERATORS)}. "
            f"Received: accelerator={accelerator!r}."
        )
    _, family, macs = accelerator.split("-")
    count = int(macs)
    unit = {32: (1, 1), 64: (1, 1), 128: (1, 2), 256: (2, 2), 512: (2, 4)}.get(count, (4, 4))
    if family == "u55":
        return Npu(count, unit, 8, 8, 1.0, 68 / count, 192 / count, 1.03, halves=False)
    if family == "u65":
        return Npu(count, unit, 8, 8, 12.0, 72 / count, 192 / count, 1.04, halves=False)
    return Npu(count, unit, 8.8, 5, 2.95, 140 / count, 0.0, 1.38, halves=True)


@dataclasses.dataclass(frozen=True)
class NpuWork:
    """The work of one layer.

    Attributes:
        name: name of the layer's call.
        layer: the layer.
        computing: cycles of its multiplications and outputs.
        outputs: cycles of its outputs alone, which zeros do not reduce.
        weights: number of weights that are read.
        biases: bytes of biases and scales that are read too.
        in_fours: whether groups of four divide the input channels, as 2:4 zeros need.
    """

    name: str
    layer: Any
    computing: float
    outputs: float
    weights: int = 0
    biases: int = 0
    in_fours: bool = False

    def cycles(self, npu: Npu, sparsity: float = 0.0, *, two_of_four: bool = False) -> float:
        """Cycles of the layer at a sparsity of its weights."""
        return max(
            self.compute_cycles(npu, two_of_four=two_of_four), self.read_cycles(npu, sparsity)
        )

    def compute_cycles(self, npu: Npu, *, two_of_four: bool = False) -> float:
        """Cycles of the multiplications and outputs."""
        faster = 2 if two_of_four and npu.halves and self.in_fours else 1
        return max(self.outputs, self.computing / faster)

    def read_cycles(self, npu: Npu, sparsity: float) -> float:
        """Cycles of reading the weights."""
        return (self.weights * bytes_of_weight(sparsity) + self.biases) / npu.bandwidth


def bytes_of_weight(sparsity: float) -> float:
    """Bytes of a weight as Vela stores it.

    Example:
        >>> round(bytes_of_weight(0.8), 2)
        0.31
    """
    return float(np.interp(sparsity, _SPARSITIES, _BYTES))


def work_of(model: Any, npu: Npu) -> list[NpuWork]:
    """The work of every layer that takes time.

    Raises:
        ValueError: for a model without a graph, or with unknown shapes.
    """
    found = []
    for call in ModelGraph(model):
        work = None if call.is_input else _work(call, npu)
        if work is not None:
            found.append(work)
    return found


# Layers without cycles: the converter merges them into another one, or they only reshape.
_FREE = {
    "Activation", "BatchNormalization", "Dropout", "ELU", "Flatten", "GaussianNoise", "Identity",
    "LeakyReLU", "ReLU", "Relu", "Relu6", "Rescaling", "Reshape", "SpatialDropout2D",
    "ZeroPadding1D", "ZeroPadding2D",
}  # fmt: skip


def _work(call: Call, npu: Npu) -> NpuWork | None:
    kind = type(call.layer).__name__
    if kind in _FREE or not call.outputs:
        return None
    shapes = [_sizes(tensor.shape, call.name) for tensor in (*call.inputs[:1], call.outputs[0])]
    taken, made = shapes[0], shapes[-1]
    values = math.prod(made)
    if hasattr(call.layer, "kernel") and len(call.layer.kernel.shape) >= 2:
        return _product(call, made, npu)
    if "Pool" in kind:
        read = math.prod(taken) if "Global" in kind else values
        return NpuWork(call.name, call.layer, npu.output * read, npu.output * values)
    cycles = npu.added * values
    return NpuWork(call.name, call.layer, cycles, cycles)


def _product(call: Call, made: tuple[int, ...], npu: Npu) -> NpuWork:
    """A convolution or a product with a matrix."""
    layer = call.layer
    view = view_of(layer, layer.kernel)
    groups, inputs, outputs = view.matrix_shape
    taps = math.prod(view.shape[axis] for axis in view.taps)
    pixels = made[:-1] if len(made) > 1 else (1,)
    pixels = pixels if len(pixels) > 1 else (1, *pixels)
    units = math.ceil(pixels[-2] / npu.unit[0]) * math.ceil(pixels[-1] / npu.unit[1])
    units *= math.prod(pixels[:-2])
    weights = math.prod(layer.kernel.shape)
    is_depthwise = "Depthwise" in type(layer).__name__
    in_fours = not is_depthwise and inputs // taps % 4 == 0
    if is_depthwise:
        steps, depth = math.ceil(taps / 4), math.ceil(groups * outputs / 8)
    else:
        inputs //= taps
        depth_first = taps * math.ceil(inputs / 32)  # 32 channels of one tap at once
        part_kernel_first = math.ceil(taps / 4) * math.ceil(inputs / 8)  # 8 channels of 4 taps
        steps = min(depth_first, part_kernel_first)
        depth = groups * math.ceil(outputs / 8)
    least = npu.least if units > 1 else npu.least_of_one
    cycles = 4 * max(least, units) * steps * depth * npu.overhead
    written = npu.output * math.prod(made)
    return NpuWork(call.name, layer, cycles, written, weights, _BIAS * made[-1], in_fours)


def _sizes(shape: tuple[int | None, ...], name: str) -> tuple[int, ...]:
    if None in shape[1:]:
        raise ValueError(
            f"The shape {shape} at {name!r} is not known. Build the model with the input shape of "
            "the device."
        )
    return tuple(size for size in shape[1:] if size is not None)
