"""Not covered: importing this says what to use."""

from keras_pruner.tfmot.not_covered import why_not

raise ImportError(why_not("tfmot.quantization"))
