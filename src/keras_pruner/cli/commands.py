"""The command line `keras-pruner COMMAND`: its options, its commands, and a table of both.

Exit codes: 0 success, 1 failure (with one line on standard error), 2 wrong usage.
"""

import argparse
import dataclasses
import json
import os
import re
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_pruner import __version__, model_file
from keras_pruner.allocations import NAMED
from keras_pruner.cli import demo
from keras_pruner.compare import compare
from keras_pruner.criteria import magnitude, wanda
from keras_pruner.litert.advise import advise
from keras_pruner.litert.cost_model import DENSE_RUNTIMES, RUNTIMES, TORCH, SpeedupTable
from keras_pruner.litert.export import export_litert
from keras_pruner.litert.inspection import inspect
from keras_pruner.litert.latency import measure_speedups
from keras_pruner.litert.sparse_tensors import most_in_group
from keras_pruner.litert.targets import TARGETS, needs_samples, ship
from keras_pruner.litert.vela import ACCELERATORS
from keras_pruner.litert.xnnpack_rewrite import prepare_for_xnnpack
from keras_pruner.model_weights import weights_of
from keras_pruner.oneshot.calibration import Calibration
from keras_pruner.oneshot.prune import prune
from keras_pruner.oneshot.search import find_sparsity, sensitivity
from keras_pruner.patterns import (
    NM,
    Block,
    Channel,
    Pattern,
    Unstructured,
    fixed_conflict,
    takes_sparsity,
)
from keras_pruner.reporting import tables
from keras_pruner.reporting.report import Report
from keras_pruner.reporting.sparsity import summarize
from keras_pruner.shrink.shrink_model import shrink
from keras_pruner.storage.keras_file import save_compressed
from keras_pruner.storage.safetensors_file import save_sparse
from keras_pruner.validation import as_json, check_sparsity, one_line

Arguments = argparse.Namespace
_AXES = {"outputs": -1, "inputs": -2}
_CRITERIA: dict[str, Any] = {
    "magnitude": magnitude,
    "wanda": wanda,
}
_WEIGHTS_BY_ENDING = {
    ".tflite": ("float32", "float16", "int8"),
    ".keras": ("float32", "float16", "float8", "shared"),
    ".safetensors": ("float32",),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: the command line without the program's name. None: that of the process.

    Returns:
        The exit code.
    """
    arguments = _parser().parse_args(argv)
    try:
        arguments.run(arguments)
    except BrokenPipeError:  # `keras-pruner inspect model.keras | head`
        with open(os.devnull, "w") as nowhere:  # otherwise Python reports the pipe again at exit
            os.dup2(nowhere.fileno(), sys.stdout.fileno())
    except (model_file.FileError, ValueError, ImportError, OSError) as error:
        message = one_line(error, longest=2000)
        print(f"keras-pruner: {_by_options(message, arguments)}", file=sys.stderr)
        return 1
    except RuntimeError as error:  # a converter's message; its lines help to find the layer
        print(f"keras-pruner: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("keras-pruner: interrupted", file=sys.stderr)
        return 130
    return 0


def _by_options(message: str, arguments: Arguments) -> str:
    """The message with the options of the command in place of Python's argument names."""
    names = set(vars(arguments)) - {"model", "dense", "pruned", "output"}

    def option(name: re.Match[str]) -> str:
        return f"--{name[1].replace('_', '-')}" if name[1] in names else name[0]

    return re.sub(r"`(\w+)`", option, message)


def _show(arguments: Arguments, *parts: Report | str, data: dict[str, Any] | None = None) -> None:
    """Print reports and sentences, or with --json only `data`, by default that of the first."""
    if arguments.json:
        data = parts[0].as_dict() if data is None and isinstance(parts[0], Report) else data
        print(as_json(data))
        return
    texts = [p.full() if arguments.full and isinstance(p, Report) else str(p) for p in parts]
    text = "\n\n".join(texts).replace("print(report.full())", "pass --full")
    print(tables.encodable(text))  # the stream may lack a character of a file name


# ------------------------------------------------------------------ types of arguments


def _sparsity(text: str) -> float:
    try:
        check_sparsity("sparsity", float(text))
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"must be the fraction of zeros, in [0, 1): 0.8 for 80% zeros. Received {text!r}"
        ) from None
    return float(text)


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, not {text!r}")
    return int(text)


