"""A job of two processes, of which one kills itself at a given step; run again it goes on.

Arguments: where the results go, the directory of the backups, and, if one is to die, its rank and
the step that it does not make. A backup is written by the first process after every epoch: by
`AtomicBackup` in `fit` on JAX, in a loop on TensorFlow and PyTorch.
"""

import json
import os
import signal
import sys
from pathlib import Path

from task_environment import PORTS, PROCESSES, RANK

os.environ["TF_CONFIG"] = json.dumps(
    {
        "cluster": {"worker": [f"127.0.0.1:{port}" for port in PORTS]},
        "task": {"type": "worker", "index": RANK},
    }
)
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=1"

import keras

BACKEND = keras.backend.backend()
if BACKEND == "jax":
    import jax

    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    keras.distribution.initialize(f"127.0.0.1:{PORTS[0]}", PROCESSES, RANK)
if BACKEND == "tensorflow":
    import tensorflow as tf

    STRATEGY = tf.distribute.MultiWorkerMirroredStrategy()

import numpy as np
from task import BATCH, LOSS, batches, network, sgd, weights, write

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
            step(x[HALF], y[HALF])
        save(epoch + 1)


def on_jax():
    """`fit` under `DataParallel`."""
    devices = keras.distribution.list_devices()
    keras.distribution.set_distribution(
        keras.distribution.DataParallel(devices=devices, auto_shard_dataset=False)
    )
    model = network()
    model.compile(sgd(), loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    pruning, backup = kp.GradualPruning(SCHEDULE), kp.AtomicBackup(DIRECTORY)
    begun_at = backup.epoch

    class Die(keras.callbacks.Callback):
        """At a step that the optimizer counts."""

        def on_train_batch_begin(self, batch, logs=None):
            die_at(self.epoch * STEPS + batch)

        def on_epoch_begin(self, epoch, logs=None):
            self.epoch = epoch

    masks = []

    class Look(keras.callbacks.Callback):
        """The masks, while they are there."""

        def on_epoch_end(self, epoch, logs=None):
            wrapped = pruning.pruner.wrapped
            masks[:] = [np.asarray(m.mask.value).tolist() for m in wrapped.masked]

    x, y = (np.concatenate(parts) for parts in zip(*batches(1), strict=True))
    mine = np.arange(len(x)).reshape(STEPS, BATCH)[:, HALF].reshape(-1)
    model.fit(
        x[mine],
        y[mine],
        batch_size=BATCH // PROCESSES,
        epochs=EPOCHS,
        shuffle=False,
        verbose=0,
        callbacks=[pruning, Die(), Look(), backup],
    )
    return {"begun at": begun_at, "weights": weights(model), "masks": masks}


def on_tensorflow():
    """`strategy.run` under `MultiWorkerMirroredStrategy`, `tf.train.Checkpoint`."""
    with STRATEGY.scope():
        model = network()
        pruner = kp.Pruner(model, SCHEDULE)
        optimizer = pruner.wrap(sgd())
    loss_of = keras.losses.SparseCategoricalCrossentropy(from_logits=True, reduction="sum")
    # Every worker has to save, for saving may communicate; only the first one's is kept.
    folder = DIRECTORY if RANK == 0 else Path(f"{DIRECTORY}.of-worker-{RANK}")
    checkpoint = tf.train.Checkpoint(model=model, optimizer=optimizer)
    manager = tf.train.CheckpointManager(checkpoint, folder, max_to_keep=1)
    latest = tf.train.latest_checkpoint(DIRECTORY)
    if latest:
        checkpoint.restore(latest).assert_existing_objects_matched()
    begun_at = int(optimizer.iterations) // STEPS

    def on_replica(x, y):
        with tf.GradientTape() as tape:
            loss = loss_of(y, model(x, training=True)) / BATCH
        gradients = tape.gradient(loss, model.trainable_variables)
        optimizer.apply(gradients, model.trainable_variables)

    @tf.function
    def step(x, y):
        STRATEGY.run(on_replica, args=(x, y))

    loop(begun_at, pruner, step, lambda epochs: manager.save(checkpoint_number=epochs))
    return result(begun_at, model, pruner)


def on_torch():
    """`DistributedDataParallel`; the file gets its name when it is complete."""
    import torch
    from torch.nn.parallel import DistributedDataParallel

    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(PORTS[0]))
    torch.distributed.init_process_group("gloo", rank=RANK, world_size=PROCESSES)
    model = network()
    parallel = DistributedDataParallel(model)
    pruner = kp.Pruner(model, SCHEDULE)
    optimizer = pruner.wrap(torch.optim.Adam(parallel.parameters(), lr=0.01))
    DIRECTORY.mkdir(exist_ok=True)
    file, begun_at = DIRECTORY / "backup.pt", 0
    if file.exists():
        saved = torch.load(file)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        begun_at = saved["epochs"]

    def step(x, y):
        optimizer.zero_grad()
        LOSS(torch.from_numpy(y), parallel(torch.from_numpy(x))).backward()
        optimizer.step()

    def save(epochs):
        if RANK == 0:
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
            torch.save({**state, "epochs": epochs}, DIRECTORY / "unfinished.pt")
            os.replace(DIRECTORY / "unfinished.pt", file)

    loop(begun_at, pruner, step, save)
    found = result(begun_at, model, pruner)
    torch.distributed.destroy_process_group()
    return found


def result(begun_at, model, pruner):
    """What the test compares."""
    masks = [keras.ops.convert_to_numpy(m.mask).tolist() for m in pruner.wrapped.masked]
    return {"begun at": begun_at, "weights": weights(model), "masks": masks}


write({"jax": on_jax, "tensorflow": on_tensorflow, "torch": on_torch}[BACKEND]())
