"""What zeros are worth on Arm Ethos-U NPUs, by the estimate of Arm's compiler; prints ratios.

    KERAS_BACKEND=tensorflow python benchmarks/edge.py
    KERAS_BACKEND=tensorflow python benchmarks/edge.py --networks resnet --zeros 0.8 2:4

Every network is exported with int8 weights and activations, dense and pruned (random weights, so
sizes and estimated times only), and compiled by Vela with its default system configuration.
Needs the extras tensorflow, litert and ethos-u.
"""

import argparse
import os
import tempfile
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np

import keras_pruner as kp

L = keras.layers
CONFIGURATIONS = ("ethos-u55-128", "ethos-u65-256", "ethos-u85-256")


def resnet():
    """A small ResNet over 32x32 images, 1.2 M weights."""
    image = keras.Input((32, 32, 3))
    x = L.Conv2D(32, 3, padding="same", activation="relu")(image)
    for filters, strides in ((32, 1), (64, 2), (128, 2), (256, 2)):
        y = L.Conv2D(filters, 3, strides=strides, padding="same", activation="relu")(x)
        y = L.Conv2D(filters, 3, padding="same")(y)
        x = L.ReLU()(L.Add()([L.Conv2D(filters, 1, strides=strides)(x), y]))
    return keras.Model(image, L.Dense(10)(L.GlobalAveragePooling2D()(x)))


def mobilenet():
    """MobileNetV1 0.25 over 96x96 images."""
    return keras.applications.MobileNet(
        weights=None, input_shape=(96, 96, 3), alpha=0.25, classes=10, classifier_activation=None
    )


def ds_cnn():
    """DS-CNN-L of keyword spotting: 276 channels, 49x10 features."""
    features = keras.Input((49, 10, 1))
    x = L.Conv2D(276, (10, 4), strides=2, padding="same", activation="relu")(features)
    for strides in (2, 1, 1, 1, 1):
        x = L.DepthwiseConv2D(3, strides=strides, padding="same", activation="relu")(x)
        x = L.Conv2D(276, 1, activation="relu")(x)
    return keras.Model(features, L.Dense(12)(L.GlobalAveragePooling2D()(x)))


def mnist_cnn():
    """A CNN for digits, most of whose weights are in a Dense layer."""
    layers = [
        L.Conv2D(16, 3, activation="relu"), L.MaxPooling2D(), L.Conv2D(32, 3, activation="relu"),
        L.MaxPooling2D(), L.Flatten(), L.Dense(128, activation="relu"), L.Dense(10),
    ]  # fmt: skip
    return keras.Sequential([keras.Input((28, 28, 1)), *layers])


def mlp():
    """Dense layers alone."""
    return keras.Sequential(
        [keras.Input((256,)), *(L.Dense(512, activation="relu") for _ in range(3)), L.Dense(10)]
    )


NETWORKS = {f.__name__: f for f in (resnet, mobilenet, ds_cnn, mnist_cnn, mlp)}


def export(build, zeros, path):
    """Export one network with these zeros."""
    keras.utils.set_random_seed(0)
    model = build()
    if ":" in zeros:
        kept, group = map(int, zeros.split(":"))
        kp.prune(model, pattern=kp.NM(kept, group))
    elif float(zeros):
        kp.prune(model, float(zeros), allocation="uniform")
    samples = np.random.default_rng(0).normal(size=(20, *model.input_shape[1:])).astype("float32")
    return kp.export_litert(
        model, path, weights="int8", activations="int8", samples=samples, progress=False
    )


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--networks", nargs="*", choices=list(NETWORKS), default=list(NETWORKS))
    parser.add_argument("--zeros", nargs="*", default=["0.8", "0.9", "2:4"])
    parser.add_argument("--accelerators", nargs="*", default=CONFIGURATIONS)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        dense, pruned = Path(scratch, "dense.tflite"), Path(scratch, "pruned.tflite")
        for name in arguments.networks:
            export(NETWORKS[name], "0", dense)
            for zeros in arguments.zeros:
                done = export(NETWORKS[name], zeros, pruned)
                in_model, in_file = done.zeros
                for accelerator in arguments.accelerators:
                    found = kp.litert.ethos_u(pruned, accelerator, dense=dense)
                    total, compiled = len(found.compiled.layers), found.compiled
                    print(
                        f"{name:10} {zeros:4} {accelerator:14} estimated time "
                        f"{found.dense.seconds / compiled.seconds:.2f}x, file "
                        f"{found.dense.size / compiled.size:.2f}x, flash "
                        f"{found.dense.flash / max(1, compiled.flash):.2f}x, on the NPU "
                        f"{total - len(compiled.on_cpu)} of {total}; zeros {in_model:,} in the "
                        f"model, {in_file:,} in the file; error {done.error:.3f}",
                        flush=True,
                    )


if __name__ == "__main__":
    main()
