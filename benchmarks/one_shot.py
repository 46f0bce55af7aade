"""Accuracy points lost by pruning at once, per method and sparsity, on small real networks.

    python benchmarks/one_shot.py --networks mlp cnn --seeds 5 --json one_shot.json

With --json a run that was cut short goes on where it stopped.

Fashion-MNIST is taken from Keras' cache if it is there, else the 10,000 MNIST digits that come
with the package. Spoken digits are the Free Spoken Digit Dataset as one .npz.
The dense networks are trained once and kept in --cache.
"""

import argparse
import hashlib
import json
import os
import pathlib
import time

import keras
import numpy as np
import sparsegpt
from keras import layers

import keras_pruner as kp
from keras_pruner.reporting import tables

HERE = pathlib.Path(__file__).resolve().parent


# ---------------------------------------------------------------------- data


def images(rows, _path):
    """Fashion-MNIST, or MNIST: (x, y) to train on and (x, y) to test on, and which it is."""
    found = (
        pathlib.Path(os.environ.get("KERAS_HOME", "~/.keras")).expanduser()
        / "datasets"
        / "fashion-mnist"
    )
    if found.exists():
        train, test = keras.datasets.fashion_mnist.load_data()
        train = train[0][:rows], train[1][:rows]
        name = "Fashion-MNIST"
    else:
        with np.load(pathlib.Path(kp.__file__).parent / "data" / "mnist_10k.npz") as file:
            x, y = file["x"], file["y"]
        train, test = (x[:8000], y[:8000]), (x[8000:], y[8000:])
        name = "MNIST"
    return *((x[..., None].astype("float32") / 255, y) for x, y in (train, test)), name


def speech(_rows, path):
    """Spoken digits as log spectrograms (48 frames, 40 bands); index < 5 is the test split."""
    with np.load(path) as file:
        x, y, index = file["x"].astype("float32") / 2**15, file["y"], file["index"]
    starts = np.arange(0, x.shape[1] - 256, 160)
    frames = x[:, starts[:, None] + np.arange(256)] * np.hanning(256).astype("float32")
    power = np.abs(np.fft.rfft(frames))[..., 1:121] ** 2
    bands = np.log(power.reshape(*power.shape[:2], 40, 3).mean(-1) + 1e-4)[..., None]
    test = index < 5
    mean, scale = bands[~test].mean(), bands[~test].std()
    bands = ((bands - mean) / scale).astype("float32")
    return (bands[~test], y[~test]), (bands[test], y[test]), "spoken digits"


# ---------------------------------------------------------------------- networks


def normed(x, filters, size=3, strides=1, relu=True):
    x = layers.Conv2D(filters, size, strides, padding="same", use_bias=False)(x)
    x = layers.BatchNormalization(momentum=0.9)(x)
    return layers.ReLU()(x) if relu else x


def depthwise(x, strides=1):
    x = layers.DepthwiseConv2D(3, strides, padding="same", use_bias=False)(x)
    return layers.ReLU()(layers.BatchNormalization(momentum=0.9)(x))


def head(inputs, x, outputs=10):
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, layers.Dense(outputs)(x))


def mlp(shape):
    x = inputs = keras.Input(shape)
    x = layers.Flatten()(x)
    for width in (512, 256):
        x = layers.Dense(width, activation="relu")(x)
    return keras.Model(inputs, layers.Dense(10)(x))


def cnn(shape):
    x = inputs = keras.Input(shape)
    for filters, strides in ((32, 1), (48, 2), (96, 2), (80, 1)):
        x = normed(x, filters, strides=strides)
    return head(inputs, x)


def ds_cnn(shape, filters=64, strides=((2, 2), 1, 1, 1, 1)):
    """DS-CNN-S of Zhang et al. 2017 (arXiv:1711.07128)."""
    x = inputs = keras.Input(shape)
    x = normed(x, filters, (10, 4), strides[0])
    for stride in strides[1:]:
        x = normed(depthwise(x, stride), filters, 1)
    return head(inputs, x)


def ds_cnn_m(shape):
    """DS-CNN-M of the same."""
    return ds_cnn(shape, 172, ((2, 1), 2, 1, 1, 1))


