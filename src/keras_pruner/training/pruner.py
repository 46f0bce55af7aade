"""Pruner: decides at the schedule's cadence what the optimizer then applies at every step."""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import numpy as np

from keras_pruner import backends
from keras_pruner.criteria import magnitude
from keras_pruner.masks import choose, count_entries
from keras_pruner.patterns import Pattern, Unstructured
from keras_pruner.plan import Criterion, Plan
from keras_pruner.rules import Filters, Override, Rules
from keras_pruner.schedules import Schedule
from keras_pruner.training import agreement, reach
from keras_pruner.training.given import (
    check_values,
    refuse_other_plan,
    rules_of_training,
    schedule_for,
)
from keras_pruner.training.optimizer import PrunedOptimizer, check_wrappable, find, install
from keras_pruner.training.progress import Ended, Progress, Reached
from keras_pruner.validation import check_integer


class Pruner:
    """Prunes a model in a training loop of your own.

    Args:
        model: any built Keras 3 model. One whose optimizer is being pruned already (loaded, or
            left by an interrupted `fit`) is taken up where it stands if no schedule is given.
        schedule: a schedule, a final sparsity, or a function step -> sparsity. Not needed for a
            pattern that has its own.
        pattern: the zeros allowed.
        allocation: how the overall budget is split over the weights: "lamp", "erk", "global",
            "uniform", a mapping regex -> sparsity, or a function. None: "lamp", or "uniform"
            where the pattern is neither unstructured nor of blocks.
        criterion: weights -> scores of the same shape, higher is better.
        filters: layers to prune: a regex or a list of them, or a function layer -> bool.
        overrides: regex of a weight's path -> None (leave alone), sparsity, pattern, or both.
        updates: how many updates of the weights the training will make; needed where the
            schedule leaves its end open.

    Raises:
        ValueError: for arguments that are wrong or do not go together, and for a model with
            nothing to prune; before anything is changed.

    Example:
        >>> import keras_pruner as kp
        >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(4)])
        >>> pruner = kp.Pruner(model, kp.ConstantSparsity(0.5))
        >>> optimizer = pruner.wrap(keras.optimizers.SGD())
        >>> pruner.update()
        True
        >>> pruner.sparsity
        0.5
    """

    def __init__(
        self,
        model: keras.Model,
        schedule: Schedule | float | Callable[[int], float] | None = None,
        *,
        pattern: Pattern = Unstructured(),  # noqa: B008 - a frozen value
        allocation: Any = None,
        criterion: Criterion = magnitude,
        filters: Filters = None,
        overrides: Mapping[str, Override] | None = None,
        updates: int | None = None,
    ) -> None:
        present = find(model) if schedule is None else None
        rules = rules_of_training(pattern, allocation, criterion, filters, overrides)
        if present is not None and present.built:
            if rules != Rules() and not present.plan.same_as(rules.plan(model)):
                refuse_other_plan(model.name, rules)
            self._set_up(model, present.schedule, lambda: present.plan, updates)
            self.adopt(present)
            return
        schedule = schedule_for(schedule, pattern)
        if updates is not None:
            check_integer("updates", updates, least=1)
        plan = rules.plan(model)
        plan.check_final(schedule.resolve(updates, 0.0).sparsity_at_end)
        self._set_up(model, schedule, lambda: plan, updates)
        self.check_reach()

    @classmethod
    def for_fit(
        cls, model: keras.Model, schedule: Schedule, rules: Rules, ended: Ended | None
    ) -> "Pruner":
        """A pruner for a compiled model that may not have its weights yet.

        Args:
            model: the model.
            schedule: when to prune; `fit` settles what it leaves open.
            rules: how to find the plan.
            ended: where the same schedule ended in an earlier `fit`.
        """
        self = cls.__new__(cls)
        self._set_up(model, schedule, functools.cache(lambda: rules.plan(model)), None)
        self._ended, self._own_loop = ended, False
        return self

    def _set_up(
        self,
        model: keras.Model,
        schedule: Schedule,
        find_plan: Callable[[], Plan],
        updates: int | None,
    ) -> None:
        self.model = model
        self.updates = updates
        self.updates_per_call = 1
        self._own_loop = True  # which may set the state back
        self._given = schedule
        self._find_plan = find_plan
        self._ended: Ended | None = None
        self._settled: dict[str, int] = {}
        self._wrapped: Any = None
        self._outer: Any = None
        self._resolved: Schedule | None = None
        self._seen = -1  # the last step that was read from the optimizer
        self._ahead = 0  # updates there may have been since
        self._idle = 0.0  # calls since the optimizer last counted a step
        self._scanned = -1  # no update is due up to this step
        self._at: float | None = None  # the sparsity the masks were last updated to
        self._loads = 0  # of the optimizer's state, that all of this is of
        self._known: Progress | None = None  # as it was last read, or written here
        self._noted: Reached | None = None  # of what no variable says: released, or stateless

    # ------------------------------------------------------------------ use

    @property
    def plan(self) -> Plan:
        """What is pruned, and why everything else is not."""
        return self._find_plan()

    @property
    def wrapped(self) -> Any:
        """The wrapped optimizer, which holds the masks."""
        if self._wrapped is None:
            raise RuntimeError(
                "This pruner has no optimizer to apply its masks. Wrap one first: "
                "`optimizer = pruner.wrap(keras.optimizers.Adam())`."
            )
        return self._wrapped

    @property
    def schedule(self) -> Schedule:
        """The schedule; once training has begun, with everything settled."""
        return self._resolved or self._given

    @property
    def step(self) -> int:
        """Updates of the weights completed since the schedule began."""
        if (noted := self._of_no_variable()) is not None:
            return noted.step
        origin = self.wrapped.progress.origin
        return 0 if origin < 0 else self.wrapped.completed_updates - origin

    @property
    def finished(self) -> bool:
        """Whether the schedule has reached its end."""
        if (noted := self._of_no_variable()) is not None:
            return noted.finished
        return self._wrapped is not None and self._wrapped.finished

    @property
    def sparsity(self) -> float:
        """The fraction of zeros that the masks hold at present, over all targets."""
        if (noted := self._of_no_variable()) is not None:
            return noted.sparsity
        return (
            1 - sum(count_entries(np.asarray, m.mask) for m in self.wrapped.masked) / self._entries
        )

    def _of_no_variable(self) -> Reached | None:
        """What was noted where the optimizer's variables do not say it, or not any more."""
        if self._noted is None or self._wrapped is None:
            return self._noted
        return None if self._wrapped.progress == self._known else self._noted

    def wrap(self, optimizer: Any) -> Any:
        """Wrap the optimizer that trains the model.

        Args:
            optimizer: a Keras optimizer, or one of `torch.optim`, which is returned itself.

        Returns:
            The optimizer to train with.

        Raises:
            ValueError: if it is wrapped already, or this pruner has wrapped another.
        """
        if isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
            optimizer.inner_optimizer = self.wrap(optimizer.inner_optimizer)
            self._outer = optimizer
            return optimizer
        check_wrappable(optimizer, used=self._wrapped is not None)
        self._noted = None
        if not isinstance(optimizer, keras.optimizers.Optimizer):
            from keras_pruner.training.torch_optimizer import TorchOptimizerMasks

            self._wrapped = TorchOptimizerMasks(optimizer, self._given, self.plan)
            return optimizer
        with backends.current().variable_scope(self.model):
            wrapped = PrunedOptimizer(optimizer, self._given, self._find_plan)
            if self.model.built:
                wrapped.build(self.model.trainable_variables)
            else:
                wrapped.before_first_step = self.update_before_first_step
        self._wrapped = self._outer = wrapped
        return wrapped

    def check_agreement(self) -> int:
        """Check that the weights and masks of the targets are the same wherever they are copied.

        They are by construction, as long as the weights are: every replica and process finds the
        same masks by itself. Of the copies only digests are compared. Where there are several
        processes, all of them have to call it.

        Returns:
            How many copies of a weight there are at most, over all devices and processes.

        Raises:
            RuntimeError: if some differ, naming the weights.
        """
        return agreement.check(self.model, self.wrapped.masked)

    def update(self) -> bool:
        """Update the masks if the schedule says so; call it first thing in every step.

        Cheap when nothing is due: the count is read from the optimizer only when an update may
        be. With gradient accumulation a step is one applied update of the weights.

        Returns:
            Whether masks were updated.

        Raises:
            ValueError: if a weight is NaN or infinite; nothing is pruned then.
            RuntimeError: if a step is being traced, or steps are made that do not prune.
        """
        if backends.current().is_tracing():
            reach.refuse_to_be_traced()
        return self.update_before_first_step()

    def update_before_first_step(self) -> bool:
        """`update`, which may also be called where the optimizer makes its variables in a trace."""
        wrapped, self._noted = self.wrapped, None
        wrapped.attended = True
        if not wrapped.built or not self._may_be_due():
            return False
        backends.current().sync(self.model)
        with backends.current().eagerly():
            return self._update_if_due(wrapped)

    def stateless_update(
        self, trainable_variables: Sequence[Any], optimizer_variables: Sequence[Any]
    ) -> tuple[Sequence[Any], Sequence[Any]]:
        """`update` for a stateless loop on JAX; outside of the jitted step.

        Args:
            trainable_variables: values of `model.trainable_variables`.
            optimizer_variables: values of the wrapped optimizer's `variables`.

        Returns:
            Both, with the masks, the weights and the optimizer's slots brought up to date. What
            the pruner says of itself is of then; between masks, `step` counts calls.
        """
        mine = self.model.trainable_variables, (self._outer or self.wrapped).variables
        check_values(trainable_variables, optimizer_variables, mine)
        variables = [*mine[0], *mine[1]]
        values = [*trainable_variables, *optimizer_variables]
        if not all(map(backends.current().is_readable, values)):
            reach.refuse_traced_values()
        before = self._noted
        with keras.StatelessScope(list(zip(variables, values, strict=True))) as scope:
            changed = self.update()
            if before is None or not self._ahead:  # it has looked at the state
                self._noted = Reached(self.finished, self.step, self.sparsity)
            else:
                self._noted = before._replace(step=self._seen + self._ahead)
        if not changed:
            return trainable_variables, optimizer_variables
        values = [scope.get_current_value(variable) for variable in variables]
        return values[: len(trainable_variables)], values[len(trainable_variables) :]

    def release(self) -> Any:
        """End the pruning, finished or not; the zeros stay, and nothing holds them any more.

        Returns:
            The user's own optimizer, which the model is compiled with again if it was.
        """
        wrapped, outer = self.wrapped, self._outer
        self._noted = Reached(self.finished, self.step, self.sparsity)
        self._wrapped = self._outer = None
        if not isinstance(wrapped, PrunedOptimizer):
            wrapped.release()
        elif find(self.model) is wrapped:
            install(self.model, wrapped.inner_optimizer)
        elif isinstance(outer, keras.optimizers.LossScaleOptimizer):
            outer.inner_optimizer = wrapped.inner_optimizer
        scales = isinstance(outer, keras.optimizers.LossScaleOptimizer)
        return outer if scales else wrapped.inner_optimizer

    # ------------------------------------------------------------------ for `fit`

    def can_adopt(self, wrapped: PrunedOptimizer) -> bool:
        """Whether `wrapped` carries this very pruning, begun before."""
        return wrapped.built and wrapped.schedule == self._given and wrapped.plan.same_as(self.plan)

    def adopt(self, wrapped: PrunedOptimizer) -> None:
        """Go on with the pruning that `wrapped` carries."""
        self._wrapped, self._outer = wrapped, self.model.optimizer
        wrapped.attended = True

    def settle(self, **steps: int) -> None:
        """Fix fields of the schedule for when it begins."""
        self._settled = steps

    def check_reach(self) -> None:
        """Say before the training if it is too short for the schedule.

        Raises:
            ValueError: if nothing would be pruned at all, or the schedule's end hangs on the
                length of a training of unknown length.
        """
        wrapped = self._wrapped
        if wrapped is not None and wrapped.built and wrapped.progress.origin >= 0:
            schedule, now = wrapped.progress.restore(self._given), self.step
        else:
            schedule, now = self._schedule_to_begin(0.0), 0
        reach.check_length(schedule, self._given, now, self.updates)

    # ------------------------------------------------------------------ deciding

    def _may_be_due(self) -> bool:
        """Whether an update may be due by now, from the number of calls alone."""
        wrapped = self.wrapped
        set_back = self._own_loop and wrapped.peek() not in (None, self._known)
        if wrapped.loads != self._loads or set_back:
            self._forget()
        if self._resolved is None:
            return wrapped.is_readable
        self._ahead += self.updates_per_call
        until = self._seen + self._ahead
        due = any(map(self._is_due, range(self._scanned + 1, until + 1)))
        self._scanned = until
        return due or (self._own_loop and self._ahead >= reach.PATIENCE)

    def _forget(self) -> None:
        """Look anew: the optimizer's state is another one, loaded or set from without."""
        self._loads, self._resolved, self._at = self.wrapped.loads, None, None
        self._seen, self._scanned, self._ahead = -1, -1, 0

    def _is_due(self, step: int) -> bool:
        """At the last update, and at one that asks for another sparsity than the one before."""
        schedule = self.schedule
        changes = step == schedule.end_step or schedule.sparsity_at(step) != self._at
        return schedule.updates_at(step) and changes

    def _update_if_due(self, wrapped: Any) -> bool:
        progress = wrapped.progress
        if progress != self._known:
            self._forget()
        if progress.origin < 0:
            progress = self._begin(wrapped)
        if self._resolved is None:
            self._resolved = progress.restore(self._given)
            if progress.updated_at >= 0:
                self._at = self._resolved.sparsity_at(progress.updated_at)
                wrapped.zero_pruned()  # weights loaded beside the masks may be dense
        step = wrapped.completed_updates - progress.origin
        if 0 <= self._seen < step and not wrapped.applied:
            reach.refuse_steps_that_do_not_prune()
        self._idle = 0 if step > self._seen else self._idle + self._ahead
        patience = reach.PATIENCE * (wrapped.gradient_accumulation_steps or 1)
        if self._idle >= patience and not progress.has_ended(self._given):
            self._idle = -math.inf  # once is enough
            reach.warn_of_no_steps(patience)
        due = any(map(self._is_due, range(progress.updated_at + 1, step + 1)))
        self._seen = self._scanned = step
        self._ahead = 0
        if due:
            self._prune(wrapped, self._resolved.sparsity_at(step))
            wrapped.progress = progress = progress._replace(updated_at=step)
        self._known = progress
        return due

    def _begin(self, wrapped: Any) -> Progress:
        nonzero = sum(count_entries(np.asarray, m.variable) for m in wrapped.masked)
        sparsity = 1 - nonzero / self._entries if wrapped.masked else 0.0
        completed = wrapped.completed_updates
        if self._ended is not None:
            reach.check_goes_on(self.model.name, self._ended.sparsity, sparsity)
            ended = self._ended.progress
            progress = ended._replace(origin=completed - ended.origin)
        else:
            schedule = self._schedule_to_begin(round(sparsity, 9))
            wrapped.plan.check_final(schedule.sparsity_at_end)
            reach.check_begin(schedule, self._given, self.model.name, sparsity)
            progress = Progress().begun(completed, schedule)
        wrapped.progress = progress
        return progress

    @property
    def _entries(self) -> int:
        """How many weights the targets have."""
        return sum(math.prod(m.target.shape) for m in self.wrapped.masked)

    def _schedule_to_begin(self, sparsity: float) -> Schedule:
        given = self._given
        if self._settled:
            given = dataclasses.replace(given, **self._settled)  # type: ignore[type-var]
        return given.resolve(self.updates, sparsity)

    def _prune(self, wrapped: Any, sparsity: float) -> None:
        choices = choose(wrapped.masked, wrapped.plan, sparsity, self.schedule.sparsity_at_end)
        for weight, choice in zip(wrapped.masked, choices, strict=True):
            weight.apply(choice)
        wrapped.zero_companions()
        self._at = sparsity
