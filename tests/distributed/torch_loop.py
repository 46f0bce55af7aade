"""The task's training by `DistributedDataParallel`, and a backup that is complete or not there."""

import os

import torch
import torch.distributed as dist
from task import BATCH, LOSS
from task_environment import PORTS, PROCESSES, RANK

MINE = slice(RANK * BATCH // PROCESSES, (RANK + 1) * BATCH // PROCESSES)


def join():
    """Become one of the processes."""
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(PORTS[0]))
    dist.init_process_group("gloo", rank=RANK, world_size=PROCESSES)


def step(parallel, optimizer, x, y):
    """A step with this process' part of the batch."""
    optimizer.zero_grad()
    LOSS(torch.from_numpy(y[MINE]), parallel(torch.from_numpy(x[MINE]))).backward()
    optimizer.step()


def save(file, model, optimizer, epochs):
    """By the first process: the file gets its name when it is complete."""
    if RANK:
        return
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "epochs": epochs}
    torch.save(state, unfinished := file.with_suffix(".unfinished"))
    os.replace(unfinished, file)


def restore(file, model, optimizer):
    """Into every process; how many epochs are done."""
    if not file.exists():
        return 0
    saved = torch.load(file)
    model.load_state_dict(saved["model"])
    optimizer.load_state_dict(saved["optimizer"])
    return saved["epochs"]
