"""Time of a training step, pruned against dense, measured alternately in one process.

    python benchmarks/step_time.py --model mlp --frequency 100 --backend jax

Both sides train in `fit`; the dense one has an empty hook like the pruned one's. A second dense
model is the control: its ratio shows the noise. A bound is met if the upper end of the interval
meets it.

Identical models can differ permanently in speed, because TensorFlow's executor chooses an order of
operations for each graph. `--instances` times several models of each kind together.
"""

import argparse
import os
import sys
import time

from allocator import keep_memory


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", nargs="+", default=["mlp"], choices=sorted(MODELS))
    parser.add_argument("--backend", default=None, help="as KERAS_BACKEND")
    parser.add_argument("--frequency", nargs="+", type=int, default=[100])
    parser.add_argument("--xla", action="store_true", help="compile with XLA on TensorFlow")
    parser.add_argument("--blocks", type=int, default=30)
    parser.add_argument("--steps", type=int, default=20, help="steps in a block")
    parser.add_argument("--instances", type=int, default=1, help="models of each kind")
    parser.add_argument("--sparsity", type=float, default=0.8, help="below 0.9; hardly moves")
    parser.add_argument("--allocation", default="uniform")
    parser.add_argument("--json", metavar="PATH")
    return parser.parse_args()


def mlp(keras):
    """6.3 million weights, batch 64."""
    sizes = [1024, 2048, 1536, 512]
    layers = [keras.layers.Dense(n, activation="relu") for n in sizes[1:]]
    return keras.Sequential([keras.Input((1024,)), *layers, keras.layers.Dense(10)])


def cnn(keras):
    """A small convolutional network with batch normalisation, batch 64."""
    layers = []
    for filters, stride in [(32, 1), (64, 2), (64, 1), (128, 2)]:
        layers += [
            keras.layers.Conv2D(filters, 3, strides=stride, padding="same", use_bias=False),
            keras.layers.BatchNormalization(),
            keras.layers.ReLU(),
        ]
    head = [keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(10)]
    return keras.Sequential([keras.Input((28, 28, 1)), *layers, *head])


def lstm(keras):
    """An embedding and an LSTM of 256 units over 40 steps, batch 64."""
    layers = [keras.layers.Embedding(5000, 128), keras.layers.LSTM(256), keras.layers.Dense(10)]
    return keras.Sequential([keras.Input((40,), dtype="int32"), *layers])


def transformer(keras):
    """Two encoder blocks of width 256 over 32 positions, batch 64."""
    inputs = x = keras.Input((32, 256))
    for _ in range(2):
        attended = keras.layers.MultiHeadAttention(4, 64)(x, x)
        x = keras.layers.LayerNormalization()(x + attended)
        hidden = keras.layers.Dense(1024, activation="gelu")(x)
        x = keras.layers.LayerNormalization()(x + keras.layers.Dense(256)(hidden))
    return keras.Model(inputs, keras.layers.Dense(10)(keras.layers.GlobalAveragePooling1D()(x)))


MODELS = {"mlp": mlp, "cnn": cnn, "lstm": lstm, "transformer": transformer}


def main() -> None:
    options = arguments()
    if options.backend:
        os.environ["KERAS_BACKEND"] = options.backend
    keep_memory()
    import keras
    import numpy as np
    from interleaved import compare, ratio, show

    import keras_pruner as kp

    class Clock(keras.callbacks.Callback):
        """The seconds of an epoch's steps, without the work of `fit` and callbacks around them."""

        def on_train_batch_begin(self, batch, logs=None):
            """A hook like the one that pruning has, and called before it."""
            if batch == 0:
                self.start = time.perf_counter()

        def on_epoch_end(self, epoch, logs=None):
            self.seconds = time.perf_counter() - self.start

    def trainer(build, frequency):
        keras.utils.set_random_seed(0)
        model = build(keras)
        xla = options.xla if keras.backend.backend() == "tensorflow" else "auto"
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(keras.optimizers.Adam(1e-4), loss=loss, jit_compile=xla)
        shape = (64 * options.steps, *model.inputs[0].shape[1:])
        rng = np.random.default_rng(0)
        integers = "int" in model.inputs[0].dtype
        x = rng.integers(0, 5000, shape) if integers else rng.normal(size=shape).astype("float32")
        y = rng.integers(0, 10, len(x))
        clock = Clock()
        callbacks = [clock]
        if frequency:
            schedule = kp.PolynomialDecay(
                0.9, initial_sparsity=options.sparsity, end_step=10**7, frequency=frequency
            )
            callbacks.append(kp.GradualPruning(schedule, allocation=options.allocation))

        def block() -> float:
            model.fit(x, y, batch_size=64, shuffle=False, verbose=0, callbacks=callbacks)
            return clock.seconds

        return block

    def trainers(build, frequency=0):
        blocks = [trainer(build, frequency) for _ in range(options.instances)]
        return lambda: sum(block() for block in blocks)

    import warnings

    warnings.filterwarnings("ignore", "The training is too short")
    rows = []
    backend = keras.backend.backend() + (" XLA" if options.xla else "")
    for name in options.model:
        variants = {each: trainers(MODELS[name]) for each in ("dense", "control")}
        for frequency in options.frequency:
            variants[f"pruned every {frequency}"] = trainers(MODELS[name], frequency)
        seconds = compare(variants, options.blocks)
        for variant in list(variants)[1:]:
            figures = ratio(seconds[variant], seconds["dense"])
            figures["milliseconds"] /= options.steps * options.instances
            rows.append({"backend": backend, "model": name, "against dense": variant, **figures})
    show("step time", rows, options.json)


if __name__ == "__main__":
    sys.exit(main())
