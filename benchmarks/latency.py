"""Latency of pruned LiteRT files against dense ones, interleaved; prints ratios.

`--what stacks`: Dense stacks natively (and in WebAssembly with --runtime wasm).
`--what cnn`: MobileNet V1 and V2, stock and rewritten, in LiteRT.js under Node.
`--what others`: a small ResNet and an LSTM, natively.
Each row has what `kp.advise` expected, so the rules are held to the measurements.
"""

import argparse
import json
import os
import tempfile
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np

import keras_pruner as kp

PATTERNS = {"block 1x4": kp.Block((4, 1)), "unstructured": kp.Unstructured()}


def stack(*sizes):
    layers = [keras.layers.Dense(size, activation="relu") for size in sizes[1:]]
    return keras.Sequential([keras.Input((sizes[0],)), *layers])


def small_resnet():
    image = keras.Input((32, 32, 3))
    x = keras.layers.Conv2D(32, 3, padding="same", activation="relu")(image)
    for filters, strides in ((32, 1), (64, 2), (128, 2)):
        y = keras.layers.Conv2D(filters, 3, strides=strides, padding="same", activation="relu")(x)
        y = keras.layers.Conv2D(filters, 3, padding="same")(y)
        x = keras.layers.Conv2D(filters, 1, strides=strides)(x)
        x = keras.layers.ReLU()(keras.layers.Add()([x, y]))
    return keras.Model(image, keras.layers.Dense(10)(keras.layers.GlobalAveragePooling2D()(x)))


def lstm():
    layers = [keras.layers.LSTM(128), keras.layers.Dense(12)]
    return keras.Sequential([keras.Input((20, 64)), *layers])


def mobilenet(name):
    shape = (224, 224, 3)
    build = getattr(keras.applications, name)
    return build(weights=None, input_shape=shape, classifier_activation=None)


def randomize(model):
    """Statistics and biases as after a training."""
    rng = np.random.default_rng(0)
    for variable in model.weights:
        if variable.name in ("gamma", "moving_variance"):
            variable.assign(rng.uniform(0.8, 1.2, variable.shape))
        elif variable.name in ("beta", "moving_mean", "bias"):
            variable.assign(0.1 * rng.normal(size=variable.shape))
    return model


def prune(model, pattern, sparsity):
    """Zeros of a pattern in every kernel but depthwise ones, the smallest first."""
    skipped = (keras.layers.DepthwiseConv2D,)
    for layer in model._flatten_layers(include_self=False):
        for name in ("kernel", "recurrent_kernel"):
            variable = getattr(layer, name, None)
            if variable is None or isinstance(layer, skipped) or 3 in variable.shape[:-1]:
                continue
            weight = keras.ops.convert_to_numpy(variable.value).copy()
            try:
                mask = pattern(np.abs(weight), sparsity)
            except ValueError:
                continue
            variable.assign(np.where(mask, weight, 0))


def compare(make, pattern, sparsity, directory, arguments, rewrite=False):
    """One row: measured and expected gain."""
    runtime = "litert-wasm" if arguments.runtime == "wasm" else "litert-x86"
    model = randomize(make())
    dense, pruned = directory / "dense.tflite", directory / "pruned.tflite"
    kp.export_litert(model, dense, runtime=runtime)
    prune(model, pattern, sparsity)
    if rewrite:
        model = kp.make_eligible(model).model
    kp.export_litert(model, pruned, runtime=runtime)
    reference = directory / "reference.tflite"
    _without_sparse_tensors(model, reference)
    options = {"node_modules": arguments.node_modules} if arguments.runtime == "wasm" else {}
    measured = kp.benchmark_litert(
        reference if not rewrite else dense, pruned, runtime=arguments.runtime,
        seconds=arguments.seconds, **options,
    ).timings[0]  # fmt: skip
    expected = kp.advise(model, runtime, sparsity=sparsity, pattern=pattern).gain
    return {
        "measured": round(measured.speedup, 2), "expected": round(expected, 2),
        "off": round(expected / measured.speedup - 1, 2),
        "quartiles": [round(q, 2) for q in measured.spread],
        "dense_ms": round(measured.dense_ms, 3), "outputs_differ": measured.difference,
    }  # fmt: skip


def _without_sparse_tensors(model, path):
    """The same zeros, stored dense: what the sparse encoding itself gains."""
    from keras_pruner.deploy.convert import convert

    specs = [keras.InputSpec(i.dtype, (1, *i.shape[1:]), name=i.name) for i in model.inputs]
    convert(model, path, specs, "float32")


def cases(arguments):
    if arguments.what == "stacks":
        for sizes in ((256, 512, 512, 256), (1024, 2048, 2048, 1024)):
            for name, sparsities in (("block 1x4", (0.75, 0.8, 0.9)),
                                     ("unstructured", (0.8, 0.9, 0.95))):  # fmt: skip
                for s in sparsities:
                    yield f"Dense {sizes}", name, s, lambda sizes=sizes: stack(*sizes), False
    elif arguments.what == "cnn":
        for model in arguments.models:
            for rewrite in (False, True):
                for s in arguments.sparsity or (0.6, 0.8, 0.9):
                    label = f"{model} {'rewritten' if rewrite else 'stock'}"
                    yield label, "unstructured", s, lambda m=model: mobilenet(m), rewrite
    else:
        for s in (0.8, 0.9):
            for name in PATTERNS:
                yield "small ResNet", name, s, small_resnet, False
                yield "LSTM", name, s, lstm, False


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--what", choices=["stacks", "cnn", "others"], default="stacks")
    parser.add_argument("--runtime", choices=["native", "wasm"], default="native")
    parser.add_argument("--models", nargs="*", default=["MobileNet", "MobileNetV2"])
    parser.add_argument("--sparsity", type=float, nargs="*", help="for --what cnn")
    parser.add_argument("--seconds", type=float, default=3.0, help="of each measurement")
    parser.add_argument("--node-modules", help="directory with @litertjs/core, for wasm")
    parser.add_argument("--json", action="store_true", help="one JSON object for each row")
    arguments = parser.parse_args()
    for label, name, sparsity, make, rewrite in cases(arguments):
        with tempfile.TemporaryDirectory() as directory:
            row = compare(make, PATTERNS[name], sparsity, Path(directory), arguments, rewrite)
        if arguments.json:
            print(json.dumps({"model": label, "zeros": name, "sparsity": sparsity, **row}))
        else:
            print(
                f"{label:32} {name:13} {sparsity:.2f}  measured {row['measured']:5.2f}x  "
                f"expected {row['expected']:5.2f}x  ({row['off']:+.0%})  "
                f"dense {row['dense_ms']:.3f} ms", flush=True,
            )  # fmt: skip


if __name__ == "__main__":
    main()
