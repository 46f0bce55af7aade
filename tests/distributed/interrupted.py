"""A training that kills itself at a given moment, and goes on from its backup when run again.

Arguments: where the results go, the directory of the backups, "atomic" or "keras" for the
callback that makes them, and when to die: "never", "after SECONDS" of training, "update N" in the
middle of the Nth mask update, "write N" after the Nth piece of a backup that is written.
"""

import os
import signal
import sys
import threading
import time

import h5py
import keras
import numpy as np
from task import BATCH, LOSS, data, write

import keras_pruner as kp
from keras_pruner import pruner as pruner_module

EPOCHS = 6
SCHEDULE = kp.PolynomialDecay(0.75, initial_sparsity=0.25, end_step=18, frequency=2)
_, _, DIRECTORY, KIND, WHEN, *NUMBER = sys.argv

if keras.backend.backend() == "tensorflow":
    import tensorflow as tf

    tf.config.experimental.enable_op_determinism()


def die():
    """As `kill -9` does."""
    os.kill(os.getpid(), signal.SIGKILL)


def die_at(count, module, name, before):
    """Make a function of a module die when it is called for the `count`th time."""
    function, calls = getattr(module, name), []

    def deadly(*arguments, **options):
        calls.append(name)
        if before and len(calls) == count:
            die()
        result = function(*arguments, **options)
        if len(calls) == count:
            die()
        return result

    setattr(module, name, deadly)


class Epochs(keras.utils.PyDataset):
    """The data in an order that only the epoch decides."""

    def __init__(self, epoch):
        super().__init__()
        self.epoch = epoch

    def __len__(self):
        return 4

    def on_epoch_end(self):
        self.epoch += 1

    def __getitem__(self, i):
        order = np.random.default_rng(self.epoch).permutation(64)[BATCH * i : BATCH * (i + 1)]
        return tuple(array[order] for array in data())


class Slowly(keras.callbacks.Callback):
    """Begin the countdown with the training, and leave it time to end it."""

    def on_epoch_begin(self, epoch, logs=None):
        if WHEN == "after" and not getattr(self, "counting", False):
            self.counting = True
            timer = threading.Timer(float(NUMBER[0]), die)
            timer.daemon = True
            timer.start()

    def on_train_batch_begin(self, batch, logs=None):
        time.sleep(0.01)


def network():
    """With dropout, whose seeds have to go on as well."""
    keras.utils.set_random_seed(3)
    layers = [
        keras.Input((8,)),
        keras.layers.Dense(16, activation="relu", name="hidden"),
        keras.layers.Dropout(0.3),
        keras.layers.BatchNormalization(),
        keras.layers.Dense(4, name="head"),
    ]
    model = keras.Sequential(layers)
    model.compile(keras.optimizers.Adam(0.01, use_ema=True, ema_momentum=0.9), loss=LOSS)
    return model


if WHEN == "update":
    # Of two weights: after the first mask of an update is set and before the second.
    die_at(2 * int(NUMBER[0]), pruner_module.cuts, "make", before=True)
if WHEN == "write":
    die_at(int(NUMBER[0]), h5py.Group, "__setitem__", before=False)
    die_at(int(NUMBER[0]), h5py.Group, "create_dataset", before=False)

backup = kp.AtomicBackup(DIRECTORY)
first = backup.epoch
if KIND == "keras":
    options = {"double_checkpoint": True, "delete_checkpoint": False}
    backup = keras.callbacks.BackupAndRestore(DIRECTORY, **options)
noted = []


class Look(keras.callbacks.Callback):
    """See that every epoch ends with the sparsity that is due and no weight under its mask."""

    def on_epoch_end(self, epoch, logs=None):
        wrapped = self.model.optimizer
        for masked in wrapped.masked:
            weight, mask = (keras.ops.convert_to_numpy(v) for v in (masked.variable, masked.mask))
            assert not weight[~mask].any()
        due = pruning.pruner.schedule.sparsity_at(wrapped.progress.updated_at)
        assert abs(pruning.pruner.sparsity - due) < 2 / 192
        noted.append([epoch, wrapped.progress.updated_at])


pruning = kp.GradualPruning(SCHEDULE, allocation="uniform")
model = network()
model.fit(
    Epochs(first),
    epochs=EPOCHS,
    shuffle=False,
    verbose=0,
    callbacks=[pruning, Slowly(), Look(), backup],
)
values = [*model.weights, *model.optimizer.variables]
write(
    {
        "values": [np.asarray(keras.ops.convert_to_numpy(v)).tolist() for v in values],
        "weights": [np.asarray(keras.ops.convert_to_numpy(v)).tolist() for v in model.weights],
        "noted": noted,
    }
)
