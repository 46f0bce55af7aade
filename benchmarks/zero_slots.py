"""Time of the square root of a tensor with zeros, in plain PyTorch.

    python benchmarks/zero_slots.py

PyTorch's square root can be slow for zeros, as in an optimizer's second moments. Therefore
gradients of pruned weights are masked only where necessary. No Keras, no pruning.
"""

import argparse
import functools
import sys

import torch
from interleaved import compare, ratio, show


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--blocks", type=int, default=30)
    parser.add_argument("--entries", type=int, default=2_000_000)
    parser.add_argument("--json", metavar="PATH")
    options = parser.parse_args()
    generator = torch.Generator().manual_seed(0)
    moment = torch.rand(options.entries, generator=generator) + 0.1
    place = torch.rand(options.entries, generator=generator)
    tensors = {f"{zeros:.0%} zeros": moment * (place >= zeros) for zeros in (0, 0.1, 0.5, 0.8)}
    tensors["denormal numbers"] = torch.full_like(moment, 1e-40)
    variants = {name: functools.partial(torch.sqrt, tensor) for name, tensor in tensors.items()}
    seconds = compare(variants, options.blocks)
    rows = [
        {"square root of": name, **ratio(seconds[name], seconds["0% zeros"])}
        for name in list(variants)[1:]
    ]
    show("against no zeros", rows, options.json)


if __name__ == "__main__":
    sys.exit(main())
