"""Convert a Keras model to a dense `.tflite` file with TensorFlow's converter.

For the other backends it runs as a program, in a process whose Keras backend is TensorFlow.
"""

import contextlib
import importlib
import sys
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras

from keras_pruner.litert.child_process import answer, read_job, run_module
from keras_pruner.validation import need

Signature = list[keras.InputSpec]


def convert(model: keras.Model, path: Path, signature: Signature, weights: str) -> None:
    """Write a model as a dense `.tflite` file, in a child process unless TensorFlow runs here.

    Args:
        model: a built model.
        path: of the file.
        signature: shape and type of each input.
        weights: "float32", "float16" or "int8" (dynamic range: kernels only).

    Raises:
        RuntimeError: with the message of the converter, if it fails.
        ImportError: without TensorFlow.
    """
    if keras.backend.backend() == "tensorflow":
        try:
            _export(model, path, signature, weights)
        except Exception as error:
            raise RuntimeError(_explain(str(error))) from error
        return
    with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
        saved = Path(scratch, "model.keras")
        model.save(saved)
        job = {
            "model": str(saved),
            "output": str(path),
            "signature": [[list(spec.shape), spec.dtype, spec.name] for spec in signature],
            "weights": weights,
            "modules": _modules_of(model),
        }
        try:
            run_module(__name__, job, {"KERAS_BACKEND": "tensorflow", "TF_CPP_MIN_LOG_LEVEL": "3"})
        except RuntimeError as error:
            raise RuntimeError(_explain(str(error))) from None


def _export(model: keras.Model, path: Path, signature: Signature, weights: str) -> None:
    tf = need("tensorflow", "tensorflow")
    options: dict[str, Any] = {"target_spec": {"supported_ops": [tf.lite.OpsSet.TFLITE_BUILTINS]}}
    if weights != "float32":
        options["optimizations"] = [tf.lite.Optimize.DEFAULT]
    if weights == "float16":
        options["target_spec"]["supported_types"] = [tf.float16]
    with warnings.catch_warnings(), contextlib.redirect_stdout(sys.stderr):
        warnings.simplefilter("ignore")
        model.export(
            path,
            format="litert",
            input_signature=[as_inputs(model, signature)],
            verbose=False,
            **options,
        )


def as_inputs(model: keras.Model, flat: Sequence[Any]) -> Any:
    """Pack one entry for each input into the structure that the model takes: one, list, dict."""
    structure = getattr(model, "_inputs_struct", None)  # of functional models
    if structure is None or len(keras.tree.flatten(structure)) != len(flat):
        return flat[0] if len(flat) == 1 else list(flat)
    return keras.tree.pack_sequence_as(structure, list(flat))


def _modules_of(model: keras.Model) -> list[str]:
    """The modules to import in another process, so that the model can be loaded there.

    They define the model's own layers, or register other objects.
    """
    layers = map(type, model._flatten_layers())
    registered = keras.saving.get_custom_objects().values()
    modules = {getattr(known, "__module__", None) or "" for known in (*layers, *registered)}
    return sorted(m for m in modules if m.split(".")[0] not in ("", "keras", "__main__"))


def _explain(said: str) -> str:
    """The converter's message, with the remedy where there is one."""
    hint = ""
    if "No module named 'tensorflow'" in said:
        hint = ' Install it with: pip install "keras-pruner[tensorflow]".'
    elif "Could not locate" in said or "Unknown layer" in said:
        hint = (
            " The conversion runs in another process, which cannot import what is defined in a "
            "script or a notebook: register classes and functions with "
            "keras.saving.register_keras_serializable and move them to a module, or run with "
            "KERAS_BACKEND=tensorflow."
        )
    elif "neither a custom op nor a flex op" in said or "Flex ops" in said:
        hint = " The model has operators that LiteRT does not."
    return f"The conversion to LiteRT failed.{hint} The converter said:\n{said}"


def main() -> None:
    """Convert the model that the job names."""
    job = read_job()
    for module in job["modules"]:
        try:
            importlib.import_module(module)
        except Exception as error:  # the model may not need it; shown if loading fails
            print(f"{module} cannot be imported: {error!r}", file=sys.stderr)
    # The parent process has just written this file from its own model, so it is safe to load.
    model = keras.saving.load_model(job["model"], compile=False, safe_mode=False)
    signature = [
        keras.InputSpec(shape=shape, dtype=dtype, name=name)
        for shape, dtype, name in job["signature"]
    ]
    _export(model, Path(job["output"]), signature, job["weights"])
    answer(None)


if __name__ == "__main__":
    main()
