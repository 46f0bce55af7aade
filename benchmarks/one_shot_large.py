"""Time and peak memory of pruning a network of 100 M weights at once: six layers, 4,096 wide."""

import argparse
import resource
import time

import keras
import numpy as np
from keras import layers

import keras_pruner as kp


def peak():
    """Peak memory of this process so far, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--width", type=int, default=4096)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--samples", type=int, default=512)
    parser.add_argument("--sparsity", type=float, default=0.8)
    parser.add_argument("--allocation", default="uniform")
    parser.add_argument("--mask-only", action="store_true", help="no calibration")
    args = parser.parse_args()
    rng = np.random.default_rng(0)
    x = rng.normal(size=(args.samples, 256)) @ rng.normal(size=(256, args.width)) / 16
    x = x.astype("float32")
    stack = [layers.Dense(args.width, activation="relu") for _ in range(args.layers)]
    model = keras.Sequential([keras.Input((args.width,)), *stack])
    model(x[:2])
    size = sum(4 * np.prod(w.shape) for w in model.weights) / 2**20
    before, began = peak(), time.perf_counter()
    calibration = None if args.mask_only else x
    report = kp.prune(model, args.sparsity, allocation=args.allocation, calibration=calibration)
    seconds = time.perf_counter() - began
    print(report)
    print(
        f"{keras.backend.backend()}: model {size:.0f} MB, process before {before:.0f} MB, peak "
        f"{peak():.0f} MB (+{(peak() - before) / size:.2f} x the model), {seconds:.0f} s"
    )


if __name__ == "__main__":
    main()
