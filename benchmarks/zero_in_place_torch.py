"""Ways to keep weights at zero in a training step, in plain PyTorch on a CPU.

    python benchmarks/zero_in_place_torch.py

An MLP of 6.3 M weights, batch 64, with Adam's update in PyTorch's operations on lists, as in Keras.
No operation of PyTorch subtracts an update under a mask, so zeroing is a separate pass over weights
that are no longer in the processor's cache. No Keras, no pruning.
"""

import sys

import torch
from interleaved import show_steps

SHAPES = [(1024, 2048), (2048, 1536), (1536, 512)]


def product(size):
    """An integer product of the bits in parts of so many entries."""

    def zero(weights, masks):
        for weight, mask in zip(weights, masks, strict=True):
            rows = size // weight.shape[1]
            parts = weight.view(torch.int32).split(rows), mask.view(torch.uint8).split(rows)
            for part, kept in zip(*parts, strict=True):
                part.mul_(kept)

    return zero


def where(weights, masks):
    for weight, mask in zip(weights, masks, strict=True):
        torch.where(mask, weight, torch.zeros(()), out=weight)


def fill(weights, masks):
    for weight, mask in zip(weights, masks, strict=True):
        weight.masked_fill_(~mask, 0)


def touch(weights, masks):
    """The lower bound: read and write the weights once."""
    del masks
    for weight in weights:
        weight.neg_()


WAYS = {
    "integer product": product(1 << 24),
    "integer product, 1 M entries at a time": product(1 << 20),
    "integer product, 128 k at a time": product(1 << 17),
    "torch.where": where,
    "masked_fill_": fill,
    "no zeros, a change of signs in place": touch,
}


def training_step(zero):
    """Ten steps whose zeros are kept in one of these ways."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(64, 1024, generator=generator)
    masks = [torch.rand(shape, generator=generator) < 0.2 for shape in SHAPES]
    weights = [torch.randn(mask.shape, generator=generator) / 32 * mask for mask in masks]
    means, squares = ([torch.zeros(shape) for shape in SHAPES] for _ in range(2))

    def step():
        for weight in weights:
            weight.requires_grad_()
        outputs = inputs
        for weight in weights:
            outputs = torch.relu(outputs @ weight)
        gradients = list(torch.autograd.grad(outputs.mean(), weights))
        with torch.no_grad():
            torch._foreach_mul_(means, 0.9)
            torch._foreach_add_(means, torch._foreach_mul(gradients, 0.1))
            torch._foreach_mul_(squares, 0.999)
            torch._foreach_add_(squares, torch._foreach_mul(gradients, gradients), alpha=0.001)
            roots = torch._foreach_add(torch._foreach_sqrt(squares), 1e-7)
            updates = torch._foreach_div(torch._foreach_mul(means, 1e-4), roots)
            torch._foreach_sub_(weights, updates)
            zero([weight.detach() for weight in weights], masks)

    def turn():
        for _ in range(10):
            step()

    return turn


def dense(weights, masks):
    del weights, masks


def main() -> None:
    ways = {"dense": dense, "control": dense, **WAYS}
    show_steps(__doc__, lambda _: {name: training_step(way) for name, way in ways.items()})


if __name__ == "__main__":
    sys.exit(main())
