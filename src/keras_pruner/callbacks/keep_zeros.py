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
    """Keep what is zero at zero while `fit` trains the rest.

    For training a pruned model further. A weight that is zero altogether, as fresh ones may be,
    is not frozen. What pruning leaves alone unless an override admits it, such as a depthwise
    kernel, is kept sparse only if the same override is given here.

    Args:
        filters: layers to keep sparse: a regex or a list of them, or a function layer -> bool.
        overrides: as they were given when the model was pruned: regex of a weight's path -> None
            (leave alone), or a sparsity or pattern, of which nothing matters but that it admits
            the weight.
    """

    _goes_on = False  # more may be zero by now

    def __init__(
        self, *, filters: Filters = None, overrides: Mapping[str, Override] | None = None
    ) -> None:
        Rules(overrides=overrides)  # raises for what is wrong
        admitted = {
            path: None if override is None else Unstructured()
            for path, override in (overrides or {}).items()
        }
        rules = Rules(allocation=as_they_are, filters=filters, overrides=admitted or None)
        super().__init__(ConstantSparsity(0.0), rules)


@serializable
def as_they_are(shares: Sequence[Share], sparsity: float) -> Sparsities:
    """The sparsity that each weight has already; 0 for one that is zero altogether."""
    del sparsity
    nonzero = {share: share.scores.count(np.asarray) for share in shares}
    return {share: 1 - n / share.units if n else 0.0 for share, n in nonzero.items()}
