"""What users of TFMOT subclass, besides its schedules: policies and prunable layers."""

import abc
from typing import Any

import keras

from keras_pruner.litert import xnnpack_layers


class PrunableLayer(abc.ABC):
    """A layer that names the weights to prune; inherit from it beside a Keras layer."""

    @abc.abstractmethod
    def get_prunable_weights(self) -> list[Any]:
        """The weights of the layer that are pruned."""


class PruningPolicy(abc.ABC):
    """Which layers are pruned. Subclasses written for TFMOT work as they are."""

    @abc.abstractmethod
    def allow_pruning(self, layer: keras.layers.Layer) -> bool:
        """Whether this layer is pruned."""

    @abc.abstractmethod
    def ensure_model_supports_pruning(self, model: keras.Model) -> None:
        """Raise a ValueError unless the model is as the policy wants it."""


class PruneForLatencyOnXNNPack(PruningPolicy):
    """Prunes 1x1 convolutions, in models that XNNPACK can run sparse."""

    def allow_pruning(self, layer: keras.layers.Layer) -> bool:
        """Whether it is a 1x1 convolution."""
        return isinstance(layer, keras.layers.Conv2D) and layer.kernel_size == (1, 1)

    def obstacles(self, model: keras.Model) -> xnnpack_layers.Obstacles:
        """Everything in the way, not only the first, and the change that admits it."""
        return xnnpack_layers.obstacles(model)

    def ensure_model_supports_pruning(self, model: keras.Model) -> None:
        """Raise a ValueError with TFMOT's message, and after it everything that is in the way."""
        xnnpack_layers.check(model)
