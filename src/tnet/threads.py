"""Threads of PyTorch on the CPU, chosen before it is imported."""

from __future__ import annotations

import math
import os
from collections.abc import MutableMapping
from pathlib import Path

# How GNU's and Intel's OpenMP wait for the next task: asleep. Threads that spin instead take the cores from other
# processes, and on a busy machine from each other (benchmarks/threads.py).
_PASSIVE = {"OMP_WAIT_POLICY": "passive", "KMP_BLOCKTIME": "0", "GOMP_SPINCOUNT": "0"}


def choose_threads(environment: MutableMapping[str, str] = os.environ) -> None:
    """Set how many threads there are and how they wait, for libraries that are not yet loaded; the user's values stay.

    The number does not depend on the workers that read images, which have one thread each, so that results do not.
    """
    # Unless the user chose one of them.
    if not _PASSIVE.keys() & environment.keys():
        environment.update(_PASSIVE)
    limit = cpu_limit()
    if limit is not None and math.ceil(limit) < usable_cpus():
        environment.setdefault("OMP_NUM_THREADS", str(max(1, math.ceil(limit))))


def usable_cpus() -> int:
    """Return the number of CPUs this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cpu_limit(root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> float | None:
    """Return the CPUs that the control groups of this process (Linux, containers) grant it; ``None`` for no limit."""
    try:
        groups = [line.split(":", 2) for line in own.read_text(encoding="utf-8").splitlines()]
    except OSError:
        return None
    limits = []
    for _, controllers, name in groups:
        if controllers and "cpu" not in controllers.split(","):
            continue
        top = root if not controllers else root / controllers if (root / controllers).is_dir() else root / "cpu"
        # In a container the group may be mounted as the root.
        for folder in (top, *(top / part for part in _parents(name))):
            limits += _quota(folder)
    return min(limits, default=None)


def _parents(name: str) -> list[str]:
    parts = [part for part in name.split("/") if part not in ("", "..")]
    return ["/".join(parts[: count + 1]) for count in range(len(parts))]


def _quota(folder: Path) -> list[float]:
    """Return the limit of one group, if it has one."""
    try:
        if (folder / "cpu.max").is_file():
            quota, period = (folder / "cpu.max").read_text(encoding="utf-8").split()
        else:
            files = (folder / f"cpu.cfs_{name}_us" for name in ("quota", "period"))
            quota, period = (file.read_text(encoding="utf-8") for file in files)
        return [int(quota) / int(period)] if quota.strip() != "max" and int(quota) > 0 else []
    except (OSError, ValueError):
        return []
