"""TFMOT's tools as commands: `prune-for-benchmark`, `check-m-by-n` and `zipped-size`."""

import argparse
from typing import Any

from keras_pruner.cli.arguments import add_command, add_trust, positive, show, sparsity
from keras_pruner.reporting import tables
from keras_pruner.reporting.sparsity import summarize
from keras_pruner.storage import model_file
from keras_pruner.tfmot.benchmarking import check_m_by_n, prune_for_benchmark, zipped_sizes


def add_commands(commands: Any) -> None:
    """Add the commands to what `add_subparsers` returned."""
    _add_benchmark(commands)
    _add_check(commands)
    _add_zipped(commands)


def _benchmark(arguments: argparse.Namespace) -> None:
    model_file.check_output(arguments.output, overwrite=arguments.force)
    model = model_file.load(arguments.model, trust=arguments.trust)
    pruned = prune_for_benchmark(model, arguments.sparsity, arguments.block)
    model_file.save(pruned, arguments.output, overwrite=arguments.force)
    report = summarize(pruned)
    result = {"output": str(arguments.output), **report.as_dict()}
    show(arguments, result, f"{report}\n\nSaved as {arguments.output}.")


def _check(arguments: argparse.Namespace) -> None:
    model: Any = arguments.model
    if not model.endswith(".tflite"):
        model = model_file.load(model, trust=arguments.trust)
    check = check_m_by_n(model, tuple(arguments.m_by_n))
    show(arguments, {"passed": check.passed, "weights": check.weights}, str(check))
    m, n = check.m_by_n
    if not check.weights:
        raise ValueError(f"it has no kernel that could have {m} zeros in every {n}")
    if not check.passed:
        raise ValueError(f"not every weight has {m} zeros in every {n}")


def _zipped(arguments: argparse.Namespace) -> None:
    sizes = zipped_sizes(*arguments.files)
    first = sizes[0]["zipped"]
    rows = [(s["file"], s["bytes"], s["zipped"], f"{first / s['zipped']:.2f}x") for s in sizes]  # type: ignore[operator]
    text = tables.render("zipped size", ["file", "bytes", "zipped", "smaller"], rows)
    show(arguments, {"files": sizes}, text)


def _add_benchmark(commands: Any) -> None:
    command = add_command(
        commands,
        "prune-for-benchmark",
        _benchmark,
        "Prune every kernel of a model file to the same sparsity, for speed and size alone.",
        "keras-pruner prune-for-benchmark model.keras --sparsity 0.8 --block 4 1 -o out.keras",
    )
    command.add_argument("model", help="a .keras or .h5 file")
    command.add_argument("--sparsity", type=sparsity, required=True, help="the fraction of zeros")
    command.add_argument(
        "--block",
        nargs=2,
        type=positive,
        default=(1, 1),
        metavar=("H", "W"),
        help="zeros in blocks of H inputs by W outputs",
    )
    command.add_argument(
        "-o", "--output", required=True, metavar="OUT.keras", help="the file to write"
    )
    command.add_argument("--force", action="store_true", help="overwrite the output")
    add_trust(command)


def _add_check(commands: Any) -> None:
    command = add_command(
        commands,
        "check-m-by-n",
        _check,
        "Look for m zeros in every n inputs; exits with 1 if a weight has fewer.",
        "keras-pruner check-m-by-n model.tflite",
        "keras-pruner check-m-by-n model.keras --m-by-n 1 4",
    )
    command.add_argument("model", help="a .tflite, .keras or .h5 file")
    command.add_argument(
        "--m-by-n",
        nargs=2,
        type=positive,
        default=(2, 4),
        metavar=("M", "N"),
        help="M zeros in every N; default: 2 4",
    )
    add_trust(command)


def _add_zipped(commands: Any) -> None:
    command = add_command(
        commands,
        "zipped-size",
        _zipped,
        "Compare the sizes of files after gzip with the first one's.",
        "keras-pruner zipped-size dense.tflite pruned.tflite",
    )
    command.add_argument("files", nargs="+", metavar="FILE", help="any files")
