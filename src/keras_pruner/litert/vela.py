"""Compile a `.tflite` file for an Arm Ethos-U NPU with Vela, and report time, flash and SRAM.

Vela compresses weights without loss, and the NPU decompresses them in hardware. So a network that
waits for its weights runs faster with unstructured zeros. Ethos-U85 also skips 2:4 zeros. All
times are the compiler's estimates.
"""

import csv
import dataclasses
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from keras_pruner.litert import flatbuffer
from keras_pruner.litert.child_process import IN_UTF_8, READABLE
from keras_pruner.litert.operators import help_for
from keras_pruner.litert.tflm_decode import OPERATOR
from keras_pruner.reporting.report import Report
from keras_pruner.reporting.tables import Table
from keras_pruner.validation import check_installed

ACCELERATORS = (
    "ethos-u55-32", "ethos-u55-64", "ethos-u55-128", "ethos-u55-256", "ethos-u65-256",
    "ethos-u65-512", "ethos-u85-128", "ethos-u85-256", "ethos-u85-512", "ethos-u85-1024",
    "ethos-u85-2048",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class NpuLayer:
    """One operator of a compiled file.

    Attributes:
        name: name of its output in the `.tflite` file.
        operator: its kind.
        on_npu: False if it runs on the CPU, for which Vela estimates no time.
        cycles: the compiler's estimate.
        bound_by: what takes the time: "computing", or the memory that the operator waits for.
    """

    name: str
    operator: str
    on_npu: bool
    cycles: int
    bound_by: str


@dataclasses.dataclass(frozen=True)
class Compiled:
    """One file as Vela compiled it.

    Attributes:
        path: the `.tflite` file.
        size: size of the compiled file in bytes.
        seconds: the compiler's estimate for an inference.
        flash: bytes of flash, on the chip and off it, and of DRAM if weights are there.
        sram: bytes of SRAM.
        layers: each operator, in the order of execution.
    """

    path: str
    size: int
    seconds: float
    flash: int
    sram: int
    layers: tuple[NpuLayer, ...]

    @property
    def on_cpu(self) -> tuple[NpuLayer, ...]:
        """The operators that do not run on the NPU."""
        return tuple(layer for layer in self.layers if not layer.on_npu)


@dataclasses.dataclass(frozen=True)
class EthosUReport(Report):
    """The result of `ethos_u`; prints as a table.

    Attributes:
        accelerator: the NPU, such as "ethos-u55-128".
        system: Vela's system configuration and memory mode.
        compiled: the compiled file.
        dense: the file of the dense model, compiled; None if none was given.

    Example:
        >>> layer = NpuLayer("head", "FullyConnected", True, 900, "flash")
        >>> compiled = Compiled("a.tflite", 9000, 0.002, 8000, 4000, (layer,))
        >>> print(EthosUReport("ethos-u55-128", "Ethos_U55_High_End_Embedded", compiled).headline())
        a.tflite on ethos-u55-128: 2.000 ms by the compiler's estimate, 1 of 1 operators on the NPU
    """

    accelerator: str
    system: str
    compiled: Compiled
    dense: Compiled | None = None

    @property
    def speedup(self) -> float | None:
        """The dense model's time divided by the file's, both estimated; None without `dense`."""
        return None if self.dense is None else self.dense.seconds / self.compiled.seconds

    def headline(self) -> str:
        """Estimated time and the operators on the NPU."""
        found, total = self.compiled, len(self.compiled.layers)
        faster = "" if self.speedup is None else f", {self.speedup:.2f}x as fast as dense"
        return (
            f"{found.path} on {self.accelerator}: {1e3 * found.seconds:.3f} ms by the compiler's "
            f"estimate{faster}, {total - len(found.on_cpu)} of {total} operators on the NPU"
        )

    def tables(self) -> list[Table]:
        """Totals, with dense beside pruned, and each layer."""
        return [self._totals(), self._layers()]

    def notes(self) -> list[str]:
        """The configuration of the estimate, and operators that stay on the CPU."""
        found = [f"Compiler's estimate for {self.system}; measure on the device."]
        on_cpu = self.compiled.on_cpu
        if on_cpu:
            names = ", ".join(f"{layer.operator} ({layer.name})" for layer in on_cpu)
            helps = help_for(_builtin(layer.operator) for layer in on_cpu)
            found.append(f"On the CPU, without an estimate: {names}.{helps}")
        if len(on_cpu) == len(self.compiled.layers):
            found.append(
                "No operator runs on the NPU: export with kp.export_litert(model, path, "
                'weights="int8", activations="int8", samples=x).'
            )
        return found

    def _totals(self) -> Table:
        sides = [side for side in (self.dense, self.compiled) if side is not None]
        rows = [
            ("estimated time, ms", *(f"{1e3 * side.seconds:.3f}" for side in sides)),
            ("flash, KiB", *(f"{side.flash / 1024:.1f}" for side in sides)),
            ("SRAM, KiB", *(f"{side.sram / 1024:.1f}" for side in sides)),
            ("compiled file, bytes", *(f"{side.size:,}" for side in sides)),
        ]
        heads = ["", *([">dense"] if self.dense else []), ">pruned" if self.dense else ">file"]
        if self.dense is not None:
            heads.append(">dense / pruned")
            numbers = [(s.seconds, s.flash, s.sram, s.size) for s in sides]
            ratios = [a / b if b else 1.0 for a, b in zip(*numbers, strict=True)]
            rows = [(*row, f"{ratio:.2f}x") for row, ratio in zip(rows, ratios, strict=True)]
        return Table("", heads, rows)

    def _layers(self) -> Table:
        total = sum(layer.cycles for layer in self.compiled.layers) or 1
        dense = {} if self.dense is None else {x.name: x.cycles for x in self.dense.layers}
        rows = []
        for layer in self.compiled.layers:
            place = "NPU" if layer.on_npu else "CPU"
            row = [layer.name, layer.operator, place, f"{layer.cycles / total:.0%}", layer.bound_by]
            before = dense.get(layer.name)
            if self.dense is not None:
                row.insert(4, f"{before / layer.cycles:.2f}x" if before and layer.cycles else "-")
            rows.append(row)
        heads = ["layer", "operator", "runs on", ">time", "bound by"]
        if self.dense is not None:
            heads.insert(4, ">dense / pruned")
        cycles = [float(layer.cycles) for layer in self.compiled.layers]
        return Table("Layers, by the compiler's estimate:", heads, rows, importance=cycles)


def ethos_u(
    path: str | os.PathLike[str],
    accelerator: str = "ethos-u55-128",
    *,
    dense: str | os.PathLike[str] | None = None,
    output: str | os.PathLike[str] | None = None,
    options: tuple[str, ...] = (),
) -> EthosUReport:
    """Compile a `.tflite` file for an Ethos-U NPU and report time, flash and SRAM.

    The file must compute in integers: `kp.export_litert(model, path, weights="int8",
    activations="int8", samples=x)`. Times are estimates of Arm's compiler, Vela, for its default
    system configuration; sizes are exact.

    Args:
        path: the file.
        accelerator: one of `kp.litert.ACCELERATORS`, such as "ethos-u55-128": the family, and the
            MACs per cycle.
        dense: a file of the dense model to compare with.
        output: where to keep the compiled file. None: it is deleted.
        options: more arguments for Vela, such as ("--memory-mode", "Sram_Only").

    Raises:
        ValueError: for an unknown accelerator, or a file that is no `.tflite` file.
        RuntimeError: with Vela's message, if it cannot compile the file.
        ImportError: without the extra "ethos-u".

    Example:
        >>> import keras, numpy as np, keras_pruner as kp
        >>> model = keras.Sequential([keras.Input((64,)), keras.layers.Dense(64)])
        >>> x = np.random.default_rng(0).normal(size=(20, 64))
        >>> integers = {"weights": "int8", "activations": "int8", "samples": x}
        >>> export = kp.export_litert(model, "dense.tflite", **integers)
        >>> report = kp.prune(model, 0.9)
        >>> export = kp.export_litert(model, "pruned.tflite", **integers)
        >>> npu = ethos_u("pruned.tflite", "ethos-u55-128", dense="dense.tflite")
        >>> npu.compiled.flash < npu.dense.flash / 2
        True
    """
    if accelerator not in ACCELERATORS:
        raise ValueError(
            f"`accelerator` must be one of {', '.join(ACCELERATORS)}. "
            f"Received: accelerator={accelerator!r}."
        )
    check_installed("ethosu", "ethos-u-vela", "ethos-u")
    compiled, system = _compile(Path(path), accelerator, output, options)
    compared = None if dense is None else _compile(Path(dense), accelerator, None, options)[0]
    return EthosUReport(accelerator, system, compiled, compared)


def _compile(
    path: Path,
    accelerator: str,
    output: str | os.PathLike[str] | None,
    options: tuple[str, ...],
) -> tuple[Compiled, str]:
    """Compile a file; returns what Vela reports, and the configuration it compiled for."""
    content = flatbuffer.read(path)  # Vela's own message for a damaged file is a stack trace
    names = [getattr(code, "customCode", None) for code in content.operatorCodes or ()]
    if OPERATOR.encode() in names:
        raise ValueError(
            f"{str(path)!r} has weights that TensorFlow Lite Micro's DECODE unpacks: "
            "kp.litert.export_micro wrote it. For an NPU compile the file of "
            'kp.export_litert(model, path, weights="int8", activations="int8", samples=x): Vela '
            "encodes zeros itself."
        )
    with tempfile.TemporaryDirectory() as scratch:
        result = _run_vela(path, accelerator, options, scratch)
        (summary,) = _rows(next(Path(scratch).glob("network_summary_*.csv")))
        layers = _layers(Path(scratch, "network_per-layer.csv"))
        size = result.stat().st_size
        if output is not None:
            shutil.copyfile(result, output)
    kilobytes = {
        name: float(summary[f"{name}_memory_used"])
        for name in ("sram", "dram", "on_chip_flash", "off_chip_flash")
    }
    flash = kilobytes["dram"] + kilobytes["on_chip_flash"] + kilobytes["off_chip_flash"]
    compiled = Compiled(
        str(path),
        size,
        float(summary["inference_time"]),
        round(1024 * flash),
        round(1024 * kilobytes["sram"]),
        tuple(layers),
    )
    return compiled, f"{summary['system_config']}, {summary['memory_mode']}"


def _run_vela(path: Path, accelerator: str, options: tuple[str, ...], scratch: str) -> Path:
    """Run Vela on a copy of the file in a scratch folder; returns the compiled file."""
    source = Path(scratch, "network.tflite")  # a fixed name: Vela names its own files after it
    shutil.copyfile(path, source)
    command = [
        sys.executable, "-W", "ignore", "-m", "ethosu.vela", str(source),
        "--accelerator-config", accelerator, "--output-dir", scratch,
        "--verbose-performance", *options,
    ]  # fmt: skip
    environment = os.environ | IN_UTF_8
    child = subprocess.run(command, capture_output=True, check=False, env=environment, **READABLE)
    result = Path(scratch, "network_vela.tflite")
    if child.returncode or not result.exists():
        said = (child.stderr or child.stdout).strip()[-1500:]
        raise RuntimeError(f"Vela cannot compile {str(path)!r}: {said}")
    return result


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def _layers(path: Path) -> list[NpuLayer]:
    """The operators of the file; cycles of Vela's steps for the same operator are summed."""
    if not path.exists():  # nothing runs on the NPU
        return []
    found: dict[tuple[str, str], list[dict[str, str]]] = {}
    for row in _rows(path):
        name = re.sub(r"_(softmax|intermediate|broadcasted)(_.*)?$", "", row["Name"])
        found.setdefault((flatbuffer.within_model(name), row["Original Operator"]), []).append(row)
    return [
        NpuLayer(
            name,
            operator,
            rows[0]["Target"] == "NPU",
            sum(int(float(row["Op Cycles"])) for row in rows),
            _bound_by(max(rows, key=lambda row: float(row["Op Cycles"]))),
        )
        for (name, operator), rows in found.items()
    ]


def _builtin(operator: str) -> str:
    """LiteRT's name of an operator that Vela calls, for example, "TopKV2" or "Gelu"."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", operator).upper()


_MEMORIES = {"SRAM AC": "SRAM", "DRAM AC": "DRAM", "OnFlash AC": "flash", "OffFlash AC": "flash"}


def _bound_by(row: dict[str, str]) -> str:
    slowest = max(_MEMORIES, key=lambda column: float(row[column]))
    return _MEMORIES[slowest] if float(row[slowest]) > float(row["NPU"]) else "computing"
