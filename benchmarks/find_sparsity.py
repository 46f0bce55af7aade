"""Does the answer of `kp.find_sparsity` hold on data that it has not seen?

A small CNN is trained on 8,000 real digits. The sparsity is found with a part of them, without
and with a metric; then the model is pruned to it and measured on digits that were neither trained,
calibrated nor measured on before. Printed for each bound: the sparsity, the drop where it was
measured, the drop on the fresh digits, and the standard errors of both.
"""

import argparse
import os
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np

import keras_pruner as kp
from keras_pruner.cli.demo import digits


def trained(x, y, path):
    """The network; trained once if `path` names a file to keep."""
    if path and path.exists():
        return keras.saving.load_model(path)
    keras.utils.set_random_seed(0)
    layers = [
        keras.layers.Conv2D(16, 3, activation="relu"), keras.layers.MaxPooling2D(),
        keras.layers.Conv2D(32, 3, activation="relu"), keras.layers.MaxPooling2D(),
        keras.layers.Flatten(), keras.layers.Dense(64, "relu"), keras.layers.Dense(10),
    ]  # fmt: skip
    model = keras.Sequential([keras.Input(x.shape[1:]), *layers])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(2e-3), loss, metrics=["accuracy"])
    model.fit(x, y, epochs=6, batch_size=64, verbose=0)
    if path:
        model.save(path)
    return model


def labels(model, x):
    return model.predict(x, verbose=0).argmax(-1)


def standard_error(differences):
    return float(np.std(differences) / np.sqrt(len(differences)))


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bounds", nargs="+", type=float, default=[0.01, 0.02, 0.05])
    parser.add_argument("--samples", type=int, default=2000, help="for find_sparsity")
    parser.add_argument("--model", type=Path, help="keep the trained network here")
    arguments = parser.parse_args()
    x, y, x_test, y_test = digits()
    half = len(x_test) // 2
    model = trained(x, y, arguments.model)
    calibration, (x_metric, y_metric) = x[: arguments.samples], (x_test[:half], y_test[:half])
    fresh, truth = x_test[half:], y_test[half:]
    dense = labels(model, fresh)

    def accuracy(model):
        return float(np.mean(labels(model, x_metric) == y_metric))

    print("metric     bound  sparsity  drop    fresh    (± one standard error)")
    for metric in (None, accuracy):
        for bound in arguments.bounds:
            curve = kp.find_sparsity(model, calibration, max_drop=bound, metric=metric)
            measured = curve.dense - dict(curve.points).get(curve.sparsity, curve.dense)
            pruned = keras.models.clone_model(model)
            pruned.set_weights(model.get_weights())
            kp.prune(pruned, curve.sparsity, calibration=calibration)
            found = labels(pruned, fresh)
            right = (dense == dense) if metric is None else (dense == truth)
            now = (found == dense) if metric is None else (found == truth)
            lost = right.astype(float) - now
            name = "agreement" if metric is None else "accuracy"
            print(
                f"{name:9}  {bound:5.3f}  {curve.sparsity:.3f}     {measured:.4f}  "
                f"{lost.mean():.4f}   ± {standard_error(lost):.4f}"
                f"{'' if curve.uncertainty is None else f', measured ± {curve.uncertainty:.4f}'}",
                flush=True,
            )


if __name__ == "__main__":
    main()
