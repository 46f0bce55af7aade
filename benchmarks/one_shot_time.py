"""CPU time and memory of a calibrated `prune`, on networks of about 60 k, 1 M and 10 M weights.

    python benchmarks/one_shot_time.py --before ../keras-pruner-before

Each run is a new process on one thread, as a user meets it: on JAX it compiles. The weights are
random; 512 samples of 28 x 28 pixels. With --before, a checkout of another state runs in turns.
"""

import argparse
import itertools
import json
import os
import pathlib
import statistics
import subprocess
import sys

from keras_pruner.reporting import tables

HERE = pathlib.Path(__file__).resolve().parent
SIZES = ("60k", "1M", "10M")

JOB = """
import json, resource, sys, time
sys.path.insert(0, {benchmarks!r})
import keras, numpy as np, one_shot, keras_pruner as kp

def convolutions(shape):
    x = inputs = keras.Input(shape)
    for filters, strides in ((64, 1), (128, 2), (192, 2), (256, 1), (128, 1)):
        x = one_shot.normed(x, filters, strides=strides)
    return one_shot.head(inputs, x)

def stack(shape):
    x = inputs = keras.Input(shape)
    x = keras.layers.Flatten()(x)
    for width in (2500, 2500, 768):
        x = keras.layers.Dense(width, activation="relu")(x)
    return keras.Model(inputs, keras.layers.Dense(10)(x))

peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
keras.utils.set_random_seed(0)
x = np.random.default_rng(0).normal(size=(512, 28, 28, 1)).astype("float32")
build = {{"60k": one_shot.mobilenet, "1M": convolutions, "10M": stack}}[{size!r}]
model = build(x.shape[1:])
before, start = peak(), time.process_time()
kp.prune(model, 0.8, calibration=kp.oneshot.Calibration(x, progress=False))
print(json.dumps([time.process_time() - start, peak() - before, model.count_params()]))
"""


def prune(backend: str, size: str, tree: pathlib.Path) -> list[float]:
    """CPU seconds and megabytes that a new process needs for `prune`, and the model's weights."""
    environment = {**os.environ, "KERAS_BACKEND": backend, "PYTHONPATH": str(tree / "src")}
    environment |= {"OMP_NUM_THREADS": "1", "TF_CPP_MIN_LOG_LEVEL": "3"}
    job = JOB.format(benchmarks=str(HERE), size=size)
    command = [sys.executable, "-c", job]
    told = subprocess.run(command, env=environment, check=True, text=True, capture_output=True)
    return json.loads(told.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--backends", nargs="+", default=["torch", "tensorflow", "jax"])
    parser.add_argument("--sizes", nargs="+", default=SIZES, choices=SIZES)
    parser.add_argument("--before", type=pathlib.Path, help="a checkout to compare with")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    trees = {"now": HERE.parent}
    if options.before:
        trees["before"] = options.before.resolve()
    cells = list(itertools.product(options.sizes, options.backends, trees))
    found: dict[tuple[str, str, str], list[list[float]]] = {cell: [] for cell in cells}
    for _, cell in itertools.product(range(options.rounds), cells):
        size, backend, tree = cell
        found[cell].append(prune(backend, size, trees[tree]))
        print(*cell, found[cell][-1], file=sys.stderr)
    columns = ["weights", "backend", "state", "CPU seconds", "over the first backend", "MB"]
    rows = []
    for (size, backend, tree), runs in found.items():
        seconds, megabytes, weights = (statistics.median(run[i] for run in runs) for i in range(3))
        first = statistics.median(run[0] for run in found[size, options.backends[0], tree])
        row = [f"{weights:,.0f}", backend, tree, f"{seconds:.1f}", f"{seconds / first:.2f}"]
        rows.append([*row, f"{megabytes:.0f}"])
    print(tables.render("prune(model, 0.8, calibration=512 samples)", columns, rows, width=100))


if __name__ == "__main__":
    main()
