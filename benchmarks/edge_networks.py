"""Networks for microcontrollers and NPUs, trained once and kept: for `edge.py`.

    KERAS_BACKEND=tensorflow python benchmarks/edge_networks.py resnet --zeros 0.8 --files DIR

Digits of MNIST come with the package. Pictures of clothes are Fashion-MNIST, where `--fashion` is
the directory of its four files (Debian: dataset-fashion-mnist); spoken digits are the Free Spoken
Digit Dataset, where `--speech` is an .npz of x (int16, 8 kHz), y and index. Without a path,
digits and made-up tones stand in.
"""

import argparse
import dataclasses
import gzip
import os
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
from one_shot import Places

import keras_pruner as kp
from keras_pruner.cli.demo import digits

L = keras.layers


def resnet():
    """A small ResNet over 32x32 images, 1.2 M weights, whose blocks work at 16x16 and below.

    Where pictures are small, a layer's time on an NPU is the time to read its weights.
    """

    def normed(x, filters, size, strides=1):
        x = L.Conv2D(filters, size, strides, padding="same", use_bias=False)(x)
        return L.BatchNormalization(momentum=0.95)(x)

    image = keras.Input((32, 32, 3))
    x = L.ReLU()(normed(image, 32, 3))
    for filters, strides in ((64, 2), (128, 2), (256, 2)):
        y = L.ReLU()(normed(x, filters, 3, strides))
        x = L.ReLU()(L.Add()([normed(x, filters, 1, strides), normed(y, filters, 3)]))
    return keras.Model(image, L.Dense(10)(L.GlobalAveragePooling2D()(x)))


def mobilenet():
    """MobileNetV1 0.25 over 96x96 images."""
    return keras.applications.MobileNet(
        weights=None, input_shape=(96, 96, 3), alpha=0.25, classes=10, classifier_activation=None
    )


def ds_cnn(filters, strides):
    """A DS-CNN of keyword spotting over 49x10 features (Zhang et al. 2017, arXiv:1711.07128)."""

    def normed(x):
        return L.ReLU()(L.BatchNormalization(momentum=0.9)(x))

    features = keras.Input((49, 10, 1))
    x = L.Conv2D(filters, (10, 4), strides[0], padding="same", use_bias=False)(features)
    x = normed(x)
    for stride in strides[1:]:
        x = normed(L.DepthwiseConv2D(3, stride, padding="same", use_bias=False)(x))
        x = normed(L.Conv2D(filters, 1, use_bias=False)(x))
    return keras.Model(features, L.Dense(10)(L.GlobalAveragePooling2D()(x)))


def mnist_cnn():
    """A CNN for digits, most of whose weights are in a Dense layer."""
    layers = [
        L.Conv2D(16, 3, activation="relu"), L.MaxPooling2D(), L.Conv2D(32, 3, activation="relu"),
        L.MaxPooling2D(), L.Flatten(), L.Dense(128, activation="relu"), L.Dense(10),
    ]  # fmt: skip
    return keras.Sequential([keras.Input((28, 28, 1)), *layers])


def mlp():
    """Wide Dense layers for digits, as a server runs them."""
    layers = [L.Flatten(), *(L.Dense(1024, activation="relu") for _ in range(3)), L.Dense(10)]
    return keras.Sequential([keras.Input((28, 28, 1)), *layers])


def encoder():
    """A transformer encoder that reads a digit row by row: two blocks, 256 wide."""
    image = keras.Input((28, 28, 1))
    x = L.Dense(256)(L.Reshape((28, 28))(image))
    x = Places()(x)
    for _ in range(2):
        y = L.LayerNormalization()(x)
        x = x + L.MultiHeadAttention(4, 64)(y, y)
        y = L.LayerNormalization()(x)
        x = x + L.Dense(256)(L.Dense(1024, activation="relu")(y))
    return keras.Model(image, L.Dense(10)(L.GlobalAveragePooling1D()(L.LayerNormalization()(x))))


@dataclasses.dataclass(frozen=True)
class Network:
    """A network, the data it learns, and for how long.

    Attributes:
        build: () -> model that returns logits.
        data: "digits", "clothes" or "speech".
        size: of the pictures; 0: as they are.
        rows: to train with.
        epochs: before the dense and the pruned network part, and after.
    """

    build: Callable[[], keras.Model]
    data: str
    size: int = 0
    rows: int | None = None
    epochs: tuple[int, int] = (4, 4)


NETWORKS = {
    "resnet": Network(resnet, "clothes", 32, 8000, (3, 2)),
    "mobilenet": Network(mobilenet, "clothes", 96, 6000, (6, 4)),
    "ds_cnn_s": Network(lambda: ds_cnn(64, ((2, 2), 1, 1, 1, 1)), "speech", epochs=(10, 8)),
    "ds_cnn_l": Network(lambda: ds_cnn(276, ((2, 1), 2, 1, 1, 1, 1)), "speech", epochs=(5, 4)),
    "mnist_cnn": Network(mnist_cnn, "digits", epochs=(4, 6)),
    "mlp": Network(mlp, "digits", epochs=(4, 4)),
    "encoder": Network(encoder, "digits", epochs=(3, 3)),
}


