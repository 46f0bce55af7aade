"""Time pruned `.tflite` files against dense ones, in turns within one process."""

import dataclasses
import os
import platform
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_pruner.litert import flatbuffer, interpreter
from keras_pruner.litert.child_process import run_module
from keras_pruner.litert.convert import convert
from keras_pruner.litert.cost_model import BLOCK, FORMS, TORCH, TORCH_FORMS, Point, SpeedupTable
from keras_pruner.litert.interpreter import largest_difference
from keras_pruner.litert.sparse_tensors import decode, store_native
from keras_pruner.reporting.console import Announce, show_progress
from keras_pruner.reporting.report import Report
from keras_pruner.reporting.tables import Table
from keras_pruner.validation import check_integer


@dataclasses.dataclass(frozen=True)
class Timing:
    """Two files at one batch size.

    Attributes:
        batch_size: samples per inference.
        dense_ms: median milliseconds of an inference of the dense file.
        pruned_ms: the same of the pruned file.
        speedup: median of dense / pruned over rounds that time both.
        spread: quartiles of that ratio.
        difference: largest difference of the outputs, in units of the largest output.
    """

    batch_size: int
    dense_ms: float
    pruned_ms: float
    speedup: float
    spread: tuple[float, float]
    difference: float


@dataclasses.dataclass(frozen=True)
class Latency(Report):
    """The result of `benchmark`; prints as a table.

    Attributes:
        runtime: where the files ran.
        threads: per inference.
        timings: one for each batch size.

    Example:
        >>> print(Latency("native", 1, (Timing(8, 2.0, 0.5, 4.0, (3.9, 4.1), 1e-7),)))
        latency: native, 1 thread(s)
          batch  dense ms  pruned ms  speed-up    quartiles  outputs differ
          ─────────────────────────────────────────────────────────────────
              8     2.000      0.500     4.00x  3.90 - 4.10         1.0e-07
    """

    runtime: str
    threads: int
    timings: tuple[Timing, ...]

    def headline(self) -> str:
        """Where the files ran."""
        return f"latency: {self.runtime}, {self.threads} thread(s)"

    def tables(self) -> list[Table]:
        """A row for each batch size."""
        rows = [
            (
                t.batch_size, f"{t.dense_ms:.3f}", f"{t.pruned_ms:.3f}", f"{t.speedup:.2f}x",
                f"{t.spread[0]:.2f} - {t.spread[1]:.2f}", f"{t.difference:.1e}",
            )
            for t in self.timings
        ]  # fmt: skip
        heads = [">batch", ">dense ms", ">pruned ms", ">speed-up", ">quartiles", ">outputs differ"]
        return [Table("", heads, rows)]


def benchmark(
    dense: str | os.PathLike[str],
    pruned: str | os.PathLike[str],
    *,
    batch_sizes: Sequence[int] | None = None,
    threads: int = 1,
    seconds: float = 3.0,
) -> Latency:
    """Time two `.tflite` files in turns on this machine, and compare their outputs.

    With one thread, processor time is measured, which other work on the machine disturbs less;
    with more, wall time. The files run in a process of their own.

    Args:
        dense: the file to compare with.
        pruned: the file with zeros; it must have the same inputs.
        batch_sizes: samples per inference. None: as in the files.
        threads: per inference.
        seconds: time to measure each batch size.

    Raises:
        ValueError: for wrong arguments, files that do not run or have different inputs.
        RuntimeError: if the runtime fails or crashes.
        ImportError: without the extra "litert".

    Example:
        >>> model = keras.Sequential([keras.Input((64,)), keras.layers.Dense(64)])
        >>> path = Path("model.tflite")
        >>> convert(model, path, [keras.InputSpec("float32", (1, 64), name="x")])
        >>> latency = benchmark(path, path, batch_sizes=[1, 8], seconds=0.1)
        >>> [timing.batch_size for timing in latency.timings]
        [1, 8]
        >>> latency.timings[0].difference
        0.0
    """
    check_integer("threads", threads, least=1)
    inputs = [inputs_of(path) for path in (dense, pruned)]
    if inputs[0] != inputs[1]:
        raise ValueError(
            "`dense` and `pruned` must have the same inputs. "
            f"Received: {inputs[0]} and {inputs[1]}. Export both with the same `input_signature`."
        )
    files = [str(Path(path).resolve()) for path in (dense, pruned)]
    timings = []
    for batch_size in batch_sizes or (None,):
        if batch_size is not None:
            check_integer("batch_sizes", batch_size, least=1)
        job = {"files": files, "threads": threads, "batch_size": batch_size, "seconds": seconds}
        measured = run_module(interpreter.__name__, job)
        timings.append(timing_of(measured, batch_size or inputs[0][0][0][0]))
    return Latency("native", threads, tuple(timings))


