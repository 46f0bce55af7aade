"""Make the C library keep freed memory, so that both sides of a comparison pay alike."""

import os
import sys

KEEP = {"MALLOC_MMAP_THRESHOLD_": "33554432", "MALLOC_TRIM_THRESHOLD_": "100000000000"}


def keep_memory() -> None:
    """Restart this program with settings that make glibc keep freed memory.

    Otherwise large arrays are returned to the system and requested again in every step, which
    can take a third of a step. Other C libraries ignore the settings.
    """
    if not os.environ.keys() >= KEEP.keys():
        os.execve(sys.executable, sys.orig_argv, {**os.environ, **KEEP})
