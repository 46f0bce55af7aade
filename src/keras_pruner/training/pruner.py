"""The pruner updates the masks when the schedule says so; the optimizer applies them each step."""

import dataclasses
import functools
import math
import warnings
from collections.abc import Callable, Mapping, Sequence, Sized
from typing import Any

import keras
import numpy as np

from keras_pruner import backends, schedules
from keras_pruner.channels.tied import means_without_scale
from keras_pruner.criteria import magnitude, needs_inputs
from keras_pruner.masks import choose, count_entries
from keras_pruner.patterns import FixedPattern, Pattern, Unstructured, settle_sparsity
from keras_pruner.plan import Criterion, Plan
from keras_pruner.rules import Filters, Override, Rules
from keras_pruner.schedules import (
    ConstantSparsity,
    PolynomialDecay,
    Schedule,
    as_schedule,
    depends_on_length,
)
from keras_pruner.training.checkpoint import Pruning, PruningState
from keras_pruner.training.optimizer import (
    KerasPruning,
    attach,
    check_wrappable,
    compile_anew,
    find,
    is_of_keras,
    within,
)
from keras_pruner.training.replicas import check_agreement
from keras_pruner.validation import check_integer

PATIENCE = 100
"""The number of calls of `update` without a step in between after which it warns."""