def resnet(shape):
    """ResNet-20 with half the filters."""
    x = inputs = keras.Input(shape)
    x = normed(x, 8)
    for filters in (8, 16, 32):
        for block in range(3):
            strides = 2 if block == 0 and filters > 8 else 1
            y = normed(normed(x, filters, strides=strides), filters, relu=False)
            short = normed(x, filters, 1, strides, relu=False) if strides > 1 else x
            x = layers.ReLU()(layers.Add()([y, short]))
    return head(inputs, x)


def mobilenet(shape):
    """Inverted residuals, as in MobileNetV2."""
    x = inputs = keras.Input(shape)
    x = normed(x, 16, strides=2)
    for filters, strides in ((16, 1), (24, 2), (24, 1), (32, 2), (32, 1), (32, 1)):
        y = depthwise(normed(x, 4 * x.shape[-1], 1), strides)
        y = normed(y, filters, 1, relu=False)
        x = layers.Add()([x, y]) if x.shape == y.shape else y
    return head(inputs, normed(x, 96, 1))


@keras.saving.register_keras_serializable("one_shot")
class Places(layers.Layer):
    """Adds a learned vector to each step."""

    def build(self, shape):
        self.places = self.add_weight(shape=shape[1:], initializer="uniform", name="places")

    def call(self, x):
        return x + self.places


def transformer(shape):
    """Four blocks over the rows of the image."""
    x = inputs = keras.Input(shape)
    x = layers.Reshape(shape[:2])(x)
    x = layers.Dense(64)(x)
    x = Places()(x)
    for _ in range(4):
        y = layers.LayerNormalization()(x)
        x = x + layers.MultiHeadAttention(4, 16)(y, y)
        y = layers.LayerNormalization()(x)
        x = x + layers.Dense(64)(layers.Dense(128, activation="gelu")(y))
    x = layers.GlobalAveragePooling1D()(layers.LayerNormalization()(x))
    return keras.Model(inputs, layers.Dense(10)(x))


def lstm(shape):
    x = inputs = keras.Input(shape)
    x = layers.LSTM(128)(layers.Reshape(shape[:2])(x))
    return keras.Model(inputs, layers.Dense(10)(x))


NETWORKS = {  # the network, its data, epochs of training
    "mlp": (mlp, images, 6),
    "cnn": (cnn, images, 4),
    "ds_cnn": (ds_cnn, speech, 12),
    "ds_cnn_m": (ds_cnn_m, speech, 12),
    "resnet": (resnet, images, 4),
    "mobilenet": (mobilenet, images, 4),
    "transformer": (transformer, images, 4),
    "lstm": (lstm, images, 4),
}


def dense(name, seed, args):
    """A trained network and what to test it on."""
    build, data, epochs = NETWORKS[name]
    train, test, source = data(args.rows, args.speech)
    keras.utils.set_random_seed(seed)
    model = build(train[0].shape[1:])
    kept = args.cache / f"{name}-{source.replace(' ', '-')}-{args.rows}-{seed}.weights.h5"
    if kept.exists():
        model.load_weights(kept)
        return model, train, test
    steps = epochs * -(-len(train[0]) // 64)
    rate = keras.optimizers.schedules.CosineDecay(2e-3, steps)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(rate), loss=loss)
    model.fit(*train, batch_size=64, epochs=epochs, verbose=0)
    args.cache.mkdir(parents=True, exist_ok=True)
    model.save_weights(kept)
    return model, train, test


# ---------------------------------------------------------------------- methods


