"""Time of a mask update: `Pruner.update()` compared with `np.partition` of the same weights.

    python benchmarks/mask_update.py --weights 1e6 16e6 --backend torch

One weight matrix (or twenty, with --tensors 20) is pruned to 80 %, alternately with `np.abs` and
`np.partition` of the same values. With plain SGD an update chooses the masks, assigns them and
zeroes the weights; with --optimizer adam it zeroes the optimizer's slots as well.
"""

import argparse
import os
import sys


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--weights", nargs="+", type=float, default=[1e6, 4e6, 16e6])
    parser.add_argument("--tensors", type=int, default=1)
    parser.add_argument("--backend", help="as KERAS_BACKEND")
    parser.add_argument("--allocation", default="uniform")
    parser.add_argument("--optimizer", default="sgd")
    parser.add_argument("--blocks", type=int, default=30)
    parser.add_argument("--json", metavar="PATH")
    options = parser.parse_args()
    if options.backend:
        os.environ["KERAS_BACKEND"] = options.backend
    import keras
    import numpy as np
    from interleaved import compare, ratio, show

    import keras_pruner as kp

    rows = []
    for size in map(int, options.weights):
        side = int((size / options.tensors) ** 0.5)
        keras.utils.set_random_seed(0)
        layers = [keras.layers.Dense(side, use_bias=False) for _ in range(options.tensors)]
        model = keras.Sequential([keras.Input((side,)), *layers])
        # A schedule that is due at every call, with a slightly higher sparsity.
        schedule = kp.PolynomialDecay(
            0.81, initial_sparsity=0.79, end_step=10**6, frequency=1, power=1
        )
        pruner = kp.Pruner(model, schedule, allocation=options.allocation)
        pruner.wrap(keras.optimizers.get(options.optimizer))
        values = np.concatenate([np.ravel(layer.get_weights()[0]) for layer in layers])
        kth = int(0.8 * values.size)

        def update(pruner=pruner) -> None:
            pruner.pruning.count()  # as a step does
            assert pruner.update()

        variants = {
            "np.partition": lambda values=values, kth=kth: np.partition(values, kth),
            "np.abs": lambda values=values: np.abs(values),
            "update": update,
        }
        seconds = compare(variants, options.blocks)
        for reference in ("np.partition", "np.abs"):
            figures = ratio(seconds["update"], seconds[reference])
            ns = 1e6 * figures["milliseconds"] / values.size
            name = {"backend": keras.backend.backend(), "weights": values.size}
            rows.append({**name, "update against": reference, **figures, "ns per weight": ns})
    show(f"mask update, {options.tensors} tensor(s), {options.allocation}", rows, options.json)


if __name__ == "__main__":
    sys.exit(main())
