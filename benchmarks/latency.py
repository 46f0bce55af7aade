"""Latency of pruned LiteRT files against dense ones, interleaved; prints ratios.

`--what stacks`: Dense stacks natively (and in WebAssembly with --runtime wasm).
`--what cnn`: MobileNet V1 and V2, stock and rewritten; --runtime wasm for LiteRT.js under Node.
`--what others`: a small ResNet and an LSTM, natively.
Each row has what `kp.advise` expected, so the rules are held to the measurements. Every figure is
the median over `--rounds` runs, each in a process of its own; their range stands behind it.
With `--files DIR` the exported files stay there and are used again: convert first with
`--prepare`, measure later, on a quiet machine.
"""

import argparse
import dataclasses
import json
import os
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import litertjs
import numpy as np

import keras_pruner as kp

PATTERNS = {"block 1x4": kp.Block((4, 1)), "unstructured": kp.Unstructured()}
STACKS = {"small": (256, 512, 512, 256), "large": (1024, 2048, 2048, 1024)}


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


@dataclasses.dataclass(frozen=True)
class Case:
    """One row: a model, its zeros, and whether it is rewritten first."""

    label: str
    make: Callable[[], keras.Model]
    zeros: str
    sparsity: float
    rewrite: bool = False

    def build(self):
        keras.utils.set_random_seed(0)
        model = randomize(self.make())
        prune(model, PATTERNS[self.zeros], self.sparsity)
        return kp.litert.prepare_for_xnnpack(model).model if self.rewrite else model

    def files(self, directory, runtime):
        """The dense file, as the model is, and the pruned one; made if they are not there."""
        name = self.label.replace(" ", "-")
        dense = directory / f"{name}-{runtime}.tflite"
        form = f"{self.zeros.replace(' ', '-')}-{self.sparsity}-{'r' * self.rewrite}"
        pruned = directory / f"{name}-{form}-{runtime}.tflite"
        if not dense.exists():
            keras.utils.set_random_seed(0)
            kp.export_litert(randomize(self.make()), dense, runtime=runtime)
        if not pruned.exists():
            kp.export_litert(self.build(), pruned, runtime=runtime)
        return dense, pruned

    def measure(self, directory, arguments):
        runtime = "litert-wasm" if arguments.runtime == "wasm" else "litert-x86"
        dense, pruned = self.files(directory, runtime)
        benchmark, options = kp.litert.benchmark, {}
        if arguments.runtime == "wasm":
            benchmark, options = litertjs.benchmark, {"node_modules": arguments.node_modules}
        timings = [
            benchmark(dense, pruned, seconds=arguments.seconds, **options).timings[0]
            for _ in range(arguments.rounds)
        ]
        speedups = sorted(timing.speedup for timing in timings)
        measured = statistics.median(speedups)
        pattern = PATTERNS[self.zeros]
        advice = kp.advise(self.build(), runtime, sparsity=self.sparsity, pattern=pattern)
        return {
            "model": self.label, "rewritten": self.rewrite, "zeros": self.zeros,
            "sparsity": self.sparsity, "measured": measured, "rounds": speedups,
            "expected": advice.speedup, "off": advice.speedup / measured - 1,
            "dense_ms": statistics.median(timing.dense_ms for timing in timings),
            "load": os.getloadavg()[0],
        }  # fmt: skip


def cases(arguments):
    if arguments.what == "stacks":
        for name in arguments.stacks:
            for zeros in PATTERNS:
                for s in arguments.sparsity or (0.75, 0.8, 0.9, 0.95):
                    yield Case(f"Dense {name}", lambda n=name: stack(*STACKS[n]), zeros, s)
    elif arguments.what == "cnn":
        for model in arguments.models:
            for rewrite in (False, True):
                for s in arguments.sparsity or (0.6, 0.8, 0.9):
                    yield Case(model, lambda m=model: mobilenet(m), "unstructured", s, rewrite)
    else:
        for label, make in (("small ResNet", small_resnet), ("LSTM", lstm)):
            for zeros in PATTERNS:
                for s in arguments.sparsity or (0.8, 0.9):
                    yield Case(label, make, zeros, s)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--what", choices=["stacks", "cnn", "others"], default="stacks")
    parser.add_argument("--runtime", choices=["native", "wasm"], default="native")
    parser.add_argument("--models", nargs="*", default=["MobileNet", "MobileNetV2"])
    parser.add_argument("--stacks", nargs="*", choices=list(STACKS), default=list(STACKS))
    parser.add_argument("--sparsity", type=float, nargs="*")
    parser.add_argument("--seconds", type=float, default=2.0, help="of each round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--files", metavar="DIR", help="where exported files stay")
    parser.add_argument("--prepare", action="store_true", help="only export, into --files")
    parser.add_argument("--node-modules", help="directory with @litertjs/core, for wasm")
    parser.add_argument("--json", action="store_true", help="one JSON object for each row")
    arguments = parser.parse_args()
    runtime = "litert-wasm" if arguments.runtime == "wasm" else "litert-x86"
    with tempfile.TemporaryDirectory() as scratch:
        directory = Path(arguments.files or scratch)
        directory.mkdir(parents=True, exist_ok=True)
        for case in cases(arguments):
            if arguments.prepare:
                case.files(directory, runtime)
                continue
            row = case.measure(directory, arguments)
            if arguments.json:
                print(json.dumps(row), flush=True)
                continue
            name = f"{case.label}{', rewritten' if case.rewrite else ''}"
            print(
                f"{name:24} {case.zeros:13} {case.sparsity:.2f}  measured {row['measured']:5.2f}x "
                f"({row['rounds'][0]:.2f} - {row['rounds'][-1]:.2f})  expected "
                f"{row['expected']:5.2f}x ({row['off']:+.0%})  dense {row['dense_ms']:.3f} ms  "
                f"load {row['load']:.1f}", flush=True,
            )  # fmt: skip


if __name__ == "__main__":
    main()
