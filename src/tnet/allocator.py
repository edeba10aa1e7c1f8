"""Memory allocation of the C library while a network runs on the CPU."""

from __future__ import annotations

import ctypes
import platform

# Parameters of glibc's mallopt (malloc.h).
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4
_LARGEST = 2**31 - 1


def keep_freed_memory() -> bool:
    """Keep freed memory in the process instead of returning it to the system.

    Each step and layer allocates the same large blocks again. glibc maps and unmaps each, and the system clears it page
    by page: up to two thirds of the time for large feature maps (``benchmarks/allocator.py``). The command line and
    :func:`tnet.training.run.train` (on the CPU) call this; call it first in a program of your own. It lasts for the
    process, whose peak memory grows by about a fifth if activations dominate it.

    Returns:
        Whether anything was changed: only with glibc.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another allocator was preloaded
        return False
    return bool(mallopt(_MMAP_MAX, 0)) and bool(mallopt(_TRIM_THRESHOLD, _LARGEST))
