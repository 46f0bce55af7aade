"""Imports Keras before anything else does, to explain the error where its backend is missing."""

import importlib.util

_BACKENDS = ("tensorflow", "jax", "torch")


def explain(error: Exception) -> str:
    """The message for an error at `import keras`; empty if it is not about a missing backend."""
    missing = getattr(error, "name", None) or ""
    if missing.partition(".")[0] not in _BACKENDS and "backend" not in str(error):
        return ""
    installed = [name for name in _BACKENDS if importlib.util.find_spec(name)]
    if not installed:
        return (
            'Keras needs a backend, and none is installed. Install one: pip install "keras-pruner'
            '[jax]" (or [tensorflow], or [torch]).'
        )
    return (
        f"Keras could not import its backend ({error}). Choose one that is installed "
        f"({', '.join(installed)}) before Keras is imported: set the environment variable "
        f"KERAS_BACKEND={installed[0]}, or begin your script with "
        f'`import os; os.environ["KERAS_BACKEND"] = "{installed[0]}"`.'
    )


try:
    import keras  # noqa: F401 - the import is the purpose
except (ImportError, ValueError) as error:
    if message := explain(error):
        raise ImportError(message) from error
    raise
