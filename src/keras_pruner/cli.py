"""The commands `demo`, `inspect`, `prune`, `sensitivity` and `compare`.

Exit codes: 0 it worked, 1 it failed (with one line on standard error), 2 wrong usage.
"""

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from keras_pruner import __version__, demo, files, tool_commands
from keras_pruner.allocation import NAMED
from keras_pruner.comparison import Comparison, describe
from keras_pruner.criteria import magnitude
from keras_pruner.oneshot import prune, sensitivity, wanda
from keras_pruner.patterns import NM, Block, Channel, Pattern, Unstructured
from keras_pruner.report import summarize
from keras_pruner.values import check_sparsity


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; `argv` is the command line without the program's name."""
    arguments = _parser().parse_args(argv)
    try:
        arguments.run(arguments)
    except (files.FileError, ValueError, ImportError, OSError) as error:
        print(f"keras-pruner: {str(error).splitlines()[0]}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("keras-pruner: interrupted", file=sys.stderr)
        return 130
    return 0


# ---------------------------------------------------------------------- commands


def _demo(arguments: argparse.Namespace) -> None:
    result = demo.run(
        arguments.output,
        sparsity=arguments.sparsity,
        epochs=arguments.epochs,
        seed=arguments.seed,
        samples=arguments.samples,
    )
    each = arguments.epochs
    _show(
        arguments,
        result.as_dict(),
        f"{result.comparison}\n\n"
        f"Both were trained for {2 * each} epochs; for the pruned one the first {each} were dense, "
        f"to an accuracy\nof {result.accuracy_before:.4f}. "
        f"It took {result.seconds:.0f} s. More in {result.report}",
    )


def _inspect(arguments: argparse.Namespace) -> None:
    report = summarize(files.load(arguments.model, trust=arguments.trust))
    _show(arguments, report.as_dict(), str(report))


def _prune(arguments: argparse.Namespace) -> None:
    files.check_output(arguments.output, overwrite=arguments.force)
    model = files.load(arguments.model, trust=arguments.trust)
    done = prune(
        model,
        arguments.sparsity,
        pattern=_pattern(arguments),
        allocation=arguments.allocation,
        criterion=_CRITERIA[arguments.criterion],
        filters=arguments.filters,
        overrides=dict.fromkeys(arguments.leave) if arguments.leave else None,
        calibration=files.samples(arguments.calibration, model) if arguments.calibration else None,
    )
    report = summarize(model)
    files.save(model, arguments.output, overwrite=arguments.force)
    skipped = [{"path": skip.path, "reason": skip.reason} for skip in done.skipped]
    result = {"output": str(arguments.output), **report.as_dict(), "skipped": skipped}
    text = str(report)
    if arguments.calibration:
        result["oneshot"] = done.as_dict()
        text = f"{done}\n\n{report}"
    _show(
        arguments,
        result,
        f"{text}\n\nSaved the model as {arguments.output}, without what only training needs "
        "(optimizer, loss).",
    )


def _sensitivity(arguments: argparse.Namespace) -> None:
    model = files.load(arguments.model, trust=arguments.trust)
    found = sensitivity(
        model,
        files.samples(arguments.calibration, model),
        sparsities=arguments.sparsities,
        filters=arguments.filters,
    )
    _show(arguments, dataclasses.asdict(found), str(found))


def _compare(arguments: argparse.Namespace) -> None:
    paths = (arguments.dense, arguments.pruned)
    compiled = arguments.data is not None
    models = [files.load(path, trust=arguments.trust, compile=compiled) for path in paths]
    scores = _scores(models, arguments.data) if compiled else [{}, {}]
    sides = [describe(*side) for side in zip(models, paths, scores, strict=True)]
    comparison = Comparison(*sides)
    _show(arguments, comparison.as_dict(), str(comparison))


def _scores(models: Sequence[keras.Model], path: str) -> list[dict[str, float]]:
    """Loss and metrics of each; a model without any is judged by those of the other."""
    with np.load(path) as data:
        if not {"x", "y"} <= set(data):
            raise ValueError(f"{path} must hold the arrays x and y. It holds: {sorted(data)}.")
        x, y = data["x"], data["y"]
    judge = next((model for model in models if model.compiled), None)
    if judge is None:
        raise ValueError(
            "Neither model is compiled, so that there is no telling what to measure on "
            f"{path}. Compile the dense one with its loss and metrics, and save it again."
        )
    for model in models:
        if not model.compiled:
            model.compile_from_config(judge.get_compile_config())
    return [model.evaluate(x, y, verbose=0, return_dict=True) for model in models]


def _show(arguments: argparse.Namespace, data: dict[str, Any], text: str) -> None:
    print(json.dumps(data, indent=2) if arguments.json else text)


# ----------------------------------------------------------------------- arguments


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="keras-pruner",
        description="Set the insignificant weights of Keras models to zero; see what it bought.",
    )
    parser.add_argument("--version", action="version", version=f"keras-pruner {__version__}")
    commands = parser.add_subparsers(metavar="command", required=True)
    _add_demo(commands)
    _add_inspect(commands)
    _add_prune(commands)
    _add_sensitivity(commands)
    _add_compare(commands)
    tool_commands.add(commands, _command, _show)
    return parser


def _add_demo(commands: Any) -> None:
    command = _command(
        commands,
        "demo",
        _demo,
        "Train a small network on real digits, prune it, compare, and write report.html.",
        "keras-pruner demo",
        "keras-pruner demo --sparsity 0.95 --output /tmp/digits",
    )
    command.add_argument(
        "-o", "--output", metavar="DIR", default="keras-pruner-demo", help="default: %(default)s"
    )
    command.add_argument("--sparsity", type=_sparsity, default=0.8, help="default: %(default)s")
    command.add_argument(
        "--epochs",
        type=_positive,
        default=4,
        help="of dense training, and again of pruning; default: %(default)s",
    )
    command.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    command.add_argument(
        "--samples",
        type=_positive,
        default=demo.TRAIN_SAMPLES,
        help="digits to train with; default: all %(default)s",
    )


