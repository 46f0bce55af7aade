"""Run a module of this package in a process of its own; a job goes in and a result comes out."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn

IN_UTF_8 = {"PYTHONIOENCODING": "utf-8"}
"""Environment in which a Python process prints UTF-8, whatever PYTHONIOENCODING is here."""

READABLE: dict[str, Any] = {"encoding": "utf-8", "errors": "replace"}
"""Options to read what a process prints; libraries may print bytes that are not UTF-8."""


def run_module(
    module: str,
    job: Any,
    environment: Mapping[str, str] | None = None,
    announce: Callable[[str], None] | None = None,
) -> Any:
    """Run a module that reads a job as JSON and prints its result as JSON.

    Args:
        module: full name of the module, which calls `read_job` and `answer` as a program.
        job: data for JSON.
        environment: variables to set for the process, beside those of this one.
        announce: called with the name of each step that the module passes to `tell`.

    Raises:
        RuntimeError: if the process fails or crashes. It tells the error that the module passed to
            `fail`, or else the end of the error output.
    """
    return _run(["-m", module], module, job, environment or {}, announce)


def run_program(path: Path, job: Any) -> Any:
    """Run a Python file as `run_module` runs a module; this package is not imported for it."""
    return _run(["-P", str(path)], path.stem, job, {}, None)


def _run(
    command: list[str],
    name: str,
    job: Any,
    environment: Mapping[str, str],
    announce: Callable[[str], None] | None,
) -> Any:
    search_path = os.pathsep.join(path for path in sys.path if path)
    with tempfile.TemporaryFile("w+", **READABLE) as errors:
        child = subprocess.Popen(
            [sys.executable, "-W", "ignore", *command],
            env=os.environ | IN_UTF_8 | {"PYTHONPATH": search_path} | dict(environment),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            **READABLE,
        )
        with child:
            assert child.stdin is not None
            assert child.stdout is not None
            try:
                child.stdin.write(json.dumps(job))
                child.stdin.close()
            except BrokenPipeError:
                pass  # it failed before it read the job; its error output tells why
            messages = list(_messages(child.stdout, announce))
        results = [message["result"] for message in messages if "result" in message]
        if child.returncode == 0 and results:
            return results[-1]
        errors.seek(0)
        failures = [message["failure"] for message in messages if "failure" in message]
        output = "".join(failures) or errors.read().strip()[-2000:] or "it printed nothing"
    crash = f" (killed by signal {-child.returncode})" if child.returncode < 0 else ""
    raise RuntimeError(f"{name} failed in a process of its own{crash}: {output}")


def _messages(
    lines: Iterable[str], announce: Callable[[str], None] | None
) -> Iterator[dict[str, Any]]:
    """What the module passes on; steps are announced as they come."""
    for line in lines:
        try:
            message = json.loads(line)
        except ValueError:
            continue  # printed by a library
        if not isinstance(message, dict):
            continue
        if "step" in message and announce is not None:
            announce(message["step"])
        yield message


def read_job() -> Any:
    """The job that `run_module` passes, for the module that runs as a program."""
    return json.load(sys.stdin)


def tell(step: str) -> None:
    """Report the current step, for the module that runs as a program."""
    _pass_on({"step": step})


def answer(result: Any) -> None:
    """Print the result of a job, for the module that runs as a program."""
    _pass_on({"result": result})


def fail(error: Exception) -> NoReturn:
    """End the module that runs as a program, with the whole text of an error."""
    _pass_on({"failure": f"{type(error).__name__}: {error}"})
    sys.exit(1)


def _pass_on(message: dict[str, Any]) -> None:
    print("\n" + json.dumps(message), file=sys.__stdout__, flush=True)
