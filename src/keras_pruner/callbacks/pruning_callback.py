"""The base class of `GradualPruning` and `KeepZeros`: when in `fit` the pruner does what."""

import abc
import dataclasses
import functools
import math
import threading
import warnings
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np

from keras_pruner.backends import keras_private
from keras_pruner.masks import MaskedWeight, count_entries
from keras_pruner.plan import Plan
from keras_pruner.rules import Rules
from keras_pruner.schedules import Schedule, depends_on_length
from keras_pruner.training.checkpoint import Pruning, PruningState
from keras_pruner.training.optimizer import KerasPruning, find, prunings_of
from keras_pruner.training.pruner import Pruner, sparsity_of_weights

Logs = dict[str, Any] | None

_trained_by: "weakref.WeakKeyDictionary[keras.Model, threading.Thread]" = (
    weakref.WeakKeyDictionary()
)
"""The thread in which `fit` prunes a model."""


class PruningCallback(keras.callbacks.Callback, abc.ABC):
    """Prunes with the model's optimizer from the beginning of `fit` to the end of the schedule.

    The optimizer gets its masks in `set_model`, before any callback's `on_train_begin`, so that a
    checkpoint restored there finds the variables it was saved from. `evaluate` and `predict`
    call `set_model` as well; their own hooks then undo it.

    A copied or unpickled callback has the same settings and begins anew.

    Args:
        schedule: when to prune, and how much.
        rules: what to prune, and how.
    """

    _goes_on = True  # whether it resumes the pruning of an earlier `fit`

    def __init__(self, schedule: Schedule, rules: Rules) -> None:
        super().__init__()
        self.schedule = schedule
        self.rules = rules
        self._begin_anew()

    def _begin_anew(self) -> None:
        self._model = None
        self._pruner: Pruner | None = None
        self._undo: Callable[[], None] = _nothing
        self._fit = _Fit()
        self._kept: _Kept | None = None
        self._said: set[str] = set()

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._begin_anew()

    def __getstate__(self) -> dict[str, Any]:
        work = ("_model", "_pruner", "_undo", "_fit", "_kept", "_said")
        return {name: value for name, value in vars(self).items() if name not in work}

    @property
    def pruner(self) -> Pruner:
        """The pruner of this training, with its plan, step and sparsity."""
        if self._pruner is None:
            raise RuntimeError(
                "There is no pruner before the training: pass this callback to `fit` first."
            )
        return self._pruner

    @property
    def plan(self) -> Plan:
        """What is pruned, and why everything else is not; prints as a table."""
        return self.pruner.plan

    # ---------------------------------------------------------------- on the optimizer

    def set_model(self, model: keras.Model) -> None:
        """Resume the pruning on the model's optimizer, or put a new one on it."""
        super().set_model(model)
        self._fit = _Fit(beside=keras_private.callbacks_beside(self))
        self._undo = _nothing
        if model.optimizer is None:
            return  # not compiled: `fit` refuses it, and the others need none
        _enter(model)
        pruner = Pruner.for_fit(model, self.schedule, self.rules)
        present = find(model)
        if present is not None and self._goes_on and pruner.can_adopt(present):
            pruner.adopt(present)
        else:
            self._put_on(model, pruner, present)
        self._pruner = pruner

    def _put_on(self, model: keras.Model, pruner: Pruner, present: KerasPruning | None) -> None:
        """Replace the prunings on the model's optimizer by the one of this callback."""
        if present is not None and present.state.has_begun and not pruner.can_adopt(present):
            warnings.warn(
                f"{model.name!r} was being pruned by another plan, which ends here; its zeros "
                "count as the smallest weights of the new one. To go on with it instead, pass the "
                "callback that it began with.",
                stacklevel=3,
            )
        step, before = model.train_function, prunings_of(model)
        for each in before:
            each.release()
        kept = self._kept_for(model, pruner)
        serves = kept is not None and kept.serves(model)
        pruning = kept.pruning if kept and serves else self._new_pruning(pruner)
        pruner.attach(model.optimizer, pruning, kept.step if kept and serves else None)
        if kept is not None:
            self._fit.sparsity_before = kept.sparsity
            # The masks are found anew at once, for the weights may be others by now.
            pruning.begin_anew(dataclasses.replace(kept.state, updated_at=-1))

        def undo() -> None:
            pruner.release()
            for each in before:
                Pruner.on(model, each).attach(model.optimizer, each)
            model.train_function = step

        self._undo = undo

    def _new_pruning(self, pruner: Pruner) -> KerasPruning:
        return KerasPruning(self.schedule, lambda: pruner.plan)

    def _kept_for(self, model: keras.Model, pruner: Pruner) -> "_Kept | None":
        """The pruning kept from an earlier `fit` of this model, if it has the same plan."""
        kept = self._kept or self._unfinished(model)  # layers may have been unfrozen
        is_same = kept is not None and kept.model() is model and pruner.can_adopt(kept.pruning)
        return kept if is_same else None

    def _unfinished(self, model: keras.Model) -> "_Kept | None":
        """The unfinished pruning to resume after the model was compiled anew.

        None if the model has lost its zeros, as in the next fold of a cross-validation.
        """
        before = self._pruner if self._goes_on else None
        if before is None or before.model is not model or not before.is_on_optimizer:
            return None
        pruning, state = before.pruning, before.state
        if not state.has_begun or sparsity_of_weights(pruning) < before.sparsity / 2:
            return None
        return _Kept(weakref.ref(model), pruning, state)

    # ---------------------------------------------------------------- hooks of `fit`

    def on_train_begin(self, logs: Logs = None) -> None:
        """Note that this is a training."""
        self._fit.is_training, self._fit.optimizer = True, self.model.optimizer
        if find(self.model) is not self.pruner.pruning:
            raise ValueError(
                "Two callbacks prune the same model in one `fit`. Pass one: `GradualPruning` "
                "keeps zeros by itself."
            )

    def on_epoch_begin(self, epoch: int, logs: Logs = None) -> None:
        """Before the first epoch, check that the schedule fits into the training."""
        fit, pruner = self._fit, self.pruner
        if fit.has_epochs:
            fit.note_bests(pruner.finished)
            self._follow_pace(epoch)
            return
        fit.has_epochs = True
        params = self.params or {}
        batches, fit.last_epoch = params.get("steps"), params.get("epochs")
        pruner.updates_per_call = self.model.steps_per_execution
        if batches is not None:
            fit.per_epoch = batches / pruner.pruning.accumulation
        state = pruner.state
        goes_on = 0 <= state.epoch < epoch  # as after a restart
        fit.first_epoch = state.epoch if goes_on else epoch
        fit.first_step = 0 if goes_on else max(0, state.step)
        try:
            self._settle(epoch)
            fit.is_short = pruner.check_length()
        except ValueError:
            self._undo()  # the model can be trained as before
            raise
        if fit.sparsity_before is not None:
            _check_goes_on(self.model.name, fit.sparsity_before, pruner.pruning)
        self._follow_pace(epoch)

    def _settle(self, epoch: int) -> None:
        """Tell the pruner how long the training is."""
        fit, pruner = self._fit, self.pruner
        left = 0 if fit.last_epoch is None else fit.last_epoch - epoch
        if fit.per_epoch is not None and left:
            pruner.updates = int(fit.per_epoch * left)
        waits = fit.per_epoch is None and left > 1 and depends_on_length(self.schedule)
        pruner.settle(epoch, waits=waits, **self._fixed_steps())
        if waits and not pruner.state.has_begun:
            warnings.warn(
                "The data does not say how long an epoch is, so pruning begins with the second "
                "epoch. To begin with the first, pass `steps_per_epoch` to `fit`.",
                stacklevel=4,
            )

    def _fixed_steps(self) -> dict[str, int]:
        """Fields of the schedule that depend on the length of an epoch; none by default."""
        return {}

    def _follow_pace(self, epoch: int) -> None:
        """Shorten the schedule if the epochs so far had fewer updates than expected.

        The result depends only on state that a checkpoint holds.
        """
        fit, state = self._fit, self.pruner.state
        epochs = epoch - fit.first_epoch
        if epochs < 1 or state.has_ended or fit.last_epoch is None or not self._is_open:
            return
        made = state.step - fit.first_step
        rounding = int(self.pruner.pruning.accumulation > 1)
        if fit.per_epoch is None or made + rounding < int(fit.per_epoch * epochs):
            self.pruner.update()  # what a backup of the last epoch may not have seen
            self._settle_anew(epoch, made / epochs)

    @property
    def _is_open(self) -> bool:
        """Whether the end of the schedule depends on the length of the training."""
        return depends_on_length(self.schedule)

    def _settle_anew(self, epoch: int, pace: float) -> None:
        """End the schedule for a training with `pace` updates in each epoch from `epoch` on."""
        left = (self._fit.last_epoch or 0) - epoch
        self.pruner.settle_anew(self.pruner.step + int(pace * left))

    def on_train_batch_begin(self, batch: int, logs: Logs = None) -> None:
        """Update the masks if due."""
        if self._fit.batches == 1:
            self._check_optimizer()
        self._check_not_replaced()
        self._fit.batches += 1
        self.pruner.update()

    def on_test_begin(self, logs: Logs = None) -> None:
        """Update the masks before validation; undo everything if this is not a training."""
        if self._fit.is_training:
            self.pruner.look_again()
            self.pruner.update()
        else:
            self._undo()

    def on_predict_begin(self, logs: Logs = None) -> None:
        """Undo everything if this is not a training."""
        if not self._fit.is_training:
            self._undo()

    def on_epoch_end(self, epoch: int, logs: Logs = None) -> None:
        """Update the masks if due, and log the sparsity."""
        self._check_optimizer()
        if not self._fit.density_seen:
            self._warn_of_another_optimizer()  # an update would zero what is not zero
        if not self._is_broken():
            self.pruner.look_again()
            self.pruner.update()
        if logs is not None:
            logs["sparsity"] = self.pruner.sparsity

    def on_train_end(self, logs: Logs = None) -> None:
        """Report what was reached; remove the masks if the schedule has ended."""
        pruner, fit, model = self.pruner, self._fit, self.model
        fit.is_training = False
        if not fit.has_epochs and not fit.batches:  # there was nothing left to train
            if pruner.state.updated_at < 0:
                self._undo()
            elif pruner.finished:
                self._release()
            return
        is_broken = self._is_broken()
        if not is_broken:
            pruner.update()
        masked = pruner.pruning.masked
        if not _warn_if_denser(masked):
            check = functools.partial(self._check_at_last, fit, masked, pruner.sparsity)
            _when_all_have_ended(model, check)
        finished, state = pruner.finished, pruner.state
        if (self.params or {}).get("verbose") or is_broken:
            end_step = state.schedule.end_step
            end = "" if finished or end_step is None else f" at step {pruner.step} of {end_step}"
            print(f"Pruned to a sparsity of {pruner.sparsity:.4g}{end}.")
        if not (finished or is_broken or fit.is_short):
            _warn_of_unfinished(pruner, stopped=model.stop_training)
        if self._goes_on and not is_broken:
            self._say_once(_left_alone(pruner))
            self._say_once(_unmet(pruner) if finished else "")
        pruner.pruning.attended_to = state.step  # in a `fit` without this callback
        if finished:
            self._release()

    def _say_once(self, note: str) -> None:
        """Warn with a note about the plan, once for each callback."""
        if note and note not in self._said:
            self._said.add(note)
            warnings.warn(note, stacklevel=3)

    def _release(self) -> None:
        """Remove the masks, and keep what the next `fit` with this callback can use."""
        pruner, model = self.pruner, self.model
        state = pruner.state if self._goes_on else PruningState(self.schedule)
        settings = keras_private.compile_settings(model)
        pruning, step, sparsity = pruner.pruning, model.train_function, pruner.sparsity
        before = sparsity if self._goes_on else None
        self._kept = _Kept(weakref.ref(model), pruning, state, before, settings, step)
        pruner.release()

    # ---------------------------------------------------------------- what goes wrong

    def _is_broken(self) -> bool:
        """Whether the training was stopped with weights that are not finite.

        `TerminateOnNaN` has reported it then, and masks cannot be computed.
        """
        if not self.model.stop_training:
            return False
        return any(count_entries(_not_finite, m.variable) for m in self.pruner.pruning.masked)

    def _check_optimizer(self) -> None:
        """Raise if the steps of the model do not prune."""
        if self.pruner.pruning.applied or _skips_steps(self.model):
            return
        self._undo()
        raise RuntimeError(
            f"Nothing prunes {self.model.name!r}: its `train_step` does not train with the "
            "optimizer that the model is compiled with. Wrap the one that it trains with: "
            "`pruner = kp.Pruner(network, schedule); optimizer = pruner.wrap(optimizer)`, and "
            "call `pruner.update()` before every step."
        )

    def _check_not_replaced(self) -> None:
        """Raise if the model has another optimizer than the one that prunes."""
        before = self._fit.optimizer
        if before is not None and self.model.optimizer is not before:
            raise RuntimeError(
                f"The optimizer of {self.model.name!r} was replaced in the middle of `fit`, and "
                "the new one does not prune. Change its settings instead, such as "
                "`model.optimizer.learning_rate = 1e-4`; or end this `fit`, compile the model, and "
                "call `fit` again with the same callback."
            )

    def _warn_of_another_optimizer(self) -> None:
        name = self.model.name  # on JAX this brings the variables up to date
        pruner = self.pruner
        self._fit.density_seen = pruner.sparsity > 0  # once, for it looks at all weights
        denser = _denser(pruner.pruning.masked) if self._fit.density_seen else []
        if denser:
            warnings.warn(
                f"Pruned weights in {denser} are not zero at the end of the epoch: something "
                f"changes them beside the optimizer that {name!r} is compiled with, most often a "
                "second one in its `train_step`, and they do not end sparse. Leave their layers "
                "out with `filters`, or prune in a loop of your own with a "
                "kp.Pruner(network, schedule) for each optimizer.",
                stacklevel=2,
            )

    @staticmethod
    def _check_at_last(fit: "_Fit", masked: Sequence[MaskedWeight], sparsity: float) -> None:
        """Check the model and its files after the callbacks behind this one have ended."""
        _warn_if_denser(masked)
        if sparsity:
            fit.warn_of_dense_files()


