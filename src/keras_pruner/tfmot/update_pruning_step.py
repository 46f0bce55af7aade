"""TFMOT's callback that updates the masks, and the hooks that add it where it is missing."""

import functools
import inspect
import warnings
import weakref
from typing import Any

import keras

from keras_pruner import backends
from keras_pruner.tfmot.marks import marks_of
from keras_pruner.tfmot.prunings import attach, go_on, pruners_for
from keras_pruner.training.optimizer import prunings_of
from keras_pruner.training.pruner import Pruner

Logs = dict[str, Any] | None
training: "weakref.WeakSet[keras.Model]" = weakref.WeakSet()
"""Models that `fit` is training now."""


class UpdatePruningStep(keras.callbacks.Callback):
    """Updates the masks of a model that `prune_low_magnitude` was applied to.

    In a loop of your own call `set_model` and `on_train_begin`, then `on_train_batch_begin` at
    the beginning of every step, and `on_epoch_end` after every epoch. `model.optimizer` may be
    set at any time before the first step.

    Raises:
        ValueError: at the beginning of a training, if the model has nothing to prune.

    Example:
        >>> import keras_pruner.tfmot as tfmot
        >>> callbacks = [tfmot.sparsity.keras.UpdatePruningStep()]
    """

    def __init__(self) -> None:
        super().__init__()
        self._pruners: list[Pruner] = []
        self._checked = self._is_short = False

    def set_model(self, model: keras.Model) -> None:
        """Continue the pruning of the model from its current step."""
        super().set_model(model)
        self._checked = self._is_short = False
        self._pruners = pruners_for(model)

    def on_train_begin(self, logs: Logs = None) -> None:
        """Check that there is something to prune."""
        del logs
        self._find_pruners()
        if self._in_fit:
            training.add(self.model)
            hook(self.model)

    def on_epoch_begin(self, epoch: int = 0, logs: Logs = None) -> None:
        """Check, before the first epoch, that the schedules fit into the training."""
        del logs
        if self._checked or not self._in_fit or not self.params.get("steps"):
            return
        self._checked = True
        for pruner in self._pruners:
            pruner.updates_per_call = self.model.steps_per_execution
            batches = self.params["steps"] * (self.params["epochs"] - epoch)
            self._is_short |= _is_too_short(pruner, batches)

    def on_train_batch_begin(self, batch: int = 0, logs: Logs = None) -> None:
        """Update the masks if the schedule says so."""
        del batch, logs
        if not self._pruners:
            self._find_pruners(optimizer_is_needed=True)
        for pruner in self._pruners:
            pruner.update()
        self._zero()

    def _find_pruners(self, *, optimizer_is_needed: bool = False) -> None:
        """Look again for what `set_model` did not find, because the optimizer was set later."""
        self._pruners = self._pruners or pruners_for(self.model)
        if self._pruners:
            return
        if getattr(self.model, "optimizer", None) is None and marks_of(self.model):
            if optimizer_is_needed:
                raise ValueError(
                    f"UpdatePruningStep needs the optimizer of {self.model.name!r}. Set "
                    "`model.optimizer` before the first step."
                )
            return
        raise ValueError(
            f"UpdatePruningStep finds nothing to prune in {self.model.name!r}, which would be "
            "trained dense. Apply `prune_low_magnitude` to it before `compile`: also to a clone of "
            "a pruned model, to one that was compiled again after loading, and to one that was "
            "loaded from an `.h5` file. (A model loaded from a `.keras` file goes on by itself.) "
            "To train without pruning leave out the callback."
        )

    def on_epoch_end(self, batch: int = 0, logs: Logs = None) -> None:
        """Set pruned weights to zero; in `fit` they are so after every step."""
        del batch, logs
        self._zero()

    def on_train_end(self, logs: Logs = None) -> None:
        """Say it if a schedule has not reached its end, and nothing has said so before."""
        del logs
        training.discard(self.model)
        if not self._in_fit or self._is_short:
            return
        backends.current().sync(self.model)
        for pruner in self._pruners:
            end_step = pruner.schedule.end_step
            if end_step is not None and 0 < pruner.step <= end_step:
                warnings.warn(
                    f"The training ended at step {pruner.step}, at a sparsity of "
                    f"{pruner.sparsity:.4g}, before the end of the schedule at step "
                    f"{end_step + 1}. "
                    "Call `fit` again to go on. Should the data have run out, `steps_per_epoch` "
                    "must be smaller.",
                    stacklevel=2,
                )

    @property
    def _in_fit(self) -> bool:
        """Whether `fit` calls this: it sets `epochs`, and the model is compiled.

        A loop of the user's own may set `epochs` (`CallbackList(..., epochs=)`), but hardly
        compiles the model as well.
        """
        return "epochs" in (self.params or {}) and self.model.compiled

    def _zero(self) -> None:
        """Set pruned weights to zero in a loop whose optimizer may not do it."""
        if not self._in_fit:
            with backends.current().eagerly():
                for pruner in self._pruners:
                    pruner.pruning.zero_pruned()


def _is_too_short(pruner: Pruner, batches: int) -> bool:
    """Whether the training is too short for the schedule, said before it; steps are TFMOT's."""
    schedule: Any = pruner.schedule
    last = batches // pruner.pruning.accumulation + pruner.step
    if last <= schedule.begin_step:
        problem = f"Nothing will be pruned: the schedule begins at step {schedule.begin_step + 1}"
    elif schedule.end_step is not None and last <= schedule.end_step:
        problem = f"The final sparsity is not reached: it is due at step {schedule.end_step + 1}"
    else:
        return False
    warnings.warn(
        f"{problem}, and this training ends at step {last}. Received: "
        f"{schedule.schedule!r}. End the schedule earlier, or train for longer.",
        stacklevel=3,
    )
    return True


def hook(model: keras.Model) -> None:
    """Let `compile` of this model attach the prunings, and `fit` add a missing callback."""
    if "compile" in vars(model):
        return
    compile_, fit = model.compile, model.fit

    @functools.wraps(compile_)
    def compile_and_wrap(*args: Any, **kwargs: Any) -> None:
        before = prunings_of(model)
        compile_(*args, **kwargs)
        go_on(before, attach(model))

    @functools.wraps(fit)
    def fit_with_callback(*args: Any, **kwargs: Any) -> Any:
        call = inspect.signature(fit).bind(*args, **kwargs)
        callbacks = keras.tree.flatten(call.arguments.get("callbacks") or [])
        if not any(isinstance(callback, UpdatePruningStep) for callback in callbacks):
            callbacks.insert(0, UpdatePruningStep())
        call.arguments["callbacks"] = callbacks
        try:
            return fit(*call.args, **call.kwargs)
        finally:
            training.discard(model)

    model.compile, model.fit = compile_and_wrap, fit_with_callback


def unhook(model: keras.Model) -> None:
    """Undo `hook`, in nested models too."""
    for layer in model._flatten_layers():
        vars(layer).pop("compile", None)
        vars(layer).pop("fit", None)