class Pruner:
    """Prunes a model in a training loop of your own.

    Args:
        model: any built Keras 3 model. If its optimizer carries a pruning already, from a file or
            an interrupted `fit`, and no schedule is given, that pruning is resumed.
        schedule: a schedule, a final sparsity, or a function step -> sparsity. Not needed for a
            pattern that fixes the sparsity.
        pattern: the zeros allowed.
        allocation: how the overall budget is split over the weights: "lamp", "erk", "global",
            "uniform", a mapping regex -> sparsity, or a function. None: "lamp" for
            `Unstructured` and `Block` patterns, "uniform" for others.
        criterion: weights -> scores of the same shape, higher is better.
        filters: layers to prune: a regex or a list of them, or a function layer -> bool.
        overrides: regex of a weight's path -> None (leave alone), sparsity, pattern, or both.
        updates: the number of updates of the weights in the training; needed if the schedule
            has no end of its own.

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
                _refuse_other_plan(model.name, rules)
            self._set_up(model, present.schedule, lambda: present.plan, updates)
            self.adopt(present)
            return
        schedule = schedule_for(schedule, pattern)
        if updates is not None:
            check_integer("updates", updates, least=1)
        plan = rules.plan(model)
        plan.check_final(schedule.resolve(updates, 0.0).sparsity_at_end)
        self._set_up(model, schedule, lambda: plan, updates)
        self.check_length()

    @classmethod
    def for_fit(cls, model: keras.Model, schedule: Schedule, rules: Rules) -> "Pruner":
        """A pruner for a compiled model that may not have its weights yet.

        Args:
            model: the model.
            schedule: when to prune; `fit` sets the begin and end that it leaves open.
            rules: what to prune, applied when the model has its weights.
        """
        self = cls.__new__(cls)
        self._set_up(model, schedule, functools.cache(lambda: rules.plan(model)), None)
        self._own_loop = False
        return self

    @classmethod
    def on(cls, model: keras.Model, pruning: Pruning) -> "Pruner":
        """A pruner that goes on with a pruning that the model's optimizer carries."""
        self = cls.__new__(cls)
        self._set_up(model, pruning.schedule, lambda: pruning.plan, None)
        self._own_loop = False
        self.adopt(pruning)
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
        self._given_steps: dict[str, int] = {}
        self._epoch = -1
        self._waits = False  # for the length of the training
        self._find_plan = find_plan
        self._pruning: Pruning | None = None
        self._optimizer: Any = None  # as it was given to `wrap`
        self._released = False
        self._known = _Known()
        self._means: list[tuple[keras.Variable, keras.Variable]] | None = None
        self._stateless: tuple[PruningState, float] | None = None  # values no variable holds

    # ------------------------------------------------------------------ use

    @property
    def plan(self) -> Plan:
        """What is pruned, and why everything else is not."""
        return self._find_plan()

    @property
    def is_on_optimizer(self) -> bool:
        """Whether there is an optimizer to apply its masks."""
        return self._pruning is not None and not self._released

    @property
    def pruning(self) -> Pruning:
        """The masks and the count on the optimizer."""
        if self._pruning is None or self._released:
            raise RuntimeError(
                "This pruner has no optimizer to apply its masks. Wrap one first: "
                "`optimizer = pruner.wrap(keras.optimizers.Adam())`."
            )
        return self._pruning

    @property
    def schedule(self) -> Schedule:
        """The schedule; once training has begun, with what it left open filled in."""
        return self._given if self._known.state is None else self._known.state.schedule

    @property
    def state(self) -> PruningState:
        """How far the schedule has come."""
        if (seen := self._only_in_values()) is not None:
            return seen[0]
        return PruningState(self._given) if self._pruning is None else self._pruning.state

    @property
    def step(self) -> int:
        """Updates of the weights completed since the schedule began."""
        return max(0, self.state.step)

    @property
    def finished(self) -> bool:
        """Whether the schedule has reached its end."""
        return self.state.has_ended

    @property
    def sparsity(self) -> float:
        """The fraction of zeros that the masks hold at present, over all targets."""
        if (seen := self._only_in_values()) is not None:
            return seen[1]
        return sparsity_of_masks(self.pruning if self._pruning is None else self._pruning)

    def _only_in_values(self) -> tuple[PruningState, float] | None:
        """State and sparsity at the last `stateless_update`, if no variable holds them."""
        if self._stateless is None or self._pruning is None:
            return None
        is_held = self._pruning.peek() == self._stateless[0].settled_numbers()
        return None if is_held else self._stateless

    def wrap(self, optimizer: Any) -> Any:
        """Make the model's optimizer zero the pruned weights in each of its steps.

        It stays the same object, with the same settings.

        Args:
            optimizer: a Keras optimizer, or one of `torch.optim`.

        Returns:
            The optimizer itself.

        Raises:
            ValueError: if it is wrapped already, or this pruner has wrapped another.
        """
        inner = within(optimizer)
        check_wrappable(inner, used=self.is_on_optimizer)
        if isinstance(inner, keras.optimizers.Optimizer):
            self.attach(optimizer, KerasPruning(self._given, self._find_plan))
        else:
            from keras_pruner.training.torch_optimizer import TorchPruning

            self._take_up(TorchPruning(inner, self._given, self.plan), optimizer)
        return optimizer

    def check_agreement(self) -> int:
        """Check that all copies of the targets' weights and masks, on all devices, are equal.

        Every replica and process computes its masks from its own weights, so equal weights get
        equal masks. This compares digests of both. Where there are several processes, all of them
        must call it.

        Returns:
            The largest number of copies of a weight, over all devices and processes.

        Raises:
            RuntimeError: naming the weights whose copies differ.
        """
        return check_agreement(self.model, self.pruning.masked)

    def update(self) -> bool:
        """Update the masks if the schedule says so; call it first thing in every step.

        Cheap when nothing is due: the count of steps is read from the optimizer only when an
        update may be due. With gradient accumulation a step is one applied update of the weights.

        Returns:
            Whether masks were updated.

        Raises:
            ValueError: if a weight is NaN or infinite; nothing is pruned then.
            RuntimeError: if a step is being traced, or steps are made that do not prune.
        """
        if backends.current().is_tracing():
            _refuse_to_be_traced()
        return self.update_before_first_step()

    def update_before_first_step(self) -> bool:
        """Like `update`, also allowed in a trace in which the optimizer creates its variables."""
        pruning, self._stateless = self.pruning, None
        pruning.unattended = None
        if not pruning.built:
            return False
        try:
            if not self._may_be_due():
                return False
            backends.current().sync(self.model)
            with backends.current().eagerly():
                return self._update_if_due(pruning)
        finally:
            pruning.attended_to = self._known.until + self.updates_per_call

    def look_again(self) -> None:
        """Read the state anew if something has set it back since the last update.

        Keras does so on JAX when the data runs out: it drops what callbacks changed before the
        batch that did not come.
        """
        state, pruning = self._known.state, self.pruning
        if state is None:
            return
        backends.current().sync(self.model)
        if pruning.state.settled_numbers() != state.settled_numbers():
            self._known = _Known(pruning.loads)

    def stateless_update(
        self, trainable_variables: Sequence[Any], optimizer_variables: Sequence[Any]
    ) -> tuple[Sequence[Any], Sequence[Any]]:
        """`update` for a stateless loop on JAX; outside of the jitted step.

        Args:
            trainable_variables: values of `model.trainable_variables`.
            optimizer_variables: values of the wrapped optimizer's `variables`.

        Returns:
            Both, with the masks, the weights and the optimizer's slots brought up to date.
            `sparsity`, `step` and `finished` describe the state at the last call; between mask
            updates, `step` advances by one per call.
        """
        self.pruning.peek()
        mine = self.model.trainable_variables, self._optimizer.variables
        _check_values(trainable_variables, optimizer_variables, mine)
        variables = [*mine[0], *mine[1]]
        values = [*trainable_variables, *optimizer_variables]
        if not all(map(backends.current().is_readable, values)):
            _refuse_traced_values()
        before = self._stateless
        with keras.StatelessScope(list(zip(variables, values, strict=True))) as scope:
            changed = self.update()
            if before is None or not self._known.ahead:  # it has looked at the state
                before = self.state, self.sparsity
        self._stateless = dataclasses.replace(before[0], step=self._known.until), before[1]
        if not changed:
            return trainable_variables, optimizer_variables
        values = [scope.get_current_value(variable) for variable in variables]
        return values[: len(trainable_variables)], values[len(trainable_variables) :]

    def release(self) -> Any:
        """End the pruning, finished or not; the zeros stay until further training changes them.

        Returns:
            The optimizer, which is as it was before `wrap`.
        """
        pruning = self.pruning
        if self._stateless is None:
            backends.current().sync(self.model)
        pruning.release()
        self._released = True
        if self._trains_model():
            self.model.train_function = None
        return self._optimizer

    # ------------------------------------------------------------------ for `fit`

    def attach(
        self, optimizer: keras.optimizers.Optimizer, pruning: KerasPruning, step: Any = None
    ) -> None:
        """Put a pruning on an optimizer, and work with it.

        Args:
            optimizer: the user's optimizer, or the `LossScaleOptimizer` around it.
            pruning: new, or with its masks if it was on the optimizer before.
            step: the model's step that was compiled with these masks; None if there is none.
        """
        with backends.current().variable_scope(self.model):
            attach(optimizer, pruning, self.model.trainable_variables if self.model.built else None)
        if not pruning.built:
            pruning.before_first_step = self.update_before_first_step
        self._take_up(pruning, optimizer)
        if self._trains_model():
            compile_anew(self.model, pruning, step)

    def can_adopt(self, pruning: Pruning) -> bool:
        """Whether `pruning` has the schedule and the plan of this pruner, and its masks."""
        same = pruning.schedule == self._given
        return pruning.built and same and pruning.plan.same_as(self.plan)

    def adopt(self, pruning: Pruning) -> None:
        """Go on with a pruning that the model's optimizer carries."""
        self._take_up(pruning, self.model.optimizer)
        pruning.unattended = None

    def _take_up(self, pruning: Pruning, optimizer: Any) -> None:
        self._pruning, self._optimizer, self._released = pruning, optimizer, False
        self._known, self._stateless = _Known(pruning.loads), None

    def _trains_model(self) -> bool:
        return getattr(self.model, "optimizer", None) is self._optimizer

    def settle(self, epoch: int, *, waits: bool = False, **steps: int) -> None:
        """Fill in what the schedule leaves open, before it begins.

        Args:
            epoch: the epoch in which it begins.
            waits: whether the length of the training is unknown. Steps are then counted, but
                nothing is pruned before `settle_anew` sets the end of the schedule.
            steps: values for fields of the schedule.
        """
        self._epoch, self._waits, self._given_steps = epoch, waits, steps

    def settle_anew(self, updates: int, **steps: int) -> None:
        """End the schedule earlier, for a training that turns out to have fewer updates.

        A schedule that waited for its end begins to prune now. The curve still starts at the same
        sparsity.

        Args:
            updates: the number in the whole training, counted from the schedule's beginning.
            steps: values for fields of the schedule.
        """
        backends.current().sync(self.model)
        pruning, state = self.pruning, self.pruning.state
        before = state.schedule
        fixed = {"begin_step": before.begin_step}
        if before.end_step is None:
            fixed["begin_step"] = max(before.begin_step, state.step)
        elif getattr(before, "initial_sparsity", None) is not None:
            fixed["initial_sparsity"] = before.initial_sparsity  # type: ignore[attr-defined]
        given: Any = dataclasses.replace(self._given, **fixed | steps)  # type: ignore[type-var]
        schedule = given.resolve(updates, round(sparsity_of_weights(pruning), 9))
        end_step = max(state.step, schedule.end_step)
        if before.end_step is None or end_step < before.end_step:
            schedule = dataclasses.replace(schedule, end_step=end_step)
            with backends.current().eagerly():
                pruning.state = dataclasses.replace(state, schedule=schedule)
            self._known = _Known(pruning.loads)

    def check_length(self) -> bool:
        """Warn before a training that is too short for the schedule.

        Returns:
            Whether it is.

        Raises:
            ValueError: if nothing would be pruned at all, or the schedule's end depends on the
                length of a training of unknown length.
        """
        state = self.state
        if not state.has_begun:
            state = PruningState(self._schedule_to_begin(0.0), 0)
            if isinstance(self._given, PolynomialDecay) and not self._given_steps:
                _check_recovery(state.schedule, self._given, self.updates)
        return _check_length(state, self._given, self.updates)

    # ------------------------------------------------------------------ deciding

    def _may_be_due(self) -> bool:
        """Whether an update may be due by now, from the number of calls alone."""
        pruning, known = self.pruning, self._known
        if known.loads != pruning.loads or (self._own_loop and self._is_set_back(pruning)):
            known = self._known = _Known(pruning.loads)
        if known.state is None:
            return pruning.is_readable
        known.ahead += self.updates_per_call
        due = any(map(known.is_due, range(known.scanned + 1, known.until + 1)))
        known.scanned = known.until
        return due or (self._own_loop and known.ahead >= PATIENCE)

    def _is_set_back(self, pruning: Pruning) -> bool:
        """Whether something else has set the state; False if to read it would wait for a step."""
        state, found = self._known.state, pruning.peek()
        return state is not None and found is not None and found != state.settled_numbers()

    def _update_if_due(self, pruning: Pruning) -> bool:
        state, known = pruning.state, self._known
        if known.state is not None and known.state.settled_numbers() != state.settled_numbers():
            known = self._known = _Known(pruning.loads)
        if not state.has_begun:
            state = self._begin(pruning)
        iterations = pruning.iterations
        if known.state is None:
            if state.updated_at >= 0:
                known.sparsity = state.schedule.sparsity_at(state.updated_at)
                pruning.zero_pruned()  # weights loaded beside the masks may be dense
        elif not pruning.applied and iterations > known.iterations:
            _refuse_steps_that_do_not_prune()
        known.read(state, iterations)
        patience = PATIENCE * pruning.accumulation
        if known.idle >= patience and not state.has_ended:
            known.idle = -math.inf  # once is enough
            _warn_of_no_steps(patience)
        if depends_on_length(state.schedule):
            return False  # it waits for the length of the training
        if not any(map(known.is_due, range(state.updated_at + 1, state.step + 1))):
            return False
        known.sparsity = state.schedule.sparsity_at(state.step)
        self._prune(pruning, known.sparsity)
        pruning.state = known.state = state.updated()
        return True

    def _begin(self, pruning: Pruning) -> PruningState:
        sparsity = sparsity_of_weights(pruning)
        schedule = self._schedule_to_begin(round(sparsity, 9))
        pruning.plan.check_final(schedule.sparsity_at_end)
        _check_begin(schedule, self._given, self.model.name, sparsity)
        if isinstance(pruning, KerasPruning) and not is_of_keras(pruning.optimizer):
            _check_class(pruning, sparsity)
        pruning.state = PruningState.begin(self._given, schedule, self._epoch)
        return pruning.state

    def _schedule_to_begin(self, sparsity: float) -> Schedule:
        given = self._given
        if self._given_steps:
            given = dataclasses.replace(given, **self._given_steps)  # type: ignore[type-var]
        return given if self._waits else given.resolve(self.updates, sparsity)

    def _prune(self, pruning: Pruning, sparsity: float) -> None:
        choices = choose(pruning.masked, pruning.plan, sparsity, self.schedule.sparsity_at_end)
        for masked, choice in zip(pruning.masked, choices, strict=True):
            masked.apply(choice)
        pruning.zero_companions()
        if pruning.plan.groups:
            self._zero_means(pruning)

    def _zero_means(self, pruning: Pruning) -> None:
        """Zero the moving means of pruned channels, in batch normalizations without scale."""
        if self._means is None:
            self._means = means_without_scale(self.model)
        masked = {id(each.variable): each for each in pruning.masked}
        for mean, offset in self._means:
            if id(offset) in masked:
                mask = masked[id(offset)].read_mask()
                mean.assign(np.where(mask, backends.current().to_numpy(mean), 0))


