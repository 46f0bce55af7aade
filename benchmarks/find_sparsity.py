"""How often does the answer of `kp.find_sparsity` hold on samples that it has not seen?

A small network is trained once. Then, for each of many random splits, the sparsity is found with
some samples, the model is pruned to it, and the drop is measured on fresh samples, which were
neither trained on nor seen by the search. Printed for each metric, bound and confidence: the mean
sparsity, how often the drop on all fresh samples stays within the bound, the same on a fresh test
set of 2,000, and the largest drop. A confidence of 0.5 goes by the measured drop.

With --fashion, the folder of Fashion-MNIST's four .gz files; else the 10,000 digits in the package.
"""

import argparse
import gzip
import os
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np

import keras_pruner as kp
from keras_pruner.cli.demo import digits

TEST_SET = 2000
FRESH = 20_000


def images(folder, part):
    pixels, labels = (
        gzip.decompress(next(folder.glob(f"{part}-{kind}*.gz")).read_bytes())
        for kind in ("images", "labels")
    )
    x = np.frombuffer(pixels, np.uint8, offset=16).reshape(-1, 28, 28, 1)
    return x.astype("float32") / 255, np.frombuffer(labels, np.uint8, offset=8).astype("int32")


def load(fashion):
    if fashion is None:
        x, y, x_test, y_test = digits()
        return np.concatenate([x, x_test]), np.concatenate([y, y_test])
    parts = [images(fashion, part) for part in ("train", "t10k")]
    return tuple(np.concatenate(each) for each in zip(*parts, strict=True))


def trained(x, y):
    keras.utils.set_random_seed(0)
    dense = keras.layers.Dense
    hidden = [keras.layers.Flatten(), dense(64, "relu")]
    model = keras.Sequential([keras.Input(x.shape[1:]), *hidden, dense(10)])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(1e-3), loss, metrics=["accuracy"])
    model.fit(x, y, epochs=6, batch_size=64, verbose=0)
    return model


def labels(model, x):
    return model.predict(x, batch_size=1024, verbose=0).argmax(-1)


def one_split(model, x, y, split, arguments):
    """For each setting: the sparsity, the drop on all fresh samples, and on a test set of them."""
    order = np.random.default_rng(split).permutation(len(x))
    seen, fresh = np.split(order[: arguments.samples + FRESH], [arguments.samples])
    x_seen, y_seen = x[seen], y[seen]
    half = len(seen) // 2
    dense = labels(model, x[fresh])
    found = {}

    def right(candidate):
        return labels(candidate, x_seen[half:]) == y_seen[half:]

    for name, metric in (("agreement", None), ("accuracy", right)):
        samples = x_seen if metric is None else x_seen[:half]
        calibration = kp.oneshot.Calibration(samples, samples=512, progress=False)
        target = dense if metric is None else y[fresh]
        for bound in arguments.bounds:
            for confidence in arguments.confidence:
                curve = kp.find_sparsity(
                    model,
                    calibration,
                    max_drop=bound,
                    confidence=confidence,
                    metric=metric,
                    tolerance=0.02,
                )
                pruned = model
                if curve.sparsity:
                    pruned = kp.prune(
                        model, curve.sparsity, calibration=calibration, copy=True
                    ).model
                drops = (dense == target).astype(float) - (labels(pruned, x[fresh]) == target)
                key = name, bound, confidence
                found[key] = curve.sparsity, drops.mean(), drops[:TEST_SET].mean()
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--fashion", type=Path)
    parser.add_argument("--bounds", nargs="+", type=float, default=[0.01, 0.03])
    parser.add_argument("--confidence", nargs="+", type=float, default=[0.5, 0.95])
    parser.add_argument("--samples", type=int, default=2000, help="for find_sparsity")
    parser.add_argument("--splits", type=int, default=40)
    arguments = parser.parse_args()
    x, y = load(arguments.fashion)
    train = len(x) // 10
    model = trained(x[:train], y[:train])
    splits = [
        one_split(model, x[train:], y[train:], split, arguments)
        for split in range(arguments.splits)
    ]
    fresh = min(FRESH, len(x) - train - arguments.samples)
    print(f"{len(splits)} splits, {fresh:,} fresh samples")
    print("metric     bound  confidence  sparsity  within   of 2,000  largest drop")
    for key in splits[0]:
        sparsity, drop, test = np.transpose([split[key] for split in splits])
        name, bound, confidence = key
        within, on_test = (np.mean(each <= bound) for each in (drop, test))
        print(
            f"{name:9}  {bound:5.3f}  {confidence:10.2f}  {sparsity.mean():8.3f}  "
            f"{within:6.0%}  {on_test:8.0%}  {drop.max():12.4f}"
        )


if __name__ == "__main__":
    main()
