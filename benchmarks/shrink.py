"""Accuracy after channels were removed, without labels, beside Torch-Pruning on the same weights.

    KERAS_BACKEND=torch python benchmarks/shrink.py --seeds 5 --json shrink.json
    python benchmarks/shrink.py --json shrink.json --table        # prints what there is

Images of Fashion-MNIST (else MNIST) at 14 x 14. Every cell is kept in the JSON file and not
measured again. Torch-Pruning (`pip install torch-pruning==1.6.1`) cuts a PyTorch twin of the
convolutional networks, to the same fraction of the multiplications, at five importances, local
and global; its batch norms are re-estimated on the same samples.
"""

import argparse
import json
import pathlib
import time

import keras
import numpy as np
from keras import layers
from one_shot import images

import keras_pruner as kp
from keras_pruner.reporting import tables

HERE = pathlib.Path(__file__).resolve().parent


# ---------------------------------------------------------------------- data and networks


def data(rows):
    """Images of half the size, the labels, and the same to test on."""
    (x, y), (x_test, y_test), name = images(rows, None)
    halves = (a.reshape(-1, 14, 2, 14, 2, 1).mean((2, 4)) for a in (x, x_test))
    x, x_test = (a.astype("float32") for a in halves)
    return (x, y.astype("int32")), (x_test, y_test.astype("int32")), name


def normed(x, filters, strides=1, size=3, relu=True):
    x = layers.Conv2D(filters, size, strides=strides, padding="same", use_bias=False)(x)
    x = layers.BatchNormalization(momentum=0.9)(x)
    return layers.ReLU()(x) if relu else x


def classified(inputs, x):
    return keras.Model(inputs, layers.Dense(10)(layers.GlobalAveragePooling2D()(x)))


def vgg():
    inputs = keras.Input((14, 14, 1))
    x = layers.MaxPooling2D()(normed(normed(inputs, 16), 32))
    x = layers.MaxPooling2D()(normed(normed(x, 48), 64))
    return classified(inputs, normed(x, 64))


def resnet():
    x = inputs = keras.Input((14, 14, 1))
    x = normed(x, 16)
    for filters, strides in ((16, 1), (32, 2), (32, 1), (64, 2), (64, 1)):
        y = normed(normed(x, filters, strides), filters, relu=False)
        if x.shape != y.shape:
            x = normed(x, filters, strides, 1, relu=False)
        x = layers.ReLU()(layers.Add()([x, y]))
    return classified(inputs, x)


def mobilenet():
    x = inputs = keras.Input((14, 14, 1))
    x = normed(x, 16)
    for filters, strides in ((16, 1), (24, 2), (24, 1), (32, 1), (48, 2), (48, 1)):
        y = normed(x, 4 * x.shape[-1], size=1)
        y = layers.DepthwiseConv2D(3, strides=strides, padding="same", use_bias=False)(y)
        y = layers.ReLU()(layers.BatchNormalization(momentum=0.9)(y))
        y = normed(y, filters, size=1, relu=False)
        x = layers.Add()([x, y]) if x.shape == y.shape else y
    return classified(inputs, normed(x, 96, size=1))


def transformer():
    """Three blocks over overlapping patches."""
    inputs = keras.Input((14, 14, 1))
    x = layers.Conv2D(64, 4, strides=2, padding="same")(inputs)
    x = layers.Reshape((49, 64))(x)
    for _ in range(3):
        y = layers.LayerNormalization()(x)
        x = layers.Add()([x, layers.MultiHeadAttention(8, 8)(y, y)])
        y = layers.Dense(192, activation="gelu")(layers.LayerNormalization()(x))
        x = layers.Add()([x, layers.Dense(64)(y)])
    x = layers.GlobalAveragePooling1D()(layers.LayerNormalization()(x))
    return keras.Model(inputs, layers.Dense(10)(x))


def lstm():
    inputs = keras.Input((14, 14, 1))
    x = layers.LSTM(96, return_sequences=True)(layers.Reshape((14, 14))(inputs))
    return keras.Model(inputs, layers.Dense(10)(layers.LSTM(96)(x)))


