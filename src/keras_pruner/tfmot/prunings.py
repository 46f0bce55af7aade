"""The prunings of a model with marks: its optimizer carries one for each mark."""

import dataclasses
import functools
import warnings
import weakref
from collections.abc import Sequence

import keras

from keras_pruner import backends
from keras_pruner.tfmot import marks
from keras_pruner.tfmot.schedules import Steps
from keras_pruner.training import optimizer as pruned
from keras_pruner.training.optimizer import KerasPruning, compile_anew, prunings_of
from keras_pruner.training.pruner import Pruner

_Origin = tuple[marks.Mark, frozenset[int]]
_origin_of: "weakref.WeakKeyDictionary[KerasPruning, _Origin]" = weakref.WeakKeyDictionary()
"""The mark that a pruning was made for, and its layers; unknown for one from a file."""


def attach(model: keras.Model) -> list[KerasPruning]:
    """Give the model's optimizer a pruning for each mark, unless it has them.

    Prunings for marks that were replaced since are released.

    Returns:
        The prunings that the optimizer carries then.
    """
    optimizer, present = getattr(model, "optimizer", None), prunings_of(model)
    asked = _marks_with_targets(model)
    if optimizer is None or not asked:
        return present
    if len(present) == len(asked) and all(map(_is_for, present, asked, [model] * len(asked))):
        marks.attended(model)
        return present
    detach(model)
    for i, mark in enumerate(asked):
        find_plan = functools.partial(marks.plan_of, model, mark)
        # Each has a name of its own, or an .h5 file could not hold them.
        pruning = KerasPruning(Steps(mark.schedule), find_plan, f"pruning_{i}")
        pruning.before_first_step = marks.refuse
        _origin_of[pruning] = mark, marks.layers_with(mark, model)
        with backends.current().variable_scope(model):
            pruned.attach(optimizer, pruning, model.trainable_variables if model.built else None)
        compile_anew(model, pruning)
    prunings = prunings_of(model)
    if model.built and (left := marks.unserved(model, [p.plan for p in prunings])):
        warnings.warn(f"prune_low_magnitude leaves alone: {', '.join(left)}.", stacklevel=3)
    marks.attended(model)
    return prunings


def _marks_with_targets(model: keras.Model) -> list[marks.Mark]:
    """The marks on a model; of a built one only those that have weights to prune."""
    found = dict.fromkeys(marks.marks_of(model).values())
    return [mark for mark in found if not model.built or marks.plan_of(model, mark).targets]


def _is_for(pruning: KerasPruning, mark: marks.Mark, model: keras.Model) -> bool:
    """Whether a pruning was made for a mark that is still on the same layers."""
    if pruning in _origin_of:
        return _origin_of[pruning] == (mark, marks.layers_with(mark, model))
    schedule = pruning.schedule
    if not isinstance(schedule, Steps) or schedule.schedule != mark.schedule or not model.built:
        return False
    return pruning.plan.same_as(marks.plan_of(model, mark))


def go_on(before: Sequence[KerasPruning], after: Sequence[KerasPruning]) -> None:
    """Give new prunings the masks and the step of those that they continue."""
    for old, new in zip(before, after, strict=False):
        there, here = old.schedule, new.schedule
        if old is new or not (isinstance(there, Steps) and isinstance(here, Steps)):
            continue
        continues = there.schedule == here.schedule and new.built and old.state.has_begun
        if continues and new.plan.same_as(old.plan):
            for mine, theirs in zip(new.masked, old.masked, strict=True):
                mine.mask.assign(theirs.mask)
            new.schedule = dataclasses.replace(here, done=there.done + old.state.step)


def detach(model: keras.Model) -> None:
    """Take all prunings off the model's optimizer."""
    for pruning in prunings_of(model):
        pruning.release()
        model.train_function = None


def pruners_for(model: keras.Model) -> list[Pruner]:
    """A pruner for each pruning on the model's optimizer, which goes on from its step."""
    pruners = []
    for pruning in attach(model):
        pruner = Pruner.on(model, pruning)
        pruning.before_first_step = None if pruning.built else pruner.update_before_first_step
        pruners.append(pruner)
    return pruners
