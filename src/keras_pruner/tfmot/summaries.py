"""What TensorBoard shows of a pruning: sparsity and threshold of every weight."""

import os
from typing import Any

import keras
import numpy as np

from keras_pruner import backends
from keras_pruner.reporting.html import numbers
from keras_pruner.tfmot.events import EventFile
from keras_pruner.training.optimizer import wrappers
from keras_pruner.training.state import Masked
from keras_pruner.validation import check_integer

Logs = dict[str, Any] | None


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
        if update_freq not in ("epoch", "batch"):
            check_integer("update_freq", update_freq, least=1)
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
        for name, value in (logs or {}).items():
            folder = "validation" if name.startswith("val_") else "train"
            self._write(folder, dict(numbers(f"epoch_{name.removeprefix('val_')}", value)), epoch)

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
            for wrapped in wrappers(self.model):
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