def _add_inspect(commands: Any) -> None:
    command = _command(
        commands,
        "inspect",
        _inspect,
        "Count the zeros in a model file, weight by weight.",
        "keras-pruner inspect model.keras",
        "keras-pruner inspect model.keras --json",
    )
    command.add_argument("model", help="a .keras or .h5 file")
    _add_trust(command)


def _add_prune(commands: Any) -> None:
    command = _command(
        commands,
        "prune",
        _prune,
        "Prune a model file at once, without training.",
        "keras-pruner prune model.keras --sparsity 0.8 -o out.keras",
        "keras-pruner prune model.keras --sparsity 0.8 --calibration samples.npz -o out.keras",
        "keras-pruner prune model.keras --sparsity 0.5 --block 4 1 --allocation erk -o out.keras",
        "keras-pruner prune model.keras --nm 2:4 --filters conv dense --leave head -o out.keras",
    )
    command.add_argument("model", help="a .keras or .h5 file")
    command.add_argument(
        "-o", "--output", required=True, metavar="OUT.keras", help="the file to write"
    )
    command.add_argument(
        "--sparsity", type=_sparsity, help="the fraction of zeros, in [0, 1); not with --nm"
    )
    pattern = command.add_mutually_exclusive_group()
    pattern.add_argument(
        "--block",
        nargs=2,
        type=_positive,
        metavar=("H", "W"),
        help="zeros in blocks of H inputs by W outputs",
    )
    pattern.add_argument(
        "--nm",
        type=_nm,
        metavar="N:M",
        help="keep N weights of every M consecutive inputs, like 2:4",
    )
    pattern.add_argument("--channel", choices=_AXES, help="zeros in whole channels")
    command.add_argument(
        "--allocation",
        choices=["auto", *sorted(NAMED)],
        help="how the zeros are split over the layers; auto, with --calibration, tries several",
    )
    command.add_argument(
        "--calibration",
        metavar="SAMPLES.npz",
        help="a few hundred inputs without labels, named x: what is left is refitted to them",
    )
    command.add_argument(
        "--criterion",
        choices=list(_CRITERIA),
        default="magnitude",
        help="what decides which weights stay; default: %(default)s; others need --calibration",
    )
    command.add_argument(
        "--filters", nargs="+", metavar="REGEX", help="prune only layers whose path matches"
    )
    command.add_argument(
        "--leave", nargs="+", metavar="REGEX", help="leave weights alone whose path matches"
    )
    command.add_argument("--force", action="store_true", help="overwrite the output")
    _add_trust(command)


def _add_sensitivity(commands: Any) -> None:
    command = _command(
        commands,
        "sensitivity",
        _sensitivity,
        "Prune one weight at a time and see how far the outputs stay the same.",
        "keras-pruner sensitivity model.keras --calibration samples.npz",
        "keras-pruner sensitivity model.keras --calibration samples.npz --sparsities 0.6 0.9",
    )
    command.add_argument("model", help="a .keras or .h5 file")
    command.add_argument(
        "--calibration",
        required=True,
        metavar="SAMPLES.npz",
        help="a few hundred inputs without labels, named x",
    )
    command.add_argument(
        "--sparsities",
        nargs="+",
        type=_sparsity,
        default=[0.5, 0.8, 0.9],
        help="to try for each weight; default: %(default)s",
    )
    command.add_argument(
        "--filters", nargs="+", metavar="REGEX", help="look only at layers whose path matches"
    )
    _add_trust(command)


def _add_compare(commands: Any) -> None:
    command = _command(
        commands,
        "compare",
        _compare,
        "Compare a dense model file with a pruned one: zeros, bytes, accuracy.",
        "keras-pruner compare model.keras out.keras",
        "keras-pruner compare model.keras out.keras --data samples.npz --json",
    )
    command.add_argument("dense", help="the model before pruning")
    command.add_argument("pruned", help="the model after pruning")
    command.add_argument(
        "--data",
        metavar="SAMPLES.npz",
        help="arrays x and y to measure loss and metrics on, if a model is compiled",
    )
    _add_trust(command)


def _command(commands: Any, name: str, run: Any, purpose: str, *examples: str) -> Any:
    command = commands.add_parser(
        name,
        help=purpose,
        description=purpose,
        epilog="examples:\n" + "\n".join(f"  {example}" for example in examples),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.set_defaults(run=run)
    command.add_argument("--json", action="store_true", help="print JSON, for machines")
    return command


def _add_trust(command: Any) -> None:
    command.add_argument(
        "--trust", action="store_true", help="run Python code that the model file may hold"
    )


def _sparsity(text: str) -> float:
    try:
        check_sparsity("--sparsity", float(text))
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return float(text)


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, not {text!r}")
    return int(text)


def _nm(text: str) -> Pattern:
    kept, colon, of = text.partition(":")
    try:
        if not colon:
            raise ValueError("must be two numbers like 2:4")
        return NM(int(kept), int(of))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{error} (received {text!r})") from None


_AXES = {"outputs": -1, "inputs": -2}
_CRITERIA: dict[str, Any] = {"magnitude": magnitude, "wanda": wanda, "sparsegpt": "sparsegpt"}


def _pattern(arguments: argparse.Namespace) -> Pattern:
    if arguments.block:
        return Block(tuple(arguments.block))
    if arguments.channel:
        return Channel(_AXES[arguments.channel])
    return arguments.nm or Unstructured()
