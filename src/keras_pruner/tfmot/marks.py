"""Marks on layers: what `prune_low_magnitude` asked for, and the plans that follow from it."""

import dataclasses
import functools
from collections.abc import Iterable
from typing import Any

import keras

from keras_pruner.model_weights import weights_of
from keras_pruner.patterns import Pattern
from keras_pruner.plan import Plan
from keras_pruner.rules import Rules
from keras_pruner.tfmot.patterns import fitted
from keras_pruner.tfmot.policies import PruningPolicy
from keras_pruner.tfmot.schedules import PruningSchedule

_MARK = "_keras_pruner_tfmot"
_TRAIN = "make_train_function"
FORGOTTEN = (
    "`prune_low_magnitude` was applied to this model, but no `UpdatePruningStep` callback is "
    "active, so it would be trained dense. Pass `callbacks=[UpdatePruningStep()]` to `fit`. In a "
    "loop of your own call its `set_model`, `on_train_begin` and, at the beginning of every step, "
    "`on_train_batch_begin`. To train without pruning call `strip_pruning(model)`."
)


@dataclasses.dataclass(frozen=True)
class Mark:
    """How a layer and its sublayers are pruned.

    Args:
        schedule: TFMOT's schedule.
        pattern: the pattern of the zeros.
        policy: decides which sublayers are pruned. None: all.
        by_model: whether the layer was marked with the model that it is in, and not itself.
    """

    schedule: PruningSchedule
    pattern: Pattern
    policy: PruningPolicy | None = None
    by_model: bool = dataclasses.field(default=False, compare=False)

    def allows(self, layer: keras.layers.Layer) -> bool:
        """Return whether the policy allows pruning a layer."""
        return self.policy is None or self.policy.allow_pruning(layer)


def put(mark: Mark, layer: keras.layers.Layer) -> None:
    """Mark a layer, which then refuses to be trained until an optimizer prunes it.

    The last mark counts, except that marking a model leaves the marks on single layers.
    """
    present = vars(layer).get(_MARK)
    if present is not None and mark.by_model and not present.by_model:
        return
    setattr(layer, _MARK, mark)
    if present == mark or "call" in vars(layer):
        return
    call = layer.call

    @functools.wraps(call)
    def refusing(*args: Any, **kwargs: Any) -> Any:
        context = layer._get_call_context()
        if context.training:
            raise RuntimeError(FORGOTTEN)
        if getattr(context.entry_layer, "compiled", False):
            # `fit` calls the model like this first. On JAX an error in a step loses the weights.
            setattr(context.entry_layer, _TRAIN, refuse)
        return call(*args, **kwargs)

    layer.call = refusing


def lift(layer: keras.layers.Layer) -> None:
    """Remove the mark that an earlier call with a model has put on a layer."""
    if _MARK in vars(layer) and getattr(layer, _MARK).by_model:
        vars(layer).pop("call", None)
        delattr(layer, _MARK)


def refuse(*_: Any, **__: Any) -> None:
    """Raise the error for a model that is not being pruned."""
    raise RuntimeError(FORGOTTEN)


def attended(model: keras.layers.Layer) -> None:
    """Allow a model and its layers to be trained, because its optimizer prunes them."""
    for layer in model._flatten_layers():
        vars(layer).pop(_TRAIN, None)
        if _MARK in vars(layer):
            vars(layer).pop("call", None)


def remove(model: keras.layers.Layer) -> None:
    """Remove the marks from a model and its layers."""
    attended(model)
    for layer in model._flatten_layers():
        if _MARK in vars(layer):
            delattr(layer, _MARK)


def marks_of(model: keras.layers.Layer) -> dict[int, Mark]:
    """The mark of each layer of a model, by the layer's id: its own, or else its parent's."""
    return {
        id(layer): getattr(marked, _MARK)
        for marked in model._flatten_layers()  # a layer comes before those within it
        if _MARK in vars(marked)
        for layer in marked._flatten_layers()
    }


def layers_with(mark: Mark, model: keras.layers.Layer) -> frozenset[int]:
    """The ids of the layers that carry a mark themselves."""
    return frozenset(id(each) for each in model._flatten_layers() if vars(each).get(_MARK) == mark)


def unserved(model: keras.layers.Layer, plans: Iterable[Plan]) -> list[str]:
    """Weights that TFMOT would prune or refuse and that are in no plan, with the reasons.

    These are weights named by `get_prunable_weights`, and those of custom layers.
    """
    marks, found = marks_of(model), {id(v) for plan in plans for v in plan.variables}
    left = []
    for owned in weights_of(model):
        layer, variable = owned.layer, owned.variable
        if id(layer) not in marks or id(variable) in found or not marks[id(layer)].allows(layer):
            continue
        if asked := getattr(layer, "get_prunable_weights", None):
            counts = any(variable is named for named in asked())
        else:
            is_stock = type(layer).__module__.startswith("keras.")
            counts = not is_stock and len(variable.shape) > 1
        if counts and (reason := owned.reason(by_default=True)):
            left.append(f"{owned.path} ({reason})")
    return left


def plan_of(model: keras.layers.Layer, mark: Mark) -> Plan:
    """The plan for one of the marks on a built model; it may have no targets.

    Raises:
        ValueError: if the mark has a block pattern, and a weight is not of rank 2.
    """
    marks = marks_of(model)
    marked = [layer for layer in model._flatten_layers() if id(layer) in marks]
    allowed = {id(layer) for layer in marked if marks[id(layer)].allows(layer)}
    rules = Rules(allocation="uniform", filters=lambda layer: id(layer) in allowed)
    plan = rules.plan(model)
    mine = {id(w.variable) for w in weights_of(model) if marks.get(id(w.layer)) == mark}
    found = [
        (dataclasses.replace(target, pattern=pattern), variable)
        for target, variable in zip(plan.targets, plan.variables, strict=True)
        if id(variable) in mine and (pattern := fitted(mark.pattern, target)) is not None
    ]
    targets, variables = zip(*found, strict=True) if found else ((), ())
    return dataclasses.replace(plan, targets=targets, variables=variables)
