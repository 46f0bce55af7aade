"""Images for the recipes: a directory, a set of `tensorflow_datasets`, or a small set, resized.

Images are (height, width, 3), uint8. Keras is imported only when something must be downloaded.
"""

import concurrent.futures
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lib.datasets import cached, digits_at_hand
from lib.recipe import Arrays, Data

READERS = 8  # threads that decode
ENDINGS = {".jpg", ".jpeg", ".png"}


@dataclasses.dataclass(frozen=True)
class Pictures:
    """Images that are read when a batch asks for them.

    Attributes:
        source: row number -> image (PIL) and class.
        rows: the number of images.
        size: height and width after resizing.
        augmented: crop and flip at random, the same way each time the same batch is requested;
            otherwise the central 7/8.
    """

    source: Any
    rows: int
    size: int
    augmented: bool = False

    def __len__(self):
        return self.rows

    def take(self, index):
        """The images with these numbers, and their classes."""
        seeds = np.random.SeedSequence(np.asarray(index).tolist()).spawn(len(index))

        def one(row, seed):
            picture, label = self.source(int(row))
            rng = np.random.default_rng(seed) if self.augmented else None
            return fitted(picture.convert("RGB"), self.size, rng), label

        with concurrent.futures.ThreadPoolExecutor(READERS) as pool:
            found = list(pool.map(one, index, seeds))
        x, y = zip(*found, strict=True)
        return np.stack(x), np.asarray(y, "int32")


def fitted(picture, size, rng):
    """A square part of an image: the centre, or a random 8 to 100 % of it, flipped or not.

    The random crop follows Szegedy et al. 2015 (arXiv:1409.4842).
    """
    width, height = picture.size
    side = 7 / 8 * min(width, height)
    box = ((width - side) / 2, (height - side) / 2, (width + side) / 2, (height + side) / 2)
    if rng is not None:
        aspect = np.exp(rng.uniform(np.log(3 / 4), np.log(4 / 3))) ** 0.5
        side = (rng.uniform(0.08, 1) * width * height) ** 0.5
        w, h = min(width, side * aspect), min(height, side / aspect)
        left, top = rng.uniform(0, width - w), rng.uniform(0, height - h)
        box = (left, top, left + w, top + h)
    pixels = np.asarray(picture.resize((size, size), resample=2, box=box))  # 2: bilinear
    return pixels[:, ::-1] if rng is not None and rng.random() < 0.5 else pixels


def directory(path, size):
    """Images in train/CLASS/ and val/CLASS/; classes are numbered in alphabetical order."""
    parts, names = [], None
    for part in ("train", "val"):
        folder = Path(path, part)
        found = sorted(p.name for p in folder.iterdir() if p.is_dir()) if folder.is_dir() else []
        if not found or names not in (None, found):
            raise SystemExit(
                f"--data must be a directory with train/CLASS/*.jpg and val/CLASS/*.jpg of the "
                f"same classes. Received: {path}, where {part}/ has {len(found)} classes."
            )
        names = found
        files = [
            (file, label)
            for label, name in enumerate(names)
            for file in sorted(folder.joinpath(name).iterdir())
            if file.suffix.lower() in ENDINGS
        ]
        parts.append(Pictures(Files(files), len(files), size, part == "train"))
    return Data(*parts, str(Path(path).name), {"size": size, "classes": len(names)})


@dataclasses.dataclass(frozen=True)
class Files:
    """Row number -> image and class, from files."""

    files: Sequence[tuple[Path, int]]

    def __call__(self, row):
        from PIL import Image

        file, label = self.files[row]
        return Image.open(file), label


@dataclasses.dataclass(frozen=True)
class Prepared:
    """Row number -> image and class, from a random access source of `tensorflow_datasets`."""

    rows: Any

    def __call__(self, row):
        from PIL import Image

        found = self.rows[row]
        return Image.fromarray(np.asarray(found["image"]).squeeze()), int(found["label"])


def prepared(name, size):
    """A data set that `tensorflow_datasets` has prepared, such as imagenet2012."""
    import tensorflow_datasets as tfds

    classes = tfds.builder(name).info.features["label"].num_classes
    test = "validation" if "validation" in tfds.builder(name).info.splits else "test"
    sources = {part: tfds.data_source(name, split=part) for part in ("train", test)}
    parts = [
        Pictures(Prepared(rows), len(rows), size, part == "train") for part, rows in sources.items()
    ]
    return Data(*parts, name, {"size": size, "classes": classes})


def small(name, size, work, rows):
    """Fashion-MNIST or digits as colour images of another size, in memory."""

    def make():
        found = fashion() if name == "fashion" else digits()
        for part in ("x", "x_test"):
            found[part] = resized(found[part], size)
        return found

    found = cached(work / f"{name}-{size}.npz", make)
    source = {"fashion": "Fashion-MNIST", "digits": "digits"}[name] + f", {size} pixels"
    x, y, x_test, y_test = (found[part] for part in ("x", "y", "x_test", "y_test"))
    train, test = (Arrays(*part) for part in ((x[:rows], y[:rows]), (x_test, y_test)))
    return Data(train, test, source, {"size": size, "classes": 10})


def resized(x, size):
    """Grey images (n, height, width), uint8 -> (n, size, size, 3)."""
    from PIL import Image

    grey = [np.asarray(Image.fromarray(one).resize((size, size), resample=2)) for one in x]
    return np.repeat(np.stack(grey)[..., None], 3, axis=-1)


def fashion():
    """Fashion-MNIST by `keras.datasets`: 10,000 to train with, 10,000 to test."""
    import keras

    try:
        (x, y), (x_test, y_test) = keras.datasets.fashion_mnist.load_data()
    except Exception as error:  # any error of the download
        raise SystemExit(
            f"keras.datasets.fashion_mnist cannot be downloaded: {error}\n"
            "Its four files may be put into $KERAS_HOME/datasets/fashion-mnist/ (the Debian "
            "package dataset-fashion-mnist has them), or run with --images digits."
        ) from None
    parts = {"x": x[:10000], "y": y[:10000], "x_test": x_test, "y_test": y_test}
    return {
        name: part if name.startswith("x") else part.astype("int32") for name, part in parts.items()
    }


def digits():
    """The digits that come with the package, in the form of Fashion-MNIST."""
    found = digits_at_hand()
    for part in ("x", "x_test"):
        found[part] = np.rint(np.asarray(found[part]).reshape(-1, 28, 28) * 255).astype("uint8")
    return {k: v if k.startswith("x") else np.asarray(v).astype("int32") for k, v in found.items()}