def _nm(text: str) -> NM:
    kept, _, group = text.partition(":")
    if not (kept.isdecimal() and group.isdecimal() and 0 < int(kept) < int(group)):
        raise argparse.ArgumentTypeError(
            f"must be N:M with 0 < N < M, like 2:4: N weights stay of every M. Received {text!r}"
        )
    return NM(int(kept), int(group))


def _regex(text: str) -> str:
    try:
        re.compile(text)
    except re.error as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not a regular expression: {error}") from None
    return text


# ------------------------------------------------------------------------- options

Option = Callable[[Any], object]
"""Adds itself to a command, or to a group of options."""


def _option(usage: str, help: str, **settings: Any) -> Option:
    """An argument by its usage: "model", "--samples N", "--block H W" or "--leave REGEX...".

    An option without a value or choices is a flag.
    """
    words = usage.removesuffix("...").split()
    names = [word for word in words if word.startswith("-")] or words
    values = tuple(word for word in words if word not in names)
    if usage.endswith("..."):
        settings |= {"nargs": "+", "metavar": values[0]}
    elif len(values) > 1:
        settings |= {"nargs": len(values), "metavar": values}
    elif values:
        settings |= {"metavar": values[0]}
    elif usage.startswith("-") and "choices" not in settings:
        settings |= {"action": "store_true"}
    return lambda command: command.add_argument(*names, help=help, **settings)


def _one_of(*options: Option) -> Option:
    def add(command: Any) -> None:
        group = command.add_mutually_exclusive_group()
        for option in options:
            option(group)

    return add


