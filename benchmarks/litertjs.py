"""Time a pruned `.tflite` file against a dense one in LiteRT.js under Node, without a browser.

    python benchmarks/litertjs.py dense.tflite pruned.tflite

In WebAssembly XNNPACK's sparse convolutions run on any machine. The dense side is several times
slower there than native LiteRT. Needs Node 20 and `npm install @litertjs/core@2.5.3`.
"""

import argparse
import json
import math
import shutil
import subprocess
import tempfile
from pathlib import Path

import numpy as np

from keras_pruner.litert import interpreter
from keras_pruner.litert.child_process import run_module
from keras_pruner.litert.interpreter import largest_difference
from keras_pruner.litert.latency import Latency, inputs_of, timing_of

NODE = ["node", "--experimental-wasm-relaxed-simd"]
INSTALL = "npm install @litertjs/core@2.5.3"
TOLERANCE = 2e-2  # of outputs, between two builds of the same runtime; garbage differs by more


def benchmark(dense, pruned, *, seconds=3.0, node_modules=None):
    """Time two files in turns, one thread, and compare their outputs with native LiteRT's.

    Args:
        dense: the file to compare with.
        pruned: the file with zeros; it must have the same inputs.
        seconds: time to measure.
        node_modules: the directory that holds @litertjs/core. None: searched from the current
            directory upwards.

    Returns:
        A `Latency` with the batch size of the files.
    """
    if shutil.which("node") is None:
        raise FileNotFoundError("Node 20 or newer is needed: https://nodejs.org")
    package = find_litertjs(node_modules)
    files = [str(Path(path).resolve()) for path in (dense, pruned)]
    inputs, rng = inputs_of(dense), np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as scratch:
        names = []
        for i, (shape, dtype) in enumerate(inputs):
            if dtype not in ("float32", "int32"):
                raise ValueError(f"LiteRT.js takes float32 and int32 inputs. Received: {dtype}.")
            names.append(str(Path(scratch, f"input{i}")))
            interpreter.random_input(rng, shape, np.dtype(dtype)).tofile(names[-1])
        job = {
            "files": files, "inputs": names, "package": str(package), "scratch": scratch,
            "seconds": seconds,
        }  # fmt: skip
        runner = Path(__file__).with_name("litertjs_runner.mjs")
        child = subprocess.run(
            [*NODE, str(runner)], input=json.dumps(job), capture_output=True, text=True, check=False
        )
    if not child.stdout:
        raise RuntimeError(f"LiteRT.js failed: {child.stderr.strip()[-1000:]}")
    measured = json.loads(child.stdout)
    check_against_native(files, measured["outputs"])
    return Latency("LiteRT.js in Node", 1, (timing_of(measured, inputs[0][0][0]),))


def natively(files):
    """The outputs of two files in native LiteRT."""
    job = {"files": files, "threads": 1, "batch_size": None, "seconds": 0.0}
    return run_module(interpreter.__name__, job)["outputs"]


def check_against_native(files, outputs):
    """Raise if LiteRT.js computes something else: where it fails, it returns garbage silently."""
    for path, mine, its in zip(files, natively(files), outputs, strict=True):
        for values in its:  # several outputs may come in another order
            same_size = [m for m in mine if len(m) == len(values)]
            nearest = min((largest_difference(m, values) for m in same_size), default=math.inf)
            if not nearest <= TOLERANCE:
                raise RuntimeError(
                    f"{path} computes something else in LiteRT.js than natively: outputs differ "
                    f"by {nearest:.1e} of the largest. Its times mean nothing. "
                    "kp.litert.inspect and kp.litert.prepare_for_xnnpack may help."
                )


def find_litertjs(node_modules=None):
    """The directory of the npm package @litertjs/core."""
    here = Path.cwd()
    places = [Path(node_modules)] if node_modules else []
    places += [] if node_modules else [p / "node_modules" for p in (here, *here.parents)]
    for place in places:
        if (found := place / "@litertjs" / "core").is_dir():
            return found.resolve()
    raise FileNotFoundError(
        f"@litertjs/core is not in {' or '.join(map(str, places[:2]))}. Install it with: {INSTALL}"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("dense")
    parser.add_argument("pruned")
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--node-modules", help="directory with @litertjs/core")
    arguments = parser.parse_args()
    print(
        benchmark(
            arguments.dense,
            arguments.pruned,
            seconds=arguments.seconds,
            node_modules=arguments.node_modules,
        )
    )
