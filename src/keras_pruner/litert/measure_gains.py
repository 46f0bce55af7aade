"""What zeros in Dense layers gain on the machine at hand, measured."""

import platform
import statistics
import tempfile
from pathlib import Path

import keras
import numpy as np

from keras_pruner.litert import encoding, flatbuffer
from keras_pruner.litert.convert import convert
from keras_pruner.litert.cost_model import FORMS, Point, SpeedupTable
from keras_pruner.litert.latency import benchmark
from keras_pruner.litert.sparse_tensors import store_native
from keras_pruner.reporting.console import show_progress

# Widths of the layers that are timed: weights that fit the caches close to a core, the caches
# around it, and none.
_STACKS = ((192, 192, 192, 192), (256, 512, 512, 256), (1024, 2048, 2048, 1024))
_BATCHES = (1, 8, 64)
_SPARSITIES = {"block 1x4": (0.8, 0.95), "csr": (0.9, 0.98)}
_MACHINES = {"x86_64": "litert-x86", "amd64": "litert-x86", "aarch64": "litert-arm",
             "arm64": "litert-arm"}  # fmt: skip


def measure_speedups(*, seconds: float = 0.4, progress: bool = True) -> SpeedupTable:
    """Time Dense layers with zeros against dense ones, here, in place of the default figures.

    Caches and vector units decide from how many zeros on LiteRT's sparse kernels are faster, and
    by how much. Pass the result to `advise` or `export_litert` as their `runtime`. On a machine
    that does nothing else; it takes about two minutes.

    Args:
        seconds: to time each pair of models.
        progress: whether to say what is being done, if there is a terminal to say it on.

    Returns:
        The speed-ups of Dense layers on this machine, one thread. `as_dict` and
        `SpeedupTable.from_dict` keep them.

    Raises:
        ValueError: on a processor that is neither x86-64 nor 64-bit ARM.
        ImportError: without the extras "litert" and "tensorflow".
    """
    runtime = _MACHINES.get(platform.machine().lower())
    if runtime is None:
        raise ValueError(
            "SpeedupTable are measured on x86-64 and on 64-bit ARM. Received: a machine of type "
            f"{platform.machine()!r}."
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
            size = sum(
                4.0 * layer.kernel.shape[0] * layer.kernel.shape[1] for layer in model.layers
            )
            signature = [keras.InputSpec("float32", (1, widths[0]), name=model.inputs[0].name)]
            convert(model, dense, signature, "float32")
            for form in FORMS:
                points += _points(dense, form, size, seconds)
    return SpeedupTable(runtime, f"{platform.machine()}, {platform.system()}", tuple(points))


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
    first, second = (1 - sparsity for sparsity in _SPARSITIES[form])
    points = []
    for batch, (some, few) in times.items():
        slope = max((some - few) / (first - second), some / (2 * first))
        overhead = max(0.0, statistics.mean((some - slope * first, few - slope * second)))
        points.append(Point(form, size, batch, overhead, slope))
    return points


def _write_sparse(dense: Path, path: Path, form: str, sparsity: float) -> None:
    """The dense file with zeros in every weight, stored in a form."""
    content, rng = flatbuffer.read(dense), np.random.default_rng(0)
    (graph,) = content.subgraphs
    for operator in graph.operators:
        tensor = graph.tensors[flatbuffer.listed(operator.inputs)[1]]
        weight = encoding.decode(tensor, content.buffers[tensor.buffer].data).copy()
        width = encoding.BLOCK if form == "block 1x4" else 1
        zero = rng.random((len(weight), weight.shape[1] // width)) < sparsity
        weight[np.repeat(zero, width, axis=1)] = 0
        store_native(content, tensor, [operator], weight, form)
    flatbuffer.write(content, path)
