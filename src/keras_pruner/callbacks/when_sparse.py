"""`WhenSparse`: run a callback only after the model has reached its final sparsity."""

import functools
import warnings
from typing import Any

import keras

from keras_pruner.training.optimizer import prunings_of

Logs = dict[str, Any] | None

_LATER_HOOKS = [
    "on_epoch_end",
    *(f"on{kind}_batch_{edge}" for kind in ("", "_train", "_test") for edge in ("begin", "end")),
    *("on_test_begin", "on_test_end"),
]
"""The hooks that `WhenSparse` passes on once the final sparsity is reached."""


class WhenSparse(keras.callbacks.Callback):
    """Run another callback only from the final sparsity on.

    Callbacks that choose a best epoch (`EarlyStopping`, `ModelCheckpoint`, `ReduceLROnPlateau`)
    would otherwise choose one from before pruning, when the model was denser and better.

    If the final sparsity is never reached, the callback is never called, and a warning at the end
    of training says so.

    Args:
        callback: any Keras callback. Its `on_train_begin` and `on_train_end` always run.

    Raises:
        ValueError: if nothing prunes the model.

    Example:
        >>> callback = WhenSparse(keras.callbacks.EarlyStopping(restore_best_weights=True))
    """

    def __init__(self, callback: keras.callbacks.Callback) -> None:
        super().__init__()
        if not isinstance(callback, keras.callbacks.Callback):
            raise ValueError(
                f"`callback` must be a Keras callback. Received: callback={callback!r}. Pass an "
                "object, such as keras.callbacks.EarlyStopping()."
            )
        self.callback = callback
        self._epoch: int | None = None
        self._awake = False
        for name in _LATER_HOOKS:
            hook = getattr(callback, name)
            if getattr(hook, "__func__", hook) is not getattr(keras.callbacks.Callback, name):
                # Only hooks that the callback defines: some make Keras wait for each batch. A
                # partial can be copied and pickled.
                setattr(self, name, functools.partial(self._pass_on, name))

    @property
    def is_sparse(self) -> bool:
        """Whether every schedule on the model has reached its end."""
        prunings = prunings_of(self.model)
        return bool(prunings) and all(each.state.has_ended for each in prunings)

    def set_params(self, params: dict[str, Any]) -> None:
        """Pass on."""
        super().set_params(params)
        self.callback.set_params(params)

    def set_model(self, model: keras.Model) -> None:
        """Pass on, and wait for the final sparsity again."""
        super().set_model(model)
        self._epoch, self._awake = None, False
        self.callback.set_model(model)

    def on_train_begin(self, logs: Logs = None) -> None:
        """Pass on."""
        if not prunings_of(self.model):
            raise ValueError(
                f"`WhenSparse` waits for a final sparsity, and nothing prunes {self.model.name!r}. "
                "Add kp.GradualPruning(...) to the callbacks."
            )
        self.callback.on_train_begin(logs)

    def on_train_end(self, logs: Logs = None) -> None:
        """Pass on; warn if the callback was not called in this training."""
        if self._epoch is not None and not self._wake():
            warnings.warn(
                f"{type(self.callback).__name__} was never called, because the schedule did not "
                "reach its final sparsity in this training. Train for longer, or end the schedule "
                "earlier.",
                stacklevel=2,
            )
        self.callback.on_train_end(logs)

    def on_epoch_begin(self, epoch: int, logs: Logs = None) -> None:
        """Pass on, if the final sparsity is reached."""
        self._epoch = epoch
        if self._awake:
            self.callback.on_epoch_begin(epoch, logs)
        else:
            self._wake()

    def _wake(self) -> bool:
        """True once the final sparsity is reached; then the callback gets its first epoch."""
        if not self._awake and self.is_sparse:
            self._awake = True
            if self._epoch is not None:
                self.callback.on_epoch_begin(self._epoch, {})
        return self._awake

    def _pass_on(self, name: str, *args: Any, **kwargs: Any) -> None:
        if self._wake():
            getattr(self.callback, name)(*args, **kwargs)
