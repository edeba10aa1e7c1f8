"""Processes that read images."""

from __future__ import annotations

import signal
from multiprocessing.reduction import ForkingPickler
from typing import Any

import numpy as np
import torch
from torch.multiprocessing.reductions import reduce_storage
from torch.utils.data import DataLoader


def image_loader(data: Any, batch_size: int | None, workers: int, **options: Any) -> DataLoader[Any]:
    """Return a loader whose workers need neither shared memory nor handle signals."""
    return DataLoader(data, batch_size, num_workers=workers, worker_init_fn=_start, **options)


def _start(_: int) -> None:
    for number in (signal.SIGINT, signal.SIGHUP):  # also sent to the process that owns the loader, which ends us
        signal.signal(number, signal.SIG_IGN)
    ForkingPickler.register(torch.UntypedStorage, _reduce)


def _reduce(storage: torch.UntypedStorage) -> tuple[Any, ...]:
    """Share a storage, or send it through the pipe if shared memory (64 MB in a container) or open files run out."""
    # An error while pickling would be printed, and the owner would wait for the batch for ever.
    try:
        return reduce_storage(storage)
    except (RuntimeError, OSError):
        return _rebuild, (torch.empty(0, dtype=torch.uint8).set_(storage).numpy(),)


def _rebuild(values: np.ndarray) -> torch.UntypedStorage:
    return torch.from_numpy(values).untyped_storage()
