"""Data for the recipes: your own copy, a download by Keras, or the small sets in this repository.

Keras is imported only when something must be downloaded: both sides of a comparison read the same
cached file, this package with Keras 3 and TFMOT with Keras 2.
"""

import os

import numpy as np

from lib.recipe import Arrays, Data


def cached(path, make):
    """Load arrays from a file; if it does not exist, make and store them."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(f".{os.getpid()}.npz")
        np.savez(part, **make())
        part.replace(path)
    with np.load(path) as kept:
        return {name: kept[name] for name in kept.files}


def classes(parts, source, rows=None):
    """Data of arrays x, y, x_test and y_test, with classes for y; `rows` to train with."""
    x, y, x_test, y_test = (parts[name] for name in ("x", "y", "x_test", "y_test"))
    train = Arrays(x[:rows], y[:rows].astype("int32"))
    return Data(train, (x_test, y_test.astype("int32")), source)


def mnist(path, work, rows=None):
    """Digits: the file mnist.npz, `keras.datasets.mnist`, or the package's 10,000."""
    if path:
        with np.load(path) as file:
            found = {name: file[name] for name in ("x_test", "y_test")}
            found |= {name: file[f"{name}_train"] for name in ("x", "y")}
        scaled = {name: found[name].astype("float32") / 255 for name in ("x", "x_test")}
        found |= scaled
    else:
        found = cached(work / "mnist.npz", digits_at_hand)
    for name in ("x", "x_test"):
        found[name] = found[name][..., None]
    whole = len(found["x"]) > 8000
    return classes(found, "MNIST" if whole else "10,000 digits of MNIST", rows)


def digits_at_hand():
    """MNIST if Keras can download it, or the digits that come with keras_pruner."""
    from tfmot import data

    return dict(zip(("x", "y", "x_test", "y_test"), data.mnist(None), strict=True))


def reviews(options):
    """Film reviews, good or bad: `keras.datasets.imdb`, or the snippets in an archive.

    `options` has --words and --length. The archive is described in `tfmot/data.py`. Without any
    data, made-up sentences are used, and the stored source says so.
    """
    path, words, length = options.data, options.words, options.length

    def make():
        from tfmot import data

        return dict(
            zip(
                ("x", "y", "x_test", "y_test"), data.reviews(path, words, length, None), strict=True
            )
        )

    kind = "snippets" if path else "reviews"
    found = cached(options.work / f"{kind}-{words}-{length}.npz", make)
    source = "10,605 film snippets" if path else "IMDB"
    if not path and len(found["x"]) < 20000:
        source = "made-up sentences"
    return classes(found, source, 640 if options.smoke else None)