def data(network, speech=None, fashion=None):
    """x, y, x_test, y_test."""
    if network.data == "speech":
        return spoken_digits(speech)
    if network.data == "clothes" and fashion:
        x, y = (_idx(fashion, f"train-{what}") for what in ("images-idx3", "labels-idx1"))
        x_test, y_test = (_idx(fashion, f"t10k-{what}") for what in ("images-idx3", "labels-idx1"))
        x, x_test = (a[..., None].astype("float32") / 255 for a in (x, x_test[:2000]))
        y_test = y_test[:2000]
    else:
        x, y, x_test, y_test = digits()
    x, y = x[: network.rows], y[: network.rows]
    if network.size:
        x, x_test = (_pictures(a, network.size) for a in (x, x_test))
    return x, y.astype("int32"), x_test, y_test.astype("int32")


def _pictures(images, size):
    """Scaled to a size, with three equal channels, from -1 to 1."""
    scaled = keras.ops.image.resize(2 * images - 1, (size, size))
    return np.repeat(keras.ops.convert_to_numpy(scaled), 3, axis=-1)


def _idx(directory, name):
    content = gzip.decompress((Path(directory) / f"{name}-ubyte.gz").read_bytes())
    axes = content[3]
    shape = np.frombuffer(content, ">i4", axes, 4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * axes).reshape(shape)


def spoken_digits(path=None):
    """Features of recordings; those below number 5 are for testing. None: of made-up tones."""
    if path is None:
        rng = np.random.default_rng(0)
        y = np.arange(600) % 10
        pitch = 300 + 200 * y + rng.normal(0, 20, 600)
        sounds = np.sin(2 * np.pi * pitch[:, None] * np.arange(8000) / 8000)
        sounds, index = sounds + rng.normal(0, 0.3, sounds.shape), np.arange(600) // 10
    else:
        with np.load(path) as file:
            sounds, y, index = file["x"] / 2**15, file["y"], file["index"]
    features, test = mfcc(sounds), index < 5
    mean, scale = features[~test].mean((0, 1)), features[~test].std((0, 1))
    x = ((features - mean) / scale)[..., None].astype("float32")
    return x[~test], y[~test].astype("int32"), x[test], y[test].astype("int32")


def mfcc(sounds, rate=8000, bands=40, coefficients=10):
    """Coefficients of seconds of sound: 49 frames of 40 ms, (sounds, 49, 10)."""
    frame, hop = rate // 25, rate // 50
    starts = np.arange(0, rate - frame + 1, hop)
    frames = sounds[:, starts[:, None] + np.arange(frame)] * np.hanning(frame)
    power = np.abs(np.fft.rfft(frames)) ** 2
    limit = 2595 * np.log10(1 + rate / 2 / 700)
    edges = 700 * (10 ** (np.linspace(0, limit, bands + 2) / 2595) - 1)
    low, middle, high = (edges[i : i + bands, None] for i in range(3))
    pitch = np.fft.rfftfreq(frame, 1 / rate)
    rising, falling = (pitch - low) / (middle - low), (high - pitch) / (high - middle)
    filters = np.clip(np.minimum(rising, falling), 0, None)
    energies = np.log(power @ filters.T + 1e-6)
    angles = np.pi / bands * np.outer(np.arange(bands) + 0.5, np.arange(coefficients))
    return energies @ np.cos(angles)


def trained(name, zeros, files, **paths):
    """A trained model with these zeros ("0" for none), and its data; read from a file if kept."""
    network = NETWORKS[name]
    found = data(network, **paths)
    path = Path(files) / f"{name}-{zeros.replace(':', 'of')}.keras"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        _train(name, zeros, files, path, found, paths)
    return keras.saving.load_model(path, compile=False), found


def _train(name, zeros, files, path, found, paths):
    x, y, *_ = found
    network = NETWORKS[name]
    keras.utils.set_random_seed(0)
    if zeros == "start":
        model, epochs, rate, callbacks = network.build(), network.epochs[0], 2e-3, []
    else:
        model, _ = trained(name, "start", files, **paths)
        epochs, rate, callbacks = network.epochs[1], 5e-4, []
        if ":" in zeros:
            kept, group = map(int, zeros.split(":"))
            callbacks = [kp.GradualPruning(pattern=kp.NM(kept, group))]
        elif float(zeros):
            callbacks = [kp.GradualPruning(float(zeros))]
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(rate), loss=loss)
    model.fit(x, y, batch_size=64, epochs=epochs, verbose=2, callbacks=callbacks)
    model.save(path, include_optimizer=False)


def accuracy(model, x, y):
    """Fraction of samples whose largest output is the right one."""
    return float(np.mean(model.predict(x, batch_size=128, verbose=0).argmax(-1) == y))


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("networks", nargs="+", choices=list(NETWORKS))
    parser.add_argument("--zeros", nargs="*", default=["0", "0.8", "0.9", "2:4"])
    parser.add_argument("--files", required=True, help="directory where trained models are kept")
    parser.add_argument("--speech", help="fsdd.npz")
    parser.add_argument("--fashion", help="directory of Fashion-MNIST's files")
    options = parser.parse_args()
    paths = {"speech": options.speech, "fashion": options.fashion}
    for name in options.networks:
        for zeros in options.zeros:
            model, (_, _, x, y) = trained(name, zeros, options.files, **paths)
            print(f"{name}, zeros {zeros}: accuracy {accuracy(model, x, y):.4f}", flush=True)


if __name__ == "__main__":
    main()
