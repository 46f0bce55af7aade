"""Does `kp.shrink(model, speedup=2.0)` arrive? Asked beside measured anew, with LiteRT.

    KERAS_BACKEND=tensorflow python benchmarks/shrink_speedup.py --networks vgg resnet lstm

The networks of shrink.py with random weights: time depends on sizes alone.
"""

import argparse
import os
import tempfile
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
from shrink import NETWORKS

import keras_pruner as kp
from keras_pruner.reporting import tables


def measured(dense: keras.Model, smaller: keras.Model, seconds: float) -> float:
    """The speed-up for one sample, from files written anew."""
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / f"{name}.tflite" for name in ("dense", "smaller")]
        for model, path in zip((dense, smaller), paths, strict=True):
            kp.export_litert(model, path, progress=False)
        found = kp.litert.benchmark(*paths, batch_sizes=[1], seconds=seconds)
    return found.timings[0].speedup


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=NETWORKS)
    parser.add_argument("--speedup", type=float, default=2.0)
    parser.add_argument("--seconds", type=float, default=3.0, help="to time each file anew")
    options = parser.parse_args()
    x = np.random.default_rng(0).normal(size=(256, 14, 14, 1)).astype("float32")
    calibration = kp.oneshot.Calibration(x, progress=False)
    rows = []
    for name in options.networks:
        keras.utils.set_random_seed(0)
        dense = NETWORKS[name]()
        report = kp.shrink(
            dense, speedup=options.speedup, runtime="litert-x86", calibration=calibration
        )
        again = measured(dense, report.model, options.seconds)
        share = kp.channels.macs(report.model) / kp.channels.macs(dense)
        rows.append([name, f"{options.speedup:.2f}", f"{report.speedup:.2f}", f"{again:.2f}"])
        rows[-1].append(f"{share:.2f}")
        print(*rows[-1], flush=True)
    columns = ["network", ">asked", ">by shrink", ">anew", ">MACs left"]
    print(tables.render("times as fast in LiteRT, one thread, one sample", columns, rows))


if __name__ == "__main__":
    main()
