"""TFMOT and this package side by side: the same training script, only the import differs.

    python benchmarks/compare_tfmot.py --tfmot-python .venv-tfmot/bin/python --what accuracy
    python benchmarks/compare_tfmot.py --what step update checkpoint --json figures.json

TFMOT (tensorflow-model-optimization 0.8.1 with tf-keras) needs an environment of its own: its
Python is given by --tfmot-python or TFMOT_PYTHON. Without one, only this package is measured.

accuracy    both sides continue from the same trained weights, with the same data in the same order;
            each result is written to --results at once, and a second run continues from there
allocation  accuracy of "lamp" and "erk" against "uniform" here, at the same overall sparsity
step        time of a training step, pruned / dense: 6 M weights, batch 64
update      time of one mask update of one weight matrix
checkpoint  bytes of a model with Adam, saved during the schedule
"""

import argparse
import gzip
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

BATCH = 64
DENSE_EPOCHS, PRUNED_EPOCHS = 4, 3
PACKAGED = Path(__file__).parent.parent / "src/keras_pruner/data/mnist_10k.npz"


def arguments():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    known = ["accuracy", "allocation", "step", "update", "checkpoint"]
    parser.add_argument("--what", nargs="+", default=["accuracy"], choices=known)
    parser.add_argument("--tfmot-python", default=os.environ.get("TFMOT_PYTHON"))
    parser.add_argument("--backend", default="tensorflow", help="of this package's side")
    parser.add_argument("--data", default="mnist", choices=["mnist", "fashion"])
    parser.add_argument("--fashion", metavar="DIR", help="with the four .gz files")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--samples", type=int, default=8000, help="to train with")
    parser.add_argument("--sparsity", nargs="+", type=float, default=[0.5, 0.8, 0.9, 0.95])
    parser.add_argument("--end", type=int, help="of the schedule; else two thirds of the steps")
    parser.add_argument("--results", default="compare_tfmot_results.json", help="of the accuracies")
    parser.add_argument("--weights", type=float, default=16e6, help="of the mask update")
    parser.add_argument("--blocks", type=int, default=10, help="turns of step and update")
    parser.add_argument("--steps", type=int, default=10, help="steps in a turn")
    parser.add_argument("--json", metavar="PATH", help="write the tables there")
    parser.add_argument("--side", choices=["here", "tfmot"], help=argparse.SUPPRESS)
    return parser.parse_args()


# ------------------------------------------------------------------ what both sides run


def libraries(side):
    """Keras and tfmot of a side."""
    if side == "tfmot":
        import tensorflow_model_optimization as tfmot
        import tf_keras as keras
    else:
        import keras

        import keras_pruner.tfmot as tfmot
    return keras, tfmot.sparsity.keras


def cnn(keras):
    """A small convolutional network, 20,000 weights."""
    layers = [
        keras.layers.Conv2D(12, 5, strides=2, activation="relu", input_shape=(28, 28, 1)),
        keras.layers.Conv2D(24, 5, strides=2, activation="relu"),
        keras.layers.Flatten(),
        keras.layers.Dense(32, activation="relu"),
        keras.layers.Dense(10, activation="softmax"),
    ]
    return keras.Sequential(layers)


def mlp(keras):
    """6 million weights."""
    sizes = [2048, 1536, 512]
    layers = [keras.layers.Dense(n, "relu") for n in sizes]
    return keras.Sequential([keras.layers.InputLayer((1024,)), *layers, keras.layers.Dense(10)])


def digits(options):
    """x, y to train with, and x, y to test."""
    if options.data == "mnist":
        with np.load(PACKAGED) as data:
            x, y = data["x"], data["y"]
        parts = x[:8000], y[:8000], x[8000:], y[8000:]
    else:
        folder = Path(options.fashion or Path.home() / ".keras/datasets/fashion-mnist")
        names = ["train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1"]
        raw = [gzip.decompress((folder / f"{name}-ubyte.gz").read_bytes()) for name in names]
        parts = [
            np.frombuffer(b, np.uint8, offset=16).reshape(-1, 28, 28)
            if i % 2 == 0
            else np.frombuffer(b, np.uint8, offset=8)
            for i, b in enumerate(raw)
        ]
    x, y, *test = parts
    n = options.samples
    scaled = [a[..., None].astype("float32") / 255 for a in (x[:n], test[0])]
    return scaled[0], y[:n].astype("int32"), scaled[1], test[1].astype("int32")


