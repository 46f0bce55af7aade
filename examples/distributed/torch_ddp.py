"""PyTorch, two processes: a loop of one's own around DistributedDataParallel.

KERAS_BACKEND=torch python examples/distributed/torch_ddp.py
"""

import os

from two_processes import start_or_be_one

rank, ports = start_or_be_one()
os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(ports[0]))

import keras
import numpy as np
import torch
from torch.nn.parallel import DistributedDataParallel

import keras_pruner as kp

torch.distributed.init_process_group("gloo", rank=rank, world_size=2)  # "nccl" on GPUs
keras.utils.set_random_seed(0)
model = keras.Sequential(
    [keras.Input((20,)), keras.layers.Dense(64, "relu"), keras.layers.Dense(3)]
)
parallel = DistributedDataParallel(model)  # the Keras model is a torch module
pruner = kp.Pruner(model, kp.PolynomialDecay(0.8, end_step=30))
optimizer = pruner.wrap(torch.optim.AdamW(parallel.parameters(), lr=1e-2))
loss_fn = torch.nn.CrossEntropyLoss()

random = np.random.default_rng(rank)  # each process reads its own half of the data
for _ in range(40):
    x = torch.from_numpy(random.random((32, 20), "float32"))
    y = torch.from_numpy(random.integers(0, 3, 32))
    pruner.update()  # in every process: each finds the same masks
    optimizer.zero_grad()
    loss_fn(parallel(x), y).backward()  # averages the gradients over the processes
    optimizer.step()
print(f"process {rank}: sparsity {pruner.sparsity:.3f}, {pruner.check_agreement()} equal copies")
pruner.release()
torch.distributed.destroy_process_group()
