"""TFMOT's interfaces for users' classes: layers that name their weights, and policies."""

import abc
from typing import Any

import keras

from keras_pruner.litert.xnnpack_rewrite import Obstacles, obstacles


class PrunableLayer(abc.ABC):
    """A layer that names the weights to prune; inherit from it beside a Keras layer.

    Example:
        >>> import keras_pruner.tfmot as tfmot
        >>> class Scale(keras.layers.Dense, tfmot.sparsity.keras.PrunableLayer):
        ...     def get_prunable_weights(self):
        ...         return [self.kernel]
        >>> Scale(4).get_prunable_weights.__name__
        'get_prunable_weights'
    """

    @abc.abstractmethod
    def get_prunable_weights(self) -> list[Any]:
        """Return the weights of the layer to prune."""


class PruningPolicy(abc.ABC):
    """Decides which layers are pruned. Subclasses written for TFMOT work as they are.

    Two policies of one class with equal attributes are equal.

    Example:
        >>> import keras_pruner.tfmot as tfmot
        >>> class OnlyDense(tfmot.sparsity.keras.PruningPolicy):
        ...     def allow_pruning(self, layer):
        ...         return isinstance(layer, keras.layers.Dense)
        ...
        ...     def ensure_model_supports_pruning(self, model):
        ...         pass
        >>> OnlyDense().allow_pruning(keras.layers.Dense(3))
        True
    """

    @abc.abstractmethod
    def allow_pruning(self, layer: keras.layers.Layer) -> bool:
        """Return whether the layer is pruned."""

    @abc.abstractmethod
    def ensure_model_supports_pruning(self, model: keras.Model) -> None:
        """Raise a ValueError for a model that the policy cannot be applied to."""

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and vars(self) == vars(other)

    def __hash__(self) -> int:
        return hash(type(self))


class PruneForLatencyOnXNNPack(PruningPolicy):
    """Prunes the 1x1 convolutions of models that XNNPACK can run sparse.

    Example:
        >>> import keras_pruner.tfmot as tfmot
        >>> policy = tfmot.sparsity.keras.PruneForLatencyOnXNNPack()
        >>> policy.allow_pruning(keras.layers.Conv2D(8, 3))
        False
    """

    def allow_pruning(self, layer: keras.layers.Layer) -> bool:
        """Return whether the layer is a 1x1 convolution."""
        return isinstance(layer, keras.layers.Conv2D) and layer.kernel_size == (1, 1)

    def obstacles(self, model: keras.Model) -> Obstacles:
        """Every layer in the way, not only the first, with the change that helps."""
        return obstacles(model)

    def ensure_model_supports_pruning(self, model: keras.Model) -> None:
        """Raise a ValueError with TFMOT's message, followed by everything that is in the way."""
        if not model.built:
            raise ValueError(
                "Unbuilt models are not supported currently. Call the model on a batch first."
            )
        try:
            found = obstacles(model)
        except ValueError as error:
            raise ValueError(f"Subclassed models are not supported currently. {error}") from None
        if not found.begins:
            raise ValueError(
                "Could not find `Conv2D 3x3` layer with stride 2x2, `input filters == 3` and "
                "`VALID` padding and preceding `ZeroPadding2D` with `padding == 1` in all input "
                f"branches of the model\n{found}"
            )
        if not found.ends:
            raise ValueError(
                f"Could not find a `GlobalAveragePooling2D` layer in all output branches\n{found}"
            )
        if found.layers:
            raise ValueError(
                f"Layer {found.layers[0][1]} is not supported for the PruneForLatencyOnXNNPack "
                f"pruning policy\n{found}"
            )
