"""Magnitude-based weight pruning for any Keras 3 model: small, exact, measured."""

from keras_pruner.allocation import Global, erk, lamp, uniform
from keras_pruner.backup import AtomicBackup
from keras_pruner.callbacks import GradualPruning, KeepZeros
from keras_pruner.comparison import Comparison, compare
from keras_pruner.criteria import magnitude
from keras_pruner.deploy.advise import advise
from keras_pruner.deploy.eligible import make_eligible
from keras_pruner.deploy.gains import Gains
from keras_pruner.deploy.latency import benchmark_litert
from keras_pruner.deploy.litert import export_litert
from keras_pruner.deploy.measure_gains import measure_gains
from keras_pruner.deploy.quantization import check_zeros, merge_lora, zeros_of
from keras_pruner.deploy.sparse_file import load_sparse, save_sparse
from keras_pruner.deploy.storage import save_compressed
from keras_pruner.deploy.verify import verify_litert
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
from keras_pruner.report import SparsityReport, summarize
from keras_pruner.schedules import ConstantSparsity, FunctionSchedule, PolynomialDecay, Schedule
from keras_pruner.when_sparse import WhenSparse

__version__ = "0.1.0"

__all__ = [
    "NM",
    "AtomicBackup",
    "Block",
    "Channel",
    "Comparison",
    "ConstantSparsity",
    "FunctionSchedule",
    "Gains",
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
    "SparsityReport",
    "Unstructured",
    "WhenSparse",
    "advise",
    "benchmark_litert",
    "check_zeros",
    "compare",
    "erk",
    "export_litert",
    "find_sparsity",
    "lamp",
    "load_sparse",
    "magnitude",
    "make_eligible",
    "measure_gains",
    "merge_lora",
    "prune",
    "reestimate_batch_norm",
    "save_compressed",
    "save_sparse",
    "sensitivity",
    "summarize",
    "uniform",
    "verify_litert",
    "wanda",
    "zeros_of",
]
