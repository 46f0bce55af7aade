"""TFMOT's tools as commands: `prune-for-benchmark`, `check-m-by-n` and `zipped-size`."""

import argparse
from collections.abc import Callable
from typing import Any

from keras_pruner import files, tables
from keras_pruner.benchmarking import check_m_by_n, prune_for_benchmark, zipped_sizes
from keras_pruner.report import summarize

Show = Callable[[argparse.Namespace, dict[str, Any], str], None]
Add = Callable[..., Any]


def add(commands: Any, command: Add, show: Show) -> None:
    """Add the commands to a parser's.

    Args:
        commands: what `add_subparsers` returned.
        command: makes one: (commands, name, run, purpose, *examples).
        show: prints a result as text or as JSON.
    """

    def _benchmark(arguments: argparse.Namespace) -> None:
        files.check_output(arguments.output, overwrite=arguments.force)
        model = files.load(arguments.model, trust=arguments.trust)
        pruned = prune_for_benchmark(model, arguments.sparsity, arguments.block)
        files.save(pruned, arguments.output, overwrite=arguments.force)
        report = summarize(pruned)
        result = {"output": str(arguments.output), **report.as_dict()}
        show(arguments, result, f"{report}\n\nSaved as {arguments.output}.")

    def _check(arguments: argparse.Namespace) -> None:
        model: Any = arguments.model
        if not model.endswith(".tflite"):
            model = files.load(model, trust=arguments.trust)
        check = check_m_by_n(model, tuple(arguments.m_by_n))
        show(arguments, {"passed": check.passed, "weights": check.weights}, str(check))
        if not check.passed:
            m, n = check.m_by_n
            raise ValueError(f"not every weight has {m} zeros in every {n}")

    def _zipped(arguments: argparse.Namespace) -> None:
        sizes = zipped_sizes(*arguments.files)
        first = sizes[0]["zipped"]
        rows = [(s["file"], s["bytes"], s["zipped"], f"{first / s['zipped']:.2f}x") for s in sizes]  # type: ignore[operator]
        text = tables.render("zipped size", ["file", "bytes", "zipped", "smaller"], rows)
        show(arguments, {"files": sizes}, text)

    one = command(
        commands,
        "prune-for-benchmark",
        _benchmark,
        "Prune every kernel of a model file to the same sparsity, for speed and size alone.",
        "keras-pruner prune-for-benchmark model.keras --sparsity 0.8 --block 4 1 -o out.keras",
    )
    one.add_argument("model", help="a .keras or .h5 file")
    one.add_argument("--sparsity", type=float, required=True, help="the fraction of zeros")
    one.add_argument("--block", nargs=2, type=int, default=(1, 1), metavar=("HEIGHT", "WIDTH"))
    one.add_argument("-o", "--output", required=True, metavar="OUT.keras")
    one.add_argument("--force", action="store_true", help="overwrite the output")
    one.add_argument("--trust", action="store_true", help="run Python code that the file may hold")
    two = command(
        commands,
        "check-m-by-n",
        _check,
        "Look for m zeros in every n inputs; exits with 1 if a weight has fewer.",
        "keras-pruner check-m-by-n model.tflite",
        "keras-pruner check-m-by-n model.keras --m-by-n 1 4",
    )
    two.add_argument("model", help="a .tflite, .keras or .h5 file")
    two.add_argument("--m-by-n", nargs=2, type=int, default=(2, 4), metavar=("M", "N"))
    two.add_argument("--trust", action="store_true", help="run Python code that the file may hold")
    three = command(
        commands,
        "zipped-size",
        _zipped,
        "Compare the sizes of files after gzip with the first one's.",
        "keras-pruner zipped-size dense.tflite pruned.tflite",
    )
    three.add_argument("files", nargs="+", metavar="FILE")