@dataclasses.dataclass
class _Known:
    """What a pruner knows of a pruning without reading it from the device.

    The count of steps lies on the device. Reading it in each step would wait for the step before.

    Attributes:
        loads: how often the state had been loaded when it was last read.
        state: the state that was last read or written. None: read it at the next call.
        iterations: the optimizer's own count of steps at that time.
        sparsity: the sparsity of the last mask update.
        ahead: the largest number of steps that may have been made since.
        scanned: the step up to which no update is due.
        idle: the number of calls since a step was last counted.
    """

    loads: int = 0
    state: PruningState | None = None
    iterations: int = -1
    sparsity: float | None = None
    ahead: int = 0
    scanned: int = -1
    idle: float = 0.0

    @property
    def until(self) -> int:
        """The last step that may have been made by now."""
        return -1 if self.state is None else self.state.step + self.ahead

    def read(self, state: PruningState, iterations: int) -> None:
        """Take note of a state that was read from the device."""
        moved = self.state is None or state.step > self.state.step
        self.idle = 0 if moved else self.idle + self.ahead
        self.state, self.iterations = state, iterations
        self.scanned, self.ahead = state.step, 0

    def is_due(self, step: int) -> bool:
        """Whether the masks are updated at a step: the last update, or one to another sparsity."""
        assert self.state is not None
        schedule = self.state.schedule
        changes = step == schedule.end_step or schedule.sparsity_at(step) != self.sparsity
        return schedule.updates_at(step) and changes


