"""A job of two processes, of which one kills itself at a given step; run again it goes on.

Arguments: where the results go, the directory of the backups, and, if one is to die, its rank and
the step that it does not make. A backup is written by the first process after every epoch of a
loop, on PyTorch.
"""

import os
import signal
import sys
from pathlib import Path

import keras
import numpy as np
import torch
import torch_loop
from task import batches, network, weights, write
from task_environment import RANK
from torch.nn.parallel import DistributedDataParallel

import keras_pruner as kp

EPOCHS, STEPS = 4, 4
SCHEDULE = kp.PolynomialDecay(0.75, initial_sparsity=0.25, end_step=14, frequency=2)
DIRECTORY, VICTIM = Path(sys.argv[2]), [int(each) for each in sys.argv[3:]]


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


def masks_of(pruning):
    """The masks, as lists."""
    return [np.asarray(keras.ops.convert_to_numpy(m.mask)).tolist() for m in pruning.masked]


def trained():
    """`DistributedDataParallel`, a file of `torch.save`."""
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
    return begun_at, weights(model), masks_of(pruner.pruning)


DIRECTORY.mkdir(exist_ok=True)
write(dict(zip(("begun at", "weights", "masks"), trained(), strict=True)))