def in_order(seed, x, y, epochs):
    """All batches of a training, the same on both sides, as one epoch."""
    rng = np.random.default_rng(seed)
    whole = len(x) // BATCH * BATCH
    order = np.concatenate([rng.permutation(len(x))[:whole] for _ in range(epochs)])
    return x[order], y[order]


def start(keras, seed, data, results):
    """Trained weights to prune from; trained once, for both sides."""
    path = Path(results).with_suffix(f".{seed}.npz")
    model = cnn(keras)
    if path.exists():
        with np.load(path) as saved:
            model.set_weights([saved[f"arr_{i}"] for i in range(len(saved.files))])
        return model
    keras.utils.set_random_seed(seed)
    rng = np.random.default_rng(seed)
    fresh = []
    for w in model.get_weights():
        fan = int(np.prod(w.shape[:-1])) + int(np.prod(w.shape)) // int(np.prod(w.shape[:-2]) or 1)
        limit = np.sqrt(6 / max(1, fan))
        fresh.append(rng.uniform(-limit, limit, w.shape) if w.ndim > 1 else np.zeros(w.shape))
    model.set_weights(fresh)
    train(keras, model, 2e-3, *in_order(1000 + seed, *data[:2], DENSE_EPOCHS))
    np.savez(path, *model.get_weights())
    return model


def train(keras, model, rate, x, y, callbacks=()):
    model.compile(
        optimizer=keras.optimizers.Adam(rate), loss="sparse_categorical_crossentropy",
        metrics=["accuracy"],
    )  # fmt: skip
    model.fit(x, y, BATCH, epochs=1, shuffle=False, verbose=0, callbacks=list(callbacks))


def accuracy(options, keras, sparsity_api, sparsity, seed, data):
    """Prune a trained network while it trains on; accuracy on the test data, and sparsity."""
    model = start(keras, seed, data, options.results)
    x, y = in_order(2000 + seed, *data[:2], PRUNED_EPOCHS)
    schedule = sparsity_api.PolynomialDecay(0.0, sparsity, 10, end(options, x), frequency=10)
    model = sparsity_api.prune_low_magnitude(model, pruning_schedule=schedule)
    train(keras, model, 1e-3, x, y, [sparsity_api.UpdatePruningStep()])
    return finish(sparsity_api.strip_pruning(model), data)


def end(options, x):
    """The step of the last update, on the beat of both sides."""
    return options.end or len(x) // BATCH * 2 // 3 // 10 * 10


def finish(model, data):
    """The figures of a pruned model."""
    model.compile(loss="sparse_categorical_crossentropy", metrics=["accuracy"])
    kernels = [w for w in model.get_weights() if w.ndim > 1]
    zeros = 1 - sum(map(np.count_nonzero, kernels)) / sum(k.size for k in kernels)
    return {"accuracy": model.evaluate(*data[2:], verbose=0)[1], "sparsity": float(zeros)}


