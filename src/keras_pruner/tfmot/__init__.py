"""The pruning API of the TensorFlow Model Optimization Toolkit (TFMOT), on Keras 3.

`import tensorflow_model_optimization as tfmot` becomes `import keras_pruner.tfmot as tfmot`.
"""

from keras_pruner import benchmarking as tools
from keras_pruner.keras2 import load_model
from keras_pruner.tfmot import sparsity

__all__ = ["load_model", "sparsity", "tools"]
