"""Magnitude-based weight pruning for any Keras 3 model: small, exact, measured."""

from keras_pruner.allocation import Global, erk, lamp, uniform
from keras_pruner.callbacks import GradualPruning, KeepZeros, WhenSparse
from keras_pruner.criteria import magnitude
from keras_pruner.oneshot import (
    Inputs,
    PerOutput,
    PruneReport,
    find_sparsity,
    prune,
    reestimate_batch_norm,
    sensitivity,
    wanda,
)
from keras_pruner.patterns import NM, Block, Channel, Pattern, Unstructured
from keras_pruner.plan import Plan
from keras_pruner.pruner import Pruner
from keras_pruner.schedules import ConstantSparsity, FunctionSchedule, PolynomialDecay, Schedule

__version__ = "0.1.0"

__all__ = [
    "NM",
    "Block",
    "Channel",
    "ConstantSparsity",
    "FunctionSchedule",
    "Global",
    "GradualPruning",
    "Inputs",
    "KeepZeros",
    "Pattern",
    "PerOutput",
    "Plan",
    "PolynomialDecay",
    "PruneReport",
    "Pruner",
    "Schedule",
    "Unstructured",
    "WhenSparse",
    "erk",
    "find_sparsity",
    "lamp",
    "magnitude",
    "prune",
    "reestimate_batch_norm",
    "sensitivity",
    "uniform",
    "wanda",
]
