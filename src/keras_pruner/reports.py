"""Every result that a function of this package returns; each prints as a table."""

from keras_pruner.compare import Comparison
from keras_pruner.litert.advise import Advice
from keras_pruner.litert.export import Export
from keras_pruner.litert.inspection import Contents
from keras_pruner.litert.latency import Latency
from keras_pruner.litert.xnnpack_rewrite import Rewrite
from keras_pruner.oneshot.report import PruneReport
from keras_pruner.oneshot.search import Sensitivity, SparsityCurve
from keras_pruner.plan import Plan
from keras_pruner.quantization import Merge
from keras_pruner.reporting.sparsity import SparsityReport

__all__ = [
    "Advice",
    "Comparison",
    "Contents",
    "Export",
    "Latency",
    "Merge",
    "Plan",
    "PruneReport",
    "Rewrite",
    "Sensitivity",
    "SparsityCurve",
    "SparsityReport",
]
