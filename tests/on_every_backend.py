"""Run pytest once for each backend.

Tests that need no backend run on the first one only. Those marked `one_backend` count as slow on
all but the first, unless they are marked `tensorflow` and so run nowhere else.

    python tests/on_every_backend.py tensorflow jax torch -- [pytest arguments]

A process can hold one backend of Keras, so each gets a process of its own, one after another.
Ends with the line of the whole: the sums of what pytest counted.
"""

import os
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from datetime import timedelta
from importlib import metadata

# A test runs a compiled step a few times: compiling it takes longer than running it.
QUICKLY = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"

# What is left out of `make test` on all backends but the first.
OFTEN = "(slow or (one_backend and not tensorflow))"


def run(backend: str, arguments: list[str], cache: str) -> tuple[int, Counter[str]]:
    """Run pytest on one backend; give back its exit code and what it counted.

    `cache` is a directory where JAX keeps compiled steps: many tests compile the same one. Not
    for old releases: JAX 0.5 corrupts its memory when it runs a step out of its cache on a CPU
    (seen with Keras alone: fit, save, load, fit).
    """
    workers = ["-n", str(min(4, os.cpu_count() or 1)), "--dist", "worksteal"]
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *workers, *arguments]
    print(f"\n--- {backend}: {' '.join(command[1:])}", flush=True)
    # One thread a worker: more of both only wait for each other.
    environment = {"OMP_NUM_THREADS": "1", "XLA_FLAGS": QUICKLY, **os.environ}
    environment["KERAS_BACKEND"] = backend
    if backend == "jax" and not metadata.version("jax").startswith("0.5."):
        environment |= {
            "JAX_COMPILATION_CACHE_DIR": cache,
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        }
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, text=True, stdin=subprocess.DEVNULL
    )
    last = ""
    for line in process.stdout or ():
        print(line, end="", flush=True)
        last = line if line.strip() else last
    counts = {word: int(n) for n, word in re.findall(r"(\d+) ([a-z]+)", last.split(" in ")[0])}
    return process.wait(), Counter(counts)


def main() -> int:
    """Run all; the exit code is that of the worst."""
    split = sys.argv.index("--")
    backends, arguments = sys.argv[1:split], sys.argv[split + 1 :]
    where = arguments.index("-m") + 1 if "-m" in arguments else None
    total: Counter[str] = Counter()
    worst, start = 0, time.monotonic()
    for i, backend in enumerate(backends):
        mine = list(arguments)
        if i and where is not None:
            asked = arguments[where].replace("slow", OFTEN)
            mine[where] = f"({asked}) and not backend_free"
        with tempfile.TemporaryDirectory() as cache:
            code, counts = run(backend, mine, cache)
        worst = max(worst, 0 if code == 5 else code)  # 5: nothing was selected
        total += counts
    seconds = time.monotonic() - start
    summary = ", ".join(f"{total[word]} {word}" for word in sorted(total))
    print(f"\nTogether, on {', '.join(backends)}:")
    print(f" {summary} in {seconds:.2f}s ({timedelta(seconds=int(seconds))}) ".center(80, "="))
    return worst


if __name__ == "__main__":
    sys.exit(main())
