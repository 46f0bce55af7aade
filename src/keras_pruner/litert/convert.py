"""Convert a Keras model to a dense `.tflite` file with TensorFlow's converter.

For the other backends it runs as a program, in a process whose Keras backend is TensorFlow.
"""

import contextlib
import dataclasses
import importlib
import re
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_pruner.litert.child_process import answer, fail, read_job, run_module, tell
from keras_pruner.litert.samples import Signature, as_inputs
from keras_pruner.validation import need


@dataclasses.dataclass(frozen=True)
class Types:
    """The types that a file stores and computes in.

    Attributes:
        weights: "float32", "float16" or "int8".
        activations: "float32"; "int8" or "int16" compute in integers only, with int8 weights.
        inputs_outputs: type of the interfaces; that of the activations, or "float32".
    """

    weights: str = "float32"
    activations: str = "float32"
    inputs_outputs: str = "float32"


def convert(
    model: keras.Model,
    path: Path,
    signature: Signature,
    types: Types = Types(),
    batches: list[list[np.ndarray]] | None = None,
    announce: Callable[[str], None] = lambda _: None,
) -> None:
    """Write a model as a dense `.tflite` file, in a child process unless TensorFlow runs here.

    Args:
        model: a built model.
        path: of the file.
        signature: shape and type of each input.
        types: to store and compute in. With int8 weights alone, kernels are quantized and
            activations scaled while the file runs.
        batches: for integer activations, the inputs that find their ranges.
        announce: called with the name of each step.

    Raises:
        RuntimeError: with the message of the converter, if it fails.
        ImportError: without TensorFlow.
    """
    if keras.backend.backend() == "tensorflow":
        try:
            _export(model, path, signature, types, batches, announce)
        except Exception as error:
            raise RuntimeError(_explain(str(error))) from error
        return
    with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
        saved, samples = Path(scratch, "model.keras"), Path(scratch, "samples.npz")
        model.save(saved)
        arrays = (
            [] if batches is None else [np.stack(arrays) for arrays in zip(*batches, strict=True)]
        )
        np.savez(samples, *arrays)
        job = {
            "model": str(saved),
            "output": str(path),
            "samples": str(samples),
            "signature": [[list(spec.shape), spec.dtype, spec.name] for spec in signature],
            "types": dataclasses.asdict(types),
            "modules": _modules_of(model),
        }
        environment = {"KERAS_BACKEND": "tensorflow", "TF_CPP_MIN_LOG_LEVEL": "3"}
        try:
            run_module(__name__, job, environment, announce)
        except RuntimeError as error:
            raise RuntimeError(_explain(str(error))) from None


def _export(
    model: keras.Model,
    path: Path,
    signature: Signature,
    types: Types,
    batches: list[list[np.ndarray]] | None,
    announce: Callable[[str], None],
) -> None:
    tf = need("tensorflow", "tensorflow")
    options: dict[str, Any] = {"target_spec": {"supported_ops": [tf.lite.OpsSet.TFLITE_BUILTINS]}}
    if types.weights != "float32":
        options["optimizations"] = [tf.lite.Optimize.DEFAULT]
    if types.weights == "float16":
        options["target_spec"]["supported_types"] = [tf.float16]
    if types.activations != "float32":
        operators = {
            "int8": tf.lite.OpsSet.TFLITE_BUILTINS_INT8,
            "int16": tf.lite.OpsSet.EXPERIMENTAL_TFLITE_BUILTINS_ACTIVATIONS_INT16_WEIGHTS_INT8,
        }
        options["target_spec"]["supported_ops"] = [operators[types.activations]]
        options["representative_dataset"] = lambda: _ranges(model, signature, batches, announce)
        interface = getattr(tf, types.inputs_outputs)
        options |= {"inference_input_type": interface, "inference_output_type": interface}
    with warnings.catch_warnings(), contextlib.redirect_stdout(sys.stderr):
        warnings.simplefilter("ignore")
        model.export(
            path,
            format="litert",
            input_signature=[as_inputs(model, signature)],
            verbose=False,
            **options,
        )


