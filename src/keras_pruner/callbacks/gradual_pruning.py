"""Callbacks for `fit`: thin, over the `Pruner`."""

import abc
import functools
import numbers
import warnings
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import numpy as np

from keras_pruner.allocations import Share, Sparsities
from keras_pruner.criteria import magnitude
from keras_pruner.masks import MaskedWeight, count_entries
from keras_pruner.patterns import Pattern, Unstructured
from keras_pruner.plan import Criterion, Plan
from keras_pruner.rules import Filters, Override, Rules
from keras_pruner.schedules import ConstantSparsity, Schedule
from keras_pruner.training import reach
from keras_pruner.training.given import rules_of_training, schedule_for
from keras_pruner.training.optimizer import find, install
from keras_pruner.training.progress import Ended
from keras_pruner.training.pruner import Pruner
from keras_pruner.validation import serializable

Logs = dict[str, Any] | None


class PruningCallback(keras.callbacks.Callback, abc.ABC):
    """Wraps the model's optimizer when `fit` begins, keeps the masks up to date, unwraps it.

    The wrapping happens in `set_model`, before any callback's `on_train_begin`, so that a
    checkpoint restored there finds the variables it was saved from. `evaluate` and `predict`
    call `set_model` too; the first hook that shows there is no training undoes it.

    A copy, and what comes out of a pickle, has the settings alone and begins anew.

    Args:
        schedule: when to prune, and how much.
        rules: what to prune, and how.
    """

    _goes_on = True  # takes up masks that an earlier training with it has left

    def __init__(self, schedule: Schedule, rules: Rules) -> None:
        super().__init__()
        self.schedule = schedule
        self.rules = rules
        self._begin_anew()

    def _begin_anew(self) -> None:
        self._model = None
        self._pruner: Pruner | None = None
        self._undo: Callable[[], None] = _nothing
        self._training = self._first_epoch_seen = self._density_seen = False
        self._ended: tuple[weakref.ref[keras.Model], Plan, Ended] | None = None

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._begin_anew()

    def __getstate__(self) -> dict[str, Any]:
        work = ("_model", "_pruner", "_undo", "_ended")
        return {name: value for name, value in vars(self).items() if name not in work}

    @property
    def pruner(self) -> Pruner:
        """The pruner at work, with its plan, step and sparsity."""
        if self._pruner is None:
            raise RuntimeError(
                "There is no pruner before the training: pass this callback to `fit` first."
            )
        return self._pruner

    @property
    def plan(self) -> Plan:
        """What is pruned, and why everything else is not; prints as a table."""
        return self.pruner.plan

    def set_model(self, model: keras.Model) -> None:
        """Take up the pruning that the model's optimizer carries, or wrap it."""
        super().set_model(model)
        self._training = self._first_epoch_seen = self._density_seen = False
        if model.optimizer is None:
            return  # not compiled: `fit` refuses it, and the others need none
        pruner = Pruner.for_fit(model, self.schedule, self.rules, self._steps_done_on(model))
        previous, compiled_step = find(model), model.train_function
        if previous is not None and self._goes_on and pruner.can_adopt(previous):
            pruner.adopt(previous)
            self._undo = _nothing
        else:
            if previous is not None and previous.has_begun and not pruner.can_adopt(previous):
                warnings.warn(
                    f"{model.name!r} was being pruned by another plan, which ends here; its "
                    "zeros count as the smallest weights of the new one.",
                    stacklevel=2,
                )
            bare = model.optimizer
            if previous is not None:
                bare = previous.inner_optimizer
            elif isinstance(bare, keras.optimizers.LossScaleOptimizer):
                bare = bare.inner_optimizer
            install(model, pruner.wrap(bare))

            def undo() -> None:
                install(model, bare if previous is None else previous)
                model.train_function = compiled_step

            self._undo = undo
        self._pruner = pruner

    def on_train_begin(self, logs: Logs = None) -> None:
        """Note that this is a training."""
        self._training = True
        if find(self.model) is not self.pruner.wrapped:
            raise ValueError(
                "Two callbacks prune the same model in one `fit`. Pass one: `GradualPruning` "
                "keeps zeros by itself."
            )

    def on_epoch_begin(self, epoch: int, logs: Logs = None) -> None:
        """Before the first epoch, see whether the schedule fits into the training."""
        if self._first_epoch_seen:
            return
        self._first_epoch_seen = True
        accumulated = self.pruner.wrapped.gradient_accumulation_steps or 1
        batches = self.params["steps"]
        per_epoch = None if batches is None else batches / accumulated
        self.pruner.updates_per_call = self.model.steps_per_execution
        try:
            self._settle(per_epoch, self.params["epochs"] - epoch)
            self.pruner.check_reach()
        except ValueError:
            self._undo()  # the model can be trained as before
            raise

    def _settle(self, updates_per_epoch: float | None, epochs: int) -> None:
        """Tell the pruner how long the training is."""
        if updates_per_epoch is not None:
            self.pruner.updates = int(updates_per_epoch * epochs)

    def on_train_batch_begin(self, batch: int, logs: Logs = None) -> None:
        """Update the masks if due."""
        self.pruner.update()

    def on_test_begin(self, logs: Logs = None) -> None:
        """Validate with the masks that are due; undo everything if this is no training."""
        if self._training:
            self.pruner.update()
        else:
            self._undo()

    def on_predict_begin(self, logs: Logs = None) -> None:
        """Undo everything if this is no training."""
        if not self._training:
            self._undo()

    def on_epoch_end(self, epoch: int, logs: Logs = None) -> None:
        """Update the masks if due, and log the sparsity."""
        if not (self.pruner.wrapped.applied or reach.skips_steps(self.model)):
            self._undo()
            raise RuntimeError(
                f"Nothing prunes {self.model.name!r}: its `train_step` does not train with the "
                "optimizer that the model is compiled with. Wrap the one that it trains with: "
                "`pruner = kp.Pruner(network, schedule); optimizer = pruner.wrap(optimizer)`, and "
                "call `pruner.update()` before every step."
            )
        if not self._density_seen:
            self._warn_of_another_optimizer()  # an update would zero what is not zero
        self.pruner.update()
        if logs is not None:
            logs["sparsity"] = self.pruner.sparsity

    def on_train_end(self, logs: Logs = None) -> None:
        """Say what was reached; give the user's optimizer back if the schedule has ended."""
        self._training = False
        pruner = self.pruner
        pruner.update()
        masked = pruner.wrapped.masked
        if not _warn_if_denser(masked):
            _when_all_have_ended(self.model, functools.partial(_warn_if_denser, masked))
        finished, step = pruner.finished, pruner.step
        if self.params.get("verbose"):
            end = "" if finished else f" at step {step} of {pruner.schedule.end_step}"
            print(f"Pruned to a sparsity of {pruner.sparsity:.4g}{end}.")
        if self.model.stop_training and not finished:
            warnings.warn(
                f"The training was stopped at step {step}, at a sparsity of "
                f"{pruner.sparsity:.4g}, before the end of the schedule at step "
                f"{pruner.schedule.end_step}. Call `fit` again with the same callback to go on, or "
                "`kp.Pruner(model).release()` to leave it at that. Stop only when the model is "
                "sparse: kp.WhenSparse(keras.callbacks.EarlyStopping()).",
                stacklevel=2,
            )
        pruner.wrapped.attended = False  # in a `fit` without this callback
        if finished:
            # What remains to be known: with the same callback, the next `fit` goes on from here.
            progress = pruner.wrapped.progress._replace(origin=step, updated_at=-1)
            ended = Ended(progress, pruner.sparsity)
            self._ended = (weakref.ref(self._model), pruner.plan, ended)
            pruner.release()

    def _steps_done_on(self, model: keras.Model) -> Ended | None:
        if self._ended is None or not self._goes_on:
            return None
        trained, plan, ended = self._ended
        is_same = trained() is model and plan.same_as(self.rules.plan(model))
        return ended if is_same else None  # layers may have been unfrozen

    def _warn_of_another_optimizer(self) -> None:
        name = self.model.name  # on JAX this brings the variables up to date
        self._density_seen = self.pruner.sparsity > 0  # once, for it looks at all weights
        denser = _denser(self.pruner.wrapped.masked) if self._density_seen else []
        if denser:
            warnings.warn(
                f"Weights that are pruned are not zero at the end of an epoch in {denser}: "
                f"something changes them beside the optimizer that {name!r} is compiled with, "
                "most often a second one in its `train_step`, and they do not end sparse. Leave "
                "their layers out with `filters`, or prune in a loop of your own with a "
                "kp.Pruner(network, schedule) for each optimizer.",
                stacklevel=2,
            )


