"""The pruning API of the TensorFlow Model Optimization Toolkit (TFMOT), on Keras 3.

`import tensorflow_model_optimization as tfmot` becomes `import keras_pruner.tfmot as tfmot`.
"""

from typing import Any

from keras_pruner.tfmot import sparsity
from keras_pruner.tfmot.keras2_files import load_model
from keras_pruner.tfmot.not_covered import why_not

__all__ = ["load_model", "sparsity"]


def __getattr__(name: str) -> Any:
    raise AttributeError(why_not(f"tfmot.{name}"), name=name)
