"""Optional packages: imported when needed, named with their pip command when missing."""

import importlib
from types import ModuleType


def need(module: str, extra: str) -> ModuleType:
    """Import a module of an extra.

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
