"""The published networks at full size: pruned at once; file sizes and inference times.

Weights are the published ones if they can be downloaded, otherwise random. No accuracy is
measured: bytes and time depend only on where the zeros are.
"""

import dataclasses
import tempfile
from pathlib import Path

import keras

import keras_pruner as kp
from keras_pruner.reporting import tables

PATTERNS = {"0.5": (0.5, kp.Unstructured()), "2:4": (None, kp.NM(2, 4))}
HEADINGS = [
    "network",
    "zeros",
    ">compressed",
    ">ratio",
    ">LiteRT",
    ">ratio",
    ">ms, dense -> pruned",
    ">speed-up (quartiles)",
]


@dataclasses.dataclass(frozen=True)
class Files:
    """The files of one network.

    Attributes:
        compressed: bytes of `save_compressed`.
        litert: the file of `export_litert`.
    """

    compressed: int
    litert: Path

    @property
    def bytes(self):
        """Of the LiteRT file."""
        return self.litert.stat().st_size


def shipped(model, stem):
    """Write both files of a network."""
    compressed = kp.save_compressed(model, stem.with_suffix(".keras")).size
    litert = stem.with_suffix(".tflite")
    kp.export_litert(model, litert)  # raises unless its outputs are the model's
    return Files(compressed, litert)


def built(name):
    """A network of `keras.applications`, and the origin of its weights."""
    make = getattr(keras.applications, name)
    try:
        return make(weights="imagenet"), "ImageNet's weights"
    except Exception as error:  # any error of the download
        print(f"The weights of {name} cannot be fetched, random ones instead: {error}")
        keras.utils.set_random_seed(0)
        return make(weights=None), "random weights"


def rows_of(title, name, seconds, folder):
    """One row for the dense network, and one for each pattern."""
    model, origin = built(name)
    dense = shipped(model, Path(folder, f"{name}-dense"))
    whole = model.get_weights()
    yield f"{title}, {origin}", "none", size(dense.compressed), "", size(dense.bytes), "", "", ""
    for zeros, (sparsity, pattern) in PATTERNS.items():
        model.set_weights(whole)
        kp.prune(model, sparsity, pattern=pattern)
        pruned = shipped(model, Path(folder, f"{name}-{zeros.replace(':', 'of')}"))
        timed = kp.litert.benchmark(dense.litert, pruned.litert, seconds=seconds).timings[0]
        yield (
            title,
            f"{zeros} ({kp.summarize(model).prunable.sparsity:.3f})",
            size(pruned.compressed),
            f"{dense.compressed / pruned.compressed:.2f}",
            size(pruned.bytes),
            f"{dense.bytes / pruned.bytes:.2f}",
            f"{timed.dense_ms:.1f} -> {timed.pruned_ms:.1f}",
            f"{timed.speedup:.2f}x ({timed.spread[0]:.2f} to {timed.spread[1]:.2f})",
        )


def size(count):
    """Bytes as megabytes."""
    return f"{count / 1e6:.2f} MB"


def show(names, seconds=5.0):
    """Print a table of the networks: title -> name in `keras.applications`."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for title, name in names.items():
            rows += rows_of(title, name, seconds, folder)
    print(tables.render("pruned at once, one thread, natively", HEADINGS, rows, width=120))
