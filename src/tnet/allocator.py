"""Memory allocation of the C library while a network runs on the CPU."""

from __future__ import annotations

import ctypes
import platform

# Parameters of glibc's mallopt (malloc.h).
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4
_LARGEST = 2**31 - 1


def keep_freed_memory() -> bool:
    """Keep freed memory in the process instead of returning it to the system (glibc only); return whether it worked.

    Every step and layer allocates the same large blocks. By default glibc returns them to the system, which must zero
    each page again on the next use; this can take up to two thirds of the time with large feature maps
    (``benchmarks/allocator.py``). `tnet` and :func:`tnet.training.run.train` (on the CPU) call this function. In your
    own program, call it before anything else. It stays in effect until the process ends and raises peak memory by about
    a fifth if activations dominate.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another allocator was preloaded
        return False
    return bool(mallopt(_MMAP_MAX, 0)) and bool(mallopt(_TRIM_THRESHOLD, _LARGEST))
