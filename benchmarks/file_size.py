"""Size of pruned networks in each form of storage, as ratios to the plain file of the dense one.

    python benchmarks/file_size.py                    # MobileNetV1 with random weights
    python benchmarks/file_size.py --networks demo mnist mobilenet-v2 --work trained
    python benchmarks/file_size.py --networks ctc ds-cnn-l lstm --speech recordings.npz \\
        --reviews vaderSentiment-3.3.2.tar.gz --work trained

With --networks, networks of examples/recipes are trained first, unless --work has their weights;
then each form is loaded again, and the table shows the points of accuracy that its rounding costs.
The data are described in `--help` of keyword_spotting.py and imdb_lstm.py.
"""

import argparse
import bz2
import json
import os
import statistics
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
    bits = weight.size * entropy(np.array([zero.sum(), survivors.size]))
    mantissa = {"float16": 10, "bfloat16": 7, "float32": 23}.get(weight.dtype.name, 0)
    raw = np.ascontiguousarray(survivors).view(f"u{weight.dtype.itemsize}")
    counts = np.unique(raw >> mantissa, return_counts=True)[1]
    bits += survivors.size * (mantissa + entropy(counts))
    return float(bits / 8)


def entropy(counts):
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


FORMS = {  # -> `weights`, the samples that choose the rounding, and the epochs on their outputs
    "exact": (None, 0, 0),
    "float16": ("float16", 0, 0),
    "float8": ("float8", 0, 0),
    "float8+x": ("float8", 256, 0),
    "float8+d": ("float8", 512, 20),
    "shared": ("shared", 0, 0),
    "shared+x": ("shared", 256, 0),
    "shared+d": ("shared", 512, 20),
}
ROUNDED = list(FORMS)[1:]


def samples_of(data, count, epochs):
    """Inputs of the training data, and what to do with them; None without samples."""
    if not count:
        return None
    x, _ = data.take(np.arange(min(count, len(data))))
    return kp.oneshot.Calibration(x, distillation_epochs=epochs, progress=False)


def trained(name, seed, arguments):
    """For each sparsity of a network: bytes and score of each form, as loaded from its file."""
    from trained_networks import trained as prepare

    one = prepare(name, seed, arguments.work, arguments.speech, arguments.reviews)
    for sparsity in one.sparsities:
        model = one.pruned(sparsity)
        if arguments.prepare:
            continue
        with tempfile.TemporaryDirectory() as directory:
            path = Path(directory, "model.keras")
            model.save(path)
            row = {"network": name, "seed": seed, "sparsity": sparsity}
            row |= {"plain": path.stat().st_size, "score": one.score(model)}
            values = [keras.ops.convert_to_numpy(variable.value) for variable in model.weights]
            row["bound"] = round(sum(map(entropy_bytes, values)))
            row["vectors"] = round(sum(entropy_bytes(v) for v in values if v.ndim < 2))
            for form in arguments.forms:
                weights, *chosen = FORMS[form]
                samples = samples_of(one.side.data.train, *chosen)
                row[form] = kp.save_compressed(model, path, weights=weights, samples=samples).size
                loaded = keras.saving.load_model(path, compile=False)
                loaded.compile(jit_compile=False)
                row[f"{form}, score"] = one.score(loaded)
        yield row


def show_trained(rows):
    """Means over the seeds: how many times smaller, and points lost to the rounding."""
    groups = {}
    for row in rows:
        groups.setdefault((row["network"], row["sparsity"]), []).append(row)
    forms = [form for form in ROUNDED if form in rows[0]]
    print(f"{'network':13} {'zeros':>5} {'seeds':>5} {'score':>7} {'exact':>7} {'bound':>6}"
          f"{''.join(f'{form:>15}' for form in forms)} {'vectors':>8}")  # fmt: skip
    for (name, sparsity), found in groups.items():

        def mean(value, found=found):
            return statistics.fmean(map(value, found))

        cells = [
            f"{mean(lambda r, f=form: r['plain'] / r[f]):7.2f}x"
            f" {100 * mean(lambda r, f=form: r['score'] - r[f + ', score']):+6.2f}"
            for form in forms
        ]
        print(f"{name:13} {sparsity:5.0%} {len(found):5} {100 * mean(lambda r: r['score']):6.2f}% "
              f"{mean(lambda r: r['plain'] / r['exact']):6.2f}x "
              f"{mean(lambda r: r['exact'] / r['bound']):6.3f}{''.join(cells)} "
              f"{mean(lambda r: r['vectors'] / r['plain']):8.1%}")  # fmt: skip
    print("Rounded forms: plain dense file / file, and the points of the score lost; "
          "+x: 256 samples choose the rounding; +d: 512, and then 20 epochs on their outputs. "
          "bound: exact file / entropy of its weights. vectors: biases and statistics at their "
          "entropy, as a share of the plain file.")  # fmt: skip


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--networks", nargs="*", metavar="NAME", help="those to train, see above")
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2], help="of --networks")
    parser.add_argument("--forms", nargs="*", choices=FORMS, default=list(FORMS), help="to write")
    parser.add_argument("--work", default="trained", help="directory of the trained weights")
    parser.add_argument("--speech", help="recordings of spoken digits, for ds-cnn-l and ctc")
    parser.add_argument("--reviews", help="the archive with film snippets, for lstm")
    parser.add_argument("--prepare", action="store_true", help="only train, into --work")
    parser.add_argument("--sparsity", type=float, nargs="*", default=[0.5, 0.8, 0.9, 0.95])
    parser.add_argument("--size", type=int, default=224, help="of the image")
    parser.add_argument("--alpha", type=float, default=1.0, help="width of the model")
    parser.add_argument("--no-litert", action="store_true", help="leave out .tflite files")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    if arguments.networks:
        if "exact" not in arguments.forms:
            parser.error("--forms needs exact, which the others are compared with")
        rows = [
            row
            for name in arguments.networks
            for seed in arguments.seeds
            for row in trained(name, seed, arguments)
        ]
        print(json.dumps(rows)) if arguments.json else show_trained(rows)
        return
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
        above = row["save_compressed"] / row["entropy of the weights"]
        print(f"  the exact file is {above:.3f} times the entropy of its weights")


if __name__ == "__main__":
    main()