@dataclasses.dataclass
class _Kept:
    """What a callback keeps of a pruning, for the next `fit` of the same model.

    Attributes:
        model: a weak reference to the model.
        pruning: the pruning, with its masks and its other variables.
        state: the state from which it is resumed.
        sparsity: the sparsity of the masks of an ended one; None if masks are made anew.
        settings: the model's compile settings; None if it was compiled anew.
        step: the model's step that was compiled with these masks, if there is one.
    """

    model: "weakref.ref[keras.Model]"
    pruning: Any
    state: PruningState
    sparsity: float | None = None
    settings: Any = None
    step: Any = None

    def serves(self, model: keras.Model) -> bool:
        """Whether the model has not been compiled since, so that its step can be used again."""
        return self.settings is keras_private.compile_settings(model)


@dataclasses.dataclass
class _Fit:
    """What a callback knows of one `fit`.

    Attributes:
        beside: the other callbacks of this `fit`.
        is_training: whether this is a training, not `evaluate` or `predict`.
        optimizer: the model's optimizer when the training began; None before.
        has_epochs: whether an epoch has begun.
        first_epoch: the epoch in which the schedule began, or else this `fit`.
        first_step: the step of the schedule at that time.
        last_epoch: the number of epochs; None if unknown.
        per_epoch: the updates of the weights in an epoch; None if the data does not tell.
        is_short: whether a warning before the training said that it is too short.
        batches: the number of batches that have begun.
        density_seen: whether it was checked that pruned weights are zero.
        sparsity_before: the sparsity that an earlier `fit` with this callback reached.
        bests: callback that saves the best epoch -> its best value before the final sparsity.
    """

    beside: Sequence[keras.callbacks.Callback] = ()
    is_training: bool = False
    optimizer: Any = None
    has_epochs: bool = False
    first_epoch: int = 0
    first_step: int = 0
    last_epoch: int | None = None
    per_epoch: float | None = None
    is_short: bool = False
    batches: int = 0
    density_seen: bool = False
    sparsity_before: float | None = None
    bests: dict[Any, Any] = dataclasses.field(default_factory=dict)

    def note_bests(self, finished: bool) -> None:
        """Note the best value so far of each callback that saves the best epoch."""
        if not finished:
            self.bests = {each: _best_of(each) for each in self.beside if _saves_best(each)}

    def warn_of_dense_files(self) -> None:
        """Warn of files that hold an epoch from before the final sparsity."""
        for callback, best in self.bests.items():
            if best is not None and _best_of(callback) == best:
                where = getattr(callback, "filepath", None)
                fix = (
                    "Wrap that one: kp.WhenSparse(keras.callbacks.ModelCheckpoint(path, "
                    "save_best_only=True))."
                )
                if hasattr(callback, "best_value"):  # KerasTuner's
                    fix = (
                        "Score the trials of KerasTuner by an objective that counts sparse epochs "
                        "only: see docs/callbacks-and-saving.md."
                    )
                warnings.warn(
                    f"{type(callback).__name__}{f'({where!r})' if where else ''} has saved an "
                    f"epoch from before the final sparsity: the file is denser than the model. "
                    f"{fix}",
                    stacklevel=2,
                )