JSON = _option("--json", "print JSON instead of text")
FULL = _option("--full", "print every row of a table")
MODEL = _option("model", "a .keras or .h5 file")
OUTPUT = _option("-o --output OUT.keras", "the file to write", required=True)
OUTPUT_BY_ENDING = _option("output", "the file to write: .tflite, .keras or .safetensors")
FORCE = _option("--force", "overwrite an existing file")
TRUST = _option("--trust", "allow Python code in the model file (Lambda layers) to run")
SPARSITY = _option("--sparsity S", "fraction of zeros, in [0, 1)", type=_sparsity)
SPARSITY_80 = _option(
    "--sparsity S", "fraction of zeros, in [0, 1); default: 0.8", type=_sparsity, default=0.8
)
BLOCK = _option("--block H W", "prune blocks of H inputs by W outputs", type=_positive)
KEEP_NM = _option("--nm N:M", "keep N weights of every M consecutive inputs, like 2:4", type=_nm)
CHANNEL = _option("--channel", "prune whole channels", choices=_AXES)
PATTERN = _one_of(BLOCK, KEEP_NM, CHANNEL)
ANY_PATTERN = _one_of(
    BLOCK,
    KEEP_NM,
    CHANNEL,
    _option("--unstructured", "zeros anywhere; default: the best pattern for each layer"),
)
ALLOCATION = _option(
    "--allocation",
    "how the sparsity is split over the layers; auto needs --calibration and tries several",
    choices=["auto", *sorted(NAMED)],
)
CRITERION = _option(
    "--criterion",
    "how weights are ranked; default: in rounds of refitting with --calibration, else magnitude",
    choices=list(_CRITERIA),
)
CALIBRATION = _option(
    "--calibration SAMPLES.npz",
    "a few hundred inputs, named x, without labels, to adjust the remaining weights with",
)
SAMPLES = _option("--samples N", "use at most N calibration samples; default: 1024", type=_positive)
DISTILLATION = _option(
    "--distillation-epochs N",
    "then train the pruned model for N epochs to reproduce the outputs of the dense one; 15 is a "
    "good number with a few thousand --samples",
    type=_positive,
    default=0,
)
ONESHOT = (CALIBRATION, SAMPLES, DISTILLATION, CRITERION)
FILTERS = _option("--filters REGEX...", "consider only layers whose path matches", type=_regex)
LEAVE = _option("--leave REGEX...", "do not prune weights whose path matches", type=_regex)
SPARSITIES = _option(
    "--sparsities S...",
    "sparsities to try for each weight; default: %(default)s",
    type=_sparsity,
    default=[0.5, 0.8, 0.9],
)
TARGET = _option(
    "--target",
    "what the file is for: TensorFlow Lite Micro, an Ethos-U NPU, LiteRT on x86 or ARM, a browser",
    choices=TARGETS,
)
RANGES = _option(
    "--calibration SAMPLES.npz",
    "typical inputs, named x: about 100 for a --target that computes in integers, a few hundred to "
    "choose the rounding of float8 or shared weights",
)
RAM = _option(
    "--ram BYTES",
    "largest arena of a file for TensorFlow Lite Micro; default: no limit",
    type=_positive,
)
HEADER = _option("--header FILE.h", "also write a file for TensorFlow Lite Micro as a C array")
VECTOR_TRAINING = _option(
    "--distillation-epochs N",
    "after float8 or shared rounding, train biases and normalization for N epochs to reproduce the "
    "outputs, without labels; 20 is a good number; needs --calibration",
    type=_positive,
    default=0,
)
RUNTIME, ANY_RUNTIME = (
    _one_of(
        _option("--runtime", f"where the model will run; default: {names[0]}", choices=names),
        _option(
            "--speedups FILE.json",
            "speed-ups of sparse layers on this machine; without such a file, measure and write it",
        ),
    )
    for names in (RUNTIMES, (*RUNTIMES, TORCH, *DENSE_RUNTIMES, *ACCELERATORS))
)
BATCH_SIZE = _option(
    "--batch-size N", "samples per inference; default: 1", type=_positive, default=1
)
WEIGHTS = _option(
    "--weights",
    "type in which kernels are stored; default: float32",
    choices=["float32", "float16", "int8", "float8", "shared"],
    default="float32",
)
INPUT_SHAPE = _option(
    "--input-shape N...",
    "input shape with the batch, like 1 224 224 3, for a model that has none",
    type=_positive,
)
PREPARE = _option("--prepare-for-xnnpack", "first rewrite a CNN so that XNNPACK can run it sparse")


# ------------------------------------------------------------------------ commands


def _demo(arguments: Arguments) -> None:
    result = demo.run(
        arguments.output,
        sparsity=arguments.sparsity,
        epochs=arguments.epochs,
        seed=arguments.seed,
        samples=arguments.samples,
    )
    _show(arguments, result)


def _inspect(arguments: Arguments) -> None:
    model: Any = arguments.model
    if not model.endswith(".tflite"):
        model = model_file.load(model, trust=arguments.trust)
    if arguments.nm is not None:
        _check_nm(arguments, model)
        return
    _show(arguments, inspect(model) if isinstance(model, str) else summarize(model))


def _check_nm(arguments: Arguments, model: keras.Model | str) -> None:
    """Show which weights have N:M zeros; raises if one does not, or if there are no weights."""
    kept, group = arguments.nm.n, arguments.nm.m
    weights = {name: most <= kept for name, most in _most_in_group(model, group).items()}
    rows = [(name, "yes" if holds else "no") for name, holds in weights.items()]
    table = tables.render(f"at most {kept} of every {group}", ["weight", "holds"], rows)
    passed = bool(weights) and all(weights.values())
    _show(arguments, table, data={"passed": passed, "weights": weights})
    if not passed:
        failed = [name for name, holds in weights.items() if not holds]
        what = f"these have more: {', '.join(failed)}" if failed else "it has no prunable kernel"
        raise ValueError(
            f"--nm {kept}:{group} allows at most {kept} non-zero weights in every {group}; {what}."
        )