def _ranges(
    model: keras.Model,
    signature: Signature,
    batches: list[list[np.ndarray]] | None,
    announce: Callable[[str], None],
) -> Iterator[Any]:
    """The samples that the converter runs to find the range of every tensor."""
    assert batches
    structure = as_inputs(model, signature)
    names = sorted(structure) if isinstance(structure, dict) else [s.name for s in signature]
    for i, batch in enumerate(batches):
        announce(f"calibrating, sample {i + 1} of {len(batches)}")
        yield batch if len(batch) == 1 else dict(zip(names, batch, strict=True))


def _modules_of(model: keras.Model) -> list[str]:
    """The modules to import in another process, so that the model can be loaded there.

    They define the model's own layers, or register other objects.
    """
    layers = map(type, model._flatten_layers())
    registered = keras.saving.get_custom_objects().values()
    modules = {getattr(known, "__module__", None) or "" for known in (*layers, *registered)}
    return sorted(m for m in modules if m.split(".")[0] not in ("", "keras", "__main__"))


def _explain(said: str) -> str:
    """The converter's message, behind the remedy where there is one."""
    if "No module named 'tensorflow'" in said:
        hint = 'Install it with: pip install "keras-pruner[tensorflow]".'
    elif "Could not locate" in said or "Unknown layer" in said:
        hint = (
            "The conversion runs in another process, which cannot import what is defined in a "
            "script or a notebook: register classes and functions with "
            "keras.saving.register_keras_serializable and move them to a module, or run with "
            "KERAS_BACKEND=tensorflow."
        )
    elif missing := _missing_operators(said):
        hint = (
            f"LiteRT has no operator for {missing}. Replace the layer, or leave it out of the "
            "exported model and compute it in the application. Its TensorFlow fallback (select "
            "operators) is not offered here: ai-edge-litert cannot run it, so the file could not "
            "be checked."
        )
    elif "Quantization not yet supported for op" in said:
        operators = ", ".join(sorted(set(re.findall(r"supported for op: '?(\w+)", said))))
        hint = f"These operators have no integer form: {operators}. Replace their layers."
    else:
        hint = ""
    advice = f"{hint} " if hint else ""
    return f"The conversion to LiteRT failed. {advice}The converter said:\n{_without_dump(said)}"


def _without_dump(said: str) -> str:
    """What the converter said, without its listing of the whole model."""
    dump = re.compile(r': note: (loc\(|see current operation)|^\s*(%\d|"func\.|\^bb)|^\}\) ')
    return "\n".join(line for line in said.splitlines() if line and not dump.search(line))


def _missing_operators(said: str) -> str:
    """TensorFlow's operators that LiteRT lacks, each with its layer."""
    if "neither a custom op nor a flex op" not in said and "Flex ops" not in said:
        return ""
    found = {}
    for operator in re.findall(r"'tf\.(\w+)' op is neither", said):
        place = re.search(rf'fused\["{operator}:", "([^"@]*)', said)
        parts = place.group(1).split("/") if place else []
        layer = "/".join(re.sub(r"_\d+$", "", part) for part in parts[1:-1])
        found[operator] = f"{operator} (layer {layer!r})" if layer else operator
    return ", ".join(found.values()) or "one of its operations"


def main() -> None:
    """Convert the model that the job names."""
    job = read_job()
    for module in job["modules"]:
        try:
            importlib.import_module(module)
        except Exception as error:  # the model may not need it; shown if loading fails
            print(f"{module} cannot be imported: {error!r}", file=sys.stderr)
    signature = [
        keras.InputSpec(shape=shape, dtype=dtype, name=name)
        for shape, dtype, name in job["signature"]
    ]
    with np.load(job["samples"]) as file:
        arrays = [file[name] for name in file.files]
    batches = [list(batch) for batch in zip(*arrays, strict=True)]
    types = Types(**job["types"])
    try:
        # The parent process has just written this file from its own model: it is safe to load.
        model = keras.saving.load_model(job["model"], compile=False, safe_mode=False)
        _export(model, Path(job["output"]), signature, types, batches, announce=tell)
    except Exception as error:  # whatever Keras and the converter raise
        fail(error)
    answer("done")


if __name__ == "__main__":
    main()
