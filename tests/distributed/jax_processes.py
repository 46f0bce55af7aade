"""Two processes of two devices each, through `jax.distributed`."""

import os
import sys

from task_environment import PORTS, PROCESSES, RANK

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=2"
os.environ["KERAS_BACKEND"] = "jax"

import jax
import keras
import numpy as np
from jax_layouts import LAYOUTS, WAYS, join, lay, lay_over_processes, pruner_of

join(PORTS[0], PROCESSES, RANK)

from jax.experimental import multihost_utils
from task import BATCH, EPOCHS, LOSS, SCHEDULE, batches, network, raised, sgd, write

import keras_pruner as kp


def whole(value):
    """An array as every process may see it, for the test's eyes."""
    return np.asarray(multihost_utils.process_allgather(value, tiled=True)).tolist()


def trained(name):
    """One `fit`; each process feeds its part of each batch."""
    lay_over_processes(name)
    model = network()
    model.compile(sgd(), loss=LOSS)
    if name == "ModelParallel":  # the batch is in one part: every process gives all of it
        mine = slice(None)
    else:
        mine = slice(RANK * BATCH // PROCESSES, (RANK + 1) * BATCH // PROCESSES)
    pairs = [(x[mine], y[mine]) for x, y in batches(1)]
    x, y = (np.concatenate(parts) for parts in zip(*pairs, strict=True))
    copies = []

    class Look(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            copies.append(pruning.pruner.check_agreement())

    pruning = kp.GradualPruning(SCHEDULE)
    model.fit(
        x,
        y,
        batch_size=len(x) // 4,
        epochs=EPOCHS,
        shuffle=False,
        verbose=0,
        callbacks=[pruning, Look()],
    )
    found = [whole(v.value) for v in model.weights]
    lay(None)
    return {"weights": found, "copies": copies[-1]}


def backed_up(name, directory):
    """What a backup says to several processes."""
    lay_over_processes(name)
    model = network()
    model.compile(sgd(), loss=LOSS)
    backup = kp.callbacks.AtomicBackup(directory)
    backup.set_model(model)
    said = raised(backup.on_train_begin)
    lay(None)
    return said


def masks(how):
    """The masks at once, of kernels in four parts."""
    lay_over_processes("ModelParallel")
    model = network()
    pruner = pruner_of(model, how)
    pruner.wrap(sgd())
    pruner.update()
    found = [whole(m.mask.value) for m in pruner.pruning.masked]
    lay(None)
    return found


def saved_in_parts():
    """What Keras says to saving weights of which other processes have parts."""
    lay_over_processes("ModelParallel")
    said = raised(network().save_weights, f"{sys.argv[1]}.{RANK}.weights.h5")
    lay(None)
    return said


def not_finite():
    """What is raised where the NaN is not."""
    lay_over_processes("ModelParallel")
    model = network()
    pruner = kp.Pruner(model, kp.ConstantSparsity(0.75, end_step=4), allocation="lamp")
    pruner.wrap(sgd())
    kernel = model.layers[0].kernel
    kernel._value = jax.jit(lambda v: v.at[0, 0].set(np.nan))(kernel.value)  # the first's part
    said = raised(pruner.update)
    lay(None)
    return said


write(
    {
        **{name: trained(name) for name in LAYOUTS},
        "backed up": {
            name: backed_up(name, f"{sys.argv[1]}.backups")
            for name in ("DataParallel", "ModelParallel")
        },
        "masks": {how: masks(how) for how in WAYS},
        "saved in parts": saved_in_parts(),
        "not finite": not_finite(),
    }
)
