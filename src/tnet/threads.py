"""Threads of PyTorch on the CPU, chosen before it is imported."""

from __future__ import annotations

import math
import os
from collections.abc import MutableMapping
from pathlib import Path, PurePosixPath

# Waiting threads of GNU's OpenMP spin a little before they sleep, those of Intel's sleep. Threads that spin for long
# take the cores from other processes, and on a busy machine from each other; sleeping at once takes more than half of
# the speed of small batches on a quiet one (benchmarks/threads.py).
_WAITING = {"OMP_WAIT_POLICY": "passive", "KMP_BLOCKTIME": "0", "GOMP_SPINCOUNT": "2000"}


def choose_threads(environment: MutableMapping[str, str] = os.environ) -> None:
    """Choose the number of threads and how they wait; what the user has set stays.

    The number does not depend on the workers that read images, which have one thread each: results would depend on it.
    """
    if not _WAITING.keys() & environment.keys():
        environment.update(_WAITING)
    limit = cpu_limit()
    if limit is not None and math.ceil(limit) < usable_cpus():
        environment.setdefault("OMP_NUM_THREADS", str(math.ceil(limit)))


def reasons(environment: MutableMapping[str, str] = os.environ) -> str:
    """Say what the threads were chosen from."""
    limit = cpu_limit()
    shown = [f"{name}={environment[name]}" for name in ("OMP_NUM_THREADS", *_WAITING) if name in environment]
    limited = "no cgroup limit" if limit is None else f"cgroup limit of {limit:g} CPUs"
    return ", ".join([f"{usable_cpus()} usable CPUs", limited, *shown])


def usable_cpus() -> int:
    """Return the number of CPUs that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cpu_limit(root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> float | None:
    """Return the CPUs that control groups (Linux, containers) grant this process; ``None`` for no limit."""
    limits = []
    for line in own.read_text(encoding="utf-8").splitlines() if own.is_file() else ():
        _, controllers, name = line.split(":", 2)
        if not controllers or "cpu" in controllers.split(","):
            top = root / "cpu" if controllers else root
            # Also the root: in a container it is the process's own group.
            groups = [PurePosixPath(name), *PurePosixPath(name).parents]
            limits += [quota for group in groups if (quota := _quota(top / str(group).lstrip("/")))]
    return min(limits, default=None)


def _quota(group: Path) -> float | None:
    names = ["cpu.max"] if (group / "cpu.max").is_file() else ["cpu.cfs_quota_us", "cpu.cfs_period_us"]
    try:
        quota, period = (int(word) for name in names for word in (group / name).read_text(encoding="utf-8").split())
    except (OSError, ValueError):  # no such group; "max"
        return None
    return quota / period if quota > 0 else None
