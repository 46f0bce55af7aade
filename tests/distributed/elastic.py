"""A training that stops on some number of devices and goes on, from its backup, on another.

Arguments: where the results go, how many devices, the directory of the backups, the last epoch.
On PyTorch the devices are processes, and the backup is a file of `torch.save`.
"""

import os
import sys
from pathlib import Path

DEVICES, DIRECTORY, LAST = int(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4])
os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={DEVICES}"

import contextlib

import keras
import numpy as np
from task import LOSS, SCHEDULE, batches, compiled, data, network, weights, write
from task import fit as fit_task

import keras_pruner as kp
from keras_pruner.callbacks import AtomicBackup

FIRST = {}


def masks_of(pruning):
    """The masks, as lists."""
    return [np.asarray(keras.ops.convert_to_numpy(m.mask)).tolist() for m in pruning.masked]


class Look(keras.callbacks.Callback):
    """Note the masks that the training begins with, and those of the end of each epoch."""

    def on_epoch_begin(self, epoch, logs=None):
        FIRST.setdefault("masks at first", masks_of(self.model.optimizer))

    def on_epoch_end(self, epoch, logs=None):
        FIRST["masks at last"] = masks_of(self.model.optimizer)


def fitted(scope):
    """By `fit`, with `AtomicBackup`."""
    with scope:
        model = compiled()
    fit_task(
        model,
        kp.GradualPruning(SCHEDULE),
        Look(),
        AtomicBackup(DIRECTORY),
        epochs=LAST,
    )
    return model


def on_jax():
    """Kernels in as many parts as there are devices."""
    if DEVICES > 1:
        from jax_layouts import model_parallel

        keras.distribution.set_distribution(model_parallel((1, DEVICES)))
    return fitted(contextlib.nullcontext())


def on_tensorflow():
    """As many replicas as there are devices."""
    import tensorflow as tf

    cpu = tf.config.list_physical_devices("CPU")[0]
    logical = [tf.config.LogicalDeviceConfiguration()] * DEVICES
    tf.config.set_logical_device_configuration(cpu, logical)
    if DEVICES == 1:
        return fitted(contextlib.nullcontext())
    names = [f"CPU:{i}" for i in range(DEVICES)]
    return fitted(tf.distribute.MirroredStrategy(names).scope())


def on_torch():
    """As many processes as there are devices."""
    import torch
    import torch_loop
    from torch.nn.parallel import DistributedDataParallel

    torch_loop.join()
    model = network()
    parallel = DistributedDataParallel(model)
    pruner = kp.Pruner(model, SCHEDULE)
    optimizer = pruner.wrap(torch.optim.SGD(parallel.parameters(), lr=0.1, momentum=0.9))
    done = torch_loop.restore(DIRECTORY / "backup.pt", model, optimizer)
    FIRST["masks at first"] = masks_of(pruner.pruning)
    for x, y in batches(LAST - done):
        pruner.update()
        torch_loop.step(parallel, optimizer, x, y)
    FIRST["masks at last"] = masks_of(pruner.pruning)
    torch_loop.save(DIRECTORY / "backup.pt", model, optimizer, LAST)
    torch.distributed.destroy_process_group()
    return model


DIRECTORY.mkdir(exist_ok=True)
trained = {"jax": on_jax, "tensorflow": on_tensorflow, "torch": on_torch}
model = trained[keras.backend.backend()]()
x, y = data()
loss = float(keras.ops.convert_to_numpy(LOSS(y, model.predict(x, verbose=0))))
write({"weights": weights(model), "loss": loss, **FIRST})
