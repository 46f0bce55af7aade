"""`prune_low_magnitude`, `strip_pruning` and `prune_scope`: marks on layers, and no wrappers."""

from collections.abc import Iterator, Sequence
from typing import Any

import keras

from keras_pruner.model_weights import check_model
from keras_pruner.patterns import NM
from keras_pruner.tfmot import marks, prunings, update_pruning_step
from keras_pruner.tfmot.keras2_files import Wrapper
from keras_pruner.tfmot.patterns import pattern_of
from keras_pruner.tfmot.policies import PruningPolicy
from keras_pruner.tfmot.schedules import ConstantSparsity, PruningSchedule

_DEFAULT_SCHEDULE = ConstantSparsity(0.5, 0)


def prune_low_magnitude(
    to_prune: Any,
    pruning_schedule: PruningSchedule = _DEFAULT_SCHEDULE,
    block_size: Sequence[int] = (1, 1),
    block_pooling_type: str = "AVG",
    pruning_policy: PruningPolicy | None = None,
    sparsity_m_by_n: Sequence[int] | None = None,
    **kwargs: Any,
) -> Any:
    """Prune a model, a layer or a list of layers by magnitude whenever it is trained.

    A second call with other arguments replaces the first, and its schedule begins anew. A call
    with a model leaves layers alone that were given to a call of their own.

    Args:
        to_prune: any Keras 3 model, a layer, or a list of layers.
        pruning_schedule: the steps at which masks are updated, and the sparsity at each.
        block_size: height and width of blocks of zeros, for weights of rank 2.
        block_pooling_type: "AVG" or "MAX" of the magnitudes in a block.
        pruning_policy: decides which layers are pruned. None: all that can be.
        sparsity_m_by_n: (m, n) for m zeros in every n consecutive inputs; the schedule and
            `block_size` are not used then.
        **kwargs: for a layer, its `input_shape` or `trainable`.

    Returns:
        `to_prune` itself, not a copy: `compile` it and train it.

    Raises:
        ValueError: for wrong arguments, and for a model with nothing to prune.

    Example:
        >>> import numpy as np
        >>> import keras_pruner.tfmot as tfmot
        >>> sparsity = tfmot.sparsity.keras
        >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(4, use_bias=False)])
        >>> model = sparsity.prune_low_magnitude(model, sparsity.ConstantSparsity(0.5, 0))
        >>> model.compile("sgd", "mse")
        >>> update = sparsity.UpdatePruningStep()
        >>> _ = model.fit(np.ones((4, 8)), np.ones((4, 4)), callbacks=[update], verbose=0)
        >>> model = sparsity.strip_pruning(model)
        >>> float(np.mean(model.get_weights()[0] == 0))
        0.5
    """
    layers = to_prune if isinstance(to_prune, list) else [to_prune]
    for layer in layers:
        if not isinstance(layer, keras.layers.Layer):
            check_model(layer)  # raises, with a word on models of Keras 2
    if not isinstance(pruning_schedule, PruningSchedule):
        raise ValueError(
            "`pruning_schedule` must be a PruningSchedule of keras_pruner.tfmot, like "
            f"ConstantSparsity(0.5, 0). Received: pruning_schedule={pruning_schedule!r}."
        )
    pattern = pattern_of(block_size, block_pooling_type, sparsity_m_by_n)
    if isinstance(pattern, NM):  # TFMOT sets these masks at its step 1, whatever the schedule
        pruning_schedule = ConstantSparsity(pattern.sparsity, 1)
    is_model = isinstance(to_prune, keras.Model)
    _take_layer_arguments(None if is_model or layers is to_prune else to_prune, kwargs)
    if pruning_policy is not None and is_model:
        pruning_policy.ensure_model_supports_pruning(to_prune)
    for leaf in (leaf for layer in layers for leaf in _leaves(layer)):
        if isinstance(leaf, keras.Model):  # the policy is applied once its layers exist
            mark = marks.Mark(pruning_schedule, pattern, pruning_policy, by_model=is_model)
            marks.put(mark, leaf)
        elif pruning_policy is None or pruning_policy.allow_pruning(leaf):
            marks.put(marks.Mark(pruning_schedule, pattern, by_model=is_model), leaf)
        else:
            marks.lift(leaf)
    if is_model:
        _check_plan(to_prune)
        update_pruning_step.hook(to_prune)
        prunings.attach(to_prune)
    return to_prune


def _take_layer_arguments(layer: Any, arguments: dict[str, Any]) -> None:
    """Handle the layer arguments that TFMOT's wrapper took."""
    known = {"input_shape", "trainable"} if layer is not None else set()
    if unknown := set(arguments) - known:
        raise ValueError(
            f"`prune_low_magnitude` has no arguments {sorted(unknown)}. Pass them to the layer."
        )
    if "input_shape" in arguments:
        layer._input_shape_arg = tuple(arguments["input_shape"])
    if "trainable" in arguments:
        layer.trainable = arguments["trainable"]


def _leaves(layer: keras.layers.Layer) -> Iterator[keras.layers.Layer]:
    """The layers of nested graphs; a subclassed model as a whole: it may create layers later."""
    if isinstance(layer, keras.Sequential) or hasattr(layer, "operations"):
        for child in layer.layers:
            yield from _leaves(child)
    else:
        yield layer


def _check_plan(model: keras.Model) -> None:
    asked = dict.fromkeys(marks.marks_of(model).values())
    try:
        if model.built and not any(marks.plan_of(model, mark).targets for mark in asked):
            raise ValueError(
                f"There is nothing to prune in {model.name!r}. Apply `prune_low_magnitude` to a "
                "model or layer with trainable kernels; kp.plan(model) says why each weight is "
                "left alone."
            )
    except ValueError:
        marks.remove(model)
        raise


def strip_pruning(model: keras.Model) -> keras.Model:
    """End the pruning of a model; its zeros stay.

    Returns:
        The model itself, with masks no longer applied. While `fit` is training it: a copy with the
        current weights, and the training continues.

    Raises:
        ValueError: if `model` is not a Keras model.

    Example:
        >>> import keras_pruner.tfmot as tfmot
        >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(4)])
        >>> pruned = tfmot.sparsity.keras.prune_low_magnitude(model)
        >>> tfmot.sparsity.keras.strip_pruning(pruned) is model
        True
    """
    if not isinstance(model, keras.Model):
        raise ValueError(
            "Expected model to be a `keras.Model` instance but got: an object of type "
            f"{type(model).__name__}."
        )
    if model in update_pruning_step.training:
        weights, model = model.get_weights(), keras.models.clone_model(model)
        model.set_weights(weights)
    marks.remove(model)
    update_pruning_step.unhook(model)
    prunings.detach(model)
    return model


def prune_scope() -> keras.saving.CustomObjectScope:
    """Return a scope that TFMOT needs to load wrapped models; here it is not needed.

    Models that this package prunes contain no classes of it. In the scope, loading a file that
    TFMOT itself wrote raises an error that names `tfmot.load_model`.

    Example:
        >>> import keras_pruner.tfmot as tfmot
        >>> with tfmot.sparsity.keras.prune_scope():
        ...     layer = keras.layers.deserialize(keras.layers.serialize(keras.layers.ReLU()))
    """
    return keras.saving.custom_object_scope({"PruneLowMagnitude": Wrapper})
