"""Processes over gloo: `DistributedDataParallel` around a Keras model, in a loop."""

import numpy as np
import torch
import torch.distributed as dist
from task import LOSS, SCHEDULE, batches, compiled, fit, network, raised, sgd, weights, write
from task_environment import PROCESSES, RANK
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel
from torch_loop import MINE, join, step

import keras_pruner as kp


def torch_sgd(parameters):
    """As `sgd`, of torch.optim."""
    return torch.optim.SGD(parameters, lr=0.1, momentum=0.9)


def torch_adam(parameters):
    """Adam, of torch.optim."""
    return torch.optim.Adam(parameters, lr=0.01)


def trained(optimizer_of, pruned=True):
    """One training; its weights, the bytes of each all-reduce, and how many copies agree."""
    model = network()
    parallel = DistributedDataParallel(model)
    sent = []

    def count(state, bucket):
        sent.append(bucket.buffer().numel() * bucket.buffer().element_size())
        return allreduce_hook(state, bucket)

    parallel.register_comm_hook(None, count)
    optimizer = optimizer_of(parallel.parameters())
    if pruned:
        pruner = kp.Pruner(model, SCHEDULE)
        optimizer = pruner.wrap(optimizer)
    for x, y in batches():
        if pruned:
            pruner.update()
        step(parallel, optimizer, x, y)
    found = {"weights": weights(model), "sent": sent}
    if pruned:
        pruner.update()
        found["copies"] = pruner.check_agreement()
        found["masks"] = [m.mask.numpy().tolist() for m in pruner.pruning.masked]
    return found


def keras_optimizer():
    """A Keras optimizer in the loop: gradients averaged by the wrapper, applied by Keras."""
    model = network()
    parallel = DistributedDataParallel(model)
    pruner = kp.Pruner(model, SCHEDULE)
    optimizer = pruner.wrap(sgd())
    for x, y in batches():
        pruner.update()
        model.zero_grad()
        LOSS(torch.from_numpy(y[MINE]), parallel(torch.from_numpy(x[MINE]))).backward()
        with torch.no_grad():
            variables = model.trainable_variables
            optimizer.apply([v.value.grad for v in variables], variables)
    pruner.update()
    return {"weights": weights(model), "copies": pruner.check_agreement()}


def disagreement():
    """What the check says when the processes did not begin with the same weights."""
    model = network()
    pruner = kp.Pruner(model, SCHEDULE)
    pruner.wrap(torch_sgd(model.parameters()))
    with torch.no_grad():
        pruner.pruning.masked[1].variable.value[0, 0] += RANK
    return raised(pruner.check_agreement)


def backed_up():
    """What a backup says to several processes."""
    backup = kp.callbacks.AtomicBackup("nowhere")
    backup.set_model(compiled())
    return raised(backup.on_train_begin)


def plain_fit():
    """Whether `fit` averages the gradients of the processes."""
    model = compiled()
    random = np.random.default_rng(RANK)
    x, y = random.normal(size=(16, 8)).astype("float32"), random.integers(0, 4, 16)
    model.fit(x, y, verbose=0)
    each = [None] * PROCESSES
    dist.all_gather_object(each, weights(model))
    return all(each[0] == other for other in each)


if PROCESSES == 1:
    write({"keras": {"weights": weights(fit(compiled(), kp.GradualPruning(SCHEDULE)))}})
else:
    join()
    write(
        {
            "sgd": trained(torch_sgd),
            "adam": trained(torch_adam),
            "dense": trained(torch_sgd, pruned=False),
            "keras": keras_optimizer(),
            "disagreement": disagreement(),
            "backed up": backed_up(),
            "fit is synchronised": plain_fit(),
        }
    )
    dist.destroy_process_group()
