"""Size of a pruned MobileNetV1 in each form of storage; prints a table of MB and ratios."""

import argparse
import bz2
import json
import os
import subprocess
import sys
import tempfile
import zlib
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np

import keras_pruner as kp

_PLAIN_KERAS = """
import sys
sys.modules["keras_pruner"] = None
import keras, numpy as np
loaded, plain = (keras.saving.load_model(path) for path in sys.argv[1:3])
for a, b in zip(loaded.trainable_variables, plain.trainable_variables, strict=True):
    a, b = keras.ops.convert_to_numpy(a.value), keras.ops.convert_to_numpy(b.value)
    assert np.array_equal(a.view("uint32"), b.view("uint32")), a
"""


def entropy_bytes(weight):
    """Bytes that a coder needs that sees no structure in a weight.

    The zeros cost the entropy of their mask. Each other weight costs the entropy of its sign and
    exponent, and its mantissa in full; integers cost the entropy of their values.
    """
    zero = weight == 0
    survivors = weight[~zero]
    bits = weight.size * _entropy(np.array([zero.sum(), survivors.size]))
    mantissa = {"float16": 10, "bfloat16": 7, "float32": 23}.get(weight.dtype.name, 0)
    raw = np.ascontiguousarray(survivors).view(f"u{weight.dtype.itemsize}")
    counts = np.unique(raw >> mantissa, return_counts=True)[1]
    bits += survivors.size * (mantissa + _entropy(counts))
    return float(bits / 8)


def _entropy(counts):
    """Bits for each of some things that occur so often."""
    shares = counts[counts > 0] / max(1, counts.sum())
    return float(-(shares * np.log2(shares)).sum())


def prune(model, sparsity):
    """Zero the smallest weights of each kernel but the depthwise ones."""
    for layer in model.layers:
        if type(layer) in (keras.layers.Conv2D, keras.layers.Dense):
            weight = keras.ops.convert_to_numpy(layer.kernel.value).copy()
            order = np.argsort(np.abs(weight), axis=None)
            weight.reshape(-1)[order[: round(sparsity * weight.size)]] = 0
            layer.kernel.assign(weight)


def measure(model, sparsity, directory, litert):
    """Bytes in each form."""
    plain = directory / "plain.keras"
    model.save(plain)
    sizes = {"keras": plain.stat().st_size}
    sizes["keras, gzip -9"] = len(zlib.compress(plain.read_bytes(), 9))
    sizes["keras, bzip2"] = len(bz2.compress(plain.read_bytes()))
    sizes["save_compressed"] = kp.save_compressed(model, directory / "small.keras").size
    files = [str(directory / "small.keras"), str(plain)]
    subprocess.run([sys.executable, "-c", _PLAIN_KERAS, *files], check=True, capture_output=True)
    for weights in ("float16", "float8", "shared"):
        file = directory / f"{weights}.keras"
        sizes[f"save_compressed {weights}"] = kp.save_compressed(model, file, weights=weights).size
    sizes["save_sparse"] = kp.storage.save_sparse(model, directory / "w.safetensors")
    values = [keras.ops.convert_to_numpy(variable.value) for variable in model.weights]
    sizes["entropy of the weights"] = round(sum(map(entropy_bytes, values)))
    if litert:
        done = kp.export_litert(model, directory / "m.tflite")
        sizes["export_litert"], sizes["dense tflite"] = done.size, done.dense_size
        kp.export_litert(model, directory / "8.tflite", weights="int8", tolerance=1.0)
        content = (directory / "8.tflite").read_bytes()
        sizes["int8 tflite"] = len(content)
        sizes["int8 tflite, deflate"] = len(zlib.compress(content, 9))
    return {"sparsity": sparsity, **sizes}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sparsity", type=float, nargs="*", default=[0.5, 0.8, 0.9, 0.95])
    parser.add_argument("--size", type=int, default=224, help="of the image")
    parser.add_argument("--alpha", type=float, default=1.0, help="width of the model")
    parser.add_argument("--no-litert", action="store_true", help="leave out .tflite files")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    keras.utils.set_random_seed(0)
    shape = (arguments.size, arguments.size, 3)
    model = keras.applications.MobileNet(weights=None, input_shape=shape, alpha=arguments.alpha)
    rows = []
    for sparsity in sorted(arguments.sparsity):
        prune(model, sparsity)
        with tempfile.TemporaryDirectory() as directory:
            rows.append(measure(model, sparsity, Path(directory), not arguments.no_litert))
    if arguments.json:
        print(json.dumps(rows))
        return
    for row in rows:
        print(f"sparsity {row.pop('sparsity'):g}")
        for name, size in row.items():
            ratio = row["keras"] / size
            print(f"  {name:26} {size / 1e6:7.2f} MB  {ratio:6.2f}x smaller than .keras")


if __name__ == "__main__":
    main()
