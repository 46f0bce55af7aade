"""`PruningSummaries`: curves of sparsity and threshold in TensorBoard."""

import os
import re
from typing import Any

import keras
import numpy as np

from keras_pruner import backends
from keras_pruner.masks import MaskedWeight
from keras_pruner.reporting.html import numbers
from keras_pruner.training.optimizer import prunings_of
from keras_pruner.validation import check_integer, need

Logs = dict[str, Any] | None

_OFF = {
    "histogram_freq": 0,
    "write_graph": False,
    "write_images": False,
    "write_steps_per_second": False,
    "profile_batch": 0,
    "embeddings_freq": 0,
    "embeddings_metadata": None,
}
_PASSED_ON = [f"on_test_{edge}" for edge in ("begin", "end", "batch_begin", "batch_end")]


class PruningSummaries(keras.callbacks.Callback):
    """Log the sparsity and the threshold of every pruned weight, and all metrics, for TensorBoard.

    Three runs appear under `log_dir`. "metrics" has `<weight>/sparsity`, the fraction of zeros, and
    `<weight>/threshold`, the smallest magnitude (of a weight, or of a block) that is left, by
    training step. "train" and "validation" have the metrics of `fit`, by epoch.

    Args:
        log_dir: directory of the event files.
        update_freq: "epoch", "batch" or a number of steps: how often sparsity and threshold are
            logged.
        **kwargs: options of `keras.callbacks.TensorBoard`, such as `histogram_freq`, `write_graph`
            or `profile_batch`. Here each is off unless it is set, because it needs TensorFlow.

    Raises:
        ValueError: for an option that `keras.callbacks.TensorBoard` does not have.
        ImportError: without the extra "tensorboard", or without "tensorflow" for such an option.

    Example:
        >>> import keras_pruner as kp
        >>> callbacks = [kp.GradualPruning(0.8), kp.callbacks.PruningSummaries("logs")]
    """

    def __init__(
        self, log_dir: str | os.PathLike[str], update_freq: str | int = "epoch", **kwargs: Any
    ) -> None:
        super().__init__()
        if not isinstance(log_dir, str | os.PathLike) or not str(log_dir):
            raise ValueError(
                f"`log_dir` must be a non-empty string. Received: log_dir={log_dir!r}."
            )
        if update_freq not in ("epoch", "batch"):
            check_integer("update_freq", update_freq, least=1)
        if unknown := set(kwargs) - set(_OFF):
            raise ValueError(
                f"PruningSummaries does not have the options {sorted(unknown)}. Besides `log_dir` "
                f"and `update_freq` it takes those of keras.callbacks.TensorBoard: {list(_OFF)}."
            )
        self.log_dir = str(log_dir)
        self.update_freq = 1 if update_freq == "batch" else update_freq
        self._event_files = need("tensorboardX", "tensorboard")
        self._writers: dict[str, Any] = {}
        self._last_step = -1
        self._tensorboard = keras.callbacks.Callback()
        options = _OFF | kwargs
        self._logs_metrics = options == _OFF
        if not self._logs_metrics:
            need("tensorflow", "tensorflow")
            need("tensorboard", "tensorboard")
            self._tensorboard = keras.callbacks.TensorBoard(
                self.log_dir, update_freq=update_freq, **options
            )
            # Set only where they are needed: Keras waits for a step whose end has a hook.
            for name in ("on_train_batch_end", *_PASSED_ON):
                setattr(self, name, getattr(self._tensorboard, name))

    def set_params(self, params: dict[str, Any]) -> None:
        """Receive the parameters of `fit`."""
        super().set_params(params)
        self._tensorboard.set_params(params)

    def set_model(self, model: keras.Model) -> None:
        """Receive the model."""
        super().set_model(model)
        self._tensorboard.set_model(model)

    def on_train_begin(self, logs: Logs = None) -> None:
        """Begin the training."""
        self._tensorboard.on_train_begin(logs)

    def on_epoch_begin(self, epoch: int = 0, logs: Logs = None) -> None:
        """Log the state at the beginning, unless the end of the last epoch has logged it."""
        self._tensorboard.on_epoch_begin(epoch, logs)
        self._log_pruning()

    def on_train_batch_begin(self, batch: int = 0, logs: Logs = None) -> None:
        """Log the state every `update_freq` steps."""
        self._tensorboard.on_train_batch_begin(batch, logs)
        if self.update_freq != "epoch" and self._step() % int(self.update_freq) == 0:
            self._log_pruning()

    def on_epoch_end(self, epoch: int = 0, logs: Logs = None) -> None:
        """Log the state and the metrics."""
        self._log_pruning()
        self._tensorboard.on_epoch_end(epoch, logs)
        for name, value in (logs or {}).items() if self._logs_metrics else ():
            run = "validation" if name.startswith("val_") else "train"
            for entry, number in numbers(f"epoch_{name.removeprefix('val_')}", value):
                self._write(run, re.sub(r"\W+", "_", entry).rstrip("_"), number, epoch)
        for writer in self._writers.values():
            writer.flush()

    def on_train_end(self, logs: Logs = None) -> None:
        """Close the files."""
        self._tensorboard.on_train_end(logs)
        for writer in self._writers.values():
            writer.close()
        self._writers.clear()

    def _step(self) -> int:
        return int(keras.ops.convert_to_numpy(self.model.optimizer.iterations))

    def _log_pruning(self) -> None:
        step = self._step()
        if step != self._last_step:
            self._last_step = step
            for pruning in prunings_of(self.model):
                for masked in pruning.masked:
                    sparsity, threshold = _sparsity_and_threshold(masked)
                    self._write("metrics", f"{masked.target.path}/sparsity", sparsity, step)
                    self._write("metrics", f"{masked.target.path}/threshold", threshold, step)

    def _write(self, run: str, tag: str, number: float, step: int) -> None:
        if run not in self._writers:
            folder = os.path.join(self.log_dir, run)
            self._writers[run] = self._event_files.SummaryWriter(folder)
        self._writers[run].add_scalar(tag, number, step)


def _sparsity_and_threshold(masked: MaskedWeight) -> tuple[float, float]:
    """The fraction of zeros in a weight, and the smallest score of the units that are left."""
    target, to_numpy = masked.target, backends.current().to_numpy
    weight = np.asarray(to_numpy(masked.variable), np.float32)
    sparsity = 1 - np.count_nonzero(weight) / weight.size
    kept = target.view.to_kernel(to_numpy(masked.mask))
    if kept.all():
        return sparsity, 0.0
    magnitudes = np.where(kept, np.abs(target.view.to_kernel(weight)), -np.inf)
    scores = target.pattern.unit_scores(magnitudes)
    return sparsity, float(scores[scores > -np.inf].min())
