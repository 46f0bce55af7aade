"""Value classes, checks of arguments, and the errors of this package.

Errors, all of them built in or derived from built-in ones, as in Keras:

- `ValueError`: an argument is wrong, arguments contradict each other, or a model has nothing to
  prune. The message names the argument, the rule, the value received and the fix.
    - `kp.FileError`: a file is missing, damaged or of another kind.
- `TypeError`: arguments are given in another number or order than a function takes.
- `RuntimeError`: methods are called in the wrong order, or a training does not prune.
- `ImportError`: an optional package is missing; the message has the pip command.
"""

import dataclasses
import importlib
import importlib.util
import json
import math
import numbers
import re
from collections.abc import Callable, Sized
from types import ModuleType
from typing import Any, TypeVar, dataclass_transform

import keras

PACKAGE = "keras_pruner"
_T = TypeVar("_T")


@dataclass_transform(frozen_default=True)
def value(cls: type[_T]) -> type[_T]:
    """Make `cls` a frozen dataclass that Keras can serialize; its fields are its config."""

    def get_config(self: Any) -> dict[str, Any]:
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}

    def from_config(cls: type[_T], config: dict[str, Any]) -> _T:
        return cls(**keras.saving.deserialize_keras_object(config))

    cls = dataclasses.dataclass(frozen=True)(cls)
    cls.get_config = get_config  # type: ignore[attr-defined]
    cls.from_config = classmethod(from_config)  # type: ignore[attr-defined]
    return keras.saving.register_keras_serializable(PACKAGE)(cls)


def serializable(function: Callable[..., Any]) -> Callable[..., Any]:
    """Register a function of this package, so that configs can name it."""
    return keras.saving.register_keras_serializable(PACKAGE)(function)


def shown(received: object) -> str:
    """The repr of a value for an error message; type and size where the repr is long."""
    text = repr(received)
    if len(text) <= 100 and "\n" not in text:
        return text
    size = ""
    if hasattr(received, "shape"):
        size = f" of shape {tuple(received.shape)}"
    elif isinstance(received, Sized):
        size = f" of length {len(received)}"
    return f"<{type(received).__name__}{size}>"


def one_line(error: Exception, longest: int = 500) -> str:
    """The message of a foreign error, without traceback lines, cut to `longest` characters."""
    lines = [line.strip() for line in str(error).splitlines()]
    said = " ".join(line for line in lines if line and not line.startswith('File "'))
    return said[:longest] or type(error).__name__


def as_json(data: Any) -> str:
    """Plain data as JSON text, with null for NaN and infinities."""
    return json.dumps(_finite(data), indent=2, allow_nan=False)


def _finite(data: Any) -> Any:
    if isinstance(data, dict):
        return {name: _finite(value) for name, value in data.items()}
    if isinstance(data, list | tuple):
        return [_finite(value) for value in data]
    return None if isinstance(data, float) and not math.isfinite(data) else data


def check_sparsity(name: str, sparsity: object) -> None:
    """Raise unless `sparsity` is a fraction in [0, 1).

    Args:
        name: the argument, for the error.
        sparsity: the value received.
    """
    fix = ""
    if isinstance(sparsity, numbers.Real) and not isinstance(sparsity, bool):
        fraction = float(sparsity)
        if 0 <= fraction < 1:
            return
        if 1 < fraction < 100:
            fix = f" For {fraction:g}% zeros pass {name}={fraction / 100:g}."
        elif fraction in (1, 100):
            fix = f" A weight that is all zeros computes nothing; for 99% zeros pass {name}=0.99."
    raise ValueError(
        f"`{name}` must be the fraction of weights set to zero, in [0, 1). "
        f"Received: {name}={shown(sparsity)}.{fix}"
    )


def is_integer(number: object, *, least: int) -> bool:
    """Whether `number` is an integer of at least `least`; a bool is none."""
    return (
        isinstance(number, numbers.Integral)
        and not isinstance(number, bool)
        and int(number) >= least
    )


def check_integer(name: str, number: object, *, least: int) -> None:
    """Raise unless `number` is an integer of at least `least`."""
    if not is_integer(number, least=least):
        raise ValueError(
            f"`{name}` must be an integer of at least {least}. Received: {name}={shown(number)}."
        )


def check_regex(name: str, regex: object) -> None:
    """Raise unless `regex` is a regular expression."""
    problem = "it is not a string"
    if isinstance(regex, str):
        try:
            re.compile(regex)
            return
        except re.error as error:
            problem = str(error)
    raise ValueError(
        f"`{name}` must hold regular expressions: {problem}. Received: {shown(regex)}. To search "
        "for a name with special characters, pass `re.escape(name)`."
    )


def check_installed(module: str, package: str, extra: str) -> None:
    """Raise if a package of an optional extra is missing, without importing it.

    Raises:
        ImportError: naming the command that installs it.
    """
    if importlib.util.find_spec(module) is None:
        raise ImportError(
            f"{package} is needed for this and is not installed. "
            f'Install it with: pip install "keras-pruner[{extra}]"'
        )


def need(module: str, extra: str) -> ModuleType:
    """Import a module of an optional extra of this package.

    Raises:
        ImportError: naming the command that installs it.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.split(".")[0]
        raise ImportError(
            f"{package} is needed for this and cannot be imported ({error}). "
            f'Install it with: pip install "keras-pruner[{extra}]"'
        ) from error
