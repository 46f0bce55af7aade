"""Models trained on real digits, dense and pruned: accuracy and latency, before and after.

`--what stack`: digits padded to 32 x 32, Dense 1024-2048-2048-1024 and a head, zeros in 1x4
blocks; timed natively. `--what mobilenet`: a small MobileNet with TensorFlow's padding, 90 % of
its 1x1 kernels zero, rewritten by `kp.litert.prepare_for_xnnpack`; timed in LiteRT.js under Node.
Both sides are trained from the same weights for the same number of epochs. The accuracy is that
of the LiteRT files on 2,000 digits that were not trained on.
With `--files DIR` the models stay there and are used again: train first with `--prepare`,
measure later, on a quiet machine.
"""

import argparse
import json
import os
import statistics
import tempfile
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import litertjs
import numpy as np

import keras_pruner as kp
from keras_pruner.cli.demo import digits

RUNTIME = {"stack": "native", "mobilenet": "wasm"}


def data(what):
    """Training and test digits; padded to 1024 numbers for the stack."""
    x, y, x_test, y_test = digits()
    if what == "stack":
        x, x_test = (
            np.pad(a, ((0, 0), (2, 2), (2, 2), (0, 0))).reshape(len(a), 1024) for a in (x, x_test)
        )
    return x, y, x_test, y_test


def stack():
    layers = [keras.layers.Dense(n, "relu", name=f"dense_{n}_{i}")
              for i, n in enumerate((2048, 2048, 1024))]  # fmt: skip
    return keras.Sequential([keras.Input((1024,)), *layers, keras.layers.Dense(10, name="head")])


def normalization():
    """Averages that a training of a thousand steps reaches: the default takes longer."""
    return keras.layers.BatchNormalization(momentum=0.9)


def mobilenet():
    image = keras.Input((28, 28, 1))
    x = image
    for i, (filters, strides) in enumerate(((32, 2), (128, 1), (256, 2), (256, 1), (512, 1))):
        if i == 0:
            x = keras.layers.Conv2D(filters, 3, strides=strides, padding="same", use_bias=False)(x)
        else:
            x = keras.layers.DepthwiseConv2D(3, strides=strides, padding="same", use_bias=False)(x)
            x = keras.layers.ReLU(6.0)(normalization()(x))
            x = keras.layers.Conv2D(filters, 1, use_bias=False, name=f"pointwise_{i}")(x)
        x = keras.layers.ReLU(6.0)(normalization()(x))
    x = keras.layers.GlobalAveragePooling2D()(x)
    return keras.Model(image, keras.layers.Dense(10, name="head")(x))


def train(what, sparsities, epochs, directory):
    """A dense file, and one for each sparsity, from the same start."""
    keras.utils.set_random_seed(0)
    x, y, *test = data(what)
    model = {"stack": stack, "mobilenet": mobilenet}[what]()
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)

    def fit(rate, *callbacks):
        model.compile(keras.optimizers.Adam(rate), loss=loss, metrics=["accuracy"])
        options = {"batch_size": 64, "epochs": epochs, "verbose": 0, "callbacks": callbacks}
        model.fit(x, y, validation_data=test, **options)
        return model.evaluate(*test, verbose=0, return_dict=True)["accuracy"]

    fit(1e-3)
    start = model.get_weights()
    found = {"dense": fit(3e-4)}
    export(what, model, directory / "dense.tflite", None)
    for sparsity in sparsities:
        model.set_weights(start)
        pattern = kp.Block((4, 1)) if what == "stack" else kp.Unstructured()
        filters = ["dense_"] if what == "stack" else ["pointwise"]
        options = {"pattern": pattern, "filters": filters, "allocation": "uniform"}
        found[str(sparsity)] = fit(3e-4, kp.GradualPruning(sparsity, **options))
        export(what, model, directory / f"{sparsity}.tflite", sparsity)
    return found


def export(what, model, path, sparsity):
    runtime = {"native": "litert-x86", "wasm": "litert-wasm"}[RUNTIME[what]]
    if what == "mobilenet" and sparsity is not None:
        model = kp.litert.prepare_for_xnnpack(model).model
    kp.export_litert(model, path, runtime=runtime)


def accuracy(path, images, labels):
    """Of a file, on one image at a time."""
    from keras_pruner.litert import interpreter

    runner = interpreter.load(path)
    place, out = runner.get_input_details()[0]["index"], runner.get_output_details()[0]["index"]
    right = 0
    for image, label in zip(images, labels, strict=True):
        runner.set_tensor(place, image[None])
        runner.invoke()
        right += int(runner.get_tensor(out).argmax() == label)
    return right / len(labels)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--what", choices=list(RUNTIME), default="stack")
    parser.add_argument("--sparsity", type=float, nargs="*", default=[0.8, 0.9])
    parser.add_argument("--epochs", type=int, default=4, help="before the ways part, and after")
    parser.add_argument("--seconds", type=float, default=2.0, help="of each round of timing")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--files", metavar="DIR", help="where the files stay")
    parser.add_argument("--prepare", action="store_true", help="only train, into --files")
    parser.add_argument("--node-modules", help="directory with @litertjs/core, for mobilenet")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        directory = Path(arguments.files or scratch)
        directory.mkdir(parents=True, exist_ok=True)
        notes = directory / "accuracy.json"
        if not notes.exists():
            found = train(arguments.what, arguments.sparsity, arguments.epochs, directory)
            _, _, x, y = data(arguments.what)
            shipped = {k: accuracy(directory / f"{k}.tflite", x, y) for k in found}
            notes.write_text(json.dumps({"keras": found, "shipped": shipped}))
        known = json.loads(notes.read_text())
        if arguments.prepare:
            print(json.dumps(known))
            return
        print(f"{arguments.what}, dense: accuracy {known['shipped']['dense']:.4f} (LiteRT), "
              f"{known['keras']['dense']:.4f} (Keras)")  # fmt: skip
        for sparsity in arguments.sparsity:
            benchmark, options = kp.litert.benchmark, {}
            if RUNTIME[arguments.what] == "wasm":
                benchmark, options = litertjs.benchmark, {"node_modules": arguments.node_modules}
            files = directory / "dense.tflite", directory / f"{sparsity}.tflite"
            timings = [
                benchmark(*files, seconds=arguments.seconds, **options).timings[0]
                for _ in range(arguments.rounds)
            ]
            speedups = sorted(t.speedup for t in timings)
            key = str(sparsity)
            print(
                f"  {sparsity:.0%}: accuracy {known['shipped'][key]:.4f} (LiteRT), "
                f"{known['keras'][key]:.4f} (Keras); {statistics.median(speedups):.2f}x faster "
                f"({speedups[0]:.2f} - {speedups[-1]:.2f}), dense "
                f"{statistics.median(t.dense_ms for t in timings):.3f} ms; "
                f"load {os.getloadavg()[0]:.1f}", flush=True,
            )  # fmt: skip


if __name__ == "__main__":
    main()
