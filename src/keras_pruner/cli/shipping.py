"""The commands around leaving Keras: `advise`, `export`, `verify` and `compare`."""

import argparse
import json
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_pruner.cli.arguments import (
    add_command,
    add_pattern,
    add_trust,
    pattern_of,
    positive,
    show,
    sparsity,
)
from keras_pruner.compare import compare
from keras_pruner.litert.advise import advise
from keras_pruner.litert.cost_model import DENSE_RUNTIMES, RUNTIMES, SpeedupTable
from keras_pruner.litert.export import export_litert
from keras_pruner.litert.inspection import inspect
from keras_pruner.litert.measure_gains import measure_speedups
from keras_pruner.litert.xnnpack_rewrite import prepare_for_xnnpack
from keras_pruner.storage import model_file
from keras_pruner.storage.keras_file import save_compressed
from keras_pruner.storage.safetensors_file import save_sparse


def add_commands(commands: Any) -> None:
    """Add all four."""
    _add_advise(commands)
    _add_export(commands)
    _add_verify(commands)
    _add_compare(commands)


# ---------------------------------------------------------------------- commands


def _advise(arguments: argparse.Namespace) -> None:
    model = model_file.load(arguments.model, trust=arguments.trust)
    asked = arguments.unstructured or arguments.block or arguments.nm or arguments.channel
    advice = advise(
        model,
        _runtime(arguments),
        sparsity=arguments.sparsity,
        pattern=pattern_of(arguments) if asked else None,
        batch_size=arguments.batch_size,
    )
    show(arguments, advice.as_dict(), str(advice))


def _export(arguments: argparse.Namespace) -> None:
    output = Path(arguments.output)
    _check_export(arguments, output)
    model = model_file.load(arguments.model, trust=arguments.trust)
    rewrite = prepare_for_xnnpack(model) if arguments.make_eligible else None
    if rewrite is not None:
        model = rewrite.model
    if output.suffix == ".tflite":
        done = export_litert(
            model,
            output,
            weights=arguments.weights,
            runtime=_runtime(arguments),
            input_signature=_signature(model, arguments.input_shape),
        )
        data, text = done.as_dict(), str(done)
    else:
        size = _store(model, output, arguments.weights)
        data, text = {"path": str(output), "size": size}, f"{output}: {size:,} bytes"
    if rewrite is not None:
        data["changes"], data["obstacles"] = list(rewrite.changes), list(rewrite.obstacles)
        text = f"{rewrite}\n{text}"
    show(arguments, data, text)


def _check_export(arguments: argparse.Namespace, output: Path) -> None:
    """Raise for what does not go together, before a model is loaded."""
    if output.suffix not in (".tflite", ".keras", ".safetensors"):
        raise ValueError(f"{output} must end in .tflite, .keras or .safetensors.")
    allowed = {".tflite": ("float32", "float16", "int8"), ".keras": ("float32", "float16")}
    if arguments.weights not in allowed.get(output.suffix, ("float32",)):
        raise ValueError(f"--weights {arguments.weights} is not for {output.suffix} files.")
    if output.suffix != ".tflite" and (
        arguments.runtime or arguments.gains or arguments.input_shape
    ):
        raise ValueError(f"--runtime, --gains and --input-shape are not for {output.suffix} files.")
    model_file.check_free(output, overwrite=arguments.force)


def _runtime(arguments: argparse.Namespace) -> str | SpeedupTable:
    """The runtime that is named, or the gains in a file; measured into it if it is not there."""
    if arguments.gains is None:
        return arguments.runtime or RUNTIMES[0]
    path = Path(arguments.gains)
    if not path.exists():
        if not path.parent.is_dir():
            raise model_file.FileError(f"{path.parent} does not exist: make the directory first.")
        path.write_text(json.dumps(measure_speedups().as_dict(), indent=2), encoding="utf-8")
    try:
        return SpeedupTable.from_dict(json.loads(path.read_text(encoding="utf-8")))
    except ValueError as error:
        raise model_file.FileError(f"{path} holds no gains: {error}") from None


def _signature(model: keras.Model, shape: list[int] | None) -> list[keras.InputSpec] | None:
    if shape is None:
        return None
    inputs = getattr(model, "inputs", None) or []
    if len(inputs) > 1:
        raise ValueError(
            f"--input-shape is for models of one input; this one has {len(inputs)}. In Python, "
            "pass input_signature to kp.export_litert."
        )
    dtype = inputs[0].dtype if inputs else "float32"
    return [keras.InputSpec(dtype=dtype, shape=tuple(shape))]


def _store(model: keras.Model, output: Path, weights: str) -> int:
    if output.suffix == ".safetensors":
        return save_sparse(model, output)
    return save_compressed(model, output, weights=None if weights == "float32" else weights)


def _verify(arguments: argparse.Namespace) -> None:
    contents = inspect(arguments.file)
    show(arguments, contents.as_dict(), str(contents))


