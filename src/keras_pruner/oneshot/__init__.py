"""Pruning at once, without training; with a few unlabelled samples, refitted."""

from keras_pruner.oneshot.batch_norm import reestimate_batch_norm
from keras_pruner.oneshot.calibration import Calibration

__all__ = ["Calibration", "reestimate_batch_norm"]
