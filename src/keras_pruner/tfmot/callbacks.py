"""TFMOT's callback that makes pruning go on."""

import warnings
from typing import Any

import keras

from keras_pruner import backends
from keras_pruner.pruner import Pruner
from keras_pruner.tfmot import pruning

Logs = dict[str, Any] | None


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
        self._pruners = pruning.pruners_for(model)

    def on_train_begin(self, logs: Logs = None) -> None:
        """See whether there is something to do."""
        del logs
        self._pruners = self._pruners or pruning.pruners_for(self.model)
        if self._in_fit:
            pruning.training.add(self.model)
            pruning.hook(self.model)
        if not self._pruners:
            warnings.warn(
                f"UpdatePruningStep finds nothing to prune in {self.model.name!r}. Give the model "
                "or its layers to prune_low_magnitude; in a loop of your own, also set "
                "`model.optimizer` before `set_model`.",
                stacklevel=2,
            )

    @property
    def _in_fit(self) -> bool:
        """`fit` tells its callbacks how long it is; a loop of the user's own does not."""
        return "epochs" in (self.params or {})

    def on_epoch_begin(self, epoch: int = 0, logs: Logs = None) -> None:
        """Before the first epoch, see whether the schedule fits into the training."""
        del logs
        if self._checked or not self._in_fit or not self.params.get("steps"):
            return
        self._checked = True
        epochs = self.params["epochs"] - epoch
        for pruner in self._pruners:
            pruner.updates_per_call = self.model.steps_per_execution
            wrapped = pruner.wrapped
            accumulated = _accumulated(wrapped)
            _check_reach(pruner, int(self.params["steps"] * epochs / accumulated))

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
        pruning.training.discard(self.model)

    def _zero(self) -> None:
        """Zero the weights of a loop whose optimizer does not do it itself."""
        if not self._in_fit:
            with backends.current().eagerly():
                for pruner in self._pruners:
                    pruner.wrapped.zero_pruned()


def with_update(callbacks: Any) -> Any:
    """The callbacks of a `fit`, with an `UpdatePruningStep` among them."""
    if isinstance(callbacks, keras.callbacks.CallbackList):
        if not any(isinstance(c, UpdatePruningStep) for c in callbacks.callbacks):
            callbacks.append(UpdatePruningStep())
        return callbacks
    given = keras.tree.flatten(callbacks) if callbacks else []
    there = any(isinstance(callback, UpdatePruningStep) for callback in given)
    return given if there else [UpdatePruningStep(), *given]


def _accumulated(optimizer: Any) -> int:
    while hasattr(optimizer, "inner_optimizer"):
        optimizer = optimizer.inner_optimizer
    return optimizer.gradient_accumulation_steps or 1


def _check_reach(pruner: Pruner, updates: int) -> None:
    """Say before the training, in TFMOT's steps, what it is too short for."""
    begun = pruner.wrapped.built and pruner.wrapped.progress.origin >= 0
    last = (pruner.step if begun else 0) + updates
    schedule: Any = pruner.schedule
    if last <= schedule.begin_step:
        warnings.warn(
            f"Nothing will be pruned: the schedule begins at step {schedule.begin_step + 1}, and "
            f"this training ends at step {last}. Received: {schedule.schedule!r}. Begin earlier, "
            "or train for longer.",
            stacklevel=3,
        )
    elif schedule.end_step is not None and last <= schedule.end_step:
        warnings.warn(
            f"The training is too short for the schedule: it ends at step {last}, and the final "
            f"sparsity is due at step {schedule.end_step + 1}. Received: {schedule.schedule!r}.",
            stacklevel=3,
        )
