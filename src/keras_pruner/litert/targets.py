"""Targets to ship a model to, by name: write the file for one, and tell the flash it takes."""

import dataclasses
import tempfile
from pathlib import Path
from typing import Any

import keras

from keras_pruner.litert.export import Export, export_litert
from keras_pruner.litert.micro import MicroExport, export_micro
from keras_pruner.litert.vela import ACCELERATORS, EthosUReport, ethos_u
from keras_pruner.validation import check_integer, shown

#: Names of targets: TensorFlow Lite Micro, Ethos-U NPUs, and LiteRT's runtimes.
TARGETS = ("tflm", *ACCELERATORS, "litert-x86", "litert-arm", "wasm")


@dataclasses.dataclass(frozen=True)
class Shipped:
    """A file that was written for a target.

    Attributes:
        flash: bytes that the file takes on the target.
        report: the report of its export.
        largest: name and size of its largest weight.
    """

    flash: int
    report: Export | MicroExport | EthosUReport
    largest: str


def check_target(target: str, *, ram: int | None = None, header: Path | None = None) -> None:
    """Raise for an unknown target, or for options of another one."""
    if target not in TARGETS:
        raise ValueError(f"`target` must be one of {TARGETS}. Received: target={target!r}.")
    if ram is not None:
        check_integer("ram", ram, least=1)
    for name, value in (("ram", ram), ("header", header)):
        if value is not None and target != "tflm":
            raise ValueError(
                f'`{name}` is for target="tflm". Received: {name}={shown(value)}, '
                f"target={target!r}. Leave it out."
            )


def _check_samples(target: str, samples: Any) -> None:
    """Raise for a target that needs samples if there are none."""
    if samples is None and needs_samples(target):
        raise ValueError(
            f"target={target!r} computes in integers and needs `samples`: typical inputs, from "
            "which the range of every tensor is found. Received: samples=None. Pass about 100, "
            "samples=x[:100]."
        )


def needs_samples(target: str) -> bool:
    """Whether the file of a target computes in integers."""
    return target == "tflm" or target in ACCELERATORS


def ship(
    model: keras.Model,
    path: Path,
    target: str,
    samples: Any = None,
    *,
    ram: int | None = None,
    header: Path | None = None,
    progress: bool = True,
) -> Shipped:
    """Write a model as the file for a target.

    Args:
        model: a built Keras 3 model.
        path: the file to write, ending in ".tflite"; for an NPU, the file that Vela compiled.
        target: one of `TARGETS`.
        samples: typical inputs, for integer files: an array, a list with one for each input, or a
            dict of them by name.
        ram: for "tflm", the largest arena in bytes.
        header: for "tflm", where to write the file as an array in C as well.
        progress: whether to show the current step.

    Raises:
        ValueError: for an unknown target or options of another one, missing samples, or a file
            that needs more RAM.
        RuntimeError: if the conversion fails or the outputs differ; no file is left at `path`.
        ImportError: without the extra of the target.
    """
    check_target(target, ram=ram, header=header)
    _check_samples(target, samples)
    samples = _in_order(model, samples)
    if target == "tflm":
        micro = export_micro(
            model, path, samples=samples, ram=ram, header=header, progress=progress
        )
        heavy = max(micro.weights, key=lambda w: w.stored_bytes, default=None)
        name = "" if heavy is None else f"{heavy.name} ({heavy.stored_bytes:,} bytes)"
        return Shipped(micro.flash, micro, name)
    if target in ACCELERATORS:
        return _ship_compiled(model, path, target, samples, progress=progress)
    runtime = "litert-wasm" if target == "wasm" else target
    done = export_litert(model, path, runtime=runtime, samples=samples, progress=progress)
    return Shipped(done.size, done, _largest(done))


def _ship_compiled(
    model: keras.Model, path: Path, target: str, samples: Any, *, progress: bool
) -> Shipped:
    """Export a file of integers to a temporary folder, and compile it for an NPU."""
    with tempfile.TemporaryDirectory() as scratch:
        plain = Path(scratch, path.name)
        done = export_litert(
            model, plain, weights="int8", activations="int8", samples=samples, progress=progress
        )
        compiled = ethos_u(plain, target, output=path)
    compiled = dataclasses.replace(
        compiled, compiled=dataclasses.replace(compiled.compiled, path=str(path))
    )
    return Shipped(compiled.compiled.size, compiled, _largest(done))


def _in_order(model: keras.Model, samples: Any) -> Any:
    """One array for each input, in the order of the model's inputs."""
    if not isinstance(samples, dict):
        return samples
    names = [tensor.name for tensor in getattr(model, "inputs", None) or []]
    return [samples[name] for name in (names if set(names) == set(samples) else sorted(samples))]


def _largest(done: Export) -> str:
    """The weight with the most non-zero values, with its size."""
    heavy = max(done.weights, key=lambda w: (1 - w.sparsity) * w.size, default=None)
    if heavy is None:
        return ""
    return f"{heavy.name} ({heavy.size:,} weights, {heavy.sparsity:.0%} zeros)"
