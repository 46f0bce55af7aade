"""Running `.tflite` files natively; as a program, timing two of them in one process."""

import json
import os
import sys
import time
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from keras_pruner.validation import need


def load(path: str | os.PathLike[str], threads: int = 1, batch_size: int | None = None) -> Any:
    """An interpreter that is ready to run.

    Raises:
        ValueError: if the runtime does not take the file, or not at this batch size.
        ImportError: without the extra "litert".
    """
    litert = need("ai_edge_litert.interpreter", "litert")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            runner = litert.Interpreter(model_content=Path(path).read_bytes(), num_threads=threads)
        if batch_size is not None:
            for detail in runner.get_input_details():
                shape = [batch_size, *detail["shape"][1:]]
                runner.resize_tensor_input(detail["index"], shape)
        runner.allocate_tensors()
    except (RuntimeError, ValueError) as error:
        raise ValueError(f"LiteRT cannot run {str(path)!r}: {error}") from None
    return runner


def run(runner: Any, inputs: dict[str, np.ndarray], names: Iterable[str] = ()) -> list[np.ndarray]:
    """The outputs, in the order of the model's, for inputs by name.

    Args:
        runner: an interpreter.
        inputs: name -> array.
        names: of the model's outputs in their order, if it is a dict; they count if the file
            has the same.
    """
    outputs = runner.get_signature_runner()(**inputs)
    names = list(names)
    order = names if set(names) == set(outputs) else sorted(outputs, key=_place)
    return [outputs[name] for name in order]


def _place(name: str) -> tuple[int, str]:
    digits = "".join(c for c in name if c.isdigit())
    return int(digits) if digits else 0, name


def random_inputs(runner: Any) -> list[np.ndarray]:
    """Something to feed: normal for floats, 0 or 1 for integers."""
    rng = np.random.default_rng(0)
    return [random_input(rng, d["shape"], np.dtype(d["dtype"])) for d in runner.get_input_details()]


def random_input(rng: np.random.Generator, shape: Any, dtype: np.dtype) -> np.ndarray:
    """An array of a shape and type; small where the type counts something."""
    if dtype.kind == "f":
        return rng.normal(size=tuple(shape)).astype(dtype)
    return rng.integers(0, 2, tuple(shape)).astype(dtype)


def time_pair(job: dict[str, Any]) -> dict[str, Any]:
    """Run two files alternately; the times of each round and the difference of the outputs.

    Args:
        job: "files" (two), "threads", "batch_size", "seconds".
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
    outputs = [[runner.get_tensor(d["index"]) for d in runner.get_output_details()]
               for runner in runners]  # fmt: skip
    return {"seconds": rounds, "outputs": [[o.ravel()[:4096].tolist() for o in os_]
                                           for os_ in outputs]}  # fmt: skip


def _seconds_of(clock: Any, runner: Any, count: int) -> float:
    """Seconds of one run, the mean of `count`."""
    start = clock()
    for _ in range(count):
        runner.invoke()
    return max(1e-9, (clock() - start) / count)


if __name__ == "__main__":
    json.dump(time_pair(json.load(sys.stdin)), sys.stdout)