def step(options, keras, sparsity_api, xla):
    """Seconds of turns of a dense, a second dense and a pruned network."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(BATCH * options.steps, 1024)).astype("float32")
    y = rng.integers(0, 10, len(x))

    class Clock(keras.callbacks.Callback):
        """The seconds of the steps alone, with a hook on each side."""

        def on_train_batch_begin(self, batch, logs=None):
            if batch == 0:
                self.begun = time.perf_counter()

        def on_epoch_end(self, epoch, logs=None):
            self.seconds = time.perf_counter() - self.begun

    def side(pruned):
        model, clock = mlp(keras), Clock()
        callbacks = [clock]
        if pruned:
            schedule = sparsity_api.PolynomialDecay(0.1, 0.9, 1, 10**7, frequency=100)
            model = sparsity_api.prune_low_magnitude(model, pruning_schedule=schedule)
            callbacks.append(sparsity_api.UpdatePruningStep())
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(keras.optimizers.Adam(1e-4), loss=loss, jit_compile=xla)

        def turn():
            model.fit(x, y, BATCH, shuffle=False, verbose=0, callbacks=callbacks)
            return clock.seconds

        return turn

    turns = {"dense": side(False), "control": side(False), "pruned": side(True)}
    for turn in turns.values():
        turn()
    order = list(turns)
    seconds = {name: [] for name in turns}
    for block in range(options.blocks):
        for name in order[block % 3 :] + order[: block % 3]:
            seconds[name].append(turns[name]())
    return {name: [s / options.steps for s in times] for name, times in seconds.items()}


def update(options, side, keras):
    """Seconds of whole mask updates of one matrix, and of np.partition of it."""
    edge = int(options.weights**0.5)
    model = keras.Sequential(
        [keras.layers.InputLayer((edge,)), keras.layers.Dense(edge, None, False)]
    )
    weights = np.ravel(model.get_weights()[0])
    if side == "tfmot":
        import tensorflow as tf
        import tensorflow_model_optimization as tfmot

        api = tfmot.sparsity.keras
        layer = api.prune_low_magnitude(model, api.ConstantSparsity(0.8, 0, frequency=1)).layers[0]
        layer.pruning_step.assign(1)
        run = tf.function(lambda: layer.pruning_obj.conditional_mask_update())
        rounds = max(3, options.blocks // 4)
    else:
        import keras_pruner as kp

        schedule = kp.PolynomialDecay(
            0.81, initial_sparsity=0.79, end_step=10**6, frequency=1, power=1
        )
        pruner = kp.Pruner(model, schedule, allocation="uniform")
        pruner.wrap(keras.optimizers.SGD())

        def run():
            pruner.pruning.count()  # as a step does
            assert pruner.update()

        rounds = options.blocks
    run()
    seconds = {"update": [], "np.partition": []}
    for _ in range(rounds):
        for name, job in (("update", run), ("np.partition", lambda: np.partition(weights, 1000))):
            begun = time.perf_counter()
            job()
            seconds[name].append(time.perf_counter() - begun)
    return seconds


def checkpoint(options, keras, sparsity_api):
    """Bytes of the files of a dense and of a pruned model, both trained with Adam."""
    del options
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2 * BATCH, 1024)).astype("float32"), rng.integers(0, 10, 2 * BATCH)
    sizes = {}
    for name in ("dense", "pruned"):
        model, callbacks = mlp(keras), []
        if name == "pruned":
            schedule = sparsity_api.PolynomialDecay(0.5, 0.9, 1, 1000, frequency=1)
            model = sparsity_api.prune_low_magnitude(model, pruning_schedule=schedule)
            callbacks = [sparsity_api.UpdatePruningStep()]
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile("adam", loss=loss)
        import warnings

        with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model.fit(x, y, BATCH, verbose=0, callbacks=callbacks)
            path = Path(folder, "model.keras")
            model.save(path)
            sizes[name] = path.stat().st_size
    return sizes


# ------------------------------------------------------------------ one side, in a process


def measure(options):
    """Run what is asked for on one side; results on standard output or in the results file."""
    keras, api = libraries(options.side)
    if "accuracy" in options.what:
        data = digits(options)
        for seed, sparsity in itertools.product(range(options.seeds), options.sparsity):
            key = f"{options.data} {options.side} uniform {named(options, sparsity, seed)}"
            note(options, key, lambda: accuracy(options, keras, api, sparsity, seed, data))  # noqa: B023
    if "allocation" in options.what:
        data = digits(options)
        for seed, sparsity, name in itertools.product(
            range(options.seeds), options.sparsity, ["uniform", "erk", "lamp"]
        ):
            key = f"{options.data} native {name} {named(options, sparsity, seed)}"
            note(options, key, lambda: native(options, keras, name, sparsity, seed, data))  # noqa: B023
    out = {}
    if "step" in options.what:
        out["graph"] = step(options, keras, api, False)
        out["XLA"] = step(options, keras, api, True)
    if "update" in options.what:
        out["update"] = update(options, options.side, keras)
    if "checkpoint" in options.what:
        out["checkpoint"] = checkpoint(options, keras, api)
    print(json.dumps(out))


def native(options, keras, allocation, sparsity, seed, data):
    """The same training in this package's own words, with an allocation."""
    import keras_pruner as kp

    model = start(keras, seed, data, options.results)
    x, y = in_order(2000 + seed, *data[:2], PRUNED_EPOCHS)
    schedule = kp.PolynomialDecay(
        sparsity, initial_sparsity=0.0, begin_step=9, end_step=end(options, x) - 1, frequency=10
    )
    train(keras, model, 1e-3, x, y, [kp.GradualPruning(schedule, allocation=allocation)])
    return finish(model, data)


def named(options, sparsity, seed):
    """The end of a result's key."""
    return f"{sparsity} {seed}" + (f" end {options.end}" if options.end else "")


