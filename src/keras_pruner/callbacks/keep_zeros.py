"""`KeepZeros`: train a pruned model further, with its zeros kept."""

from collections.abc import Mapping, Sequence

import numpy as np

from keras_pruner.allocations import Share, Sparsities
from keras_pruner.callbacks.pruning_callback import PruningCallback
from keras_pruner.patterns import Unstructured
from keras_pruner.rules import Filters, Override, Rules
from keras_pruner.schedules import ConstantSparsity
from keras_pruner.validation import serializable


class KeepZeros(PruningCallback):
    """Train a pruned model further and keep its zeros.

    A weight that consists of zeros only, as new weights may, is trained normally. A weight that
    is pruned only because of an override, such as a depthwise kernel, keeps its zeros only if the
    same override is given here.

    Args:
        filters: layers to keep sparse: a regex or a list of them, or a function layer -> bool.
        overrides: those that the model was pruned with: regex of a weight's path -> None (leave
            alone), or any sparsity or pattern to include the weight.

    Example:
        >>> import keras, numpy as np, keras_pruner as kp
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(8)])
        >>> report = kp.prune(model, 0.75)
        >>> model.compile("sgd", loss="mse")
        >>> x, y = np.ones((32, 4)), np.ones((32, 8))
        >>> history = model.fit(x, y, verbose=0, callbacks=[kp.KeepZeros()])
        >>> kp.summarize(model).prunable.sparsity
        0.75
    """

    _goes_on = False  # the masks are made anew: more weights may be zero by now

    def __init__(
        self, *, filters: Filters = None, overrides: Mapping[str, Override] | None = None
    ) -> None:
        Rules(overrides=overrides)  # raises for invalid overrides
        admitted = {
            path: None if override is None else Unstructured()
            for path, override in (overrides or {}).items()
        }
        rules = Rules(allocation=as_they_are, filters=filters, overrides=admitted or None)
        super().__init__(ConstantSparsity(0.0), rules)


@serializable
def as_they_are(shares: Sequence[Share], sparsity: float) -> Sparsities:
    """The present sparsity of each weight; 0 for a weight of zeros only."""
    del sparsity
    nonzero = {share: share.scores.count(np.asarray) for share in shares}
    return {share: 1 - n / share.units if n else 0.0 for share, n in nonzero.items()}
