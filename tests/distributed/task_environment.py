"""Which process this is, before any backend is imported."""

import os

RANK, PROCESSES = int(os.environ.get("RANK", 0)), int(os.environ.get("PROCESSES", 1))
PORTS = [int(port) for port in os.environ.get("PORTS", "").split(",") if port]
