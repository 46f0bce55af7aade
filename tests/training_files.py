"""A training that is stopped and goes on: what the tests of saved files share."""

import keras
import numpy as np
from models import values


class Epochs(keras.utils.PyDataset):
    """The `data` fixture in an order that only the epoch decides."""

    def __init__(self, data, epoch=0):
        super().__init__()
        self.data, self.epoch = data, epoch

    def __len__(self):
        return 4

    def on_epoch_end(self):
        self.epoch += 1

    def __getitem__(self, i):
        order = np.random.default_rng(self.epoch).permutation(64)[16 * i : 16 * (i + 1)]
        return tuple(array[order] for array in self.data)


class Stop(keras.callbacks.Callback):
    """As if the process were killed at the beginning of an epoch."""

    def __init__(self, epoch):
        super().__init__()
        self.epoch = epoch

    def on_epoch_begin(self, epoch, logs=None):
        if epoch == self.epoch:
            raise KeyboardInterrupt


def fit(model, data, *callbacks, first=0, last=4):
    model.fit(
        Epochs(data, first),
        initial_epoch=first,
        epochs=last,
        verbose=0,
        shuffle=False,
        callbacks=list(callbacks),
    )
    return model


def assert_equal(model, other):
    pairs = zip(
        values([*model.weights, *model.optimizer.variables]),
        values([*other.weights, *other.optimizer.variables]),
        strict=True,
    )
    for a, b in pairs:
        np.testing.assert_array_equal(a, b)
