"""`prune_low_magnitude` and what undoes it: marks on layers, hooks on the model, no wrappers."""

from collections.abc import Iterator, Sequence
from typing import Any

import keras

from keras_pruner.model_weights import check_model
from keras_pruner.patterns import NM
from keras_pruner.tfmot import callbacks, marks, wrapping
from keras_pruner.tfmot.interfaces import PruningPolicy
from keras_pruner.tfmot.keras2_files import Wrapper
from keras_pruner.tfmot.patterns import pattern_of
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
    """Have a model, a layer or layers pruned by magnitude whenever they are trained.

    Args:
        to_prune: any Keras 3 model, a layer, or a list of layers.
        pruning_schedule: when, and how much.
        block_size: height and width of blocks of zeros, for weights of rank 2.
        block_pooling_type: "AVG" or "MAX" of the magnitudes in a block.
        pruning_policy: which layers.
        sparsity_m_by_n: (m, n): m zeros in every n consecutive inputs, in place of the schedule
            and of blocks.
        **kwargs: for a layer, its `input_shape` or `trainable`.

    Returns:
        What was given, not a copy of it: `compile` and train it.

    Raises:
        ValueError: for arguments that are wrong, and for a model with nothing to prune.
    """
    layers = to_prune if isinstance(to_prune, list) else [to_prune]
    for layer in layers:
        if not isinstance(layer, keras.layers.Layer):
            check_model(layer)  # knows Keras 2 when it sees it
    if not isinstance(pruning_schedule, PruningSchedule):
        raise ValueError(
            "`pruning_schedule` must be a PruningSchedule of keras_pruner.tfmot, like "
            f"ConstantSparsity(0.5, 0). Received: pruning_schedule={pruning_schedule!r}."
        )
    pattern = pattern_of(block_size, block_pooling_type, sparsity_m_by_n)
    if isinstance(pattern, NM):  # TFMOT chooses these zeros at its step 1, whatever the schedule
        pruning_schedule = ConstantSparsity(pattern.sparsity, 1)
    is_model = isinstance(to_prune, keras.Model)
    _take_layer_arguments(None if is_model or layers is to_prune else to_prune, kwargs)
    if pruning_policy is not None and is_model:
        pruning_policy.ensure_model_supports_pruning(to_prune)
    for leaf in (leaf for layer in layers for leaf in _leaves(layer)):
        if isinstance(leaf, keras.Model):  # the policy is asked when its layers are there
            marks.put(marks.Mark(pruning_schedule, pattern, pruning_policy), leaf)
        elif pruning_policy is None or pruning_policy.allow_pruning(leaf):
            marks.put(marks.Mark(pruning_schedule, pattern), leaf)
    if is_model:
        _check_plan(to_prune)
        callbacks.hook(to_prune)
        wrapping.attach(to_prune)
    return to_prune


def _take_layer_arguments(layer: Any, arguments: dict[str, Any]) -> None:
    """Do what TFMOT's wrapper does with the arguments of a layer."""
    known = {"input_shape", "trainable"} if layer is not None else set()
    if unknown := set(arguments) - known:
        raise ValueError(
            f"`prune_low_magnitude` does not know {sorted(unknown)}. Give them to the layer itself."
        )
    if "input_shape" in arguments:
        layer._input_shape_arg = tuple(arguments["input_shape"])
    if "trainable" in arguments:
        layer.trainable = arguments["trainable"]


def _leaves(layer: keras.layers.Layer) -> Iterator[keras.layers.Layer]:
    """The layers of nested graphs; a subclassed model, which may make its own later, as a whole."""
    if isinstance(layer, keras.Sequential) or hasattr(layer, "operations"):
        for child in layer.layers:
            yield from _leaves(child)
    else:
        yield layer


def _check_plan(model: keras.Model) -> None:
    asked = dict.fromkeys(marks.marks_of(model).values())
    try:
        if model.built and not any(marks.plan_of(model, mark).targets for mark in asked):
            raise ValueError(f"There is nothing to prune in {model.name!r}.")
    except ValueError:
        marks.remove(model)
        raise


def strip_pruning(model: keras.Model) -> keras.Model:
    """Have a model pruned no longer; its zeros stay.

    Returns:
        The model itself, whose optimizer is the user's own again; while `fit` is training it, a
        copy with the present weights, and the training goes on.

    Raises:
        ValueError: if `model` is no Keras model.
    """
    if not isinstance(model, keras.Model):
        raise ValueError(
            "Expected model to be a `keras.Model` instance but got: an object of type "
            f"{type(model).__name__}."
        )
    if model in callbacks.training:
        weights, model = model.get_weights(), keras.models.clone_model(model)
        model.set_weights(weights)
    marks.remove(model)
    callbacks.unhook(model)
    wrapping.detach(model)
    return model


def prune_scope() -> keras.saving.CustomObjectScope:
    """Not needed: models that this package prunes hold no classes of its own. Harmless."""
    return keras.saving.custom_object_scope({"PruneLowMagnitude": Wrapper})
