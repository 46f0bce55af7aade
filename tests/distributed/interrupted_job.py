"""A job of two processes, of which one kills itself at a given step; run again it goes on.

Arguments: where the results go, the directory of the backups, and, if one is to die, its rank and
the step that it does not make. A backup is written by the first process after every epoch of a
loop, on TensorFlow and PyTorch.
"""

import os
import signal
import sys
from pathlib import Path

import keras
from task_environment import PORTS, PROCESSES, RANK

BACKEND = keras.backend.backend()
if BACKEND == "tensorflow":
    import tensorflow as tf
    import tensorflow_loop

    tensorflow_loop.name_workers(PORTS, RANK)
    STRATEGY = tf.distribute.MultiWorkerMirroredStrategy()

import numpy as np
from task import BATCH, batches, network, sgd, weights, write

import keras_pruner as kp

EPOCHS, STEPS = 4, 4
SCHEDULE = kp.PolynomialDecay(0.75, initial_sparsity=0.25, end_step=14, frequency=2)
DIRECTORY, VICTIM = Path(sys.argv[2]), [int(each) for each in sys.argv[3:]]
HALF = slice(RANK * BATCH // PROCESSES, (RANK + 1) * BATCH // PROCESSES)


def die_at(step):
    """As `kill -9` does, if this is the one and the step is due."""
    if [RANK, step] == VICTIM:
        os.kill(os.getpid(), signal.SIGKILL)


def loop(begun_at, pruner, step, save):
    """A loop of one's own, from the end of an epoch."""
    for epoch in range(begun_at, EPOCHS):
        for i, (x, y) in enumerate(batches(1)):
            die_at(epoch * STEPS + i)
            pruner.update()
            step(x, y)
        save(epoch + 1)


def masks_of(wrapped):
    """The masks, as lists."""
    return [np.asarray(keras.ops.convert_to_numpy(m.mask)).tolist() for m in wrapped.masked]


def on_tensorflow():
    """`strategy.run` under `MultiWorkerMirroredStrategy`, `tf.train.Checkpoint`."""
    with STRATEGY.scope():
        model = network()
        pruner = kp.Pruner(model, SCHEDULE)
        optimizer = pruner.wrap(sgd())
    # Every worker has to save, for saving may communicate; only what the first saves is kept.
    folder = DIRECTORY if RANK == 0 else Path(f"{DIRECTORY}.of-worker-{RANK}")
    checkpoint = tf.train.Checkpoint(model=model, optimizer=optimizer)
    manager = tf.train.CheckpointManager(checkpoint, folder, max_to_keep=1)
    latest = tf.train.latest_checkpoint(DIRECTORY)
    if latest:
        checkpoint.restore(latest).assert_existing_objects_matched()
    begun_at = pruner.wrapped.completed_updates // STEPS
    run = tf.function(tensorflow_loop.step_of(STRATEGY, model, optimizer))

    def step(x, y):
        run(tf.constant(x[HALF]), tf.constant(y[HALF]))

    loop(begun_at, pruner, step, lambda epochs: manager.save(checkpoint_number=epochs))
    return begun_at, weights(model), masks_of(pruner.wrapped)


def on_torch():
    """`DistributedDataParallel`, a file of `torch.save`."""
    import torch
    import torch_loop
    from torch.nn.parallel import DistributedDataParallel

    torch_loop.join()
    model = network()
    parallel = DistributedDataParallel(model)
    pruner = kp.Pruner(model, SCHEDULE)
    optimizer = pruner.wrap(torch.optim.Adam(parallel.parameters(), lr=0.01))
    file = DIRECTORY / "backup.pt"
    begun_at = torch_loop.restore(file, model, optimizer)
    loop(
        begun_at,
        pruner,
        lambda x, y: torch_loop.step(parallel, optimizer, x, y),
        lambda epochs: torch_loop.save(file, model, optimizer, epochs),
    )
    torch.distributed.destroy_process_group()
    return begun_at, weights(model), masks_of(pruner.wrapped)


DIRECTORY.mkdir(exist_ok=True)
trained = {"tensorflow": on_tensorflow, "torch": on_torch}
write(dict(zip(("begun at", "weights", "masks"), trained[BACKEND](), strict=True)))
