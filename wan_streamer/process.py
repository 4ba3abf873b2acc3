"""Settings of a process that runs the model on a CPU. Called by the command line and the model's worker process."""

import ctypes
import sys

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4  # of glibc's malloc.h


def tune_process() -> None:
    """Keep freed memory inside the process.

    By default glibc hands every large tensor back to the kernel and asks for zeroed pages again: that was a fifth of
    all CPU time of a training step.
    """
    if sys.platform == "linux":
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # absent in musl
        if mallopt:
            mallopt(M_MMAP_MAX, 0)
            mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
            mallopt(M_TOP_PAD, 64 << 20)
