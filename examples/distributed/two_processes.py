"""Start a script again as two processes on this machine that know of each other.

In earnest a launcher does this: torchrun, Slurm, Kubernetes, one process on each machine.
"""

import os
import socket
import subprocess
import sys


def start_or_be_one() -> tuple[int, list[int]]:
    """This process' rank, and a free port for each; started by nobody, it starts both and ends."""
    if "RANK" in os.environ:
        return int(os.environ["RANK"]), [int(port) for port in os.environ["PORTS"].split(",")]
    sockets = [socket.socket() for _ in range(2)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = ",".join(str(each.getsockname()[1]) for each in sockets)
    for each in sockets:
        each.close()
    running = [
        subprocess.Popen(
            [sys.executable, *sys.argv], env={**os.environ, "RANK": str(rank), "PORTS": ports}
        )
        for rank in range(2)
    ]
    sys.exit(max(process.wait() for process in running))