# -------------------------------------------------------------------- what is given


def rules_of_training(
    pattern: Pattern, allocation: Any, criterion: Any, filters: Any, overrides: Any
) -> Rules:
    """The rules for a training; raises for a criterion that needs the inputs of the layers."""
    if needs_inputs(criterion):
        name = getattr(criterion, "__name__", criterion)
        raise ValueError(
            "`criterion` must be a function of the weights alone in training, and this one needs "
            f"their inputs, too. Received: criterion={name}. Prune at once with "
            "`kp.prune(model, sparsity, calibration=samples, criterion=...)`, and train on with "
            "kp.KeepZeros()."
        )
    return Rules(pattern, allocation, criterion, filters, overrides)


def schedule_for(schedule: Any, pattern: Pattern) -> Schedule:
    """The schedule that the user gave, in any form; or that of a pattern's fixed sparsity."""
    fixed = pattern.sparsity if isinstance(pattern, FixedPattern) else None
    if schedule is None:
        if fixed is None:
            raise ValueError(
                "`schedule` is missing: give the fraction of zeros to end with, or a schedule. "
                "Received: schedule=None. For 80% zeros pass 0.8."
            )
        return ConstantSparsity(fixed)
    schedule = as_schedule(schedule)
    settle_sparsity("schedule", schedule.sparsity_at_end, pattern)
    return schedule