def inputs_of(path: str | os.PathLike[str]) -> list[tuple[tuple[int, ...], str]]:
    """Shape and type of each input of a file."""
    graph = flatbuffer.Graph(flatbuffer.read(path))
    return [
        (tuple(graph.shape(i)), flatbuffer.name_of_type(graph.tensors[i].type).lower())
        for i in graph.inputs
    ]


def timing_of(measured: dict[str, Any], batch_size: int) -> Timing:
    """Summarize the seconds and outputs of two files.

    Args:
        measured: "seconds" (of each round) and "outputs", each for both files.
        batch_size: samples per inference.
    """
    dense, pruned = measured["seconds"]
    ratios = [d / p for d, p in zip(dense, pruned, strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4)
    worst = max(largest_difference(*pair) for pair in zip(*measured["outputs"], strict=True))
    dense_ms, pruned_ms = (1e3 * statistics.median(side) for side in (dense, pruned))
    return Timing(batch_size, dense_ms, pruned_ms, middle, (low, high), worst)


# ------------------------------------------------------------- the table of speed-ups, measured

# Widths of the layers that are timed: weights that fit the caches close to a core, the caches
# around it, and none.
_STACKS = ((192, 192, 192, 192), (256, 512, 512, 256), (1024, 2048, 2048, 1024))
_BATCHES = (1, 8, 64)
_WIDTHS, _ROWS = (256, 512, 1024, 2048), (1, 8, 64, 512)  # of PyTorch's products
_SPARSITIES = {"block 1x4": (0.8, 0.95), "csr": (0.9, 0.98)}
_MACHINES = {"x86_64": "litert-x86", "amd64": "litert-x86", "aarch64": "litert-arm",
             "arm64": "litert-arm"}  # fmt: skip


def measure_speedups(
    *, runtime: str = "litert", seconds: float = 0.4, progress: bool = True
) -> SpeedupTable:
    """Time sparse Dense layers against dense ones on this machine, to replace the default table.

    Caches and vector units decide from which sparsity on sparse kernels are faster, and by how
    much. Run it on an idle machine; it takes about two minutes. Pass the result to `advise` or
    `export_litert` as `runtime`, or that of PyTorch to `kp.torch_cpu.sparse_inference`.

    Args:
        runtime: "litert", or "torch-cpu" for PyTorch's sparse products.
        seconds: time to measure each pair of models.
        progress: whether to show the current step, on a terminal.

    Returns:
        The speed-ups with one thread. Store them with `to_json`, restore them with
        `SpeedupTable.from_dict`.

    Raises:
        ValueError: for another runtime, or on a processor that is neither x86-64 nor 64-bit ARM.
        ImportError: without the extras "litert" and "tensorflow".
        RuntimeError: for "torch-cpu", if PyTorch cannot be imported.

    Example:
        >>> speedups = measure_speedups(seconds=0.4)  # doctest: +SKIP
        >>> kp.advise(model, speedups, sparsity=0.9)  # doctest: +SKIP
    """
    if runtime == TORCH:
        with show_progress("measuring", shown=progress) as announce:
            return _measure_torch(seconds, announce)
    if runtime != "litert":
        raise ValueError(
            f'`runtime` must be "litert" or "torch-cpu". Received: runtime={runtime!r}.'
        )
    known = _MACHINES.get(platform.machine().lower())
    if known is None:
        raise ValueError(
            "Speed-ups are measured on x86-64 and 64-bit ARM. Received: a machine of type "
            f"{platform.machine()!r}. Measure on the device, or use the tables of the package: "
            'kp.advise(model, "litert-arm").'
        )
    points: list[Point] = []
    with (
        tempfile.TemporaryDirectory() as scratch,
        show_progress("measuring", shown=progress) as announce,
    ):
        for widths in _STACKS:
            announce(f"timing Dense layers {'-'.join(map(str, widths))}")
            dense = Path(scratch, "dense.tflite")
            model = _stack(widths)
            size = 4.0 * sum(layer.kernel.shape[0] * layer.units for layer in model.layers)
            signature = [keras.InputSpec("float32", (1, widths[0]), name=model.inputs[0].name)]
            convert(model, dense, signature)
            for form in FORMS:
                points += _points(dense, form, size, seconds)
    return SpeedupTable(known, _machine(), tuple(points))


def _machine() -> str:
    return f"{platform.machine()}, {platform.system()}"


def _measure_torch(seconds: float, announce: Announce) -> SpeedupTable:
    """Time PyTorch's sparse products, in a process of its own."""
    cases: list[dict[str, Any]] = [
        {"form": form, "width": width, "rows": rows}
        for form in TORCH_FORMS
        for width in _WIDTHS
        for rows in _ROWS
    ]
    job = {"cases": cases, "sparsities": _SPARSITIES["csr"], "seconds": seconds}
    environment = {"OMP_NUM_THREADS": "1", "KERAS_BACKEND": "torch"}
    found = run_module("keras_pruner.litert.torch_kernels", job, environment, announce)
    points = [
        _line(case["form"], 4.0 * case["width"] ** 2, case["rows"], times, _SPARSITIES["csr"])
        for case, times in zip(cases, found, strict=True)
    ]
    return SpeedupTable(TORCH, _machine(), tuple(points))


def _stack(widths: tuple[int, ...]) -> keras.Model:
    layers = [keras.layers.Dense(width, activation="relu") for width in widths[1:]]
    return keras.Sequential([keras.Input((widths[0],)), *layers])


def _points(dense: Path, form: str, size: float, seconds: float) -> list[Point]:
    """One for each batch size: the line through the times at two sparsities."""
    times: dict[int, list[float]] = {batch: [] for batch in _BATCHES}
    for sparsity in _SPARSITIES[form]:
        sparse = dense.with_name("sparse.tflite")
        _write_sparse(dense, sparse, form, sparsity)
        latency = benchmark(dense, sparse, batch_sizes=_BATCHES, seconds=seconds)
        for timing in latency.timings:
            times[timing.batch_size].append(1 / timing.speedup)
    return [_line(form, size, batch, times[batch], _SPARSITIES[form]) for batch in times]


def _line(
    form: str, size: float, batch: int, times: Sequence[float], sparsities: Sequence[float]
) -> Point:
    """The line through the times at two sparsities."""
    first, second = (1 - sparsity for sparsity in sparsities)
    some, few = times
    slope = max((some - few) / (first - second), some / (2 * first))
    overhead = max(0.0, statistics.mean((some - slope * first, few - slope * second)))
    return Point(form, size, batch, overhead, slope)


def _write_sparse(dense: Path, path: Path, form: str, sparsity: float) -> None:
    """Write the dense file with zeros in every weight, stored sparse."""
    content, rng = flatbuffer.read(dense), np.random.default_rng(0)
    graph = flatbuffer.Graph(content)
    for source in graph.sources:
        index = graph.inputs_of(source)[1]
        weight = decode(graph.tensors[index], graph.data(index)).copy()
        width = BLOCK if form == "block 1x4" else 1
        zero = rng.random((len(weight), weight.shape[1] // width)) < sparsity
        weight[np.repeat(zero, width, axis=1)] = 0
        store_native(graph, index, weight, form)
    flatbuffer.write(content, path)