def _most_in_group(model: keras.Model | str, group: int) -> dict[str, int]:
    """The most non-zero weights in any group of consecutive inputs, for every kernel."""
    if isinstance(model, str):
        counted = ((w.name, w.most_in_group) for w in inspect(model, group=group).weights)
        return {name: most for name, most in counted if most is not None}
    found = {}
    for owned in weights_of(model):
        if not owned.reason(by_default=True):
            kernel = owned.view.to_kernel(keras.ops.convert_to_numpy(owned.variable.value))
            found[owned.path] = most_in_group(np.moveaxis(kernel, -2, -1), group)
    return found


def _prune(arguments: Arguments) -> None:
    _check_prune(arguments)
    model_file.check_output(arguments.output, overwrite=arguments.force)
    model = model_file.load(arguments.model, trust=arguments.trust)
    done = prune(
        model,
        arguments.sparsity,
        pattern=_pattern(arguments),
        allocation=arguments.allocation,
        criterion=_CRITERIA.get(arguments.criterion),
        filters=arguments.filters,
        overrides=_left_alone(arguments.leave, model),
        calibration=_calibration(arguments, model),
    )
    report = summarize(model)
    model_file.save(model, arguments.output, overwrite=arguments.force)
    data = {"output": str(arguments.output), **report.as_dict(), "prune": done.as_dict()}
    saved = f"Saved {arguments.output}, without optimizer and loss: compile it to train on."
    reports = (done, report) if arguments.calibration else (report,)
    _show(arguments, *reports, saved, data=data)


def _shrink(arguments: Arguments) -> None:
    targets = {"macs": arguments.macs, "weights": arguments.keep_weights}
    targets["speedup"] = arguments.speedup
    if arguments.calibration is None and (arguments.samples or arguments.distillation_epochs):
        arguments.misused("--samples and --distillation-epochs need --calibration SAMPLES.npz")
    model_file.check_output(arguments.output, overwrite=arguments.force)
    model = model_file.load(arguments.model, trust=arguments.trust)
    with warnings.catch_warnings():  # the report says it too
        warnings.filterwarnings("ignore", "Nothing could be removed")
        report = shrink(
            model,
            **targets,
            calibration=_calibration(arguments, model),
            multiple=arguments.multiple,
            overrides=_left_alone(arguments.leave, model),
        )
    model_file.save(report.model, arguments.output, overwrite=arguments.force)
    saved = f"Saved {arguments.output}, without optimizer and loss: compile it to train on."
    _show(arguments, report, saved, data={"output": str(arguments.output), **report.as_dict()})


def _calibration(arguments: Arguments, model: keras.Model) -> Calibration | None:
    """The samples in a file, with the options for them; None without a file."""
    if not arguments.calibration:
        return None
    samples = {} if arguments.samples is None else {"samples": arguments.samples}
    data = model_file.samples(arguments.calibration, model)
    return Calibration(data, distillation_epochs=arguments.distillation_epochs, **samples)


def _check_prune(arguments: Arguments) -> None:
    """Exit as for wrong usage if options contradict each other or one is missing."""
    given, nm = arguments.sparsity, arguments.nm
    if given is None and nm is None:
        arguments.misused("give --sparsity, the fraction of zeros, or --nm")
    if given is not None and nm is not None and not takes_sparsity(nm, given):
        arguments.misused(str(fixed_conflict(nm, "--sparsity", given)))
    needs_samples = {
        "--allocation auto": arguments.allocation == "auto",
        f"--criterion {arguments.criterion}": arguments.criterion not in (None, "magnitude"),
        "--samples": arguments.samples is not None,
        "--distillation-epochs": arguments.distillation_epochs > 0,
    }
    for option, chosen in needs_samples.items():
        if chosen and not arguments.calibration:
            arguments.misused(f"{option} needs --calibration SAMPLES.npz")


def _pattern(arguments: Arguments) -> Pattern:
    if arguments.block:
        return Block(tuple(arguments.block))
    if arguments.channel:
        return Channel(_AXES[arguments.channel])
    return arguments.nm or Unstructured()


