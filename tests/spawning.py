"""Scripts of `tests/distributed` in processes of their own.

How many devices a backend sees is settled when it is imported, so that none of this can be done
in the process of the tests.
"""

import fcntl
import json
import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import keras
import numpy as np
import pytest

SCRIPTS = Path(__file__).parent / "distributed"
TIMEOUT = 900  # seconds; far more than any takes, unless the machine is busy


def start(script, rank=0, processes=1, ports=(), output="results", arguments=(), **variables):
    """Start one process of a script, which writes its results to `{output}.{rank}`."""
    inherited = {k: v for k, v in os.environ.items() if k not in ("XLA_FLAGS", "TF_CONFIG")}
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", str(SCRIPTS / script), str(output), *arguments],
        env={
            **inherited,
            "KERAS_BACKEND": keras.backend.backend(),
            "RANK": str(rank),
            "PROCESSES": str(processes),
            "PORTS": ",".join(map(str, ports)),
            **variables,
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def results(script, processes=1, **options):
    """Run a script, in several processes that find each other; give back what each wrote."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "results"
        ports = free_ports(processes)
        running = [
            start(script, rank, processes, ports, output, **options) for rank in range(processes)
        ]
        try:
            said = [process.communicate(timeout=TIMEOUT)[0] for process in running]
        finally:
            for process in running:
                process.kill()
        for process, words in zip(running, said, strict=True):
            assert process.returncode == 0, f"{script} failed:\n{words[-5000:]}"
        return [json.loads(Path(f"{output}.{rank}").read_text()) for rank in range(processes)]


def once(tmp_path_factory, script, processes=1, **options):
    """As `results`, run by the first worker of pytest that asks; the others wait and read."""
    folder = tmp_path_factory.getbasetemp()
    folder = folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder
    file = folder / f"{script}.{processes}.json"
    with file.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not file.exists():
            file.write_text(json.dumps(results(script, processes, **options)))
        return json.loads(file.read_text())


def fixture(script, processes=1):
    """A fixture of a module: what `once` gives; of one process, without the list around it."""

    @pytest.fixture(scope="module")
    def found(tmp_path_factory):
        each = once(tmp_path_factory, script, processes)
        return each if processes > 1 else each[0]

    return found


def only_on(backend, reason):
    """A mark that skips the module on the other backends."""
    return pytest.mark.skipif(keras.backend.backend() != backend, reason=reason)


def free_ports(count):
    """Ports that nothing listens on at this moment."""
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def assert_close(weights, others):
    """Two lists of weights are the same within the rounding of sums in another order."""
    for mine, theirs in zip(weights, others, strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-4, atol=1e-5)


def zeros_of(weights):
    """Where the kernels among them are zero, and the fraction of zeros."""
    kernels = [np.array(w) for w in weights if np.ndim(w) == 2]
    where = [kernel == 0 for kernel in kernels]
    return [w.tolist() for w in where], sum(map(np.sum, where)) / sum(w.size for w in where)
