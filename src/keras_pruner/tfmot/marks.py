"""What `prune_low_magnitude` notes on layers, and the plans that follow from the notes."""

import dataclasses
import functools
from collections.abc import Iterable
from typing import Any

import keras

from keras_pruner.model_weights import weights_of
from keras_pruner.patterns import Pattern
from keras_pruner.plan import Plan
from keras_pruner.rules import Rules
from keras_pruner.tfmot.interfaces import PruningPolicy
from keras_pruner.tfmot.patterns import fitted
from keras_pruner.tfmot.schedules import PruningSchedule

_MARK = "_keras_pruner_tfmot"
_TRAIN = "make_train_function"
FORGOTTEN = (
    "This model is to be pruned, and nobody does it: it would be trained dense. Pass "
    "`callbacks=[UpdatePruningStep()]` to `fit`; in a loop of your own call its `set_model`, "
    "`on_train_begin` and, first thing in every step, `on_train_batch_begin`; or "
    "`strip_pruning(model)` to train it as it is."
)


@dataclasses.dataclass(frozen=True)
class Mark:
    """How a layer, and those within it, are to be pruned.

    Args:
        schedule: when, and how much.
        pattern: the zeros allowed.
        policy: which of the layers within; None: all.
    """

    schedule: PruningSchedule
    pattern: Pattern
    policy: PruningPolicy | None = None

    def allows(self, layer: keras.layers.Layer) -> bool:
        """Whether the policy lets a layer be pruned."""
        return self.policy is None or self.policy.allow_pruning(layer)


def put(mark: Mark, layer: keras.layers.Layer) -> None:
    """Mark a layer, unless it is; until the optimizer sees to it, it refuses to be trained."""
    if _MARK in vars(layer):
        return
    setattr(layer, _MARK, mark)
    call = layer.call

    @functools.wraps(call)
    def refusing(*args: Any, **kwargs: Any) -> Any:
        context = layer._get_call_context()
        if context.training:
            raise RuntimeError(FORGOTTEN)
        if getattr(context.entry_layer, "compiled", False):
            # `fit` makes a call like this first. On JAX an error in a step loses the weights.
            setattr(context.entry_layer, _TRAIN, refuse)
        return call(*args, **kwargs)

    layer.call = refusing


def refuse(*_: Any, **__: Any) -> None:
    """Say that nobody prunes."""
    raise RuntimeError(FORGOTTEN)


def attended(model: keras.layers.Layer) -> None:
    """Let a model and its layers be trained: the optimizer sees to the marks."""
    for layer in model._flatten_layers():
        vars(layer).pop(_TRAIN, None)
        if _MARK in vars(layer):
            vars(layer).pop("call", None)


def remove(model: keras.layers.Layer) -> None:
    """Take the marks off a model and its layers."""
    attended(model)
    for layer in model._flatten_layers():
        if _MARK in vars(layer):
            delattr(layer, _MARK)


def marks_of(model: keras.layers.Layer) -> dict[int, Mark]:
    """The mark that counts for each layer of a model, by the layer's id: its own goes first."""
    return {
        id(layer): getattr(marked, _MARK)
        for marked in model._flatten_layers()  # a layer comes before those within it
        if _MARK in vars(marked)
        for layer in marked._flatten_layers()
    }


def unserved(model: keras.layers.Layer, plans: Iterable[Plan]) -> list[str]:
    """What TFMOT would prune or refuse and no plan has, with the reasons.

    That is weights which their layer names itself, and those of layers that nobody knows.
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
    """What one of a built model's marks asks for; it may be nothing.

    Raises:
        ValueError: if a mark asks for blocks where there are none, or all of them for nothing.
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
