"""Which channels, heads and units of a model belong together, and what they cost to compute."""

from keras_pruner.channels.macs import macs

__all__ = ["macs"]
