"""Pruning for any Keras 3 model, during training or afterwards, with small files and measurements.

Most programs need only the names at the top. Everything else is in a namespace:
`kp.callbacks`, `kp.schedules`, `kp.patterns`, `kp.criteria`, `kp.allocations`, `kp.channels`,
`kp.oneshot`, `kp.storage`, `kp.litert`, `kp.quantization`, `kp.reports`, `kp.testing`, `kp.tfmot`,
`kp.torch_cpu`.
"""

from keras_pruner import _import_keras  # isort: skip  # noqa: F401 - first, for its message
from keras_pruner import (
    allocations,
    callbacks,
    channels,
    criteria,
    litert,
    oneshot,
    patterns,
    quantization,
    reports,
    schedules,
    storage,
    testing,
    tfmot,
    torch_cpu,
)
from keras_pruner.callbacks import GradualPruning, KeepZeros, WhenSparse
from keras_pruner.compare import compare
from keras_pruner.litert.advise import advise
from keras_pruner.litert.export import export_litert
from keras_pruner.model_file import FileError
from keras_pruner.oneshot.prune import prune
from keras_pruner.oneshot.search import find_sparsity, sensitivity
from keras_pruner.patterns import NM, Block, Channel, Unstructured
from keras_pruner.reporting.sparsity import summarize
from keras_pruner.rules import plan
from keras_pruner.schedules import ConstantSparsity, PolynomialDecay
from keras_pruner.shrink.shrink_model import shrink
from keras_pruner.storage import save_compressed
from keras_pruner.training.pruner import Pruner

__version__ = "0.1.0"

__all__ = [
    "NM",
    "Block",
    "Channel",
    "ConstantSparsity",
    "FileError",
    "GradualPruning",
    "KeepZeros",
    "PolynomialDecay",
    "Pruner",
    "Unstructured",
    "WhenSparse",
    "advise",
    "allocations",
    "callbacks",
    "channels",
    "compare",
    "criteria",
    "export_litert",
    "find_sparsity",
    "litert",
    "oneshot",
    "patterns",
    "plan",
    "prune",
    "quantization",
    "reports",
    "save_compressed",
    "schedules",
    "sensitivity",
    "shrink",
    "storage",
    "summarize",
    "testing",
    "tfmot",
    "torch_cpu",
]


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