def _refuse_other_plan(name: str, rules: Rules) -> None:
    raise ValueError(
        f"`schedule` is missing, and {name!r} is being pruned by another plan than that of these "
        f"arguments. Received: {rules!r}. Leave them out to go on with the pruning that the model "
        "carries, or give a schedule to begin anew."
    )


def _check_values(trainable: Sized, optimizers: Sized, variables: tuple[Sized, Sized]) -> None:
    """Raise unless there is one value for each trainable and each optimizer variable."""
    given, expected = (len(trainable), len(optimizers)), tuple(map(len, variables))
    if given != expected:
        raise ValueError(
            "`stateless_update` takes the values of `model.trainable_variables` and of the wrapped "
            "optimizer's `variables`, the masks among them. Received: {} and {} values, for {} and "
            "{} variables. Pass [v.value for v in optimizer.variables] of "
            "`optimizer = pruner.wrap(...)`.".format(*given, *expected)
        )


# -------------------------------------------------------------------- what is reached


def sparsity_of_masks(pruning: Pruning) -> float:
    """The fraction of zeros in the masks of all targets."""
    kept = sum(count_entries(np.asarray, masked.mask) for masked in pruning.masked)
    return 1 - kept / _entries(pruning) if pruning.masked else 0.0


def sparsity_of_weights(pruning: Pruning) -> float:
    """The fraction of zeros in the kernels; biases do not count, since they often begin at zero."""
    kernels = [masked for masked in pruning.masked if len(masked.target.shape) > 1]
    nonzero = sum(count_entries(np.asarray, masked.variable) for masked in kernels)
    entries = sum(math.prod(masked.target.shape) for masked in kernels)
    return 1 - nonzero / entries if entries else 0.0