def _saves_best(callback: keras.callbacks.Callback) -> bool:
    """Whether a callback, of Keras or KerasTuner, saves only the best epoch."""
    return getattr(callback, "save_best_only", False) or hasattr(callback, "best_value")


def _best_of(callback: Any) -> Any:
    return getattr(callback, "best", getattr(callback, "best_value", None))


def _nothing() -> None:
    """Does nothing: there is nothing to undo."""


def _not_finite(weights: np.ndarray) -> np.ndarray:
    return ~np.isfinite(weights)


_entering = threading.Lock()


def _enter(model: keras.Model) -> None:
    """Claim a model for this thread; raise if another thread is pruning it."""
    with _entering:
        thread = _trained_by.get(model)
        mine = thread is None or thread is threading.current_thread()
        if thread is not None and not mine and keras_private.is_in_fit(model, thread):
            raise RuntimeError(
                f"{model.name!r} is being pruned by `fit` in another thread, {thread.name!r}. "
                "Train one model in one thread: give each thread a copy of its own, "
                "keras.models.clone_model(model) with the weights of `model.get_weights()`."
            )
        _trained_by[model] = threading.current_thread()


def _skips_steps(model: keras.Model) -> bool:
    """Whether dynamic loss scaling may have skipped every step so far: its scale has changed."""
    optimizer = model.optimizer
    if not (isinstance(optimizer, keras.optimizers.LossScaleOptimizer) and optimizer.built):
        return False
    return float(keras.ops.convert_to_numpy(optimizer.dynamic_scale)) != optimizer.initial_scale


