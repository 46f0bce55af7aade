"""The console script `keras-pruner`: chooses an installed backend, then runs the command line.

It is outside the package, because importing the package imports Keras, which then imports its
backend: TensorFlow, installed or not, unless KERAS_BACKEND names another.
"""

import importlib.util
import json
import os
import sys
from pathlib import Path

BACKENDS = ("tensorflow", "jax", "torch")


def main() -> int:
    """Run the command line; returns its exit code."""
    for stream in (sys.stdout, sys.stderr):  # a name that the terminal cannot show must not raise
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    try:
        note = choose_backend()
    except ImportError as error:
        print(f"keras-pruner: {error}", file=sys.stderr)
        return 1
    if note:
        print(f"keras-pruner: {note}", file=sys.stderr)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # TensorFlow logs a lot when imported
    from keras_pruner.cli import commands

    return commands.main()


def choose_backend() -> str:
    """Set KERAS_BACKEND to an installed backend if Keras would choose one that is not installed.

    Returns:
        A note on the choice; empty if KERAS_BACKEND was not changed.

    Raises:
        ImportError: if no backend is installed, or the one in KERAS_BACKEND is not.
    """
    asked = os.environ.get("KERAS_BACKEND", "")
    wanted = asked or _configured()
    if _is_installed(wanted):
        return ""
    installed = [name for name in BACKENDS if _is_installed(name)]
    if not installed:
        raise ImportError(
            "Keras needs a backend, and none is installed. Install one: "
            'pip install "keras-pruner[jax]" (or [tensorflow], or [torch]).'
        )
    if asked:
        raise ImportError(
            f"KERAS_BACKEND={asked}, which is not installed. Installed: {', '.join(installed)}."
        )
    os.environ["KERAS_BACKEND"] = installed[0]
    return f"running on {installed[0]}, because {wanted} is not installed"


def _configured() -> str:
    """The backend in Keras' configuration file, or else Keras' default."""
    home = os.environ.get("KERAS_HOME") or Path.home() / ".keras"
    try:
        config = json.loads((Path(home) / "keras.json").read_text(encoding="utf-8"))
        return str(config["backend"])
    except (OSError, ValueError, KeyError, TypeError):
        return BACKENDS[0]


def _is_installed(backend: str) -> bool:
    return importlib.util.find_spec(backend) is not None


if __name__ == "__main__":
    sys.exit(main())
