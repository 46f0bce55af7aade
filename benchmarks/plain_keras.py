"""Opens the files of `kp.save_compressed` with other releases of Keras and h5py.

    python benchmarks/plain_keras.py /envs/keras312/bin/python /envs/keras315/bin/python

Each argument is the Python of an environment without this package. Every form of file is written
here and opened there on each backend, by a plain `keras.saving.load_model`; the weights must be
those that this environment reads, and the outputs those of the model here. Run it with the oldest
release: Keras 3.12 refuses the default initializers that Keras 3.15 writes, in its own files too.
"""

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np

import keras_pruner as kp

FORMS = (None, "float16", "float8", "shared")
COMPRESSIONS = ("lzma", "deflate", None)

OPEN = """
import importlib.metadata, importlib.util, json, sys
assert importlib.util.find_spec("keras_pruner") is None, "this environment has keras_pruner"
import keras, numpy as np
found = {name: importlib.metadata.version(name) for name in ("keras", "h5py")}
for path in sys.argv[1:]:
    model = keras.saving.load_model(path)
    expected = np.load(path.replace(".keras", ".npz"))
    for i, variable in enumerate(model.weights):
        np.testing.assert_array_equal(
            keras.ops.convert_to_numpy(variable.value), expected[f"weight{i}"])
    outputs = keras.ops.convert_to_numpy(model(expected["x"]))
    np.testing.assert_allclose(outputs, expected["outputs"], rtol=1e-4, atol=1e-5)
print(json.dumps(found))
"""


def models():
    """Convolutions with statistics and a depthwise kernel; words and an LSTM."""
    layers = keras.layers
    convolutions = [
        layers.Conv2D(16, 3), layers.BatchNormalization(), layers.ReLU(),
        layers.DepthwiseConv2D(3), layers.Conv2D(32, 1), layers.GlobalAveragePooling2D(),
        layers.Dense(10),
    ]  # fmt: skip
    yield keras.Sequential([keras.Input((12, 12, 3)), *convolutions]), (12, 12, 3)
    words = keras.Input((8,), dtype="int32")
    x = layers.Embedding(100, 32)(words)
    x = layers.LayerNormalization()(x)
    x = layers.Bidirectional(layers.LSTM(32))(x)
    yield keras.Model(words, layers.Dense(3)(x)), (8,)


def write(folder):
    """Every form of each model, with the weights and outputs that plain Keras reads here."""
    rng = np.random.default_rng(0)
    kinds = itertools.product(models(), FORMS, COMPRESSIONS)
    for number, ((model, shape), weights, compression) in enumerate(kinds):
        if number % (len(FORMS) * len(COMPRESSIONS)) == 0:
            kp.prune(model, 0.8)
        path = folder / f"{number}.keras"
        kp.save_compressed(model, path, weights=weights, compression=compression)
        loaded = keras.saving.load_model(path)
        x = rng.normal(size=(4, *shape)).astype("float32")
        x = rng.integers(0, 100, (4, *shape)) if len(shape) == 1 else x
        kept = {f"weight{i}": keras.ops.convert_to_numpy(v.value)
                for i, v in enumerate(loaded.weights)}  # fmt: skip
        outputs = keras.ops.convert_to_numpy(loaded(x))
        np.savez(path.with_suffix(".npz"), x=x, outputs=outputs, **kept)
        yield str(path)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("pythons", nargs="+", metavar="PYTHON")
    parser.add_argument("--backends", nargs="*", default=["tensorflow", "jax", "torch"])
    arguments = parser.parse_args()
    failed = False
    with tempfile.TemporaryDirectory() as folder:
        files = list(write(Path(folder)))
        for python, backend in itertools.product(arguments.pythons, arguments.backends):
            environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
            environment["KERAS_BACKEND"] = backend
            done = subprocess.run(
                [python, "-c", OPEN, *files], env=environment, capture_output=True, text=True
            )
            lines = (done.stderr if done.returncode else done.stdout).strip().splitlines()
            failed |= done.returncode != 0
            if done.returncode:
                print(f"FAILED {python} {backend}: {lines[-1] if lines else done.returncode}")
            else:
                found = json.loads(lines[-1])
                print(f"keras {found['keras']}, h5py {found['h5py']}, {backend}: "
                      f"{len(files)} files opened")  # fmt: skip
    sys.exit(failed)


if __name__ == "__main__":
    main()
