"""Points lost after a short training, by when the zeros come: at once, gradually, by default.

    KERAS_BACKEND=tensorflow python benchmarks/short_trainings.py --seeds 3 --json short.json

Small networks on the 8 x 8 digits of scikit-learn. All ways get the same dense network, the same
batches and learning rates. Every cell is kept in the JSON file and not measured again.
"""

import argparse
import json
import pathlib

import keras
import numpy as np
from keras import layers
from sklearn.datasets import load_digits

import keras_pruner as kp
from keras_pruner.reporting import tables

BATCH, DENSE_STEPS = 64, 425
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
WAYS = {  # the part of the training in which zeros come
    "at once": 0.0,
    "in the first quarter": 0.25,
    "in the first half": 0.5,
    "in three quarters": 0.75,
    "GradualPruning's default": None,
}


def schedule(way, sparsity, steps):
    """Of a final sparsity for so many steps of training."""
    part = WAYS[way]
    return sparsity if part is None else kp.PolynomialDecay(sparsity, end_step=int(part * steps))


def data():
    """Images to train on and to test on, with their labels."""
    x, y = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(x))
    x, y = (x.reshape(-1, 8, 8, 1) / 16).astype("float32")[order], y[order].astype("int32")
    return (x[:1100], y[:1100]), (x[1100:], y[1100:])


def normed(x, filters, strides=1, size=3, relu=True, momentum=0.9):
    x = layers.Conv2D(filters, size, strides, padding="same", use_bias=False)(x)
    x = layers.BatchNormalization(momentum=momentum)(x)
    return layers.ReLU()(x) if relu else x


def cnn(x, momentum=0.9):
    for filters, strides in ((24, 1), (32, 2), (48, 2)):
        x = normed(x, filters, strides, momentum=momentum)
    return layers.GlobalAveragePooling2D()(x)


def slow_norms(x):
    """The CNN with the momentum that Keras' batch norms have by default."""
    return cnn(x, momentum=0.99)


def mlp(x):
    x = layers.Flatten()(x)
    for width in (128, 64):
        x = layers.Dense(width, "relu")(x)
    return x


def lstm(x):
    return layers.LSTM(64)(layers.Reshape((8, 8))(x))


def resnet(x):
    x = normed(x, 16)
    for filters, strides in ((16, 1), (32, 2), (32, 1)):
        y = normed(normed(x, filters, strides), filters, relu=False)
        short = normed(x, filters, strides, 1, relu=False) if x.shape != y.shape else x
        x = layers.ReLU()(layers.Add()([short, y]))
    return layers.GlobalAveragePooling2D()(x)


NETWORKS = {"cnn": cnn, "slow norms": slow_norms, "mlp": mlp, "lstm": lstm, "resnet": resnet}


def fit(model, train, steps, rate, seed, callbacks=()):
    index = np.random.default_rng(seed).integers(0, len(train[0]), steps * BATCH)
    model.compile(keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(rate, steps)), LOSS)
    x, y = (part[index] for part in train)
    model.fit(x, y, batch_size=BATCH, shuffle=False, verbose=0, callbacks=list(callbacks))


def accuracy(model, test):
    outputs = model.predict(test[0], batch_size=len(test[0]), verbose=0)
    return 100 * float(np.mean(outputs.argmax(-1) == test[1]))


def cells(name, seed, args, done):
    """One for each way, sparsity and number of steps that is not done yet."""
    wanted = [(w, s, n) for s in args.sparsities for n in args.steps for w in args.ways]
    todo = [each for each in wanted if (name, seed, *each) not in done]
    if not todo:
        return
    train, test = data()
    keras.utils.set_random_seed(seed)
    inputs = keras.Input((8, 8, 1))
    model = keras.Model(inputs, layers.Dense(10)(NETWORKS[name](inputs)))
    fit(model, train, DENSE_STEPS, 3e-3, 100 + seed)
    weights, best = model.get_weights(), accuracy(model, test)
    for way, sparsity, steps in todo:
        model.set_weights(weights)
        pruning = kp.GradualPruning(schedule(way, sparsity, steps))
        fit(model, train, steps, 1e-3, seed, [pruning])
        yield {
            "network": name, "seed": seed, "way": way, "sparsity": sparsity, "steps": steps,
            "dense": best, "lost": best - accuracy(model, test),
        }  # fmt: skip


def table(name, sparsity, found):
    """Mean ± deviation of the points lost, one row for each way."""
    rows = [c for c in found if (c["network"], c["sparsity"]) == (name, sparsity)]
    steps = sorted({c["steps"] for c in rows})
    lines = []
    for way in WAYS:
        line = [way]
        for n in steps:
            lost = [c["lost"] for c in rows if (c["way"], c["steps"]) == (way, n)]
            line.append(f"{np.mean(lost):.1f} ± {np.std(lost):.1f}" if lost else "")
        lines.append(line)
    best, seeds = np.mean([c["dense"] for c in rows]), len({c["seed"] for c in rows})
    title = f"{name}, {sparsity:g} zeros: points lost (dense {best:.1f} %, {seeds} seeds)"
    return tables.render(title, ["steps", *(f">{n}" for n in steps)], lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=NETWORKS)
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=WAYS)
    parser.add_argument("--sparsities", nargs="+", type=float, default=[0.9, 0.95])
    parser.add_argument("--steps", nargs="+", type=int, default=[30, 100, 300, 1000])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--json", type=pathlib.Path, required=True, help="keeps every cell")
    args = parser.parse_args()
    everything = json.loads(args.json.read_text()) if args.json.exists() else []
    keys = ("network", "seed", "way", "sparsity", "steps")
    for seed in range(args.seeds):
        for name in args.networks:
            done = {tuple(cell[key] for key in keys) for cell in everything}
            for cell in cells(name, seed, args, done):
                everything.append(cell)
                args.json.write_text(json.dumps(everything, indent=1))
    for name in args.networks:
        for sparsity in args.sparsities:
            print(table(name, sparsity, everything))


if __name__ == "__main__":
    main()
