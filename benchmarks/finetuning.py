"""Prune, then train a little: at once with a refit, at once by the mask alone, or gradually.

    python benchmarks/finetuning.py --networks mlp --seeds 3 --json finetuning.json --plot out.png

All three get the same dense network, the same number of steps on the same batches and the same
learning rates. With --json a run that was cut short goes on where it stopped.
"""

import argparse
import json
import pathlib
import time

import keras
import numpy as np
import one_shot

import keras_pruner as kp
from keras_pruner.reporting import tables

BATCH = 64
METHODS = ("refit, then train", "mask, then train", "gradual")
PATTERNS = {"any": kp.Unstructured(), "block": kp.Block((4, 1))}


class Batches(keras.utils.PyDataset):
    """As many batches as there are steps, the same for every method."""

    def __init__(self, x, y, steps, seed):
        super().__init__()
        self.x, self.y, self.steps = x, y, steps
        self.index = np.random.default_rng(seed).integers(0, len(x), (steps, BATCH))

    def __len__(self):
        return self.steps

    def __getitem__(self, step):
        index = self.index[step]
        return self.x[index], self.y[index]


def trained(model, method, sparsity, steps, train, args, seed):
    """Prune the model and train it for so many steps."""
    options = {"pattern": PATTERNS[args.pattern], "allocation": "lamp"}
    callbacks = [kp.GradualPruning(sparsity, **options)]
    if method != "gradual":
        chosen = np.random.default_rng(seed).permutation(len(train[0]))[: args.samples]
        calibration = None
        if method.startswith("refit"):
            calibration = kp.oneshot.Calibration(train[0][chosen], progress=False)
        kp.prune(model, sparsity, calibration=calibration, **options)
        callbacks = [kp.KeepZeros()]
    if not steps:
        return
    rate = keras.optimizers.schedules.CosineDecay(args.learning_rate, steps)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(rate), loss=loss)
    model.fit(Batches(*train, steps, seed), epochs=1, shuffle=False, verbose=0, callbacks=callbacks)


def cells(name, seed, args, done):
    """One for each method, sparsity and number of steps that is not done yet."""
    ways = [(m, n) for n in args.steps for m in METHODS if n or m != "gradual"]
    wanted = [(m, s, n) for s in args.sparsities for m, n in ways]
    todo = [w for w in wanted if (name, args.pattern, seed, *w) not in done]
    if not todo:
        return
    model, train, test = one_shot.dense(name, seed, args)
    test = tuple(part[: args.test_rows] for part in test)
    weights, best = model.get_weights(), one_shot.accuracy(model, test)
    for method, sparsity, steps in todo:
        model.set_weights(weights)
        began = time.perf_counter()
        keras.utils.set_random_seed(seed)
        trained(model, method, sparsity, steps, train, args, seed)
        yield {
            "network": name,
            "pattern": args.pattern,
            "seed": seed,
            "method": method,
            "sparsity": sparsity,
            "steps": steps,
            "lost": best - one_shot.accuracy(model, test),
            "seconds": time.perf_counter() - began,
        }


def of_pattern(everything, args):
    """The cells to show."""
    return [cell for cell in everything if cell["pattern"] == args.pattern]


def points(rows, **wanted):
    """Points lost, one for each seed."""
    return [row["lost"] for row in rows if all(row[k] == v for k, v in wanted.items())]


def table(name, sparsity, rows):
    """Mean ± deviation of the points lost, one row for each method."""
    rows = [row for row in rows if (row["network"], row["sparsity"]) == (name, sparsity)]
    steps = sorted({row["steps"] for row in rows})
    lines = []
    for method in METHODS:
        found = [points(rows, method=method, steps=n) for n in steps]
        lines.append((method, *(f"{np.mean(p):.1f} ± {np.std(p):.1f}" if p else "" for p in found)))
    title = f"{name}: accuracy points lost at {sparsity:g} after so many steps"
    return tables.render(title, ["method", *(f">{n}" for n in steps)], lines)


def plot(everything, path):
    """Points lost against steps, a line for each method, a panel for each case."""
    from matplotlib.figure import Figure

    cases = sorted({(row["network"], row["sparsity"]) for row in everything}, reverse=True)
    figure = Figure(figsize=(4 * len(cases), 3.4), layout="constrained")
    panels = figure.subplots(1, len(cases), squeeze=False)[0]
    for (name, sparsity), axes in zip(cases, panels, strict=True):
        for method in METHODS:
            rows = [
                row
                for row in everything
                if (row["network"], row["sparsity"], row["method"]) == (name, sparsity, method)
                and row["steps"]
            ]
            steps = sorted({row["steps"] for row in rows})
            axes.plot(steps, [np.mean(points(rows, steps=n)) for n in steps], "o-", label=method)
        axes.set(title=f"{name}, {sparsity:g} zeros", xlabel="steps", xscale="log")
        axes.grid(alpha=0.25)
    panels[0].set_ylabel("accuracy points lost")
    panels[0].legend(fontsize="small")
    figure.savefig(path, dpi=110)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs="+", default=["mlp", "cnn"], choices=one_shot.NETWORKS)
    parser.add_argument("--sparsities", nargs="+", type=float, default=[0.9, 0.95])
    parser.add_argument("--pattern", default="any", choices=PATTERNS, help="zeros allowed")
    parser.add_argument("--steps", nargs="+", type=int, default=[0, 30, 100, 300, 1000, 3000])
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--samples", type=int, default=512, help="calibration samples")
    parser.add_argument("--rows", type=int, default=60000, help="training samples at most")
    parser.add_argument("--test-rows", type=int, default=10000, help="test samples at most")
    parser.add_argument("--speech", type=pathlib.Path, help="fsdd.npz, for ds_cnn")
    parser.add_argument("--cache", type=pathlib.Path, default=one_shot.HERE / ".cache")
    parser.add_argument("--plot", type=pathlib.Path, help="draw points lost into this image")
    parser.add_argument("--json", type=pathlib.Path, help="keeps every cell for the next run")
    args = parser.parse_args()
    kept = args.json and args.json.exists()
    everything = json.loads(args.json.read_text()) if kept else []
    keys = ("network", "pattern", "seed", "method", "sparsity", "steps")
    for name in args.networks:
        for seed in range(args.seeds):
            done = {tuple(cell[key] for key in keys) for cell in everything}
            for cell in cells(name, seed, args, done):
                everything.append(cell)
                if args.json:
                    args.json.write_text(json.dumps(everything, indent=1))
        for sparsity in args.sparsities:
            print(table(name, sparsity, of_pattern(everything, args)), flush=True)
    if args.plot:
        plot(of_pattern(everything, args), args.plot)


if __name__ == "__main__":
    main()