def _left_alone(regexes: list[str] | None, model: keras.Model) -> dict[str, None] | None:
    """An override for all weights that match --leave; raises for a regex that matches none."""
    if regexes is None:
        return None
    paths = [row.path for row in summarize(model).weights]
    for regex in regexes:
        if not any(re.search(regex, path) for path in paths):
            shown = ", ".join(paths[:10]) + (", ..." if len(paths) > 10 else "")
            raise ValueError(f"--leave {regex} matches no weight. The weights are: {shown}.")
    return {"|".join(f"(?:{regex})" for regex in regexes): None}


def _sensitivity(arguments: Arguments) -> None:
    if arguments.calibration is None:
        arguments.misused("give --calibration SAMPLES.npz")
    model = model_file.load(arguments.model, trust=arguments.trust)
    found = sensitivity(
        model,
        model_file.samples(arguments.calibration, model),
        sparsities=arguments.sparsities,
        filters=arguments.filters,
    )
    _show(arguments, found)


def _find_sparsity(arguments: Arguments) -> None:
    if arguments.calibration is None:
        arguments.misused("give --calibration SAMPLES.npz")
    if arguments.flash is None and arguments.target:
        arguments.misused("--target needs --flash BYTES")
    if arguments.ram and (arguments.flash is None or arguments.target not in (None, "tflm")):
        arguments.misused("--ram needs --flash BYTES and is for --target tflm")
    model = model_file.load(arguments.model, trust=arguments.trust)
    limits: dict[str, Any] = {
        "max_drop": arguments.max_drop,
        "confidence": arguments.confidence,
    }
    if arguments.flash is not None:
        limits |= {"flash": arguments.flash, "ram": arguments.ram, "target": arguments.target}
    found = find_sparsity(
        model,
        _calibration(arguments, model),
        **limits,
        tolerance=arguments.tolerance,
        filters=arguments.filters,
        overrides=_left_alone(arguments.leave, model),
    )
    _show(arguments, found)


def _advise(arguments: Arguments) -> None:
    model = model_file.load(arguments.model, trust=arguments.trust)
    chosen = arguments.unstructured or arguments.block or arguments.nm or arguments.channel
    advice = advise(
        model,
        _runtime(arguments),
        sparsity=arguments.sparsity,
        pattern=_pattern(arguments) if chosen else None,
        batch_size=arguments.batch_size,
    )
    _show(arguments, advice)


def _runtime(arguments: Arguments) -> str | SpeedupTable:
    """The runtime by name, or the table of --speedups."""
    if arguments.speedups is None:
        return arguments.runtime or RUNTIMES[0]
    return _speedups(Path(arguments.speedups))


def _speedups(path: Path) -> SpeedupTable:
    """The speed-ups in a file; if it does not exist, they are measured and written first."""
    if not path.exists():
        _check_directory(path)
        path.write_text(json.dumps(measure_speedups().as_dict(), indent=2), encoding="utf-8")
    try:
        return SpeedupTable.from_dict(json.loads(path.read_text(encoding="utf-8")))
    except ValueError as error:
        raise model_file.FileError(
            f"--speedups {path} holds no table of speed-ups: {error}. If you name a file that does "
            "not exist, they are measured and written to it."
        ) from None


def _export(arguments: Arguments) -> None:
    output = Path(arguments.output)
    _check_export(arguments, output)
    model = model_file.load(arguments.model, trust=arguments.trust)
    if not arguments.prepare_for_xnnpack:
        done, data = _write(arguments, model, output)
        _show(arguments, done, data=data)
        return
    rewrite = prepare_for_xnnpack(model)
    done, data = _write(arguments, rewrite.model, output)
    _show(arguments, rewrite, done, data=data | rewrite.as_dict())


