"""`tfmot.sparsity`."""

from keras_pruner.tfmot.sparsity import keras

__all__ = ["keras"]
