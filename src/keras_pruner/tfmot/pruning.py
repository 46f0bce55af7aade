"""`prune_low_magnitude` and what undoes it: marks on layers, hooks on the model, no wrappers."""

import functools
import inspect
import types
import weakref
from collections.abc import Iterator, Sequence
from typing import Any

import keras

from keras_pruner import backends
from keras_pruner.optimizer import PrunedOptimizer, install, wrappers
from keras_pruner.pruner import Pruner
from keras_pruner.tfmot import marks
from keras_pruner.tfmot.policy import PruningPolicy
from keras_pruner.tfmot.schedules import ConstantSparsity, PruningSchedule, Steps
from keras_pruner.weights import check_model

_DEFAULT_SCHEDULE = ConstantSparsity(0.5, 0)
_HOOKS = ("compile", "fit")
training: "weakref.WeakSet[keras.Model]" = weakref.WeakSet()
"""Models that `fit` is training at present."""


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
        sparsity_m_by_n: (m, n): m zeros in every n consecutive inputs, in place of the schedule.
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
    is_model = isinstance(to_prune, keras.Model)
    _take_layer_arguments(None if is_model or layers is to_prune else to_prune, kwargs)
    if pruning_policy is not None and is_model:
        pruning_policy.ensure_model_supports_pruning(to_prune)
    allows = pruning_policy.allow_pruning if pruning_policy else marks.everything
    mark = marks.Mark(
        pruning_schedule,
        block_size,
        block_pooling_type,
        sparsity_m_by_n,
        allows,
    )
    leaves = [leaf for layer in layers for leaf in _leaves(layer)]
    for leaf in leaves:
        if isinstance(leaf, keras.Model) or allows(leaf):
            marks.put(mark, leaf)
    if is_model:
        _check_plan(to_prune)
        hook(to_prune)
        if getattr(to_prune, "optimizer", None) is not None:
            attach(to_prune)
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
    if not model.built:
        return
    try:
        plan = marks.plan_of(model)
        if not plan.targets:
            raise ValueError(f"There is nothing to prune in {model.name!r}.\n{plan}")
    except ValueError:
        remove_all(model)
        raise


# ---------------------------------------------------------------------- the optimizer


def attach(model: keras.Model) -> list[PrunedOptimizer]:
    """Wrap the model's optimizer, once for each schedule; the wrappers, outermost first."""
    wrapped = wrappers(model)
    if wrapped or getattr(model, "optimizer", None) is None:
        return wrapped
    optimizer = model.optimizer
    if isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
        optimizer = optimizer.inner_optimizer
    for schedule in marks.schedules_of(model):
        if model.built and not marks.plan_of(model, schedule).targets:
            continue
        find_plan = functools.partial(marks.plan_of, model, schedule)
        with backends.current().variable_scope(model):
            name = f"pruned_{len(wrapped)}"  # a name each, or an .h5 file cannot hold them
            optimizer = PrunedOptimizer(optimizer, Steps(schedule), find_plan, name)
            optimizer.before_first_step = _refuse
            if model.built:
                optimizer.build(model.trainable_variables)
        wrapped.insert(0, optimizer)
    if wrapped:
        _put(model, optimizer)
        for layer, _ in marks.marks_of(model):
            marks.attended(layer)
    return wrapped


def pruners_for(model: keras.Model) -> list[Pruner]:
    """A pruner for each wrapper of the model's optimizer, at whatever step it stands."""
    pruners = []
    for wrapped in attach(model):
        rules: Any = types.SimpleNamespace(plan=lambda _, wrapped=wrapped: wrapped.plan)
        pruner = Pruner.for_fit(model, wrapped.schedule, rules, None)
        pruner.adopt(wrapped)
        wrapped.before_first_step = None if wrapped.built else pruner.update
        pruners.append(pruner)
    return pruners


def _put(model: keras.Model, optimizer: keras.optimizers.Optimizer) -> None:
    if model.compiled:
        install(model, optimizer)
    else:  # a loop of the user's own, which has the optimizer within in hand
        model.optimizer = optimizer


def _refuse() -> None:
    raise RuntimeError(marks.FORGOTTEN)


# ---------------------------------------------------------------------- the model


def hook(model: keras.Model) -> None:
    """Let this instance's `compile` wrap the optimizer, and its `fit` not forget the callback."""
    if _HOOKS[0] in vars(model):
        return
    compile_, fit = model.compile, model.fit

    @functools.wraps(compile_)
    def compile_and_wrap(*args: Any, **kwargs: Any) -> None:
        compile_(*args, **kwargs)
        attach(model)

    @functools.wraps(fit)
    def fit_with_callback(*args: Any, **kwargs: Any) -> Any:
        from keras_pruner.tfmot.callbacks import with_update

        call = inspect.signature(fit).bind(*args, **kwargs)
        call.arguments["callbacks"] = with_update(call.arguments.get("callbacks"))
        return fit(*call.args, **call.kwargs)

    model.compile, model.fit = compile_and_wrap, fit_with_callback


def remove_all(model: keras.Model) -> None:
    """Take marks and hooks off a model and its optimizer."""
    for layer in model._flatten_layers():
        marks.remove(layer)
        for name in _HOOKS:
            vars(layer).pop(name, None)
    if wrapped := wrappers(model):
        _put(model, wrapped[-1].inner_optimizer)


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
    if model not in training:
        remove_all(model)
        return model
    copy = keras.models.clone_model(model)
    copy.set_weights(model.get_weights())
    remove_all(copy)
    return copy


class _Unreadable(keras.layers.Layer):
    """Stands for TFMOT's wrapper, to say how a file with one is read."""

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "_Unreadable":
        raise ValueError(
            f"The file holds TFMOT's wrapper around {config['layer']['config']['name']!r}, which "
            "Keras 3 cannot load. Read it with `keras_pruner.tfmot.load_model(path)`."
        )


def prune_scope() -> keras.saving.CustomObjectScope:
    """Not needed: models that this package prunes hold no classes of its own. Harmless."""
    return keras.saving.custom_object_scope({"PruneLowMagnitude": _Unreadable})
