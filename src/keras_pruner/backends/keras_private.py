"""Every use of Keras' private API; `tests/backends/test_keras_private.py` tests each one.

When a release of Keras changes one of them, its test fails, and only this module needs a change.
"""

import sys
import threading
from collections.abc import Iterator, Sequence
from types import FrameType
from typing import Any

import keras
from keras.src.api_export import register_internal_serializable
from keras.src.backend.common import global_state
from keras.src.backend.common.stateless_scope import in_stateless_scope as in_stateless_scope
from keras.src.saving import object_registration, serialization_lib
from keras.src.saving.keras_saveable import KerasSaveable as Saveable

__all__ = ["Saveable", "in_stateless_scope"]

# -------------------------------------------------------------------- models and layers


def layers_of(layer: keras.layers.Layer, *, itself: bool = True) -> Iterator[keras.layers.Layer]:
    """All layers within a layer or model, at any depth; a layer comes before those within it."""
    return layer._flatten_layers(include_self=itself)


def compile_settings(model: keras.Model) -> Any:
    """The arguments of `compile`: a new object for each call of it; None before the first."""
    return getattr(model, "_compile_config", None)


def begin_at_epoch(model: keras.Model, epoch: int | None) -> None:
    """Let the `fit` that is starting begin at this epoch; None: as its arguments say."""
    model._initial_epoch = epoch


def callbacks_beside(callback: keras.callbacks.Callback) -> list[keras.callbacks.Callback]:
    """The other callbacks of the `CallbackList` that is calling a hook of this one; or none."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        caller = frame.f_locals.get("self")
        if isinstance(caller, keras.callbacks.CallbackList):
            return [each for each in caller.callbacks if each is not callback]
        frame = frame.f_back
    return []


def is_in_fit(model: keras.Model, thread: threading.Thread) -> bool:
    """Whether a thread is running the `fit` of a model."""
    frame = sys._current_frames().get(thread.ident or -1)
    while frame is not None:
        if frame.f_code.co_name == "fit" and frame.f_locals.get("self") is model:
            return True
        frame = frame.f_back
    return False


# -------------------------------------------------------------------- optimizers


def trained_by(optimizer: keras.optimizers.Optimizer) -> list[keras.Variable]:
    """The variables that an optimizer was built for."""
    return list(optimizer._trainable_variables)


def averages_of(optimizer: keras.optimizers.Optimizer) -> Sequence[keras.Variable | None] | None:
    """The moving average of each trained variable; None without `use_ema`."""
    return optimizer._model_variables_moving_average if optimizer.use_ema else None


def calls_of(optimizer: keras.optimizers.Optimizer) -> keras.Variable:
    """The number of calls of an optimizer: above `iterations` with gradient accumulation."""
    return optimizer._iterations


def key_of(optimizer: keras.optimizers.Optimizer, variable: Any) -> Any:
    """A key for a variable, the same in every replica."""
    return optimizer._var_key(variable)


# -------------------------------------------------------------------- saving and loading


def name_in_files(cls: type, module: str, name: str) -> None:
    """Save objects of `cls` under the class name `module.name`, and load that name as `cls`.

    `module` must be a module of Keras. A process that has not called this function loads the class
    of that name from it, since Keras looks among its registered names first.
    """
    register_internal_serializable(f"{module}.{name}", cls)


def save_as(cls: type, users: type) -> None:
    """Save objects of `cls` under the registered name of the user's class."""
    object_registration.GLOBAL_CUSTOM_NAMES[cls] = object_registration.get_registered_name(users)


def loading_scope() -> dict[str, Any]:
    """The custom objects and the safe mode of the `load_model` that is running."""
    custom = global_state.get_global_attribute("custom_objects_scope_dict", {})
    safe = serialization_lib.in_safe_mode()
    return {"custom_objects": dict(custom), "safe_mode": True if safe is None else safe}


__all__ += [
    "averages_of",
    "begin_at_epoch",
    "callbacks_beside",
    "calls_of",
    "compile_settings",
    "is_in_fit",
    "key_of",
    "layers_of",
    "loading_scope",
    "name_in_files",
    "save_as",
    "trained_by",
]