def _check_goes_on(name: str, reached: float, pruning: Pruning) -> None:
    """Warn if an ended pruning is resumed on a model that has lost its zeros."""
    sparsity = sparsity_of_weights(pruning)
    if sparsity < reached / 2:
        warnings.warn(
            f"The schedule of this callback has ended, at a sparsity of {reached:.4g}, and "
            f"{name!r} now has {sparsity:.4g}: it is pruned at once. If it begins anew, as in the "
            "next fold of a cross-validation, make a new callback: kp.GradualPruning(...).",
            stacklevel=3,
        )


_SAME_SPARSITY = 0.01
"""Difference up to which the sparsities of the targets and of all prunable weights are the same."""


def _left_alone(pruner: Pruner) -> str:
    """The share of the prunable weights that was left alone, and the sparsity over all of them.

    Empty if that sparsity is the same, as with a frozen base that was pruned before.
    """
    plan, masked = pruner.plan, pruner.pruning.masked
    note = plan.left_alone()
    if not note:
        return ""
    kept = sum(count_entries(np.asarray, each.mask) for each in masked)
    nonzero = sum(count_entries(np.asarray, each) for each in plan.others)
    entries = [math.prod(each.shape) for each in (*masked, *plan.others)]
    overall = 1 - (kept + nonzero) / max(1, sum(entries))
    if overall > pruner.sparsity - _SAME_SPARSITY:
        return ""
    return f"{note} The sparsity is {pruner.sparsity:.4g} without them and {overall:.4g} with them."