def _write(
    arguments: Arguments, model: keras.Model, output: Path
) -> tuple[Report | str, dict[str, Any]]:
    """Write the file for the target, or by its ending; returns what to show, and its data."""
    file = arguments.calibration
    samples = None if file is None else model_file.samples(file, model)
    report: Report
    if output.suffix == ".safetensors":
        size = save_sparse(model, output)
        return f"{output}: {size:,} bytes", {"path": str(output), "size": size}
    if output.suffix == ".keras":
        epochs = arguments.distillation_epochs
        options = Calibration(samples, distillation_epochs=epochs) if epochs else samples
        stored = None if arguments.weights == "float32" else arguments.weights
        report = save_compressed(model, output, weights=stored, samples=options)
    elif arguments.target:
        header = Path(arguments.header) if arguments.header else None
        limits = {"ram": arguments.ram, "header": header}
        report = ship(model, output, arguments.target, samples, **limits).report
    else:
        report = export_litert(
            model,
            output,
            weights=arguments.weights,
            runtime=_runtime(arguments),
            input_signature=_signature(model, arguments.input_shape),
        )
    return report, report.as_dict()


def _check_export(arguments: Arguments, output: Path) -> None:
    """Raise for options that contradict each other, before a model is loaded."""
    if output.suffix not in _WEIGHTS_BY_ENDING:
        raise ValueError(f"{output} must end in .tflite, .keras or .safetensors.")
    if arguments.weights not in _WEIGHTS_BY_ENDING[output.suffix]:
        known = ", ".join(_WEIGHTS_BY_ENDING[output.suffix])
        raise ValueError(
            f"--weights {arguments.weights} is not for {output.suffix} files. Choose from: {known}."
        )
    _check_calibration(arguments)
    _check_target(arguments)
    for option in ("runtime", "speedups", "input_shape", "target"):
        if output.suffix != ".tflite" and getattr(arguments, option):
            raise ValueError(
                f"--{option.replace('_', '-')} is for .tflite files. Received: {output}. Leave it "
                "out, or end the output in .tflite."
            )
    model_file.check_free(output, overwrite=arguments.force)


def _check_calibration(arguments: Arguments) -> None:
    """Raise for samples, or epochs of training, that would have no use."""
    is_rounded = arguments.weights in ("float8", "shared")
    if arguments.distillation_epochs and not (is_rounded and arguments.calibration):
        raise ValueError(
            "--distillation-epochs is for --weights float8 or shared, with --calibration "
            "SAMPLES.npz."
        )
    if arguments.calibration and arguments.target is None and not is_rounded:
        raise ValueError(
            "--calibration is for integer files and for one-byte weights: give --target, such as "
            "tflm, or --weights float8 or shared."
        )


def _check_target(arguments: Arguments) -> None:
    """Raise for options that contradict a target, and for one without the samples it needs."""
    for option in ("ram", "header"):
        if getattr(arguments, option) and arguments.target != "tflm":
            raise ValueError(f"--{option} is for --target tflm. Leave it out, or name that target.")
    if arguments.target is None:
        return
    if arguments.weights != "float32" or arguments.input_shape:
        raise ValueError(
            "--target decides the types and shapes of the file. Leave out --weights and "
            "--input-shape."
        )
    if needs_samples(arguments.target) and arguments.calibration is None:
        raise ValueError(
            f"--target {arguments.target} computes in integers and needs --calibration "
            "SAMPLES.npz: about 100 typical inputs, named x."
        )


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


def _compare(arguments: Arguments) -> None:
    page = None if arguments.html is None else Path(arguments.html)
    if page is not None:
        model_file.check_free(page, overwrite=arguments.force)
        _check_directory(page)
    paths = (arguments.dense, arguments.pruned)
    data = None if arguments.data is None else _labelled_samples(arguments.data)
    comparison = compare(
        *(model_file.load(path, trust=arguments.trust, compile=data is not None) for path in paths),
        data=data,
        names=paths,
        litert=arguments.litert,
        latency=arguments.latency,
    )
    if page is not None:
        comparison.to_html(page)
    _show(arguments, comparison, *([] if page is None else [f"The same as a page: {page}"]))


