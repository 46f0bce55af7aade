"""Law 13: stop, save, load, continue equals not having stopped, bit for bit."""

import json
import os
import subprocess
import sys
from pathlib import Path

import h5py
import keras
import numpy as np
import pytest
from models import LOSS, Subclassed, compile_, kernels, mlp, sparsity, values

import keras_pruner as kp
from keras_pruner.optimizer import PrunedOptimizer, find

SCHEDULE = kp.PolynomialDecay(0.8, initial_sparsity=0.2, end_step=12, frequency=3)


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
        values([*model.variables, *model.optimizer.variables]),
        values([*other.variables, *other.optimizer.variables]),
        strict=True,
    )
    for a, b in pairs:
        np.testing.assert_array_equal(a, b)


OPTIMIZERS = {
    "adam": lambda: keras.optimizers.Adam(0.01),
    "ema": lambda: keras.optimizers.SGD(0.1, momentum=0.9, use_ema=True),
    "accumulating": lambda: keras.optimizers.Adam(0.01, gradient_accumulation_steps=2),
}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("schedule", [SCHEDULE, 0.8], ids=["explicit", "shorthand"])
@pytest.mark.filterwarnings("ignore:The training is too short")
def test_a_model_saved_in_mid_schedule_goes_on(optimizer, schedule, data, tmp_path):
    whole = fit(mlp(OPTIMIZERS[optimizer]()), data, kp.GradualPruning(schedule))
    part = mlp(OPTIMIZERS[optimizer]())
    checkpoint = keras.callbacks.ModelCheckpoint(tmp_path / "{epoch}.keras")
    with pytest.raises(KeyboardInterrupt):
        fit(part, data, kp.GradualPruning(schedule), checkpoint, Stop(2))
    loaded = keras.saving.load_model(tmp_path / "2.keras")
    assert isinstance(find(loaded), PrunedOptimizer)
    fit(loaded, data, kp.GradualPruning(schedule), first=2)
    assert_equal(whole, loaded)
    assert sparsity(kernels(loaded)) == pytest.approx(0.8)


@pytest.mark.filterwarnings("ignore:The training is too short")
@pytest.mark.parametrize("schedule", [SCHEDULE, 0.8], ids=["explicit", "shorthand"])
@pytest.mark.parametrize("order", [1, -1])
def test_backup_and_restore_goes_on_wherever_it_stands_in_the_list(
    schedule, order, data, tmp_path
):
    whole = fit(mlp(), data, kp.GradualPruning(schedule))

    def run(*more):
        backup = keras.callbacks.BackupAndRestore(tmp_path / "backup")
        model = mlp()
        fit(model, data, *[kp.GradualPruning(schedule), backup][::order], *more)
        return model

    with pytest.raises(KeyboardInterrupt):
        run(Stop(2))
    # The data begins with the epoch that is restored.
    restored = run(_FromEpoch(2))
    assert sparsity(kernels(restored)) == pytest.approx(0.8)
    assert_equal(whole, restored)


class _FromEpoch(keras.callbacks.Callback):
    """Bring the data to the epoch at which a restored training begins."""

    def __init__(self, epoch):
        super().__init__()
        self.epoch = epoch

    def on_train_begin(self, logs=None):
        Epochs.__getitem__, self.original = self._moved, Epochs.__getitem__

    def on_train_end(self, logs=None):
        Epochs.__getitem__ = self.original

    def _moved(self, i):
        raise NotImplementedError
