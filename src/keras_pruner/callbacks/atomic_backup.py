"""Backups of a training from which a killed one goes on, exactly."""

import os
import shutil
import warnings
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_pruner import backends
from keras_pruner.backends import keras_private

WEIGHTS, SEEDS = "state.weights.h5", "seeds.npz"
_UNFINISHED = "unfinished"


class AtomicBackup(keras.callbacks.Callback):
    """Save a training after each epoch, so that it can be resumed after a kill at any moment.

    `keras.callbacks.BackupAndRestore` writes the weights and the number of the epoch one after
    the other: if it is killed in between, an epoch is trained twice. It also leaves out the
    states of random seeds, such as those of `Dropout` (on PyTorch the state of `torch` itself).
    This callback writes everything into one folder, and renames the folder to the number of
    epochs when it is complete on the disk; only then is the previous backup removed.

    For one process, with any number of devices. For several processes on JAX use
    `keras.callbacks.OrbaxCheckpoint`, which saves the shards of each.

    Every `fit` with the same directory continues after the last complete epoch. This is exact if
    the order of the data depends only on the epoch: pass `epoch` to the data. The state of other
    callbacks (a best loss, a history) is not saved. The last backup stays when the training ends;
    remove the directory to start anew.

    Args:
        directory: for the backups of this training only; created if it does not exist.

    Raises:
        ValueError: when the training begins, if the model is not built, several processes train
            it, or the backup is of another model or another pruning: other weights, another
            final sparsity, pattern, allocation or criterion.

    Example:
        >>> import keras, numpy as np
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(8)])
        >>> model.compile("sgd", loss="mse")
        >>> x, y = np.ones((32, 4)), np.ones((32, 8))
        >>> backup = AtomicBackup("backups")
        >>> history = model.fit(x, y, epochs=2, verbose=0, callbacks=[backup])
        >>> backup.epoch
        2
    """

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        super().__init__()
        self.directory = Path(directory)

    @property
    def epoch(self) -> int:
        """The number of epochs in the last complete backup; 0 if there is none."""
        return max(self._epochs(), default=0)

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Restore the last complete backup, if there is one."""
        model = self.model
        if not model.built:
            raise ValueError(
                f"`AtomicBackup` needs a built model. Received: {model.name!r}, which has no "
                "weights yet. Call it on a batch of data before `fit`."
            )
        processes = backends.current().processes()
        if processes > 1:
            raise ValueError(
                f"`AtomicBackup` saves what one process trains. Received: {processes} processes. "
                "On JAX use keras.callbacks.OrbaxCheckpoint; in a loop on PyTorch save the "
                "`state_dict` of model and optimizer in the first process."
            )
        epoch = self.epoch
        if not epoch:
            return
        if not model.optimizer.built:
            model.optimizer.build(model.trainable_variables)
        model.load_weights(self._folder(epoch) / WEIGHTS)
        with np.load(self._folder(epoch) / SEEDS) as saved:
            for i, seed in enumerate(self._seeds()):
                seed.assign(saved[str(i)])
            backends.current().set_random_states({k: saved[k] for k in saved if not k.isdigit()})
        keras_private.begin_at_epoch(model, epoch)  # as `BackupAndRestore` tells `fit`
        if epoch >= self.params.get("epochs", epoch + 1):
            warnings.warn(
                f"Nothing is left to train: the backup in {str(self.directory)!r} has all "
                f"{epoch} epochs behind it. Remove the directory to begin anew.",
                stacklevel=2,
            )

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Let the next `fit` of the same model begin at its own first epoch."""
        keras_private.begin_at_epoch(self.model, None)

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Save, then remove the previous backup."""
        model = self.model
        unfinished = self.directory / _UNFINISHED
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
        model.save_weights(unfinished / WEIGHTS)
        seeds = {str(i): keras.ops.convert_to_numpy(s) for i, s in enumerate(self._seeds())}
        np.savez(unfinished / SEEDS, **seeds, **backends.current().random_states())
        for path in (unfinished / WEIGHTS, unfinished / SEEDS, unfinished):
            _to_disk(path)
        before = self._epochs()
        unfinished.rename(self._folder(epoch + 1))
        _to_disk(self.directory)
        for each in before:
            shutil.rmtree(self._folder(each))

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """As when an epoch begins: there may have been none."""
        keras_private.begin_at_epoch(self.model, None)

    def _folder(self, epoch: int) -> Path:
        return self.directory / f"epoch-{epoch}"

    def _epochs(self) -> list[int]:
        """Of the complete backups."""
        numbers = [path.name.removeprefix("epoch-") for path in self.directory.glob("epoch-*")]
        return [int(number) for number in numbers if number.isdecimal()]

    def _seeds(self) -> list[keras.Variable]:
        """The model's variables that Keras does not save with its weights."""
        saved = {id(weight) for weight in self.model.weights}
        return [v for v in self.model.variables if id(v) not in saved]


def _to_disk(path: Path) -> None:
    """Wait until a file, or the list of a directory's files, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