def _nothing() -> None:
    """What is to be undone where nothing was done."""


def _denser(masked: Sequence[MaskedWeight]) -> list[str]:
    """The weights that are not zero where their masks say so."""
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
    """Call `check` when the callbacks behind this one have ended, too.

    The last of all is the `History` that `fit` adds by itself.
    """
    history = getattr(model, "history", None)
    if isinstance(history, keras.callbacks.History):

        def on_train_end(logs: Logs = None) -> None:
            del history.on_train_end
            history.on_train_end(logs)
            check()

        history.on_train_end = on_train_end


class GradualPruning(PruningCallback):
    """Prune a model while `fit` trains it.

    `GradualPruning(0.8)` goes from the model's present sparsity to 0.8 over the first three
    quarters of the training, fast at first, in a hundred updates, and leaves the rest to recover
    (Zhu & Gupta 2017, arXiv:1710.01878). The sparsity is logged under "sparsity": list this
    callback before those that read logs.

    Weights are exactly zero after every step. When the schedule has ended the optimizer is your
    own again; further training needs `KeepZeros`. If `fit` ends earlier, the next one with the
    same callback goes on; for a training from the beginning make a new one. A model that ends
    denser than its masks, as an `EarlyStopping` that restores an early epoch leaves it, is warned
    of: see `WhenSparse`.

    Args:
        schedule: the final sparsity, a schedule, or a function step -> sparsity. Not needed for
            a pattern that has its own sparsity, such as `NM(2, 4)`.
        epochs: (first, last) epoch of the pruning, counted from 0 and from this `fit`, in place
            of the schedule's steps: (1, 4) prunes from the beginning of the second epoch to the
            end of the fourth.
        pattern: the zeros allowed.
        allocation: how the overall budget is split over the weights: "lamp", "erk", "global",
            "uniform", a mapping regex -> sparsity, or a function. None: "lamp", or "uniform"
            where the pattern is neither unstructured nor of blocks.
        criterion: weights -> scores of the same shape, higher is better.
        filters: layers to prune: a regex or a list of them, or a function layer -> bool.
        overrides: regex of a weight's path -> None (leave alone), sparsity, pattern, or both.

    Raises:
        ValueError: for arguments that are wrong or do not go together.

    Example:
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(8)])
        >>> model.compile("adam", loss="mse")
        >>> x, y = np.ones((32, 4)), np.ones((32, 8))
        >>> history = model.fit(x, y, verbose=0, epochs=2, callbacks=[GradualPruning(0.75)])
        >>> history.history["sparsity"][-1], int(np.count_nonzero(model.layers[0].kernel))
        (0.75, 8)
    """

    def __init__(
        self,
        schedule: Schedule | float | Callable[[int], float] | None = None,
        *,
        epochs: tuple[int, int] | None = None,
        pattern: Pattern = Unstructured(),  # noqa: B008 - a frozen value
        allocation: Any = None,
        criterion: Criterion = magnitude,
        filters: Filters = None,
        overrides: Mapping[str, Override] | None = None,
    ) -> None:
        rules = rules_of_training(pattern, allocation, criterion, filters, overrides)
        super().__init__(schedule_for(schedule, pattern), rules)
        self.epochs = epochs
        if epochs is None:
            return
        if not _is_span(epochs):
            raise ValueError(
                "`epochs` must be the first and the last epoch of the pruning, like (1, 4). "
                f"Received: epochs={epochs!r}."
            )
        if self.schedule.begin_step != 0 or self.schedule.end_step is not None:
            raise ValueError(
                "`epochs` and a schedule with steps of its own say the same thing twice. "
                f"Received: epochs={epochs!r}, schedule={self.schedule!r}. Leave one out."
            )

    def _settle(self, updates_per_epoch: float | None, epochs: int) -> None:
        super()._settle(updates_per_epoch, epochs)
        if self.epochs is None:
            return
        if updates_per_epoch is None:
            raise ValueError(
                "`epochs` needs to know how long an epoch is, and this data does not say. "
                f"Received: epochs={self.epochs!r}. Pass `steps_per_epoch` to `fit`, or give "
                "the schedule steps: kp.PolynomialDecay(0.8, end_step=2000)."
            )
        begin, end = (int(updates_per_epoch * epoch) for epoch in self.epochs)
        self.pruner.settle(begin_step=begin, end_step=end)


