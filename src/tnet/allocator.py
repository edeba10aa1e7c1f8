"""Settings of the C library's memory allocator for networks on the CPU."""

from __future__ import annotations

import ctypes
import platform

# Parameters of glibc's mallopt (malloc.h).
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4
_LARGEST = 2**31 - 1


def keep_freed_memory() -> bool:
    """Keep freed memory for the next step instead of returning it to the system; return whether glibc agreed.

    Each step and each layer allocates the same large blocks as the one before. By default glibc maps and unmaps each of
    them, and the system clears it page by page: up to two thirds of the time for large feature maps
    (``benchmarks/allocator.py``). The command line and :func:`tnet.training.run.train` (on the CPU) call this; in a
    program of your own call it once, first. It holds for the rest of the process and raises its peak memory by about a
    fifth if activations dominate.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another allocator is preloaded
        return False
    return bool(mallopt(_MMAP_MAX, 0)) and bool(mallopt(_TRIM_THRESHOLD, _LARGEST))