def _labelled_samples(path: str) -> tuple[np.ndarray, np.ndarray]:
    data = model_file.arrays(path)
    if not {"x", "y"} <= set(data):
        raise model_file.FileError(
            f"{path} must hold the arrays x and y. It holds: {sorted(data)}."
        )
    return data["x"], data["y"]


def _check_directory(path: Path) -> None:
    if not path.parent.is_dir():
        raise model_file.FileError(f"{path.parent} does not exist: make the directory first.")


# ---------------------------------------------------------------------- the table


@dataclasses.dataclass(frozen=True)
class _Command:
    """A command of the table.

    Attributes:
        run: runs it.
        purpose: one sentence for the help text.
        options: the arguments that it takes, besides --full and --json.
        examples: command lines, without the program's name.
    """

    run: Callable[[Arguments], None]
    purpose: str
    options: Sequence[Option]
    examples: Sequence[str]


COMMANDS = {
    "demo": _Command(
        _demo,
        "Train a small network on real digits, prune it, compare, and write report.html.",
        [
            _option(
                "-o --output DIR",
                "directory to write to; default: %(default)s",
                default="keras-pruner-demo",
            ),
            SPARSITY_80,
            _option(
                "--epochs N",
                "train N epochs dense, then N while pruning; default: %(default)s",
                type=_positive,
                default=4,
            ),
            _option("--seed N", "random seed; default: %(default)s", type=int, default=0),
            _option(
                "--samples N",
                "train with N digits; default: all %(default)s",
                type=_positive,
                default=demo.TRAIN_SAMPLES,
            ),
        ],
        ["demo", "demo --sparsity 0.95 --output /tmp/digits"],
    ),
    "inspect": _Command(
        _inspect,
        "Show the zeros of every weight in a .keras, .h5 or .tflite file.",
        [
            _option("model", "a .keras, .h5 or .tflite file, of any producer"),
            _option(
                "--nm N:M",
                "check instead that at most N of every M consecutive inputs are not zero; exit "
                "code 1 if a weight fails",
                type=_nm,
            ),
            TRUST,
        ],
        ["inspect model.keras", "inspect model.tflite --json", "inspect model.tflite --nm 2:4"],
    ),
    "prune": _Command(
        _prune,
        "Prune a model file at once, without training.",
        [MODEL, OUTPUT, SPARSITY, PATTERN, ALLOCATION, *ONESHOT, FILTERS, LEAVE, FORCE, TRUST],
        [
            "prune model.keras --sparsity 0.8 -o out.keras",
            "prune model.keras --sparsity 0.8 --calibration samples.npz -o out.keras",
            "prune model.keras --sparsity 0.8 --calibration samples.npz --samples 4096 "
            "--distillation-epochs 15 -o out.keras",
            "prune model.keras --sparsity 0.5 --block 4 1 --allocation erk -o out.keras",
            "prune model.keras --nm 2:4 --filters conv dense --leave head -o out.keras",
        ],
    ),
    "shrink": _Command(
        _shrink,
        "Remove channels, heads and units: dead ones, or as many as a target asks for.",
        [
            MODEL,
            OUTPUT,
            _option("--macs X", "fraction of the multiplications to keep", type=float),
            _option("--keep-weights X", "instead: fraction of the weights to keep", type=float),
            _option(
                "--speedup X",
                "instead: how many times as fast, with LiteRT on this machine",
                type=float,
            ),
            CALIBRATION,
            SAMPLES,
            DISTILLATION,
            _option(
                "--multiple N",
                "round numbers of channels to multiples of N; default: %(default)s",
                type=_positive,
                default=8,
            ),
            LEAVE,
            FORCE,
            TRUST,
        ],
        [
            "shrink model.keras -o out.keras",
            "shrink model.keras --macs 0.5 --calibration samples.npz -o out.keras",
        ],
    ),
    "sensitivity": _Command(
        _sensitivity,
        "Prune one weight at a time and measure how much the outputs change.",
        [MODEL, CALIBRATION, SPARSITIES, FILTERS, TRUST],
        [
            "sensitivity model.keras --calibration samples.npz",
            "sensitivity model.keras --calibration samples.npz --sparsities 0.6 0.9",
        ],
    ),
    "find-sparsity": _Command(
        _find_sparsity,
        "Find the sparsity that keeps the outputs, or that fits into flash.",
        [
            MODEL,
            CALIBRATION,
            SAMPLES,
            DISTILLATION,
            _option(
                "--max-drop X",
                "largest drop of the agreement with the dense model; default: 0.01",
                type=float,
            ),
            _option(
                "--confidence P",
                "confidence that the drop on other samples stays below --max-drop; default: 0.95",
                type=float,
            ),
            _option(
                "--flash BYTES",
                "find instead the least sparsity at which the exported file fits",
                type=_positive,
            ),
            RAM,
            TARGET,
            _option(
                "--tolerance X",
                "precision of the sparsity; default: %(default)s",
                type=float,
                default=0.01,
            ),
            FILTERS,
            LEAVE,
            TRUST,
        ],
        [
            "find-sparsity model.keras --calibration samples.npz --max-drop 0.02",
            "find-sparsity model.keras --calibration samples.npz --flash 64000 --target tflm",
        ],
    ),
    "advise": _Command(
        _advise,
        "Show which layers would run faster with zeros, before any training.",
        [MODEL, ANY_RUNTIME, SPARSITY_80, BATCH_SIZE, ANY_PATTERN, TRUST],
        [
            "advise model.keras --runtime litert-x86 --sparsity 0.9",
            "advise model.keras --runtime litert-wasm --unstructured --json",
        ],
    ),
    "export": _Command(
        _export,
        "Write a LiteRT file, a small .keras file or a sparse weights file, by the ending.",
        [
            MODEL,
            OUTPUT_BY_ENDING,
            TARGET,
            RANGES,
            RAM,
            HEADER,
            VECTOR_TRAINING,
            WEIGHTS,
            RUNTIME,
            INPUT_SHAPE,
            PREPARE,
            FORCE,
            TRUST,
        ],
        [
            "export out.keras out.tflite",
            "export out.keras out.tflite --weights int8",
            "export out.keras micro.tflite --target tflm --calibration samples.npz --ram 64000 "
            "--header model.h",
            "export out.keras npu.tflite --target ethos-u55-128 --calibration samples.npz",
            "export mobilenet.keras web.tflite --runtime litert-wasm --prepare-for-xnnpack",
            "export out.keras small.keras --weights float16",
        ],
    ),
    "compare": _Command(
        _compare,
        "Compare a dense model file with a pruned one: accuracy, zeros, bytes, time.",
        [
            _option("dense", "the model file before pruning"),
            _option("pruned", "the model file after pruning"),
            _option(
                "--data SAMPLES.npz",
                "arrays x and y to measure loss and metrics on, if a model is compiled",
            ),
            _option("--litert", "convert both and show the bytes of the LiteRT files"),
            _option("--latency", "convert both and time them on this machine"),
            _option("--html REPORT.html", "also write a page with plots"),
            FORCE,
            TRUST,
        ],
        [
            "compare model.keras out.keras",
            "compare model.keras out.keras --data samples.npz --html report.html",
            "compare model.keras out.keras --litert --latency --json",
        ],
    ),
}


class _Parser(argparse.ArgumentParser):
    """A parser whose errors take one line and name the command for help."""

    def error(self, message: str) -> Any:
        self.exit(2, f"{self.prog}: {message.rstrip('.')}. See `{self.prog} --help`.\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="keras-pruner", description="Prune Keras models and measure the result.")
    parser.add_argument("--version", action="version", version=f"keras-pruner {__version__}")
    commands = parser.add_subparsers(metavar="command", required=True)
    for name, command in COMMANDS.items():
        sub = commands.add_parser(
            name,
            help=command.purpose,
            description=command.purpose,
            epilog="\n  ".join(["examples:", *(f"keras-pruner {e}" for e in command.examples)])
            + "\n",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        for option in (*command.options, FULL, JSON):
            option(sub)
        sub.set_defaults(run=command.run, misused=sub.error)
    return parser