def _is_span(epochs: Any) -> bool:
    """Whether it is (first, last), whole numbers from 0 up."""
    is_pair = isinstance(epochs, (tuple, list)) and len(epochs) == 2
    whole = is_pair and all(isinstance(epoch, numbers.Integral) for epoch in epochs)
    return whole and 0 <= epochs[0] <= epochs[1]


class KeepZeros(PruningCallback):
    """Keep what is zero at zero while `fit` trains the rest.

    For training a pruned model further. A weight that is zero altogether, as fresh ones may be,
    is not frozen. What pruning leaves alone unless an override admits it, such as a depthwise
    kernel, is kept sparse only if the same override is given here.

    Args:
        filters: layers to keep sparse: a regex or a list of them, or a function layer -> bool.
        overrides: as they were given when the model was pruned: regex of a weight's path -> None
            (leave alone), or a sparsity or pattern, of which nothing matters but that it admits
            the weight.
    """

    _goes_on = False  # more may be zero by now

    def __init__(
        self, *, filters: Filters = None, overrides: Mapping[str, Override] | None = None
    ) -> None:
        Rules(overrides=overrides)  # raises for what is wrong
        admitted = {
            path: None if override is None else Unstructured()
            for path, override in (overrides or {}).items()
        }
        rules = Rules(allocation=as_they_are, filters=filters, overrides=admitted or None)
        super().__init__(ConstantSparsity(0.0), rules)


@serializable
def as_they_are(shares: Sequence[Share], sparsity: float) -> Sparsities:
    """The sparsity that each weight has already; 0 for one that is zero altogether."""
    del sparsity
    nonzero = {share: share.scores.count(np.asarray) for share in shares}
    return {share: 1 - n / share.units if n else 0.0 for share, n in nonzero.items()}
