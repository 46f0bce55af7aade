"""TFMOT's policies: which layers are pruned, and what a model must be like."""

import abc

import keras

from keras_pruner.deploy.xnnpack_layers import Obstacles, obstacles

_NO_START = (
    "Could not find `Conv2D 3x3` layer with stride 2x2, `input filters == 3` and `VALID` padding "
    "and preceding `ZeroPadding2D` with `padding == 1` in all input branches of the model"
)
_NO_END = "Could not find a `GlobalAveragePooling2D` layer in all output branches"


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

    def obstacles(self, model: keras.Model) -> Obstacles:
        """Everything in the way, not only the first, and the change that admits it."""
        return obstacles(model)

    def ensure_model_supports_pruning(self, model: keras.Model) -> None:
        """Check the model's layers.

        Raises:
            ValueError: with TFMOT's message, and after it everything that is in the way.
        """
        if not isinstance(model, keras.Sequential) and not hasattr(model, "operations"):
            raise ValueError("Subclassed models are not supported currently.")
        if not model.built:
            raise ValueError("Unbuilt models are not supported currently.")
        found = obstacles(model)
        if not found.begins:
            raise ValueError(f"{_NO_START}\n{found}")
        if not found.ends:
            raise ValueError(f"{_NO_END}\n{found}")
        if found.layers:
            raise ValueError(
                f"Layer {found.layers[0][1]} is not supported for the {type(self).__name__} "
                f"pruning policy\n{found}"
            )
