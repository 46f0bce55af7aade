"""`tfmot.sparsity.keras`: the eleven names of TFMOT's pruning API."""

from typing import Any

from keras_pruner.callbacks.pruning_summaries import PruningSummaries
from keras_pruner.tfmot.not_covered import why_not
from keras_pruner.tfmot.policies import PrunableLayer, PruneForLatencyOnXNNPack, PruningPolicy
from keras_pruner.tfmot.prune_low_magnitude import prune_low_magnitude, prune_scope, strip_pruning
from keras_pruner.tfmot.schedules import ConstantSparsity, PolynomialDecay, PruningSchedule
from keras_pruner.tfmot.update_pruning_step import UpdatePruningStep

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


def __getattr__(name: str) -> Any:
    raise AttributeError(why_not(f"tfmot.sparsity.keras.{name}"), name=name)