BY_SIZE = {"criterion": kp.criteria.magnitude}
DISTILLED = {"distillation_epochs": 15}  # on --unlabelled samples; --distillation-epochs
PER_OUTPUT = {"allocation": "uniform", "criterion": kp.criteria.PerOutput(kp.criteria.wanda)}
METHODS = {
    "magnitude, uniform": {"allocation": "uniform", "mask_alone": True},
    "LAMP": {"allocation": "lamp", "refit": False},
    "LAMP + refit": {"allocation": "lamp", **BY_SIZE},
    "LAMP, chosen in the refit": {"allocation": "lamp"},
    "LAMP, chosen in the refit, distilled": {"allocation": "lamp", **DISTILLED},
    "SparseGPT, LAMP's allocation": {"by": sparsegpt.prune_model},
    "ERK + refit": {"allocation": "erk", **BY_SIZE},
    "Wanda per output + refit": PER_OUTPUT,
    "auto": {"allocation": "auto"},
}
STRUCTURED = {
    "2:4, mask alone": {"pattern": kp.NM(2, 4), "refit": False},
    "2:4 + refit": {"pattern": kp.NM(2, 4), **BY_SIZE},
    "2:4, chosen in the refit": {"pattern": kp.NM(2, 4)},
    "2:4, chosen in the refit, distilled": {"pattern": kp.NM(2, 4), **DISTILLED},
    "block (4, 1), mask alone": {"pattern": kp.Block((4, 1)), "refit": False},
    "block (4, 1) + refit": {"pattern": kp.Block((4, 1)), **BY_SIZE},
    "block (4, 1), chosen in the refit": {"pattern": kp.Block((4, 1))},
    "block (4, 1), chosen in the refit, distilled": {"pattern": kp.Block((4, 1)), **DISTILLED},
}


def accuracy(model, test):
    outputs = model.predict(test[0], batch_size=500, verbose=0)
    return 100 * float(np.mean(outputs.argmax(-1) == test[1]))


def cells(name, seed, args, done):
    """A dictionary for each method and sparsity of one trained network that is not done yet."""
    wanted = [(m, METHODS[m], s) for m in args.methods for s in args.sparsities]
    wanted += [(m, STRUCTURED[m], 0.5 if "2:4" in m else 0.8) for m in args.structured]
    wanted = [("dense", {}, 0.0), *wanted]
    todo = [w for w in wanted if (name, seed, w[0], w[2]) not in done]
    if not todo:
        return
    model, train, test = dense(name, seed, args)
    test = tuple(part[: args.test_rows] for part in test)
    weights = model.get_weights()
    best = accuracy(model, test)
    # Of all classes: some data sets are sorted by them.
    shuffled = train[0][np.random.default_rng(seed).permutation(len(train[0]))]
    for method, options, sparsity in todo:
        cell = {"network": name, "seed": seed, "method": method, "sparsity": sparsity}
        if method == "dense":
            yield cell | {"value": best, "seconds": 0.0, "masks": ""}
            continue
        model.set_weights(weights)
        count = args.samples
        if "distillation_epochs" in options:
            options = options | {"distillation_epochs": args.distillation_epochs}
            count = args.unlabelled
        inputs = shuffled[:count]
        began = time.perf_counter()
        prune(model, sparsity, inputs, **options)
        seconds = time.perf_counter() - began
        lost = best - accuracy(model, test)
        yield cell | {"value": lost, "seconds": seconds, "masks": fingerprint(model)}


def prune(model, sparsity, inputs, by=None, mask_alone=False, **options):
    """Prune by one of the methods; `refit`, `distillation_epochs` are for the calibration."""
    if by is not None:
        by(model, sparsity, inputs)
        return
    if options.get("pattern") == kp.NM(2, 4):
        options["filters"] = takes_groups
    chosen = {
        name: options.pop(name) for name in ("refit", "distillation_epochs") if name in options
    }
    if not mask_alone:
        chosen |= {"samples": len(inputs), "progress": False}
        options["calibration"] = kp.oneshot.Calibration(inputs, **chosen)
    kp.prune(model, sparsity, **options)


def fingerprint(model):
    """Of all masks together, to compare backends by."""
    values = [keras.ops.convert_to_numpy(w) for w in model.weights if len(w.shape) > 1]
    masks = [value != 0 for value in values]
    return hashlib.sha256(b"".join(np.packbits(mask).tobytes() for mask in masks)).hexdigest()[:12]


