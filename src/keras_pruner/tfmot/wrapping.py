"""The prunings of a model with marks: one on its optimizer for each mark."""

import dataclasses
import functools
import warnings
from collections.abc import Sequence

import keras

from keras_pruner import backends
from keras_pruner.tfmot import marks
from keras_pruner.tfmot.schedules import Steps
from keras_pruner.training import optimizer as pruned
from keras_pruner.training.optimizer import KerasPruning, compile_anew, prunings_of
from keras_pruner.training.pruner import Pruner


def attach(model: keras.Model) -> list[KerasPruning]:
    """Put a pruning on the model's optimizer for each mark; the prunings that it carries then."""
    optimizer = getattr(model, "optimizer", None)
    if optimizer is None or prunings_of(model):
        return prunings_of(model)
    for i, mark in enumerate(dict.fromkeys(marks.marks_of(model).values())):
        find_plan = functools.partial(marks.plan_of, model, mark)
        if model.built and not find_plan().targets:
            continue
        # A name for each, or an .h5 file cannot hold them.
        pruning = KerasPruning(Steps(mark.schedule), find_plan, f"pruning_{i}")
        pruning.before_first_step = marks.refuse
        with backends.current().variable_scope(model):
            pruned.attach(optimizer, pruning, model.trainable_variables if model.built else None)
        compile_anew(model, pruning)
    prunings = prunings_of(model)
    if prunings and model.built and (left := marks.unserved(model, [p.plan for p in prunings])):
        warnings.warn(f"prune_low_magnitude leaves alone: {', '.join(left)}.", stacklevel=3)
    if prunings:
        marks.attended(model)
    return prunings


def go_on(before: Sequence[KerasPruning], after: Sequence[KerasPruning]) -> None:
    """Let new prunings have the masks of those they replace, and count on from their step."""
    for old, new in zip(before, after, strict=False):
        there, here = old.schedule, new.schedule
        if old is new or not (isinstance(there, Steps) and isinstance(here, Steps)):
            continue
        if new.built and old.state.has_begun and new.plan.same_as(old.plan):
            for mine, theirs in zip(new.masked, old.masked, strict=True):
                mine.mask.assign(theirs.mask)
            new.schedule = dataclasses.replace(here, done=there.done + old.state.step)


def detach(model: keras.Model) -> None:
    """Give the model its own optimizer back."""
    for pruning in prunings_of(model):
        pruning.release()
        model.train_function = None


def pruners_for(model: keras.Model) -> list[Pruner]:
    """A pruner for each pruning of the model's optimizer, at whatever step it stands."""
    pruners = []
    for pruning in attach(model):
        pruner = Pruner.on(model, pruning)
        pruning.before_first_step = None if pruning.built else pruner.update_before_first_step
        pruners.append(pruner)
    return pruners
