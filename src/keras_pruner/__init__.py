"""Magnitude-based weight pruning for any Keras 3 model: small, exact, measured."""

from keras_pruner.allocations import Global, erk, lamp, uniform
from keras_pruner.callbacks.atomic_backup import AtomicBackup
from keras_pruner.callbacks.gradual_pruning import GradualPruning, KeepZeros
from keras_pruner.callbacks.when_sparse import WhenSparse
from keras_pruner.compare import Comparison, compare
from keras_pruner.criteria import magnitude
from keras_pruner.litert.advise import advise
from keras_pruner.litert.benchmark import benchmark_litert
from keras_pruner.litert.cost_model import Gains
from keras_pruner.litert.export import export_litert
from keras_pruner.litert.inspect import verify_litert
from keras_pruner.litert.measure_gains import measure_gains
from keras_pruner.litert.xnnpack_rewrite import make_eligible
from keras_pruner.oneshot.batch_norm import reestimate_batch_norm
from keras_pruner.oneshot.inputs import Inputs, PerOutput, wanda
from keras_pruner.oneshot.prune import prune
from keras_pruner.oneshot.report import PruneReport
from keras_pruner.oneshot.search import find_sparsity, sensitivity
from keras_pruner.patterns import NM, Block, Channel, Pattern, Unstructured
from keras_pruner.plan import Plan
from keras_pruner.quantization import check_zeros, merge_lora, zeros_of
from keras_pruner.reporting.sparsity import SparsityReport, summarize
from keras_pruner.schedules import ConstantSparsity, FunctionSchedule, PolynomialDecay, Schedule
from keras_pruner.storage.keras_file import save_compressed
from keras_pruner.storage.safetensors_file import load_sparse, save_sparse
from keras_pruner.training.pruner import Pruner

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
