"""How the C library hands out memory while a network runs on the CPU."""

from __future__ import annotations

import ctypes
import platform

# Parameters of glibc's mallopt (malloc.h).
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4
_LARGEST = 2**31 - 1


def keep_freed_memory() -> bool:
    """Have freed memory kept for the next step instead of being returned to the system.

    Each step, and each layer, asks for the same large blocks as the one before. glibc takes every one from the system
    and gives it back, and the system clears it page by page: up to two thirds of the time where feature maps are large
    (``benchmarks/allocator.py``). The command line and :func:`tnet.training.run.train` (on the CPU) ask for this; call
    it once, before anything else, in a program of your own. It holds for the rest of the process, whose peak memory
    rises by about a fifth where activations take most of it.

    Returns:
        Whether anything was changed: only where the C library is glibc.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # an allocator of another make was loaded in its place
        return False
    return bool(mallopt(_MMAP_MAX, 0)) and bool(mallopt(_TRIM_THRESHOLD, _LARGEST))