def _unmet(pruner: Pruner) -> str:
    """The requested and the reached final sparsity, if they differ."""
    plan, masked = pruner.plan, pruner.pruning.masked
    final = pruner.state.schedule.sparsity_at_end
    if final is None or len(masked) != len(plan.targets):
        return ""
    return plan.unmet(final, [count_entries(np.asarray, each.mask) for each in masked])


def _warn_of_unfinished(pruner: Pruner, *, stopped: bool) -> None:
    """Warn of a training that has ended before its schedule."""
    how, advice = "ended", "Should the data have run out, `steps_per_epoch` must be smaller."
    end_step = pruner.state.schedule.end_step
    end = "pruning began" if end_step is None else f"the end of the schedule at step {end_step}"
    if stopped:
        how = "was stopped"
        advice = (
            "Stop only when the model is sparse: kp.WhenSparse(keras.callbacks.EarlyStopping())."
        )
    warnings.warn(
        f"The training {how} at step {pruner.step}, at a sparsity of {pruner.sparsity:.4g}, before "
        f"{end}. Call `fit` again with the same callback to go on, or "
        f"`kp.Pruner(model).release()` to leave it at that. {advice}",
        stacklevel=3,
    )


def _denser(masked: Sequence[MaskedWeight]) -> list[str]:
    """The paths of targets that are not zero where their masks are False."""
    return [
        each.target.path
        for each in masked
        if count_entries(lambda weight, mask: (weight != 0) & ~mask, each.variable, each.mask)
    ]


def _warn_if_denser(masked: Sequence[MaskedWeight]) -> bool:
    denser = _denser(masked)
    if denser:
        warnings.warn(
            f"Weights that were pruned are not zero any more in {denser}: something set them "
            "after the last step, most often a callback that restores the best epoch from "
            "before the zeros. Wrap that one: "
            "kp.WhenSparse(keras.callbacks.EarlyStopping(restore_best_weights=True)).",
            stacklevel=2,
        )
    return bool(denser)


def _when_all_have_ended(model: keras.Model, check: Callable[[], Any]) -> None:
    """Call `check` after the `on_train_end` of all callbacks.

    The last of them is the `History` that `fit` adds.
    """
    history = getattr(model, "history", None)
    if isinstance(history, keras.callbacks.History):

        def on_train_end(logs: Logs = None) -> None:
            del history.on_train_end
            history.on_train_end(logs)
            check()

        history.on_train_end = on_train_end
