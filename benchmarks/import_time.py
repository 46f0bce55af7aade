"""What `import keras_pruner` adds to `import keras`: both in one new process, again and again.

    python benchmarks/import_time.py --backend torch

Both have their bytecode, as installed packages do: the first process, which does not count,
compiles it into a directory of this command's own.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile

from interleaved import ratio, show

IMPORTS = """
import time, json
start = time.perf_counter()
import keras
between = time.perf_counter()
import keras_pruner
print(json.dumps([between - start, time.perf_counter() - between]))
"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--backend", nargs="+", default=["tensorflow", "jax", "torch"])
    parser.add_argument("--blocks", type=int, default=10, help="processes")
    parser.add_argument("--json", metavar="PATH")
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as bytecode:
        for backend in options.backend:
            environment = {**os.environ, "KERAS_BACKEND": backend}
            environment |= {"PYTHONPYCACHEPREFIX": bytecode, "PYTHONDONTWRITEBYTECODE": ""}
            pairs = [imports(environment) for _ in range(options.blocks + 1)][1:]
            keras, more = (list(seconds) for seconds in zip(*pairs, strict=True))
            row = {"backend": backend, "keras, milliseconds": 1e3 * statistics.median(keras)}
            rows.append({**row, "of it": "keras_pruner", **ratio(more, keras)})
    show("import", rows, options.json)


def imports(environment: dict[str, str]) -> list[float]:
    """Seconds of the two, in a new process."""
    command = [sys.executable, "-c", IMPORTS]
    told = subprocess.run(command, env=environment, check=True, text=True, capture_output=True)
    return json.loads(told.stdout)


if __name__ == "__main__":
    main()
