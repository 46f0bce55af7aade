"""The command line; here are `demo`, `inspect`, `prune` and `sensitivity`.

Exit codes: 0 it worked, 1 it failed (with one line on standard error), 2 wrong usage.
"""

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from typing import Any

from keras_pruner import __version__
from keras_pruner.allocations import NAMED
from keras_pruner.cli import demo, shipping, tool_commands
from keras_pruner.cli.arguments import (
    add_command,
    add_pattern,
    add_trust,
    pattern_of,
    positive,
    show,
    sparsity,
)
from keras_pruner.criteria import magnitude, wanda
from keras_pruner.oneshot.prune import prune
from keras_pruner.oneshot.search import sensitivity
from keras_pruner.reporting.sparsity import summarize
from keras_pruner.storage import model_file
from keras_pruner.validation import one_line


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; `argv` is the command line without the program's name."""
    arguments = _parser().parse_args(argv)
    try:
        arguments.run(arguments)
    except (model_file.FileError, ValueError, ImportError, OSError) as error:
        print(f"keras-pruner: {one_line(error, longest=2000)}", file=sys.stderr)
        return 1
    except RuntimeError as error:  # of a converter or a runtime, whose own words follow
        print(f"keras-pruner: {error}", file=sys.stderr)
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
    show(
        arguments,
        result.as_dict(),
        f"{result.comparison}\n\n"
        f"Both were trained for {2 * each} epochs; for the pruned one the first {each} were dense, "
        f"to an accuracy\nof {result.accuracy_before:.4f}. "
        f"It took {result.seconds:.0f} s. More in {result.report}",
    )


def _inspect(arguments: argparse.Namespace) -> None:
    report = summarize(model_file.load(arguments.model, trust=arguments.trust))
    show(arguments, report.as_dict(), str(report))


def _prune(arguments: argparse.Namespace) -> None:
    _check_prune(arguments)
    model_file.check_output(arguments.output, overwrite=arguments.force)
    model = model_file.load(arguments.model, trust=arguments.trust)
    done = prune(
        model,
        arguments.sparsity,
        pattern=pattern_of(arguments),
        allocation=arguments.allocation,
        criterion=_CRITERIA.get(arguments.criterion),
        filters=arguments.filters,
        overrides=dict.fromkeys(arguments.leave) if arguments.leave else None,
        calibration=model_file.samples(arguments.calibration, model)
        if arguments.calibration
        else None,
        samples=arguments.samples,
        distillation_epochs=arguments.distillation_epochs,
    )
    report = summarize(model)
    model_file.save(model, arguments.output, overwrite=arguments.force)
    what = done.as_dict()
    result = {"output": str(arguments.output), **report.as_dict(), "skipped": what["skipped"]}
    text = str(report)
    if arguments.calibration:
        result["oneshot"] = what
        text = f"{done}\n\n{report}"
    show(
        arguments,
        result,
        f"{text}\n\nSaved the model as {arguments.output}, without what only training needs "
        "(optimizer, loss).",
    )


def _check_prune(arguments: argparse.Namespace) -> None:
    """Exit as for wrong usage if the options do not go together."""
    given, nm = arguments.sparsity, arguments.nm
    if given is None and nm is None:
        arguments.misused("give --sparsity, the fraction of zeros (or --nm)")
    if given is not None and nm is not None and not nm.is_own(given):
        own = nm.own_sparsity
        arguments.misused(
            f"--nm has a sparsity of its own, {own:g}: leave out --sparsity {given:g}"
        )
    needs_samples = {
        "--allocation auto": arguments.allocation == "auto",
        f"--criterion {arguments.criterion}": arguments.criterion not in (None, "magnitude"),
        "--samples": arguments.samples is not None,
        "--distillation-epochs": arguments.distillation_epochs > 0,
    }
    for option, chosen in needs_samples.items():
        if chosen and not arguments.calibration:
            arguments.misused(f"{option} needs --calibration SAMPLES.npz")


def _sensitivity(arguments: argparse.Namespace) -> None:
    model = model_file.load(arguments.model, trust=arguments.trust)
    found = sensitivity(
        model,
        model_file.samples(arguments.calibration, model),
        sparsities=arguments.sparsities,
        filters=arguments.filters,
    )
    show(arguments, dataclasses.asdict(found), str(found))


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
    shipping.add_commands(commands)
    tool_commands.add_commands(commands)
    return parser


def _add_demo(commands: Any) -> None:
    command = add_command(
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
    command.add_argument("--sparsity", type=sparsity, default=0.8, help="default: %(default)s")
    command.add_argument(
        "--epochs",
        type=positive,
        default=4,
        help="of dense training, and again of pruning; default: %(default)s",
    )
    command.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    command.add_argument(
        "--samples",
        type=positive,
        default=demo.TRAIN_SAMPLES,
        help="digits to train with; default: all %(default)s",
    )


def _add_inspect(commands: Any) -> None:
    command = add_command(
        commands,
        "inspect",
        _inspect,
        "Count the zeros in a model file, weight by weight.",
        "keras-pruner inspect model.keras",
        "keras-pruner inspect model.keras --json",
    )
    command.add_argument("model", help="a .keras or .h5 file")
    add_trust(command)


def _add_prune(commands: Any) -> None:
    command = add_command(
        commands,
        "prune",
        _prune,
        "Prune a model file at once, without training.",
        "keras-pruner prune model.keras --sparsity 0.8 -o out.keras",
        "keras-pruner prune model.keras --sparsity 0.8 --calibration samples.npz -o out.keras",
        "keras-pruner prune model.keras --sparsity 0.8 --calibration samples.npz --samples 4096 "
        "--distillation-epochs 15 -o out.keras",
        "keras-pruner prune model.keras --sparsity 0.5 --block 4 1 --allocation erk -o out.keras",
        "keras-pruner prune model.keras --nm 2:4 --filters conv dense --leave head -o out.keras",
    )
    command.add_argument("model", help="a .keras or .h5 file")
    command.add_argument(
        "-o", "--output", required=True, metavar="OUT.keras", help="the file to write"
    )
    command.add_argument(
        "--sparsity", type=sparsity, help="the fraction of zeros, in [0, 1); not with --nm"
    )
    add_pattern(command)
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
    command.add_argument("--samples", type=positive, help="the most of them to use; default: 1024")
    command.add_argument(
        "--distillation-epochs",
        type=positive,
        default=0,
        metavar="N",
        help="train what is left for N epochs over the samples to give the model's outputs again; "
        "with a few thousand samples, and as many --samples, 15 is a good number",
    )
    command.add_argument(
        "--criterion",
        choices=list(_CRITERIA),
        help="what decides which weights stay; default: refit with --calibration, without it "
        "magnitude; all but magnitude need --calibration",
    )
    command.add_argument(
        "--filters", nargs="+", metavar="REGEX", help="prune only layers whose path matches"
    )
    command.add_argument(
        "--leave", nargs="+", metavar="REGEX", help="leave weights alone whose path matches"
    )
    command.add_argument("--force", action="store_true", help="overwrite the output")
    add_trust(command)


def _add_sensitivity(commands: Any) -> None:
    command = add_command(
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
        type=sparsity,
        default=[0.5, 0.8, 0.9],
        help="to try for each weight; default: %(default)s",
    )
    command.add_argument(
        "--filters", nargs="+", metavar="REGEX", help="look only at layers whose path matches"
    )
    add_trust(command)


_CRITERIA: dict[str, Any] = {
    "magnitude": magnitude,
    "refit": "refit",
    "wanda": wanda,
    "sparsegpt": "sparsegpt",
}