def _compare(arguments: argparse.Namespace) -> None:
    page = None if arguments.html is None else Path(arguments.html)
    if page is not None:
        model_file.check_free(page, overwrite=arguments.force)
        if not page.parent.is_dir():
            raise model_file.FileError(f"{page.parent} does not exist: make the directory first.")
    paths = (arguments.dense, arguments.pruned)
    data = None if arguments.data is None else _samples(arguments.data)
    comparison = compare(
        *(model_file.load(path, trust=arguments.trust, compile=data is not None) for path in paths),
        data=data,
        names=paths,
        litert=arguments.litert,
        latency=arguments.latency,
        seconds=arguments.seconds,
        node_modules=arguments.node_modules,
    )
    text = str(comparison)
    if page is not None:
        page.write_text(comparison.to_html(), encoding="utf-8")
        text += f"\nWith plots: {page}"
    show(arguments, comparison.as_dict(), text)


def _samples(path: str) -> tuple[np.ndarray, np.ndarray]:
    data = model_file.arrays(path)
    if not {"x", "y"} <= set(data):
        raise model_file.FileError(
            f"{path} must hold the arrays x and y. It holds: {sorted(data)}."
        )
    return data["x"], data["y"]


# ----------------------------------------------------------------------- arguments


def _add_advise(commands: Any) -> None:
    command = add_command(
        commands,
        "advise",
        _advise,
        "Say which layers of a model would run faster with zeros, before any training.",
        "keras-pruner advise model.keras --runtime litert-x86 --sparsity 0.9",
        "keras-pruner advise model.keras --runtime litert-wasm --unstructured --json",
    )
    command.add_argument("model", help="a .keras or .h5 file")
    where = command.add_mutually_exclusive_group()
    where.add_argument(
        "--runtime", choices=[*RUNTIMES, *DENSE_RUNTIMES], help=f"default: {RUNTIMES[0]}"
    )
    _add_gains(where)
    command.add_argument("--sparsity", type=sparsity, default=0.8, help="default: %(default)s")
    command.add_argument(
        "--batch-size", type=positive, default=1, help="samples per inference; default: 1"
    )
    pattern = add_pattern(command)
    pattern.add_argument(
        "--unstructured",
        action="store_true",
        help="zeros anywhere; without a pattern: the best for each layer",
    )
    add_trust(command)


def _add_gains(command: Any) -> None:
    command.add_argument(
        "--gains",
        metavar="GAINS.json",
        help="what zeros gain on this machine; measured into the file if there is none",
    )


def _add_export(commands: Any) -> None:
    command = add_command(
        commands,
        "export",
        _export,
        "Write a model as a LiteRT, a small .keras or a sparse weights file, by the ending.",
        "keras-pruner export out.keras out.tflite",
        "keras-pruner export out.keras out.tflite --weights int8",
        "keras-pruner export mobilenet.keras web.tflite --runtime litert-wasm --make-eligible",
        "keras-pruner export out.keras small.keras --weights float16",
    )
    command.add_argument("model", help="a .keras or .h5 file")
    command.add_argument("output", help="the file to write: .tflite, .keras or .safetensors")
    command.add_argument(
        "--weights",
        choices=["float32", "float16", "int8"],
        default="float32",
        help="how kernels are stored; default: %(default)s",
    )
    where = command.add_mutually_exclusive_group()
    where.add_argument(
        "--runtime", choices=RUNTIMES, help=f"where a .tflite will run; default: {RUNTIMES[0]}"
    )
    _add_gains(where)
    command.add_argument(
        "--input-shape", nargs="+", type=positive, metavar="N",
        help="of a model that does not know it, with the batch: 1 224 224 3",
    )  # fmt: skip
    command.add_argument(
        "--make-eligible",
        action="store_true",
        help="rewrite a CNN first, so that XNNPACK can run it sparse",
    )
    command.add_argument("--force", action="store_true", help="overwrite the output")
    add_trust(command)


def _add_verify(commands: Any) -> None:
    command = add_command(
        commands,
        "verify",
        _verify,
        "Read any .tflite file: its zeros, how they are stored, what runs sparse.",
        "keras-pruner verify out.tflite",
        "keras-pruner verify out.tflite --json",
    )
    command.add_argument("file", help="a .tflite file of any producer")


def _add_compare(commands: Any) -> None:
    command = add_command(
        commands,
        "compare",
        _compare,
        "Compare a dense model file with a pruned one: accuracy, zeros, bytes, time.",
        "keras-pruner compare model.keras out.keras",
        "keras-pruner compare model.keras out.keras --data samples.npz --html report.html",
        "keras-pruner compare model.keras out.keras --litert --latency native --json",
    )
    command.add_argument("dense", help="the model before pruning")
    command.add_argument("pruned", help="the model after pruning")
    command.add_argument(
        "--data",
        metavar="SAMPLES.npz",
        help="arrays x and y to measure loss and metrics on, if a model is compiled",
    )
    command.add_argument(
        "--litert", action="store_true", help="convert both, for the bytes of the LiteRT files"
    )
    command.add_argument(
        "--latency",
        choices=["native", "wasm"],
        help="convert both and time them: here, or in LiteRT.js under Node",
    )
    command.add_argument(
        "--seconds", type=positive, default=3, help="to measure latency; default: %(default)s"
    )
    command.add_argument("--node-modules", metavar="DIR", help="where @litertjs/core is")
    command.add_argument("--html", metavar="REPORT.html", help="also write a page with plots")
    command.add_argument("--force", action="store_true", help="overwrite the page")
    add_trust(command)
