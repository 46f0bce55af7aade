"""`tfmot.sparsity`."""

from typing import Any

from keras_pruner.tfmot.not_covered import why_not
from keras_pruner.tfmot.sparsity import keras

__all__ = ["keras"]


def __getattr__(name: str) -> Any:
    raise AttributeError(why_not(f"tfmot.sparsity.{name}"), name=name)
