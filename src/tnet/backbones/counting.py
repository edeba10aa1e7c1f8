"""Counting multiply-adds, and finding shapes, without computing what does not matter for them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

_SKIPPED = {
    F.batch_norm, F.gelu, F.hardsigmoid, F.hardswish, F.hardtanh, F.leaky_relu, F.mish, F.relu, F.relu6, F.silu,
}  # fmt: skip


class SkipElementwise(TorchFunctionMode):
    """Leaves out batch norm and activations, which change no shape and count as no multiply-add.

    On the meta device, and under PyTorch's counter on any, they run in Python and take longer than all else.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in _SKIPPED:
            return args[0] if args else kwargs["input"]
        return func(*args, **kwargs)


@contextmanager
def counting() -> Iterator[FlopCounterMode]:
    """Count floating-point operations, two per multiply-add, of what runs inside, whose outputs mean nothing."""
    with torch.no_grad(), SkipElementwise(), FlopCounterMode(display=False) as counter:
        yield counter
