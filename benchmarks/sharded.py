"""Mask update of a sharded weight: exact count, memory of each process, seconds.

    python benchmarks/sharded.py --weights 2e8 --processes 4 --allocation uniform lamp 2:4

A square weight is sharded over several processes with one CPU device each (JAX, `ModelParallel`
through `jax.distributed`). Each process records its resident memory with its shard of weight and
mask, and the peak during `Pruner.update()` (Linux), as multiples of its shard in float32. If the
weight were gathered anywhere, the peak would rise by the number of processes.
"""

import argparse
import json
import os
import socket
import subprocess
import sys
import time


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--weights", nargs="+", type=float, default=[1e8])
    parser.add_argument("--processes", type=int, default=4)
    parser.add_argument(
        "--allocation", nargs="+", default=["uniform", "lamp"], help='names; "2:4" is the pattern'
    )
    parser.add_argument("--json", metavar="PATH")
    parser.add_argument("--rank", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.rank is not None:
        print(json.dumps(one(options)))
        return
    from interleaved import show

    rows = [
        row
        for weights in options.weights
        for allocation in options.allocation
        for row in together(options, weights, allocation)
    ]
    show("a mask update of one weight in parts; memory in shares of the weight", rows, options.json)


def together(
    options: argparse.Namespace, weights: float, allocation: str
) -> list[dict[str, object]]:
    """Run all processes of a case; what each of them measured."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, __file__, "--processes", str(options.processes)]
    command += ["--weights", str(weights), "--allocation", allocation, "--port", str(port)]
    environment = {**os.environ, "KERAS_BACKEND": "jax", "XLA_FLAGS": ""}
    running = [
        subprocess.Popen(
            [*command, "--rank", str(rank)],
            env=environment,
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(options.processes)
    ]
    said = [process.communicate()[0] for process in running]
    if any(process.returncode for process in running):
        return [{"weights": weights, "allocation": allocation, "error": "see above"}]
    return [json.loads(words.splitlines()[-1]) for words in said]


def one(options: argparse.Namespace) -> dict[str, object]:
    """One process: a part of the weight, two updates."""
    import jax

    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    import keras
    from memory import forget_peak, peak, resident

    import keras_pruner as kp

    keras.distribution.initialize(f"127.0.0.1:{options.port}", options.processes, options.rank)
    devices = keras.distribution.list_devices()
    mesh = keras.distribution.DeviceMesh((1, options.processes), ("batch", "model"), devices)
    layout = keras.distribution.LayoutMap(mesh)
    layout[".*kernel"] = (None, "model")
    keras.distribution.set_distribution(
        keras.distribution.ModelParallel(
            layout_map=layout, batch_dim_name="batch", auto_shard_dataset=False
        )
    )
    side = int(options.weights[0] ** 0.5) // options.processes * options.processes
    share = 4 * side * side // options.processes
    before = resident()
    model = keras.Sequential([keras.Input((side,)), keras.layers.Dense(side, use_bias=False)])
    if options.allocation[0] == "2:4":
        schedule = kp.ConstantSparsity(0.5, end_step=1, frequency=1)
        pruner = kp.Pruner(model, schedule, pattern=kp.NM(2, 4))
    else:
        schedule = kp.PolynomialDecay(0.81, initial_sparsity=0.79, end_step=10, power=1)
        pruner = kp.Pruner(model, schedule, allocation=options.allocation[0])
    optimizer = pruner.wrap(keras.optimizers.SGD())
    jax.block_until_ready([v.value for v in [*model.variables, *optimizer.variables]])
    at_rest = resident()
    peaks, seconds = [], []
    for _ in range(2):
        pruner.pruning.count()  # as a step does
        forget_peak()
        start = time.perf_counter()
        assert pruner.update()
        jax.block_until_ready([v.value for v in [*model.variables, *optimizer.variables]])
        seconds.append(time.perf_counter() - start)
        peaks.append(peak())
    kept = round((1 - pruner.sparsity) * side * side)
    return {
        "process": options.rank,
        "weights": side * side,
        "allocation": options.allocation[0],
        "kept": kept,
        "asked": round(side * side * (1 - schedule.sparsity_at(1))),
        "share, MB": share / 2**20,
        "at rest": (at_rest - before) / share,
        "first update": (peaks[0] - before) / share,
        "later update": (peaks[1] - before) / share,
        "seconds, first": seconds[0],
        "seconds, later": seconds[1],
    }


if __name__ == "__main__":
    sys.exit(main())
