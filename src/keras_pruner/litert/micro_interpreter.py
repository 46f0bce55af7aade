"""Run `.tflite` files in the interpreter of TensorFlow Lite Micro, as a program.

It imports nothing of this package, so that it starts in a moment; a crash of the interpreter ends
only this process.
"""

import json
import os
import re
import sys
import tempfile
import time

import numpy as np
from tflite_micro import runtime

_ARENA = 1 << 28  # bytes to try with; only what a file needs is reported
_TIMED = 0.5  # seconds to repeat runs for, if files are compared


def main() -> None:
    """Run the files that the job names on the same inputs, in turns.

    The job has "files", "inputs" (an .npz with one array for each input, samples first), and
    "outputs" (an .npz to write, with the bytes of every output of each file). The result has for
    each file the bytes of "arena" that it takes and the median "seconds" of a run.
    """
    job = json.load(sys.stdin)
    with np.load(job["inputs"]) as file:
        inputs = [file[name] for name in file.files]
    runners = [_load(path) for path in job["files"]]
    outputs: list[list[bytes]] = [[] for _ in runners]
    seconds: list[list[float]] = [[] for _ in runners]
    for sample in zip(*inputs, strict=True):
        for i, runner in enumerate(runners):
            for index, array in enumerate(sample):
                runner.set_input(array, index)
            seconds[i].append(_seconds(runner))
            outputs[i].append(b"".join(_outputs(runner, job["count"])))
    end = time.perf_counter() + _TIMED
    while len(runners) > 1 and time.perf_counter() < end:
        for i, runner in enumerate(runners):
            seconds[i].append(_seconds(runner))
    found = [np.frombuffer(b"".join(each), np.uint8) for each in outputs]
    np.savez(job["outputs"], *found)
    arenas = [_arena(runner) for runner in runners]
    medians = [float(np.median(each)) for each in seconds]
    print("\n" + json.dumps({"result": {"arena": arenas, "seconds": medians}}), flush=True)


def _seconds(runner: runtime.Interpreter) -> float:
    start = time.thread_time()
    runner.invoke()
    return time.thread_time() - start


def _load(path: str) -> runtime.Interpreter:
    with open(path, "rb") as file:
        return runtime.Interpreter.from_bytes(file.read(), arena_size=_ARENA)


def _outputs(runner: runtime.Interpreter, count: int) -> list[bytes]:
    return [np.ascontiguousarray(runner.get_output(i)).tobytes() for i in range(count)]


def _arena(runner: runtime.Interpreter) -> int:
    """The bytes that the interpreter has allocated, which it can only print."""
    shown = os.dup(2)
    with tempfile.TemporaryFile() as printed:
        os.dup2(printed.fileno(), 2)
        try:
            runner.print_allocations()
        finally:
            os.dup2(shown, 2)
            os.close(shown)
        printed.seek(0)
        text = printed.read().decode("utf-8", "replace")
    total = re.search(r"Arena allocation total (\d+) bytes", text)
    if total is None:
        raise RuntimeError(f"the interpreter printed no allocations: {text[-500:]}")
    return int(total.group(1))


if __name__ == "__main__":
    main()