NETWORKS = {"vgg": vgg, "resnet": resnet, "mobilenet": mobilenet, "transformer": transformer,
            "lstm": lstm}  # fmt: skip
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def fit(model, train, epochs, rate, callbacks=()):
    steps = epochs * -(-len(train[0]) // 128)
    schedule = keras.optimizers.schedules.CosineDecay(rate, steps)
    model.compile(keras.optimizers.Adam(schedule), LOSS)
    model.fit(*train, batch_size=128, epochs=epochs, verbose=0, callbacks=list(callbacks))
    return model


def dense(name, seed, train, cache):
    """The trained network, kept in a file."""
    keras.utils.set_random_seed(seed)
    model = NETWORKS[name]()
    kept = cache / f"shrink-{name}-{len(train[0])}-{seed}.weights.h5"
    if kept.exists():
        model.load_weights(kept)
        return model
    fit(model, train, 5, 3e-3)
    cache.mkdir(parents=True, exist_ok=True)
    model.save_weights(kept)
    return model


# ---------------------------------------------------------------------- ways to cut


def cut(model, fraction, setting, **options):
    calibration = kp.oneshot.Calibration(
        setting.samples if not options.get("distillation_epochs") else setting.unlabelled,
        samples=setting.unlabelled_count, progress=False, **options
    )  # fmt: skip
    return kp.shrink(model, macs=fraction, calibration=calibration, multiple=setting.multiple)


def at_once(model, fraction, setting):
    return cut(model, fraction, setting).model


def unrefitted(model, fraction, setting):
    smaller = cut(model, fraction, setting, refit=False).model
    kp.oneshot.reestimate_batch_norm(smaller, setting.samples)
    return smaller


def distilled(model, fraction, setting):
    return cut(model, fraction, setting, distillation_epochs=10).model


def labelled(model, fraction, setting):
    return fit(at_once(model, fraction, setting), setting.labelled, 1, 1e-3)


def at_once_trained(model, fraction, setting):
    return fit(at_once(model, fraction, setting), setting.labelled, 4, 1e-3)


def gradually(model, fraction, setting):
    """Four epochs in which channels go, about as many as half or a quarter of the MACs."""
    copy = keras.models.clone_model(model)
    copy.set_weights(model.get_weights())
    sparsity = setting.channels_for(copy, fraction)
    pruning = kp.GradualPruning(sparsity, pattern=kp.Channel())
    return kp.shrink(fit(copy, setting.labelled, 4, 1e-3, [pruning])).model


WAYS = {
    "cut, batch norms re-estimated": unrefitted,
    "kp.shrink": at_once,
    "kp.shrink, 10 label-free epochs": distilled,
    "kp.shrink, 1 labelled epoch": labelled,
    "kp.shrink, 4 labelled epochs": at_once_trained,
    "GradualPruning(Channel), 4 epochs": gradually,
}


class Setting:
    """What all ways share: samples with and without labels, and the rounding."""

    def __init__(self, train, args, seed):
        order = np.random.default_rng(seed).permutation(len(train[0]))
        self.samples = train[0][order[: args.samples]]
        self.unlabelled = train[0][order[: args.unlabelled]]
        self.unlabelled_count = args.unlabelled
        half = order[: len(order) // 2]
        self.labelled = train[0][half], train[1][half]
        self.multiple = args.multiple

    def channels_for(self, model, fraction):
        """The sparsity of every group that leaves a fraction of the multiplications."""
        from keras_pruner.channels.layer_rules import channels_of
        from keras_pruner.model_graph import ModelGraph

        channels = channels_of(ModelGraph(model))
        free = [g.classes for g in channels.groups if not g.reason and not g.mixes]
        for sparsity in np.arange(0.02, 0.98, 0.02):
            kept = np.ones(channels.count, bool)
            for classes in free:
                kept[classes[: round(sparsity * len(classes))]] = False
            if channels.macs(kept) <= fraction * channels.macs():
                return float(sparsity)
        raise ValueError("The fraction is out of reach.")


# ---------------------------------------------------------------------- the table


def accuracy(model, test):
    outputs = model.predict(test[0], batch_size=500, verbose=0)
    return 100 * float(np.mean(outputs.argmax(-1) == test[1]))


def ours(model, test, fraction, setting, way):
    began = time.perf_counter()
    smaller = WAYS[way](model, fraction, setting)
    seconds = time.perf_counter() - began
    share = kp.channels.macs(smaller) / kp.channels.macs(model)
    return {"accuracy": accuracy(smaller, test), "macs": share, "seconds": seconds}


def cells(name, seed, args, done):
    """One for each way and fraction that is not done yet."""
    wanted = [(way, f) for f in args.fractions for way in args.ways]
    if args.rival and name in ("vgg", "resnet", "mobilenet"):
        import torch_pruning_twin as twin

        wanted += [(way, f) for f in args.fractions for way in twin.WAYS]
    wanted = [("dense", 1.0), *wanted]
    todo = [(way, f) for way, f in wanted if (name, seed, way, f) not in done]
    if not todo:
        return
    train, test, _ = data(args.rows)
    model = dense(name, seed, train, args.cache)
    setting = Setting(train, args, seed)
    for way, fraction in todo:
        keras.utils.set_random_seed(seed)
        cell = {"network": name, "seed": seed, "way": way, "fraction": fraction}
        if way == "dense":
            yield cell | {"accuracy": accuracy(model, test), "macs": 1.0, "seconds": 0.0}
        elif way in WAYS:
            yield cell | ours(model, test, fraction, setting, way)
        else:
            yield cell | twin.cell(model, test, fraction, setting, way)


def points(found, way, fraction):
    """Points lost against the dense network, one for each seed."""
    best = {c["seed"]: c["accuracy"] for c in found if c["way"] == "dense"}
    rows = [c for c in found if (c["way"], c["fraction"]) == (way, fraction)]
    return [best[c["seed"]] - c["accuracy"] for c in rows], [c["macs"] for c in rows]


def table(name, found):
    fractions = sorted({c["fraction"] for c in found} - {1.0}, reverse=True)
    lines = []
    for way in dict.fromkeys(c["way"] for c in found if c["way"] != "dense"):
        line = [way]
        for fraction in fractions:
            lost, macs = points(found, way, fraction)
            if not lost:
                line.append("")
                continue
            spread = f" ± {np.std(lost):.1f}" if len(lost) > 1 else ""
            line.append(f"{np.mean(lost):.1f}{spread} at {np.mean(macs):.2f} ({len(lost)})")
        lines.append(line)
    best = [c["accuracy"] for c in found if c["way"] == "dense"]
    title = f"{name}: points lost at a share of the MACs (seeds); dense {np.mean(best):.1f} %"
    return tables.render(title, ["way", *(f">{f:g} asked for" for f in fractions)], lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=NETWORKS)
    parser.add_argument("--ways", nargs="*", default=list(WAYS), choices=WAYS)
    parser.add_argument("--fractions", nargs="+", type=float, default=[0.5, 0.25])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--rows", type=int, default=24000, help="training images at most")
    parser.add_argument("--samples", type=int, default=1024, help="calibration samples")
    parser.add_argument("--unlabelled", type=int, default=2048, help="samples to distil on")
    parser.add_argument("--multiple", type=int, default=8)
    parser.add_argument("--rival", action="store_true", help="Torch-Pruning too")
    parser.add_argument("--cache", type=pathlib.Path, default=HERE / ".cache")
    parser.add_argument("--json", type=pathlib.Path, default=HERE / ".cache" / "shrink.json")
    parser.add_argument("--table", action="store_true", help="only print what was measured")
    args = parser.parse_args()
    everything = json.loads(args.json.read_text()) if args.json.exists() else []
    for seed in range(args.first_seed, args.first_seed + args.seeds) if not args.table else ():
        for name in args.networks:
            done = {(c["network"], c["seed"], c["way"], c["fraction"]) for c in everything}
            for cell in cells(name, seed, args, done):
                everything.append(cell)
                args.json.parent.mkdir(parents=True, exist_ok=True)
                args.json.write_text(json.dumps(everything, indent=1))
    for name in args.networks:
        if any(c["network"] == name for c in everything):
            print(table(name, [c for c in everything if c["network"] == name]))


if __name__ == "__main__":
    main()
