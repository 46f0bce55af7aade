"""How many bytes a model takes in each form of storage, and how few could do."""

import contextlib
import math
import tempfile
import zlib
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_pruner.litert.export import export_litert
from keras_pruner.storage.bitmaps import bits_of
from keras_pruner.storage.keras_file import save_compressed
from keras_pruner.storage.safetensors_file import save_sparse

_MANTISSA = {"float16": 10, "bfloat16": 7, "float32": 23, "float64": 52}  # bits


def entropy_bytes(weight: np.ndarray) -> float:
    """Bytes that a weight needs in a coder that sees no structure in it.

    The zeros cost the entropy of their mask. What survives costs the entropy of its sign and
    exponent, as often as each occurs, and its mantissa as it is; integers the entropy of their
    values. Structure, such as blocks or mantissas that end in zeros, can be coded in less.

    Args:
        weight: of any shape and numeric type.
    """
    if not weight.size:
        return 0.0
    zero = weight == 0
    survivors = weight[~zero]
    bits = weight.size * _entropy(np.array([zero.sum(), survivors.size]))
    mantissa = _MANTISSA.get(weight.dtype.name, 0)
    heads = bits_of(survivors) >> mantissa
    counts = np.unique(heads, return_counts=True)[1]
    bits += survivors.size * (mantissa + _entropy(counts))
    return float(bits / 8)


def _entropy(counts: np.ndarray) -> float:
    """Bits for each of some things that occur so often."""
    shares = counts[counts > 0] / max(1, counts.sum())
    return float(-(shares * np.log2(shares)).sum())


def stored_sizes(
    model: keras.Model, *, litert: bool = False, runtime: str = "litert-x86"
) -> dict[str, int]:
    """Bytes of a model in each form of storage that it can have.

    Args:
        model: a built Keras 3 model; its compile configuration is left out.
        litert: also convert it to LiteRT, as float32 and int8; takes some seconds each.
        runtime: that the `.tflite` files are for.

    Returns:
        The form -> its bytes. A form that cannot hold the model is missing.
    """
    forms: dict[str, dict[str, Any]] = {
        "plain .keras": {"compression": None},
        "save_compressed": {},
        "save_compressed, float16": {"weights": "float16"},
    }
    sizes = {}
    with tempfile.TemporaryDirectory() as scratch:
        here = Path(scratch)
        for form, options in forms.items():
            # No config to save, or weights above 65504.
            with contextlib.suppress(NotImplementedError, ValueError):
                sizes[form] = save_compressed(model, here / "model.keras", **options)
        sizes["save_sparse"] = save_sparse(model, here / "weights.safetensors")
        if litert:
            options = {"runtime": runtime, "progress": False}
            sizes["export_litert"] = export_litert(model, here / "32.tflite", **options).size
            # Its outputs do not matter here; what they lose is for the user's own data to say.
            small = export_litert(
                model, here / "8.tflite", weights="int8", tolerance=math.inf, **options
            )
            sizes["export_litert, int8"] = small.size
            sizes["the same, deflated"] = len(zlib.compress(Path(small.path).read_bytes(), 9))
    return sizes
