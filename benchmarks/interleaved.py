"""Compare variants on a noisy machine: measured alternately, as ratios, with an interval."""

import argparse
import json
import platform
import random
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from allocator import keep_memory

from keras_pruner.reporting import tables


def compare(
    variants: dict[str, Callable[[], object]], blocks: int, report: bool = True
) -> dict[str, list[float]]:
    """Run every variant once per block, in random order; return the seconds of each block.

    A variant may return its own seconds, if only a part of its work counts.
    """
    order, shuffle = list(variants), random.Random(0).shuffle
    for name in order:
        variants[name]()  # compile, allocate, warm the caches
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for block in range(blocks):
        shuffle(order)
        for name in order:
            start = time.perf_counter()
            own = variants[name]()
            took = time.perf_counter() - start
            seconds[name].append(own if isinstance(own, float) else took)
        if report:
            print(f"\rblock {block + 1} of {blocks}", end="", file=sys.stderr, flush=True)
    if report:
        print("\r" + " " * 24 + "\r", end="", file=sys.stderr)
    return seconds


def ratio(seconds: list[float], against: list[float]) -> dict[str, float]:
    """Median of the blocks' ratios, its 95 % bootstrap interval, and the ratio of totals."""
    ratios = np.divide(seconds, against)
    draws = np.random.default_rng(0).choice(ratios, (2000, len(ratios)))
    low, high = np.percentile(np.median(draws, 1), [2.5, 97.5])
    return {
        "median": float(np.median(ratios)),
        "low": float(low),
        "high": float(high),
        "total": sum(seconds) / sum(against),
        "milliseconds": 1e3 * statistics.median(seconds),
    }


def show_steps(
    text: str,
    variants: Callable[[argparse.Namespace], dict[str, Callable[[], object]]],
    **flags: str,
) -> None:
    """The command line of a script that compares training steps with the one named "dense".

    `variants` is called after the command line is read and the allocator is set up. Flags are
    given with their help texts.
    """
    parser = argparse.ArgumentParser(
        description=text, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--blocks", type=int, default=30)
    parser.add_argument("--json", metavar="PATH")
    for flag, meaning in flags.items():
        parser.add_argument(f"--{flag}", action="store_true", help=meaning)
    options = parser.parse_args()
    keep_memory()
    seconds = compare(variants(options), options.blocks)
    dense = seconds.pop("dense")
    rows = [{"zeros by": name, **ratio(each, dense)} for name, each in seconds.items()]
    show("a step, against dense", rows, options.json)


def show(title: str, rows: list[dict[str, object]], path: str | None) -> None:
    """Print the rows as a table; write them as JSON if a path is given."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    cells = [[_cell(row.get(column, "")) for column in columns] for row in rows]
    print(tables.render(title, columns, cells, width=160))
    if path:
        machine = {"python": platform.python_version(), "machine": platform.machine()}
        Path(path).write_text(json.dumps({"title": title, "rows": rows, **machine}, indent=1))


def _cell(value: object) -> str:
    return f"{value:.3f}" if isinstance(value, float) else str(value)
