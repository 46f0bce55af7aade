"""Pruning at once, without training; with a few unlabelled samples, refitted."""

from keras_pruner.oneshot.batch_norm import reestimate_batch_norm

__all__ = ["reestimate_batch_norm"]
