"""What both sides of a comparison should have alike: memory that is kept for what comes next."""

import os
import sys

KEEP = {"MALLOC_MMAP_THRESHOLD_": "33554432", "MALLOC_TRIM_THRESHOLD_": "100000000000"}


def keep_memory() -> None:
    """Begin this program again with a C library (glibc) that keeps what was freed.

    Else large arrays are given back to the system and asked for anew in every step, and a third
    of a step may be the system handing out pages. Another C library takes no notice.
    """
    if not os.environ.keys() >= KEEP.keys():
        os.execve(sys.executable, sys.orig_argv, {**os.environ, **KEEP})
