"""The refit of one-shot pruning with inputs of very different scales.

The same function of the same samples, 60 % pruned; only the scales of the twenty inputs differ, by
up to the given factor, and the first kernel compensates for them. The error of the outputs as a
ratio to that with inputs of equal scale: the mean of three networks.

    KERAS_BACKEND=torch python benchmarks/input_units.py
"""

import keras
import numpy as np

import keras_pruner as kp
from keras_pruner.reporting import tables

FACTORS = (1, 10, 100, 1000, 10000)
SAMPLES = np.random.default_rng(0).normal(size=(512, 20)).astype("float32")


def network(seed, units):
    """A small network whose first kernel undoes the units."""
    keras.utils.set_random_seed(seed)
    parts = [keras.layers.Dense(32, "relu"), keras.layers.Dense(3)]
    model = keras.Sequential([keras.Input((20,)), *parts])
    kernel, *others = model.get_weights()
    model.set_weights([kernel / units[:, None], *others])
    return model


def relative_error(factor, criterion):
    """How far the outputs of the pruned networks are from the dense ones."""
    units = np.geomspace(1, factor, 20)
    x = (SAMPLES * units).astype("float32")
    options = {"allocation": "uniform", "criterion": criterion}
    options["calibration"] = kp.oneshot.Calibration(x, progress=False)
    found = [kp.prune(network(seed, units), 0.6, **options).relative_error for seed in (1, 2, 3)]
    return float(np.mean(found))


def main():
    rows = []
    for name, criterion in (("refit (default)", None), ("wanda, then refit", kp.criteria.wanda)):
        found = [relative_error(factor, criterion) for factor in FACTORS]
        rows.append((name, f"{found[0]:.3f}", *(f"{each / found[0]:.2f}" for each in found)))
    columns = ["criterion", ">relative error", *(f">1 to {factor:,}" for factor in FACTORS)]
    print(tables.render(f"{keras.backend.backend()}: ratio to inputs in one unit", columns, rows))


if __name__ == "__main__":
    main()
