"""TFMOT's callback that makes pruning go on, and the hooks that see that it is there."""

import functools
import inspect
import warnings
import weakref
from typing import Any

import keras

from keras_pruner import backends
from keras_pruner.tfmot.wrapping import attach, go_on, pruners_for
from keras_pruner.training.optimizer import prunings_of
from keras_pruner.training.pruner import Pruner

Logs = dict[str, Any] | None
training: "weakref.WeakSet[keras.Model]" = weakref.WeakSet()
"""Models that `fit` is training at present."""


class UpdatePruningStep(keras.callbacks.Callback):
    """Updates the zeros of a model that `prune_low_magnitude` was given.

    In a loop of one's own: `set_model`, `on_train_begin`, then `on_train_batch_begin` first
    thing in every step and `on_epoch_end` at the end.
    """

    def __init__(self) -> None:
        super().__init__()
        self._pruners: list[Pruner] = []
        self._checked = False

    def set_model(self, model: keras.Model) -> None:
        """Take up the pruning where it stands."""
        super().set_model(model)
        self._checked = False
        self._pruners = pruners_for(model)

    def on_train_begin(self, logs: Logs = None) -> None:
        """See whether there is something to do."""
        del logs
        if self._in_fit:
            training.add(self.model)
            hook(self.model)
        if not self._pruners:
            warnings.warn(
                f"UpdatePruningStep finds nothing to prune in {self.model.name!r}. Give the model "
                "or its layers to prune_low_magnitude; in a loop of your own, also set "
                "`model.optimizer` before `set_model`.",
                stacklevel=2,
            )

    def on_epoch_begin(self, epoch: int = 0, logs: Logs = None) -> None:
        """Before the first epoch, see whether the schedules fit into the training."""
        del logs
        if self._checked or not self._in_fit or not self.params.get("steps"):
            return
        self._checked = True
        for pruner in self._pruners:
            pruner.updates_per_call = self.model.steps_per_execution
            batches = self.params["steps"] * (self.params["epochs"] - epoch)
            _check_reach(pruner, batches)

    def on_train_batch_begin(self, batch: int = 0, logs: Logs = None) -> None:
        """Update the zeros if due."""
        del batch, logs
        for pruner in self._pruners:
            pruner.update()
        self._zero()

    def on_epoch_end(self, batch: int = 0, logs: Logs = None) -> None:
        """Nothing in `fit`, where the weights are sparse after every step."""
        del batch, logs
        self._zero()

    def on_train_end(self, logs: Logs = None) -> None:
        """Let `strip_pruning` have the model."""
        del logs
        training.discard(self.model)

    @property
    def _in_fit(self) -> bool:
        """`fit` tells its callbacks how long it is, and wants a compiled model.

        A loop of the user's own may do the one (`CallbackList(..., epochs=)`), hardly both.
        """
        return "epochs" in (self.params or {}) and self.model.compiled

    def _zero(self) -> None:
        """Zero the weights of a loop whose optimizer does not do it itself."""
        if not self._in_fit:
            with backends.current().eagerly():
                for pruner in self._pruners:
                    pruner.pruning.zero_pruned()


def _check_reach(pruner: Pruner, batches: int) -> None:
    """Say before the training, in TFMOT's steps, what it is too short for."""
    schedule: Any = pruner.schedule
    last = batches // pruner.pruning.accumulation + pruner.step
    if last <= schedule.begin_step:
        problem = f"Nothing will be pruned: the schedule begins at step {schedule.begin_step + 1}"
    elif schedule.end_step is not None and last <= schedule.end_step:
        problem = f"The final sparsity is not reached: it is due at step {schedule.end_step + 1}"
    else:
        return
    warnings.warn(
        f"{problem}, and this training ends at step {last}. Received: "
        f"{schedule.schedule!r}. End the schedule earlier, or train for longer.",
        stacklevel=3,
    )


def hook(model: keras.Model) -> None:
    """Let this instance's `compile` wrap the optimizer, and its `fit` not forget the callback."""
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
    """Undo `hook`, also in the models within."""
    for layer in model._flatten_layers():
        vars(layer).pop("compile", None)
        vars(layer).pop("fit", None)
