"""Run a module of this package in a process of its own; a job goes in and a result comes out."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from typing import Any


def run_module(module: str, job: Any, environment: Mapping[str, str] | None = None) -> Any:
    """Run a module that reads a job as JSON and prints its result as JSON on the last line.

    Args:
        module: full name of the module, which calls `answer` when it runs as a program.
        job: data for JSON.
        environment: variables to set for the process, beside those of this one.

    Raises:
        RuntimeError: with the end of the error output, if the process fails or crashes.
    """
    search_path = os.pathsep.join(path for path in sys.path if path)
    child = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", module],
        input=json.dumps(job),
        env=os.environ | {"PYTHONPATH": search_path} | dict(environment or {}),
        capture_output=True,
        text=True,
        check=False,
    )
    try:
        if child.returncode:
            raise ValueError
        return json.loads(child.stdout.splitlines()[-1])
    except (ValueError, IndexError):
        crash = f" (killed by signal {-child.returncode})" if child.returncode < 0 else ""
        output = child.stderr.strip()[-2000:] or "it printed nothing"
        raise RuntimeError(f"{module} failed in a process of its own{crash}: {output}") from None


def read_job() -> Any:
    """The job that `run_module` passes, for the module that runs as a program."""
    return json.load(sys.stdin)


def answer(result: Any) -> None:
    """Print the result of a job, for the module that runs as a program."""
    print(json.dumps(result), flush=True)
