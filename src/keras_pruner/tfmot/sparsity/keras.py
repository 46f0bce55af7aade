"""`tfmot.sparsity.keras`: TFMOT's eleven names."""

from keras_pruner.callbacks.pruning_summaries import PruningSummaries
from keras_pruner.tfmot.callbacks import UpdatePruningStep
from keras_pruner.tfmot.policies import (
    PrunableLayer,
    PruneForLatencyOnXNNPack,
    PruningPolicy,
)
from keras_pruner.tfmot.prune_low_magnitude import prune_low_magnitude, prune_scope, strip_pruning
from keras_pruner.tfmot.schedules import ConstantSparsity, PolynomialDecay, PruningSchedule

__all__ = [
    "ConstantSparsity",
    "PolynomialDecay",
    "PrunableLayer",
    "PruneForLatencyOnXNNPack",
    "PruningPolicy",
    "PruningSchedule",
    "PruningSummaries",
    "UpdatePruningStep",
    "prune_low_magnitude",
    "prune_scope",
    "strip_pruning",
]
