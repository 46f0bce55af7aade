"""Run `.tflite` files natively; as a program, time two of them in turns."""

import math
import os
import time
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from keras_pruner.litert.child_process import answer, read_job
from keras_pruner.validation import need


def load(
    path: str | os.PathLike[str],
    threads: int = 1,
    batch_size: int | None = None,
    *,
    keep_tensors: bool = False,
) -> Any:
    """Load a file into an interpreter that is ready to run.

    With `keep_tensors`, every tensor can be read after a run.

    Raises:
        ValueError: if LiteRT cannot run the file, or not at this batch size.
        ImportError: without the extra "litert".
    """
    litert = need("ai_edge_litert.interpreter", "litert")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            runner = litert.Interpreter(
                model_content=Path(path).read_bytes(),
                num_threads=threads,
                experimental_preserve_all_tensors=keep_tensors,
            )
        if batch_size is not None:
            for detail in runner.get_input_details():
                shape = [batch_size, *detail["shape"][1:]]
                runner.resize_tensor_input(detail["index"], shape)
        runner.allocate_tensors()
    except (RuntimeError, ValueError) as error:
        raise ValueError(
            f"LiteRT cannot run {str(path)!r}: {error} If it was made for another runtime, such as "
            "TensorFlow Lite Micro or an Ethos-U, run it there; else export the model again."
        ) from None
    return runner


def run(runner: Any, inputs: dict[str, np.ndarray], names: Iterable[str] = ()) -> list[np.ndarray]:
    """Run a file once; integer interfaces are quantized and dequantized.

    Args:
        runner: an interpreter.
        inputs: name -> array.
        names: names of the outputs in the wanted order; ignored if the file has other names.

    Returns:
        The outputs, in the order of `names` or else in that of the file.
    """
    signature = runner.get_signature_runner()
    takes, gives = signature.get_input_details(), signature.get_output_details()
    given = {name: quantize(array, takes[name]) for name, array in inputs.items()}
    outputs = {name: dequantize(array, gives[name]) for name, array in signature(**given).items()}
    names = list(names)
    order = names if set(names) == set(outputs) else sorted(outputs, key=_place)
    return [outputs[name] for name in order]


def quantize(array: np.ndarray, detail: dict[str, Any]) -> np.ndarray:
    """Values as an integer tensor stores them; other tensors take them as they are."""
    scale, zero = detail["quantization"]
    if not scale:
        return array
    limits = np.iinfo(detail["dtype"])
    return np.clip(np.round(array / scale) + zero, limits.min, limits.max).astype(detail["dtype"])


def dequantize(array: np.ndarray, detail: dict[str, Any]) -> np.ndarray:
    """The values that an integer tensor stands for; other tensors hold them as they are."""
    scale, zero = detail["quantization"]
    return (array.astype(np.float32) - zero) * np.float32(scale) if scale else array


def _place(name: str) -> tuple[int, str]:
    digits = "".join(c for c in name if c.isdigit())
    return int(digits) if digits else 0, name


def random_inputs(runner: Any) -> list[np.ndarray]:
    """Random inputs for a file: normal for floats, 0 or 1 for integers."""
    rng = np.random.default_rng(0)
    return [random_input(rng, d["shape"], np.dtype(d["dtype"])) for d in runner.get_input_details()]


def random_input(
    rng: np.random.Generator, shape: Any, dtype: np.dtype, limit: int | None = None
) -> np.ndarray:
    """A random array: normal for floats, 0 or 1 for integers, or integers below `limit`."""
    if dtype.kind == "f" and limit is None:
        return rng.normal(size=tuple(shape)).astype(dtype)
    return rng.integers(0, limit or 2, tuple(shape)).astype(dtype)


def largest_difference(one: ArrayLike, other: ArrayLike) -> float:
    """The largest difference of two outputs, in units of the first's largest value.

    Infinite if either holds NaN.
    """
    first, second = np.asarray(one, np.float64), np.asarray(other, np.float64)
    difference = np.abs(first - second).max(initial=0) / max(np.abs(first).max(initial=0), 1e-6)
    return math.inf if np.isnan(difference) else float(difference)


def time_pair(job: dict[str, Any]) -> dict[str, Any]:
    """Run two files in turns.

    Args:
        job: "files" (two), "threads", "batch_size", "seconds".

    Returns:
        "seconds" of an inference in each round, and "outputs", both for each file.
    """
    runners = [load(path, job["threads"], job["batch_size"]) for path in job["files"]]
    for runner in runners:
        details = runner.get_input_details()
        for detail, array in zip(details, random_inputs(runner), strict=True):
            runner.set_tensor(detail["index"], array)
        runner.invoke()
    clock = time.process_time if job["threads"] == 1 else time.perf_counter
    repeats = [max(1, round(0.02 / _seconds_of(clock, runner, 2))) for runner in runners]
    rounds: list[list[float]] = [[], []]
    end = time.perf_counter() + job["seconds"]
    while time.perf_counter() < end or len(rounds[0]) < 5:
        for runner, times, count in zip(runners, rounds, repeats, strict=True):
            times.append(_seconds_of(clock, runner, count))
    return {"seconds": rounds, "outputs": [_first_outputs(runner) for runner in runners]}


def _first_outputs(runner: Any) -> list[list[float]]:
    """The first 4,096 values of each output."""
    outputs = (runner.get_tensor(detail["index"]) for detail in runner.get_output_details())
    return [output.ravel()[:4096].tolist() for output in outputs]


def _seconds_of(clock: Any, runner: Any, count: int) -> float:
    """Mean seconds of one run, over `count` runs."""
    start = clock()
    for _ in range(count):
        runner.invoke()
    return max(1e-9, (clock() - start) / count)


if __name__ == "__main__":
    answer(time_pair(read_job()))
