"""Measured speed-ups of sparse layers, and interpolation between the measurements.

The time of a sparse Dense layer, divided by that of the dense one, is nearly linear in its density:
`overhead + slope * density`. Both numbers depend on the machine, on the batch size, and on the
bytes of weights that an inference reads: these bytes decide which cache holds the weights. The
defaults were measured with `benchmarks/latency.py`; `measure_speedups` measures this machine.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

#: Runtimes with rules of their own.
RUNTIMES = ("litert-x86", "litert-wasm", "litert-arm")
#: Runtimes that unpack zeros when they load a model: smaller files at best, never faster.
DENSE_RUNTIMES = ("onnxruntime", "openvino")
#: PyTorch on a server's CPU, through `kp.torch_cpu.sparse_inference`.
TORCH = "torch-cpu"
#: Runtimes that were not measured: their rules are known, but figures of x86 stand in.
NOT_MEASURED = ("litert-arm",)

#: XNNPACK runs a cluster of convolutions sparse (see `xnnpack.py`) if more than this fraction of
#: the weights of all its 1x1 filters is zero.
LEAST_SPARSITY = 2 / 3

#: A layer with a smaller expected speed-up stays dense: with another cache it might be slower.
LEAST_SPEEDUP = 1.2
#: Speed-up of a model with half of its channels, divided by the factor by which multiplications
#: decrease. A prototype was measured on MobileNetV2, ResNet50, a ViT and an LSTM; networks with
#: depthwise layers gain less. `benchmarks/shrink_latency.py` measures it on this machine.
SHRUNK_SPEED = {
    "litert-x86": {"depthwise": 0.7, "other": 0.9},
    "onnxruntime": {"depthwise": 0.65, "other": 0.75},
    "openvino": {"depthwise": 0.65, "other": 0.75},
}
#: How the weights of a Dense layer can be stored for LiteRT's sparse kernels.
FORMS = ("block 1x4", "csr")
#: Products `csr @ x.T` in PyTorch, of Dense layers and of 1x1 convolutions.
TORCH_FORMS = ("csr", "csr 1x1")
#: Consecutive inputs in a block of "block 1x4".
BLOCK = 4


@dataclasses.dataclass(frozen=True)
class Point:
    """Time of a sparse Dense layer: `overhead + slope * density` of the dense time.

    Attributes:
        form: one of `FORMS`, or of `TORCH_FORMS`.
        model_bytes: bytes of the Dense weights that an inference reads.
        batch_size: rows per inference.
        overhead: time of the sparse kernel at density 0, as a fraction of the dense time.
        slope: time of the sparse kernel per weight, as a multiple of the dense kernel's.
    """

    form: str
    model_bytes: float
    batch_size: int
    overhead: float
    slope: float


@dataclasses.dataclass(frozen=True)
class SpeedupTable:
    """Speed-ups of sparse Dense layers on one machine; `advise` takes it as `runtime`.

    Attributes:
        runtime: one of `RUNTIMES`, or "torch-cpu".
        machine: the machine on which it was measured.
        points: for each form, a point for every model size at every batch size.

    Example:
        >>> points = [Point(form, 1e6, 1, overhead=0.0, slope=2.0) for form in FORMS]
        >>> table = SpeedupTable("litert-x86", "my machine", tuple(points))
        >>> round(table.dense_speedup("csr", 0.9, model_bytes=1e6), 3)
        5.0
        >>> table.break_even("csr", model_bytes=1e6)
        0.5
    """

    runtime: str
    machine: str
    points: tuple[Point, ...]

    def __post_init__(self) -> None:
        if self.runtime not in (*RUNTIMES, TORCH):
            raise ValueError(
                f"`runtime` must be one of {(*RUNTIMES, TORCH)}. Received: "
                f"runtime={self.runtime!r}."
            )
        for form in TORCH_FORMS if self.runtime == TORCH else FORMS:
            places = [(p.model_bytes, p.batch_size) for p in self.points if p.form == form]
            sizes, batches = ({place[i] for place in places} for i in (0, 1))
            if (
                not places
                or len(set(places)) != len(sizes) * len(batches)
                or len(places) != len(set(places))
            ):
                raise ValueError(
                    f"`points` must have each model size at each batch size once, for {form!r}. "
                    f"Received: {sorted(places)}."
                )

    def as_dict(self) -> dict[str, Any]:
        """Plain dicts, lists and numbers, for JSON; `from_dict` reads them."""
        found = dataclasses.asdict(self)
        return {**found, "points": list(found["points"])}

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> "SpeedupTable":
        """Restore a table from `as_dict`.

        Raises:
            ValueError: for any other dict.
        """
        try:
            points = tuple(Point(**point) for point in config["points"])
            return cls(config["runtime"], config["machine"], points)
        except (KeyError, TypeError) as error:
            raise ValueError(
                "`config` must be what `SpeedupTable.as_dict` gives. "
                f"Received: {config!r} ({error})."
            ) from None

    def dense_speedup(
        self, form: str, sparsity: float, model_bytes: float, batch_size: int = 1
    ) -> float:
        """How many times faster a Dense layer runs sparse than dense.

        Args:
            form: one of `FORMS`.
            sparsity: fraction of blocks or weights that are zero.
            model_bytes: bytes of all Dense weights that an inference reads.
            batch_size: rows per inference.
        """
        overhead, slope = self._line(form, model_bytes, batch_size)
        return float(1 / max(overhead + slope * (1 - sparsity), 0.01))

    def break_even(
        self, form: str, model_bytes: float, batch_size: int = 1, speedup: float = 1.0
    ) -> float:
        """The sparsity from which a Dense layer is `speedup` times faster; 1.0 if never."""
        overhead, slope = self._line(form, model_bytes, batch_size)
        return float(np.clip(1 - (1 / speedup - overhead) / slope, 0.0, 1.0))

    def _line(self, form: str, model_bytes: float, batch_size: int) -> tuple[float, float]:
        """Overhead and slope, interpolated between the points on logarithmic axes."""
        points = [p for p in self.points if p.form == form]
        batches = sorted({p.batch_size for p in points})
        found = []
        for key in ("overhead", "slope"):
            values = []
            for batch in batches:
                row = sorted((p for p in points if p.batch_size == batch), key=_size)
                sizes = np.log([p.model_bytes for p in row])
                size = math.log(max(1.0, model_bytes))
                values.append(np.interp(size, sizes, [getattr(p, key) for p in row]))
            found.append(float(np.interp(math.log(batch_size), np.log(batches), values)))
        return found[0], found[1]


def _size(point: Point) -> float:
    return point.model_bytes


# form -> for each batch size: (overhead, slope) at each model size in bytes. The smallest native
# size was measured on a Sapphire Rapids Xeon, whose cache of 2 MB holds it; the others lie between
# that machine and a Zen 5.
_BATCHES = (1, 8, 64)
_CACHED, _STREAMED = 2e6, 3.3e7
_NATIVE_SIZES = (4.4e5, _CACHED, _STREAMED)
_NATIVE = {
    "block 1x4": (
        ((0.37, 4.7), (0.07, 2.95), (0.022, 1.7)),
        ((0.39, 5.6), (0.0, 6.1), (0.0, 4.5)),
        ((0.6, 8.4), (0.0, 8.5), (0.0, 8.9)),
    ),
    "csr": (
        ((0.35, 17.8), (0.0, 11.4), (0.0, 6.45)),
        ((0.34, 22.4), (0.0, 21.0), (0.0, 17.0)),
        ((0.5, 34.1), (0.0, 29.0), (0.0, 33.0)),
    ),
}
_WASM_SIZES = (_CACHED, _STREAMED)
_WASM = {
    "block 1x4": (((0.0, 4.0), (0.0, 3.85)), ((0.0, 6.2), (0.0, 5.9)), ((0.0, 8.3), (0.0, 8.3))),
    "csr": (((0.0, 12.5), (0.0, 8.3)), ((0.0, 20.0), (0.0, 17.0)), ((0.0, 33.0), (0.0, 33.0))),
}


def _table(
    rows: Mapping[str, Any], sizes: tuple[float, ...], counts: tuple[int, ...] = _BATCHES
) -> tuple[Point, ...]:
    return tuple(
        Point(form, size, batch, *line)
        for form, batches in rows.items()
        for batch, lines in zip(counts, batches, strict=True)
        for size, line in zip(sizes, lines, strict=True)
    )


# PyTorch 2.13 with one thread: for each number of rows, (overhead, slope) at each size of the
# weights in bytes. Means of two runs of `benchmarks/edge.py speedups` on a Zen server.
# `measure_speedups` replaces them by figures of the user's machine.
_ROWS = (1, 8, 64, 512)
_TORCH_SIZES = (2.6e5, 1.05e6, 4.2e6, 1.7e7)
_TORCH = {
    "csr": (
        ((1.49, 14.1), (0.66, 10.0), (0.19, 11.1), (0.02, 7.6)),
        ((0.79, 6.0), (0.18, 6.2), (0.1, 2.2), (0.02, 1.8)),
        ((0.97, 9.0), (0.36, 4.0), (0.11, 4.8), (0.08, 3.9)),
        ((0.8, 9.1), (0.4, 4.7), (0.16, 4.1), (0.15, 3.9)),
    ),
    "csr 1x1": (
        ((0.82, 7.1), (0.43, 7.1), (0.18, 8.0), (0.03, 5.1)),
        ((0.12, 1.2), (0.04, 0.85), (0.04, 0.8), (0.01, 0.9)),
        ((0.55, 4.5), (0.24, 2.8), (0.13, 3.2), (0.07, 3.5)),
        ((0.61, 5.5), (0.32, 6.0), (0.15, 4.6), (0.06, 5.6)),
    ),
}


_DEFAULTS = {
    "litert-x86": SpeedupTable("litert-x86", "two x86-64 servers", _table(_NATIVE, _NATIVE_SIZES)),
    "litert-arm": SpeedupTable(
        "litert-arm", "x86-64 servers, which stand in", _table(_NATIVE, _NATIVE_SIZES)
    ),
    "litert-wasm": SpeedupTable(
        "litert-wasm", "LiteRT.js in Node on x86-64", _table(_WASM, _WASM_SIZES)
    ),
    TORCH: SpeedupTable(TORCH, "rough values for x86-64", _table(_TORCH, _TORCH_SIZES, _ROWS)),
}


def speedups_of(runtime: str | SpeedupTable) -> SpeedupTable:
    """The table itself, or the default table of a runtime by its name."""
    return runtime if isinstance(runtime, SpeedupTable) else _DEFAULTS[runtime]


# Time of a sparse 1x1 convolution per weight that is left, as a multiple of the dense kernel's.
_CONVOLUTION = 0.46
# Nanoseconds per multiplication of dense layers; only their ratios matter.
_COSTS: Mapping[str, Mapping[str, tuple[float, float]]] = {
    "native": {"dense": (0.088, 0.18), "conv": (0.0105, 0.0105), "depthwise": (0.05, 0.05)},
    "wasm": {"dense": (0.3, 0.55), "conv": (0.052, 0.052), "depthwise": (0.12, 0.12)},
    "torch": {"dense": (0.02, 0.02), "conv": (0.02, 0.02), "depthwise": (0.05, 0.05)},
}


def convolution_speedup(sparsity: float, runtime: str) -> float:
    """How many times faster a 1x1 convolution of an eligible cluster runs; 1 if it runs dense.

    Args:
        sparsity: fraction of zeros over all 1x1 filters of the cluster.
        runtime: one of `RUNTIMES`; on x86, XNNPACK has no sparse convolutions.
    """
    if runtime == "litert-x86" or sparsity <= LEAST_SPARSITY:
        return 1.0
    return _CONVOLUTION / (1 - sparsity)


def cost(kind: str, multiplications: float, model_bytes: float, runtime: str) -> float:
    """Estimated time of a dense layer in nanoseconds; only ratios between layers are meaningful.

    Args:
        kind: "dense", "conv" or "depthwise".
        multiplications: number of multiplications per inference.
        model_bytes: bytes of all Dense weights that an inference reads.
        runtime: one of `RUNTIMES`.
    """
    kernels = {"litert-wasm": "wasm", TORCH: "torch"}.get(runtime, "native")
    return multiplications * _between(model_bytes, _COSTS[kernels][kind])


def _between(model_bytes: float, pair: tuple[float, float]) -> float:
    """Interpolate between the figures for weights in the cache and for weights in memory."""
    return float(np.interp(math.log(max(1.0, model_bytes)), np.log((_CACHED, _STREAMED)), pair))
