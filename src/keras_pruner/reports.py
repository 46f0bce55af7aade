"""The results that functions of this package return; each is a `Report`.

A report prints as tables (`print(report)`; `report.full()` has every row), shows as tables in a
notebook, and gives plain data (`as_dict`, `to_json`) and one HTML page (`to_html`).
"""

from keras_pruner.compare import Comparison
from keras_pruner.litert.advise import Advice
from keras_pruner.litert.export import Export
from keras_pruner.litert.inspection import Contents
from keras_pruner.litert.latency import Latency
from keras_pruner.litert.micro import MicroExport
from keras_pruner.litert.vela import EthosUReport
from keras_pruner.litert.xnnpack_rewrite import Obstacles, Rewrite
from keras_pruner.oneshot.report import PruneReport
from keras_pruner.oneshot.search import Sensitivity, SparsityCurve, SparsityForFlash
from keras_pruner.plan import Plan
from keras_pruner.quantization import Merge
from keras_pruner.reporting.report import Report
from keras_pruner.reporting.sparsity import SparsityReport
from keras_pruner.shrink.report import ShrinkReport
from keras_pruner.storage.keras_file import SavedFile
from keras_pruner.torch_cpu import SparseInference

__all__ = [
    "Advice",
    "Comparison",
    "Contents",
    "EthosUReport",
    "Export",
    "Latency",
    "Merge",
    "MicroExport",
    "Obstacles",
    "Plan",
    "PruneReport",
    "Report",
    "Rewrite",
    "SavedFile",
    "Sensitivity",
    "ShrinkReport",
    "SparseInference",
    "SparsityCurve",
    "SparsityForFlash",
    "SparsityReport",
]
