"""Workers deliver their tensors where shared memory or open files run out, and leave signals to their owner."""

from __future__ import annotations

import os
import signal

import pytest
import torch
from torch.utils.data import Dataset

from tnet.data import workers
from tnet.data.workers import image_loader


class Tensors(Dataset[tuple[torch.Tensor, torch.Tensor, bool]]):
    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor, bool]:
        values = torch.arange(12, dtype=torch.float64).reshape(3, 4) + index
        for number in (signal.SIGINT, signal.SIGHUP):  # as a terminal sends to all its processes
            os.kill(os.getpid(), number)
        return values.T[1:], torch.tensor([], dtype=torch.uint8), values.is_shared()


@pytest.mark.parametrize("error", [
    None,
    RuntimeError("unable to allocate shared memory(shm) for file </torch_1>: No space left on device (28)"),
    OSError(24, "Too many open files"),
])  # fmt: skip
def test_tensors_come_by_shared_memory_or_through_the_pipe(
    monkeypatch: pytest.MonkeyPatch, error: Exception | None
) -> None:
    if error is not None:

        def fail(storage: torch.UntypedStorage) -> None:
            raise error

        monkeypatch.setattr(workers, "reduce_storage", fail)  # the worker is a fork of this process
    found = list(image_loader(Tensors(), None, 1))
    expected = [[[1 + i, 5 + i, 9 + i], [2 + i, 6 + i, 10 + i], [3 + i, 7 + i, 11 + i]] for i in range(3)]
    assert [values.tolist() for values, _, _ in found] == expected
    assert all(values.is_shared() == (error is None) and empty.shape == (0,) for values, empty, _ in found)
    found[0][0].add_(1)  # writable
