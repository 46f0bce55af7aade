"""Run pytest once for each backend, and the tests that need none once.

    python tests/on_every_backend.py tensorflow jax torch -- [pytest arguments]

A process can hold one backend of Keras, so each gets a process of its own, one after another.
Ends with the line of the whole: the sums of what pytest counted.
"""

import os
import re
import subprocess
import sys
from collections import Counter


def run(backend: str, arguments: list[str]) -> tuple[int, Counter[str]]:
    """Run pytest on one backend; give back its exit code and what it counted."""
    workers = ["-n", str(min(4, os.cpu_count() or 1)), "--dist", "loadfile"]
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *workers, *arguments]
    print(f"\n--- {backend}: {' '.join(command[1:])}", flush=True)
    # One thread a worker: more of both only wait for each other.
    environment = {"OMP_NUM_THREADS": "1", **os.environ, "KERAS_BACKEND": backend}
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
    worst = 0
    for i, backend in enumerate(backends):
        mine = list(arguments)
        if i and where is not None:  # the first backend runs those that need none
            mine[where] = f"({arguments[where]}) and not backend_free"
        code, counts = run(backend, mine)
        worst = max(worst, 0 if code == 5 else code)  # 5: nothing was selected
        total += counts
    summary = ", ".join(f"{total[word]} {word}" for word in sorted(total))
    print(f"\n=== {summary} on {', '.join(backends)} ===")
    return worst


if __name__ == "__main__":
    sys.exit(main())
