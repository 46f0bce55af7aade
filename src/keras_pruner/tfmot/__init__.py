"""The pruning API of the TensorFlow Model Optimization Toolkit (TFMOT), on Keras 3.

`import tensorflow_model_optimization as tfmot` becomes `import keras_pruner.tfmot as tfmot`.
"""

from keras_pruner.tfmot import sparsity
from keras_pruner.tfmot.keras2_files import load_model

__all__ = ["load_model", "sparsity"]
