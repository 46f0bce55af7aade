"""The optimizer of a model with marks: wrapped once for each, taken up again, unwrapped."""

import dataclasses
import functools
import types
import warnings
from collections.abc import Sequence
from typing import Any

import keras

from keras_pruner import backends
from keras_pruner.tfmot import marks
from keras_pruner.tfmot.schedules import Steps
from keras_pruner.training.optimizer import PrunedOptimizer, install, wrappers
from keras_pruner.training.pruner import Pruner


def attach(model: keras.Model) -> list[PrunedOptimizer]:
    """Wrap the model's optimizer, once for each mark; the wrappers, outermost first."""
    optimizer = getattr(model, "optimizer", None)
    if optimizer is None or wrappers(model):
        return wrappers(model)
    if isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
        optimizer = optimizer.inner_optimizer
    wrapped: list[PrunedOptimizer] = []
    for mark in dict.fromkeys(marks.marks_of(model).values()):
        find_plan = functools.partial(marks.plan_of, model, mark)
        if model.built and not find_plan().targets:
            continue
        with backends.current().variable_scope(model):
            name = f"pruned_{len(wrapped)}"  # a name each, or an .h5 file cannot hold them
            optimizer = PrunedOptimizer(optimizer, Steps(mark.schedule), find_plan, name)
            optimizer.before_first_step = marks.refuse
            if model.built:
                optimizer.build(model.trainable_variables)
        wrapped.insert(0, optimizer)
    if wrapped and model.built and (left := marks.unserved(model, [w.plan for w in wrapped])):
        warnings.warn(f"prune_low_magnitude leaves alone: {', '.join(left)}.", stacklevel=3)
    if wrapped:
        _put(model, optimizer)
        marks.attended(model)
    return wrapped


def go_on(before: Sequence[PrunedOptimizer], after: Sequence[PrunedOptimizer]) -> None:
    """Let new wrappers have the masks of those they replace, and count on from their step."""
    for old, new in zip(before, after, strict=False):
        there, here = old.schedule, new.schedule
        if old is new or not (isinstance(there, Steps) and isinstance(here, Steps)):
            continue
        if new.built and old.has_begun and new.plan.same_as(old.plan):
            for mine, theirs in zip(new.masked, old.masked, strict=True):
                mine.mask.assign(theirs.mask)
            done = there.done + old.completed_updates - old.progress.origin
            new.schedule = dataclasses.replace(here, done=done)


def detach(model: keras.Model) -> None:
    """Give the model its own optimizer back."""
    if wrapped := wrappers(model):
        _put(model, wrapped[-1].inner_optimizer)


def pruners_for(model: keras.Model) -> list[Pruner]:
    """A pruner for each wrapper of the model's optimizer, at whatever step it stands."""
    pruners = []
    for wrapped in attach(model):
        rules: Any = types.SimpleNamespace(plan=lambda _, wrapped=wrapped: wrapped.plan)
        pruner = Pruner.for_fit(model, wrapped.schedule, rules, None)
        pruner.adopt(wrapped)
        wrapped.before_first_step = None if wrapped.built else pruner.update_before_first_step
        pruners.append(pruner)
    return pruners


def _put(model: keras.Model, optimizer: keras.optimizers.Optimizer) -> None:
    if model.compiled:
        install(model, optimizer)
    else:  # a loop of the user's own, which has the optimizer within in hand
        model.optimizer = optimizer
        for wrapped in wrappers(model):
            wrapped.applied = True  # as far as anybody can see
