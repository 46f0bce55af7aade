"""Peak memory of a mask update, in addition to the weights.

    python benchmarks/memory.py --weights 1e8 1e9 --tensors 1 20 --backend torch

Each case runs in a process of its own. It creates weights and masks and then reads the peak
resident memory during `Pruner.update()` from the system (Linux). Results are multiples of the
weights' size in float32, minus the memory of the process without weights. With --tfmot-python,
TensorFlow Model Optimization does the same in its own environment.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--weights", nargs="+", type=float, default=[1e8])
    parser.add_argument("--tensors", nargs="+", type=int, default=[1, 20])
    parser.add_argument("--backend", nargs="+", default=["tensorflow", "jax", "torch"])
    parser.add_argument("--allocation", default="uniform")
    parser.add_argument("--tfmot-python", metavar="PATH", help="an interpreter that has TFMOT")
    parser.add_argument("--json", metavar="PATH")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.case:
        print(json.dumps(CASES[options.case](options)))
        return
    from interleaved import show

    rows = []
    for weights in options.weights:
        for tensors in options.tensors:
            rows += [
                measure(options, sys.executable, backend, weights, tensors)
                for backend in options.backend
            ]
            if options.tfmot_python:
                rows.append(measure(options, options.tfmot_python, "tfmot", weights, tensors))
    show(f"memory of a mask update, {options.allocation}, in weights", rows, options.json)


def measure(
    options: argparse.Namespace, python: str, side: str, weights: float, tensors: int
) -> dict[str, object]:
    """One case, in a process of its own."""
    case = "tfmot" if side == "tfmot" else "here"
    command = [python, __file__, "--case", case, "--weights", str(weights)]
    command += ["--tensors", str(tensors), "--allocation", options.allocation]
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
    if case == "here":
        environment["KERAS_BACKEND"] = side
    run = subprocess.run(command, env=environment, capture_output=True, text=True)
    row: dict[str, object] = {"side": side, "weights": weights, "tensors": tensors}
    if run.returncode:
        return {**row, "error": run.stderr.strip().splitlines()[-1:] or run.returncode}
    return {**row, **json.loads(run.stdout.splitlines()[-1])}


def here(options: argparse.Namespace) -> dict[str, float]:
    """Prune 0.79, 0.8, ... of the weights, as a training would."""
    import keras

    import keras_pruner as kp

    side = int((options.weights[0] / options.tensors[0]) ** 0.5)
    before = resident()
    layers = [keras.layers.Dense(side, use_bias=False) for _ in range(options.tensors[0])]
    model = keras.Sequential([keras.Input((side,)), *layers])
    schedule = kp.PolynomialDecay(0.81, initial_sparsity=0.79, end_step=10**6, power=1, frequency=1)
    pruner = kp.Pruner(model, schedule, allocation=options.allocation)
    optimizer = pruner.wrap(keras.optimizers.SGD())
    for variable in [*model.variables, *optimizer.variables]:  # made by now, not still being
        keras.ops.convert_to_numpy(keras.ops.ravel(variable)[:1])

    def update() -> None:
        pruner.pruning.count()  # as a step does
        assert pruner.update()

    return _peaks(update, before, options.tensors[0] * side * side)


def tfmot(options: argparse.Namespace) -> dict[str, float]:
    """The same with TensorFlow Model Optimization's own update."""
    os.environ["TF_USE_LEGACY_KERAS"] = "1"
    import tensorflow as tf
    import tensorflow_model_optimization as tfmot
    import tf_keras

    side = int((options.weights[0] / options.tensors[0]) ** 0.5)
    before = resident()
    schedule = tfmot.sparsity.keras.ConstantSparsity(0.8, 0, frequency=1)
    layers = [tf_keras.layers.Dense(side, use_bias=False) for _ in range(options.tensors[0])]
    model = tf_keras.Sequential([tf_keras.Input((side,)), *layers])
    model = tfmot.sparsity.keras.prune_low_magnitude(model, pruning_schedule=schedule)

    def update() -> None:
        for layer in model.layers:
            layer.pruning_step.assign_add(1)
            layer.pruning_obj.conditional_mask_update()
            layer.pruning_obj.weight_mask_op()

    del tf
    return _peaks(update, before, options.tensors[0] * side * side)


CASES = {"here": here, "tfmot": tfmot}


def _peaks(update, before: int, weights: int) -> dict[str, float]:
    """The first update and a later one; a multiple of the weights in float32."""
    size = 4 * weights
    at_rest = resident()
    peaks = []
    for _ in range(2):
        forget_peak()
        update()
        peaks.append(peak())
    return {
        "at rest": (at_rest - before) / size,
        "first update": (peaks[0] - before) / size,
        "later update": (peaks[1] - before) / size,
        "process, MB": before / 2**20,
    }


def resident() -> int:
    """Bytes of this process that are in memory."""
    return _status("VmRSS")


def peak() -> int:
    """The peak since `forget_peak`."""
    return _status("VmHWM")


def forget_peak() -> None:
    """Reset the peak to the present memory."""
    Path("/proc/self/clear_refs").write_text("5")


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(field))


if __name__ == "__main__":
    sys.exit(main())
