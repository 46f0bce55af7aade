"""Pruning at once, without training."""

import functools
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np

from keras_pruner import backends
from keras_pruner.criteria import magnitude
from keras_pruner.masks import Weight, decide
from keras_pruner.patterns import Pattern, Unstructured
from keras_pruner.plan import Criterion, Filters, Override, Rules
from keras_pruner.pruner import schedule_for
from keras_pruner.report import SparsityReport, summarize
from keras_pruner.schedules import ConstantSparsity
from keras_pruner.values import check_sparsity


def prune(
    model: keras.Model,
    sparsity: float | None = None,
    *,
    pattern: Pattern = Unstructured(),  # noqa: B008 - a frozen value
    allocation: Any = None,
    criterion: Criterion = magnitude,
    filters: Filters = None,
    overrides: Mapping[str, Override] | None = None,
) -> SparsityReport:
    """Set the insignificant weights of a model to zero, in place.

    Args:
        model: any built Keras 3 model.
        sparsity: the fraction of zeros, in [0, 1). Not needed for a pattern that has its own.
        pattern: the zeros allowed.
        allocation: how the budget is split over the weights, as in `GradualPruning`.
        criterion: weights -> scores of the same shape, higher is better.
        filters: layers to prune: a regex or a list of them, or a function layer -> bool.
        overrides: regex of a weight's path -> None (leave alone), sparsity, pattern, or both.

    Returns:
        What the model's weights look like now.

    Raises:
        ValueError: for arguments that are wrong or do not go together, and for weights that
            are not finite; nothing is changed then.

    Example:
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(8)])
        >>> prune(model, 0.75).prunable.zeros
        24
    """
    if sparsity is not None:
        check_sparsity("sparsity", sparsity)
        sparsity = ConstantSparsity(sparsity)  # type: ignore[assignment]
    final = schedule_for(sparsity, pattern).sparsity_at_end
    plan = Rules(pattern, allocation, criterion, filters, overrides).plan(model, frozen=True)
    to_numpy = backends.current().to_numpy
    weights = [
        Weight(
            target,
            functools.partial(to_numpy, variable),
            functools.partial(np.ones, target.shape, bool),
        )
        for target, variable in zip(plan.targets, plan.variables, strict=True)
    ]
    masks = decide(weights, plan, final or 0.0, final)
    for variable, mask in zip(plan.variables, masks, strict=True):
        weight = to_numpy(variable)
        variable.assign(np.where(mask, weight, np.zeros((), weight.dtype)))
    return summarize(model)
