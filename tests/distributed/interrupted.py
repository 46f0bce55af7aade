"""A training that kills itself at a given moment, and goes on from its backup when run again.

Arguments: where the results go, the directory of the backups, "atomic" or "keras" for the
callback that makes them, and when to die: "never"; "after SECONDS" of training; "update N" in the
middle of the Nth mask update; "write K N" when the Nth piece of the Kth backup is written; "name K"
when the weights of the Kth backup are written, and nothing yet says of which epoch they are.
"""

import collections
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
from keras_pruner.masks import MaskedWeight

EPOCHS = 6
SCHEDULE = kp.PolynomialDecay(0.75, initial_sparsity=0.25, end_step=18, frequency=2)
_, _, DIRECTORY, KIND, WHEN, *numbers = sys.argv
NUMBERS = [*map(float, numbers)]

if keras.backend.backend() == "tensorflow":
    import tensorflow as tf

    tf.config.experimental.enable_op_determinism()


def die():
    """As `kill -9` does; the last words say where."""
    print("killed", WHEN, *NUMBERS, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)


def dying(owner, name, is_time, before=False):
    """Make a function die when it is called and `is_time()`."""
    function = getattr(owner, name)

    def deadly(*arguments, **options):
        now = is_time()
        if now and before:
            die()
        result = function(*arguments, **options)
        if now:
            die()
        return result

    setattr(owner, name, deadly)


calls = collections.Counter()


def update_is_in_the_middle():
    """Of two weights, the first has its new mask and the second has not."""
    calls["update"] += 1
    return WHEN == "update" and calls["update"] == 2 * NUMBERS[0]


def backup_has_weights():
    """Count the backup, and forget the pieces of the one before."""
    calls["backup"] += 1
    calls["piece"] = 0
    return WHEN == "name" and calls["backup"] == NUMBERS[0]


def backup_has_piece():
    """Some of a backup is in its file."""
    calls["piece"] += 1
    return WHEN == "write" and [calls["backup"], calls["piece"]] == NUMBERS


dying(MaskedWeight, "apply", update_is_in_the_middle, before=True)
dying(keras.Model, "save_weights", backup_has_weights)
dying(h5py.Group, "__setitem__", backup_has_piece)
dying(h5py.Group, "create_dataset", backup_has_piece)


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
            timer = threading.Timer(NUMBERS[0], die)
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


backup = kp.callbacks.AtomicBackup(DIRECTORY)
first = backup.epoch
if KIND == "keras":
    options = {"double_checkpoint": True, "delete_checkpoint": False}
    backup = keras.callbacks.BackupAndRestore(DIRECTORY, **options)
noted = []


class Look(keras.callbacks.Callback):
    """See that every epoch ends with the sparsity that is due and no weight under its mask."""

    def on_epoch_end(self, epoch, logs=None):
        assert self.model.built  # on JAX to look at the model brings it up to date
        carried = pruning.pruner.pruning
        for masked in carried.masked:
            weight, mask = (keras.ops.convert_to_numpy(v) for v in (masked.variable, masked.mask))
            assert not weight[~mask].any()
        due = pruning.pruner.schedule.sparsity_at(carried.state.updated_at)
        assert abs(pruning.pruner.sparsity - due) < 2 / 192
        noted.append([epoch, carried.iterations])


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
        "steps": noted,
    }
)
