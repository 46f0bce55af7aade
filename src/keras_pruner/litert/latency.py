"""How much faster a pruned `.tflite` file is than the dense one: both in one run, alternately."""

import dataclasses
import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from keras_pruner.litert import flatbuffer, interpreter
from keras_pruner.litert.difference import largest_difference
from keras_pruner.reporting.report import Report
from keras_pruner.reporting.tables import Table
from keras_pruner.validation import check_integer

_NODE = ["node", "--experimental-wasm-relaxed-simd"]
_INSTALL = "npm install @litertjs/core@2.5.3"
_TOLERANCE = 2e-2  # of outputs, between two builds of the same runtime; garbage is further off


@dataclasses.dataclass(frozen=True)
class Timing:
    """Two files at one batch size.

    Attributes:
        batch_size: rows per inference.
        dense_ms: median milliseconds of an inference of the dense file.
        pruned_ms: the same of the pruned one.
        speedup: median over the rounds of dense / pruned, taken in the same round.
        spread: the quartiles of that ratio.
        difference: the largest between outputs of the two, in units of the largest output.
    """

    batch_size: int
    dense_ms: float
    pruned_ms: float
    speedup: float
    spread: tuple[float, float]
    difference: float


@dataclasses.dataclass(frozen=True)
class Latency(Report):
    """What `benchmark` measured; prints as a table.

    Attributes:
        runtime: "native" or "wasm".
        threads: of an inference.
        timings: one for each batch size.
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
    runtime: str = "native",
    batch_sizes: Sequence[int] | None = None,
    threads: int = 1,
    seconds: float = 3.0,
    node_modules: str | os.PathLike[str] | None = None,
) -> Latency:
    """Time two `.tflite` files alternately in one process, and compare their outputs.

    With one thread the time is that of the processor, so that other work on the machine disturbs
    less; with more it is that of the clock. The files run in a process of their own.

    Args:
        dense: the file to compare with.
        pruned: the file with zeros; of the same inputs.
        runtime: "native", or "wasm": LiteRT.js in Node, where XNNPACK's sparse path runs on any
            machine. Its dense side is several times slower than the native one.
        batch_sizes: rows per inference. None, and always for "wasm": as the files have it.
        threads: of an inference; 1 for "wasm".
        seconds: to measure each batch size.
        node_modules: the directory with @litertjs/core. None: found from the current directory
            upwards.

    Raises:
        ValueError: for wrong arguments, files that do not run, or have other inputs.
        RuntimeError: if the runtime fails or crashes, or if LiteRT.js computes something else
            than LiteRT does natively.
        FileNotFoundError: without Node or @litertjs/core, naming the command.
        ImportError: without the extra "litert".
    """
    if runtime not in ("native", "wasm"):
        raise ValueError(f'`runtime` must be "native" or "wasm". Received: runtime={runtime!r}.')
    check_integer("threads", threads, least=1)
    if runtime == "wasm" and (threads != 1 or batch_sizes is not None):
        raise ValueError(
            'runtime="wasm" runs with threads=1, at the batch size of the files. '
            f"Received: threads={threads}, batch_sizes={batch_sizes}."
        )
    inputs = [_inputs_of(path) for path in (dense, pruned)]
    if inputs[0] != inputs[1]:
        raise ValueError(
            "`dense` and `pruned` must have the same inputs. "
            f"Received: {inputs[0]} and {inputs[1]}."
        )
    files = [str(Path(path).resolve()) for path in (dense, pruned)]
    if runtime == "wasm":
        return Latency("wasm", 1, (_in_node(files, inputs[0], seconds, node_modules),))
    timings = []
    for batch_size in batch_sizes or (None,):
        if batch_size is not None:
            check_integer("batch_sizes", batch_size, least=1)
        job = {"files": files, "threads": threads, "batch_size": batch_size, "seconds": seconds}
        timings.append(_timing(_natively(job), batch_size or inputs[0][0][0][0]))
    return Latency("native", threads, tuple(timings))


_Inputs = list[tuple[tuple[int, ...], str]]


def _inputs_of(path: str | os.PathLike[str]) -> _Inputs:
    """Shape and type of each input of a file."""
    graph = flatbuffer.read(path).subgraphs[0]
    kinds = {value: key for key, value in vars(flatbuffer.schema().TensorType).items()}
    found = [graph.tensors[i] for i in flatbuffer.listed(graph.inputs)]
    return [(tuple(flatbuffer.listed(t.shape)), kinds[t.type].lower()) for t in found]


def _environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}


def _run(command: list[str], job: dict[str, Any], environment: dict[str, str]) -> dict[str, Any]:
    """The JSON that a child process answers a job with."""
    child = subprocess.run(
        command, input=json.dumps(job), env=environment, capture_output=True, text=True, check=False
    )
    try:
        return json.loads(child.stdout)
    except json.JSONDecodeError:
        said = child.stderr.strip()[-1000:]
        crash = f" (killed by signal {-child.returncode})" if child.returncode < 0 else ""
        raise RuntimeError(f"The runtime failed{crash}: {said or 'it said nothing'}") from None


def _in_node(
    files: list[str], inputs: _Inputs, seconds: float, node_modules: str | os.PathLike[str] | None
) -> Timing:
    if shutil.which("node") is None:
        raise FileNotFoundError('runtime="wasm" needs Node 20 or newer: https://nodejs.org')
    package = find_litertjs(node_modules)
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as scratch:
        names = []
        for i, (shape, dtype) in enumerate(inputs):
            if dtype not in ("float32", "int32"):
                raise ValueError(f"LiteRT.js takes float32 and int32 inputs. Received: {dtype}.")
            names.append(str(Path(scratch, f"input{i}")))
            interpreter.random_input(rng, shape, np.dtype(dtype)).tofile(names[-1])
        job = {
            "files": files, "inputs": names, "package": str(package), "scratch": scratch,
            "seconds": seconds,
        }  # fmt: skip
        runner = Path(__file__).with_name("wasm_runner.mjs")
        raw = _run([*_NODE, str(runner)], job, dict(os.environ))
    _check_against_native(files, raw["outputs"])
    return _timing(raw, inputs[0][0][0])


def _check_against_native(files: list[str], outputs: list[list[list[float]]]) -> None:
    """Raise if a file computes something else in LiteRT.js, which fails without saying so."""
    job = {"files": files, "threads": 1, "batch_size": None, "seconds": 0.0}
    native = _natively(job)["outputs"]
    for path, mine, its in zip(files, native, outputs, strict=True):
        for values in its:  # the order of several outputs may be another
            same_size = [m for m in mine if len(m) == len(values)]
            nearest = min((largest_difference(m, values) for m in same_size), default=math.inf)
            if not nearest <= _TOLERANCE:
                raise RuntimeError(
                    f"{path} computes something else in LiteRT.js than natively: outputs differ "
                    f"by {nearest:.1e} of the largest. Its times mean nothing. What "
                    "kp.litert.inspect says of it, and kp.litert.prepare_for_xnnpack, may help."
                )


def _natively(job: dict[str, Any]) -> dict[str, Any]:
    return _run([sys.executable, "-W", "ignore", "-m", interpreter.__name__], job, _environment())


def find_litertjs(node_modules: str | os.PathLike[str] | None = None) -> Path:
    """The directory of the npm package @litertjs/core.

    Raises:
        FileNotFoundError: naming the command that installs it.
    """
    here = Path.cwd()
    places = [Path(node_modules)] if node_modules else []
    places += [] if node_modules else [p / "node_modules" for p in (here, *here.parents)]
    for place in places:
        if (found := place / "@litertjs" / "core").is_dir():
            return found.resolve()
    raise FileNotFoundError(
        f"@litertjs/core is not in {' or '.join(map(str, places[:2]))}. Install it with: {_INSTALL}"
    )


def _timing(raw: dict[str, Any], batch_size: int) -> Timing:
    dense, pruned = raw["seconds"]
    ratios = [d / p for d, p in zip(dense, pruned, strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4)
    worst = max(largest_difference(*pair) for pair in zip(*raw["outputs"], strict=True))
    dense_ms, pruned_ms = (1e3 * statistics.median(side) for side in (dense, pruned))
    return Timing(batch_size, dense_ms, pruned_ms, middle, (low, high), worst)
