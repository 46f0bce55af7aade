"""The small training that every script of this folder does, and how it tells its test."""

import json
import sys
from pathlib import Path

import keras
import numpy as np
from task_environment import RANK

import keras_pruner as kp

BATCH, EPOCHS, STEPS = 16, 2, 8
SCHEDULE = kp.PolynomialDecay(0.75, initial_sparsity=0.25, end_step=6, frequency=2)
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def data():
    """64 samples of 8 features in 4 classes."""
    random = np.random.default_rng(0)
    x = random.normal(size=(64, 8)).astype("float32")
    return x, (x @ random.normal(size=(8, 4))).argmax(1).astype("int32")


def batches(epochs=EPOCHS):
    """The batches of all epochs, in the order of `fit` without shuffling."""
    x, y = data()
    for _ in range(epochs):
        for start in range(0, len(x), BATCH):
            yield x[start : start + BATCH], y[start : start + BATCH]


def network():
    """Kernels of 8 x 16 and 16 x 4, from the same seed each time."""
    keras.utils.set_random_seed(1)
    layers = [
        keras.Input((8,)),
        keras.layers.Dense(16, activation="relu", name="hidden"),
        keras.layers.Dense(4, name="head"),
    ]
    return keras.Sequential(layers, name="network")


def sgd():
    """SGD with momentum: unlike Adam's, its steps do not magnify the rounding of sums."""
    return keras.optimizers.SGD(0.1, momentum=0.9)


def compiled(**options):
    """The network, compiled."""
    model = network()
    model.compile(sgd(), loss=LOSS, **options)
    return model


def fit(model, *callbacks, epochs=EPOCHS, **options):
    """Train it on the task's data; give it back."""
    x, y = data()
    model.fit(
        x,
        y,
        batch_size=BATCH,
        epochs=epochs,
        shuffle=False,
        verbose=0,
        callbacks=list(callbacks),
        **options,
    )
    return model


def weights(model):
    """All weights, as lists."""
    return [np.asarray(keras.ops.convert_to_numpy(v)).tolist() for v in model.weights]


def raised(act, *arguments):
    """What comes of it, in words; nothing if nothing is raised."""
    try:
        act(*arguments)
    except Exception as error:
        return f"{type(error).__name__}: {error}"[:3000]
    return ""


def write(results):
    """Leave the results where the test looks for them, one file for each process."""
    Path(f"{sys.argv[1]}.{RANK}").write_text(json.dumps(results))
