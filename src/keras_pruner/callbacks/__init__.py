"""Keras callbacks that prune during `fit`."""

from keras_pruner.callbacks.atomic_backup import AtomicBackup
from keras_pruner.callbacks.gradual_pruning import GradualPruning
from keras_pruner.callbacks.keep_zeros import KeepZeros
from keras_pruner.callbacks.pruning_summaries import PruningSummaries
from keras_pruner.callbacks.when_sparse import WhenSparse

__all__ = ["AtomicBackup", "GradualPruning", "KeepZeros", "PruningSummaries", "WhenSparse"]
