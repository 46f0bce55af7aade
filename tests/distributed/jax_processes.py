"""Two processes of two devices each, through `jax.distributed`."""

import os
import sys

from task_environment import PORTS, PROCESSES, RANK

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=2"
os.environ["KERAS_BACKEND"] = "jax"

import jax

jax.config.update("jax_cpu_collectives_implementation", "gloo")

import keras
import numpy as np

keras.distribution.initialize(f"127.0.0.1:{PORTS[0]}", PROCESSES, RANK)

from jax.experimental import multihost_utils
from task import BATCH, EPOCHS, LOSS, SCHEDULE, batches, network, sgd, write

import keras_pruner as kp

DEVICES = keras.distribution.list_devices()


def model_parallel(shape):
    """Kernels in parts along the hidden units."""
    mesh = keras.distribution.DeviceMesh(shape, ("batch", "model"), DEVICES)
    layout = keras.distribution.LayoutMap(mesh)
    layout[".*hidden/kernel"] = (None, "model")
    layout[".*hidden/bias"] = ("model",)
    layout[".*head/kernel"] = ("model", None)
    return keras.distribution.ModelParallel(
        layout_map=layout, batch_dim_name="batch", auto_shard_dataset=False
    )


DISTRIBUTIONS = {
    "DataParallel": lambda: keras.distribution.DataParallel(
        devices=DEVICES, auto_shard_dataset=False
    ),
    "ModelParallel": lambda: model_parallel((1, 4)),
    "both": lambda: model_parallel((2, 2)),
}


def whole(value):
    """An array as every process may see it, for the test's eyes."""
    return np.asarray(multihost_utils.process_allgather(value, tiled=True)).tolist()


def trained(name):
    """One `fit`; each process feeds its part of each batch."""
    keras.distribution.set_distribution(DISTRIBUTIONS[name]())
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
    keras.distribution.set_distribution(None)
    return {"weights": found, "copies": copies[-1]}


def backed_up():
    """What a backup says to several processes."""
    backup = kp.AtomicBackup(f"{sys.argv[1]}.backups")
    backup.set_model(network())
    try:
        backup.on_train_begin()
    except ValueError as error:
        return str(error)
    return ""


def masks(allocation):
    """The masks at once, of kernels in four parts."""
    keras.distribution.set_distribution(DISTRIBUTIONS["ModelParallel"]())
    model = network()
    pruner = kp.Pruner(model, kp.ConstantSparsity(0.75, end_step=4), allocation=allocation)
    pruner.wrap(sgd())
    pruner.update()
    assert pruner.sparsity == 0.75
    found = [whole(m.mask.value) for m in pruner.wrapped.masked]
    keras.distribution.set_distribution(None)
    return found


def saved_in_parts():
    """What Keras says to saving weights of which other processes have parts."""
    keras.distribution.set_distribution(DISTRIBUTIONS["ModelParallel"]())
    try:
        network().save_weights(f"{sys.argv[1]}.{RANK}.weights.h5")
    except RuntimeError as error:
        return str(error)
    finally:
        keras.distribution.set_distribution(None)
    return ""


def not_finite():
    """What is raised where the NaN is not."""
    keras.distribution.set_distribution(DISTRIBUTIONS["ModelParallel"]())
    model = network()
    pruner = kp.Pruner(model, kp.ConstantSparsity(0.75, end_step=4), allocation="lamp")
    pruner.wrap(sgd())
    kernel = model.layers[0].kernel
    kernel._value = jax.jit(lambda v: v.at[0, 0].set(np.nan))(kernel.value)  # the first's part
    try:
        pruner.update()
    except ValueError as error:
        return str(error)
    finally:
        keras.distribution.set_distribution(None)
    return ""


write(
    {
        **{name: trained(name) for name in DISTRIBUTIONS},
        "backed up": backed_up(),
        "masks": {allocation: masks(allocation) for allocation in ("uniform", "lamp", "global")},
        "saved in parts": saved_in_parts(),
        "not finite": not_finite(),
    }
)