def takes_groups(layer):
    """Whether 2:4 can be laid on the layer: its inputs come in fours."""
    kernel = getattr(layer, "kernel", None)
    return kernel is None or len(kernel.shape) < 2 or kernel.shape[-2] >= 4


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=NETWORKS)
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    parser.add_argument("--sparsities", nargs="+", type=float, default=[0.5, 0.8, 0.9, 0.95])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--samples", type=int, default=512, help="calibration samples")
    parser.add_argument(
        "--unlabelled", type=int, default=4096, help="calibration samples to distil on"
    )
    parser.add_argument("--distillation-epochs", type=int, default=15)
    parser.add_argument("--rows", type=int, default=60000, help="training samples at most")
    parser.add_argument("--test-rows", type=int, default=10000, help="test samples at most")
    parser.add_argument("--speech", type=pathlib.Path, help="fsdd.npz, for ds_cnn")
    parser.add_argument("--structured", nargs="*", default=[], choices=STRUCTURED)
    parser.add_argument("--cache", type=pathlib.Path, default=HERE / ".cache")
    parser.add_argument("--plot", type=pathlib.Path, help="draw points lost into this image")
    parser.add_argument(
        "--json", type=pathlib.Path, help="every cell is kept in this file, and not measured again"
    )
    args = parser.parse_args()
    if args.speech is None and any(name.startswith("ds_cnn") for name in args.networks):
        args.networks = [name for name in args.networks if not name.startswith("ds_cnn")]
        print(
            "ds_cnn and ds_cnn_m left out: they need --speech fsdd.npz (spoken digits: x, y, index)"
        )
    kept = args.json and args.json.exists()
    everything = json.loads(args.json.read_text()) if kept else []
    keys = ("network", "seed", "method", "sparsity")
    for name in args.networks:
        for seed in range(args.seeds):
            done = {tuple(cell[key] for key in keys) for cell in everything}
            for cell in cells(name, seed, args, done):
                everything.append(cell)
                if args.json:
                    args.json.write_text(json.dumps(everything, indent=1))
        print(table(name, [cell for cell in everything if cell["network"] == name]), flush=True)
    if args.plot:
        plot(everything, args.plot)


def lost(cells, method, sparsity):
    """The points lost, one for each seed."""
    key = (method, sparsity)
    return [cell["value"] for cell in cells if (cell["method"], cell["sparsity"]) == key]


def plot(everything, path):
    """Points lost against sparsity, a line for each method, a panel for each network."""
    from matplotlib.figure import Figure

    names = list(dict.fromkeys(cell["network"] for cell in everything))
    figure = Figure(figsize=(4 * len(names), 3.4), layout="constrained")
    panels = figure.subplots(1, len(names), squeeze=False)[0]
    for name, axes in zip(names, panels, strict=True):
        rows = [c for c in everything if c["network"] == name and c["method"] in METHODS]
        for method in dict.fromkeys(cell["method"] for cell in rows):
            sparsities = sorted({c["sparsity"] for c in rows if c["method"] == method})
            means = [np.mean(lost(rows, method, sparsity)) for sparsity in sparsities]
            axes.plot(sparsities, means, marker="o", label=method)
        axes.set(title=name, xlabel="sparsity", ylabel="accuracy points lost")
    panels[0].legend(fontsize="small")
    figure.savefig(path, dpi=110)


def table(name, found):
    """Mean ± deviation over the seeds, one row for each method."""
    accuracies = lost(found, "dense", 0.0)
    rest = [cell for cell in found if cell["method"] != "dense"]
    sparsities = sorted({cell["sparsity"] for cell in rest})
    rows = []
    for method in dict.fromkeys(cell["method"] for cell in rest):
        line = [method]
        for sparsity in sparsities:
            points = lost(rest, method, sparsity)
            line.append(f"{np.mean(points):.1f} ± {np.std(points):.1f}" if points else "")
        seconds = np.mean([cell["seconds"] for cell in rest if cell["method"] == method])
        rows.append((*line, f"{seconds:.1f}"))
    title = (
        f"{name}: accuracy points lost (dense {np.mean(accuracies):.1f} %, "
        f"{len(accuracies)} seeds, {keras.backend.backend()})"
    )
    columns = ["method", *(f">{s:g}" for s in sparsities), ">seconds"]
    return tables.render(title, columns, rows)


if __name__ == "__main__":
    main()