def _entries(pruning: Pruning) -> int:
    return sum(math.prod(masked.target.shape) for masked in pruning.masked)


def _check_length(state: PruningState, given: Schedule, updates: int | None) -> bool:
    """Warn before a training of `updates` steps that is too short for its schedule."""
    schedule = state.schedule
    if updates is None or schedule.end_step is None:
        return False
    last = state.step + updates
    if last < schedule.begin_step:
        raise ValueError(
            f"Nothing would be pruned: the schedule begins at step {schedule.begin_step}, and "
            f"this training ends at step {last}. Received: schedule={given!r}. Begin earlier, or "
            "train for longer."
        )
    if last < schedule.end_step:
        warnings.warn(
            f"The training is too short for the schedule: it ends at step {last}, at a sparsity "
            f"of {schedule.sparsity_at(last):.4g}, and the schedule needs {schedule.end_step} "
            f"steps to reach {schedule.sparsity_at_end:.4g}. Train for longer, end the schedule "
            "earlier, or call `fit` again with the same callback.",
            stacklevel=4,
        )
    return last < schedule.end_step


def _check_recovery(schedule: Schedule, given: Schedule, updates: int | None) -> None:
    """Warn before a training that is too short to recover from pruning.

    Only of schedules without an end of their own: who sets an end has decided.
    """
    if updates is None or given.end_step is not None or schedule.end_step is None:
        return
    left = updates - schedule.end_step
    if 0 <= left < schedules.STEPS_TO_RECOVER:
        warnings.warn(
            f"The training has {left} steps in which to recover from pruning to "
            f"{schedule.sparsity_at_end:.4g}, which are few. Train for longer, or prune before it "
            "with some of its inputs, `kp.prune(model, sparsity, calibration=x)`, and train with "
            "kp.KeepZeros().",
            stacklevel=4,
        )


def _check_begin(schedule: Schedule, given: Schedule, name: str, sparsity: float) -> None:
    """Warn if a schedule begins below the sparsity that the model has."""
    if 0 < schedule.sparsity_at(schedule.begin_step) < sparsity - 0.01:
        warnings.warn(
            f"{name!r} has a sparsity of {sparsity:.4g} already, and the schedule begins below "
            f"it: zeros will come to life again. Received: schedule={given!r}. To train on with "
            "all zeros kept, use kp.KeepZeros().",
            stacklevel=4,
        )


def _check_class(pruning: KerasPruning, sparsity: float) -> None:
    """Warn if the model may come from a file that could not hold the state of the pruning."""
    if pruning.schedule.sparsity_at_end != 0 and sparsity > 0.01 and pruning.iterations:
        name = type(pruning.optimizer).__name__
        warnings.warn(
            f"The schedule begins at step 0 on a model with a sparsity of {sparsity:.4g} that "
            f"{name} has trained for {pruning.iterations} steps. A `.keras` file cannot resume a "
            f"pruning under an optimizer class of your own, such as {name}: if this model was "
            "saved in the middle of one, load the file's weights when the training begins "
            "(`model.load_weights(path)` in `on_train_begin` of a callback) to go on exactly.",
            stacklevel=4,
        )


def _refuse_steps_that_do_not_prune() -> None:
    raise RuntimeError(
        "The optimizer makes steps that do not prune: the step was compiled before the optimizer "
        "was wrapped. Wrap it first, then `model.compile(pruner.wrap(optimizer), ...)`, or trace "
        "your own step."
    )


def _refuse_to_be_traced() -> None:
    raise RuntimeError(
        "`update` chooses which weights to prune by looking at them, and here a step is being "
        "traced. Call it outside of the compiled step, before it."
    )


def _refuse_traced_values() -> None:
    raise ValueError(
        "`stateless_update` chooses which weights to prune by looking at them, and these are "
        "being traced. Call it outside of the jitted step, before it."
    )


def _warn_of_no_steps(calls: int) -> None:
    warnings.warn(
        f"`update` was called more than {calls} times, and the wrapped optimizer has counted "
        "no step, so that nothing is pruned. In a stateless loop on JAX call `stateless_update`; "
        "if the model is trained by another optimizer, wrap that one.",
        stacklevel=4,
    )
