"""LiteRT (TensorFlow Lite) files: export, inspection, expected and measured speed-ups."""

from keras_pruner.litert.cost_model import SpeedupTable
from keras_pruner.litert.inspection import inspect
from keras_pruner.litert.latency import benchmark, measure_speedups
from keras_pruner.litert.micro import export_micro
from keras_pruner.litert.targets import TARGETS
from keras_pruner.litert.vela import ACCELERATORS, ethos_u
from keras_pruner.litert.xnnpack_rewrite import prepare_for_xnnpack

__all__ = [
    "ACCELERATORS",
    "TARGETS",
    "SpeedupTable",
    "benchmark",
    "ethos_u",
    "export_micro",
    "inspect",
    "measure_speedups",
    "prepare_for_xnnpack",
]
