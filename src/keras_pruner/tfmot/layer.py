"""TFMOT's mark of layers that say for themselves what is pruned."""

import abc
from typing import Any


class PrunableLayer(abc.ABC):
    """A layer that names the weights to prune; inherit from it beside a Keras layer."""

    @abc.abstractmethod
    def get_prunable_weights(self) -> list[Any]:
        """The weights of the layer that are pruned."""
