"""TFMOT's two callbacks."""

import os
import warnings
from typing import Any

import keras
import numpy as np

from keras_pruner import backends
from keras_pruner.events import EventFile
from keras_pruner.optimizer import Masked
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


class PruningSummaries(keras.callbacks.Callback):
    """Writes sparsity and threshold of every pruned weight, and the metrics, for TensorBoard.

    Under `log_dir`: "metrics" has `<weight>/sparsity`, the fraction of zeros, and
    `<weight>/threshold`, the smallest magnitude (of a weight, or of a block) that is left, by
    step; "train" and "validation" have the logs of `fit` by epoch.

    Args:
        log_dir: a directory.
        update_freq: "epoch"; "batch" or a number of steps for more of sparsity and threshold.
    """

    def __init__(self, log_dir: str, update_freq: str | int = "epoch", **kwargs: Any) -> None:
        super().__init__()
        if not isinstance(log_dir, str | os.PathLike) or not str(log_dir):
            raise ValueError(
                f"`log_dir` must be a non-empty string. Received: log_dir={log_dir!r}."
            )
        if kwargs:
            raise ValueError(
                f"PruningSummaries does not know {sorted(kwargs)}. For more than metrics add "
                "`keras.callbacks.TensorBoard(log_dir, ...)` to the callbacks."
            )
        self.log_dir = str(log_dir)
        self.update_freq = 1 if update_freq == "batch" else update_freq
        self._files: dict[str, EventFile] = {}
        self._last = -1

    def on_epoch_begin(self, epoch: int = 0, logs: Logs = None) -> None:
        """Note where it stands; what the end of the last epoch noted is not noted again."""
        del epoch, logs
        self._log_pruning()

    def on_train_batch_begin(self, batch: int = 0, logs: Logs = None) -> None:
        """Note where it stands, if that often."""
        del batch, logs
        if self.update_freq != "epoch" and self._step() % int(self.update_freq) == 0:
            self._log_pruning()

    def on_epoch_end(self, epoch: int = 0, logs: Logs = None) -> None:
        """Note where it stands, and the metrics."""
        self._log_pruning()
        for name, number in (logs or {}).items():
            folder = "validation" if name.startswith("val_") else "train"
            self._write(folder, {f"epoch_{name.removeprefix('val_')}": number}, epoch)

    def on_train_end(self, logs: Logs = None) -> None:
        """Close the files."""
        del logs
        for file in self._files.values():
            file.close()
        self._files.clear()

    def _step(self) -> int:
        return int(keras.ops.convert_to_numpy(self.model.optimizer.iterations))

    def _log_pruning(self) -> None:
        step = self._step()
        if step != self._last:
            self._last = step
            for wrapped in pruning.attach(self.model):
                for masked in wrapped.masked:
                    self._write("metrics", _figures(masked), step)

    def _write(self, folder: str, figures: dict[str, float], step: int) -> None:
        if folder not in self._files:
            self._files[folder] = EventFile(os.path.join(self.log_dir, folder))
        self._files[folder].scalars(figures, step)


def _figures(masked: Masked) -> dict[str, float]:
    target, to_numpy = masked.target, backends.current().to_numpy
    weight = np.asarray(to_numpy(masked.variable), np.float32)
    kept = target.to_kernel(to_numpy(masked.mask))
    threshold = 0.0
    if not kept.all():
        magnitudes = np.where(kept, np.abs(target.to_kernel(weight)), -np.inf)
        scores = target.pattern.unit_scores(magnitudes)
        threshold = float(scores[scores > -np.inf].min())
    return {
        f"{target.path}/sparsity": 1 - np.count_nonzero(weight) / weight.size,
        f"{target.path}/threshold": threshold,
    }
