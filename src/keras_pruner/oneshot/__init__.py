"""Pruning at once, without training; with a few unlabelled samples, refitted."""

from keras_pruner.oneshot.batch_norm import reestimate_batch_norm
from keras_pruner.oneshot.inputs import Inputs, PerOutput, wanda
from keras_pruner.oneshot.pruning import prune
from keras_pruner.oneshot.report import Candidate, Distillation, PrunedWeight, PruneReport
from keras_pruner.oneshot.search import Sensitivity, SparsityCurve, find_sparsity, sensitivity

__all__ = [
    "Candidate",
    "Distillation",
    "Inputs",
    "PerOutput",
    "PruneReport",
    "PrunedWeight",
    "Sensitivity",
    "SparsityCurve",
    "find_sparsity",
    "prune",
    "reestimate_batch_norm",
    "sensitivity",
    "wanda",
]