def note(options, key, job):
    """Do a job unless its result is in the file; write it there."""
    path = Path(options.results)
    done = json.loads(path.read_text()) if path.exists() else {}
    if key in done:
        return
    result = job()
    done = json.loads(path.read_text()) if path.exists() else {}
    done[key] = result
    path.with_suffix(".tmp").write_text(json.dumps(done, indent=0))
    os.replace(path.with_suffix(".tmp"), path)
    print(key, result, file=sys.stderr, flush=True)


# ------------------------------------------------------------------ both sides, and the tables


def run_side(options, side, what):
    """Measure in a process of its own; what it printed."""
    python = options.tfmot_python if side == "tfmot" else sys.executable
    command = [python, __file__, *sys.argv[1:], "--side", side, "--what", *what]
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
    if side == "here":
        environment["KERAS_BACKEND"] = options.backend
    out = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True, text=True)
    return json.loads(out.stdout.strip().splitlines()[-1])


def interval(differences):
    """Mean and 95 % interval of paired differences, by Student's t."""
    from scipy import stats  # JAX brings it along; the other side needs none

    mean, n = statistics.mean(differences), len(differences)
    if n < 4:
        return mean, float("nan"), float("nan")
    half = stats.t.ppf(0.975, n - 1) * statistics.stdev(differences) / n**0.5
    return mean, mean - half, mean + half


def accuracy_rows(options, ours, theirs):
    done = json.loads(Path(options.results).read_text())
    rows = []
    for sparsity in options.sparsity:
        seeds = range(options.seeds)
        keys = [f"{options.data} {{}} {named(options, sparsity, seed)}" for seed in seeds]
        pairs = [
            (done[k.format(ours)], done[k.format(theirs)])
            for k in keys
            if k.format(ours) in done and k.format(theirs) in done
        ]
        if not pairs:
            continue
        points = [100 * (a["accuracy"] - b["accuracy"]) for a, b in pairs]
        mean, low, high = interval(points)
        rows.append(
            {
                "data": options.data, "sparsity": sparsity, "seeds": len(pairs),
                ours: 100 * statistics.mean(a["accuracy"] for a, _ in pairs),
                theirs: 100 * statistics.mean(b["accuracy"] for _, b in pairs),
                "zeros": f"{pairs[0][0]['sparsity']:.4f} / {pairs[0][1]['sparsity']:.4f}",
                "difference, points": mean, "low": low, "high": high,
            }
        )  # fmt: skip
    return rows


def main():
    options = arguments()
    if options.side:
        measure(options)
        return
    from interleaved import ratio, show

    tables = []
    sides = ["here", *(["tfmot"] if options.tfmot_python else [])]
    if "accuracy" in options.what:
        for side in sides:
            run_side(options, side, ["accuracy"])
        if len(sides) == 2:
            rows = accuracy_rows(options, "here uniform", "tfmot uniform")
            tables.append(("accuracy here and under TFMOT, paired", rows))
    if "allocation" in options.what:
        run_side(options, "here", ["allocation"])
        for name in ("erk", "lamp"):
            rows = accuracy_rows(options, f"native {name}", "native uniform")
            tables.append((f"{name} against uniform, paired", rows))
    timed = [what for what in ("step", "update", "checkpoint") if what in options.what]
    if timed:
        figures = {side: run_side(options, side, timed) for side in sides}
        rows = []
        for side, figure in figures.items():
            for mode in ("graph", "XLA"):
                for name in ("control", "pruned"):
                    if mode in figure:
                        got = ratio(figure[mode][name], figure[mode]["dense"])
                        rows.append({"side": side, "what": f"step, {mode}", "of": name, **got})
            if "update" in figure:
                got = ratio(figure["update"]["update"], figure["update"]["np.partition"])
                rows.append({"side": side, "what": "update", "of": "np.partition", **got})
        if rows:
            tables.append(("time against the dense side, or np.partition", rows))
        if "checkpoint" in timed:
            rows = [
                {"side": side, **f["checkpoint"],
                 "pruned / dense": f["checkpoint"]["pruned"] / f["checkpoint"]["dense"]}
                for side, f in figures.items()
            ]  # fmt: skip
            tables.append(("bytes of a checkpoint with Adam", rows))
    for title, rows in tables:
        show(title, rows, None)
    if options.json:
        Path(options.json).write_text(json.dumps(tables, indent=1))


if __name__ == "__main__":
    main()
