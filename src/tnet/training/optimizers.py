"""Adam as Keras computes it, which is what the published models were trained with."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch


class KerasAdam(torch.optim.Adam):
    """Adam with epsilon outside the bias correction.

    A step is ``lr * sqrt(1 - b2^t) / (1 - b1^t) * m / (sqrt(v) + eps)``, where PyTorch adds epsilon to the corrected
    ``sqrt(v / (1 - b2^t))``: the same as PyTorch's with an epsilon of ``eps / sqrt(1 - b2^t)``, 32 times as large in
    the first step. Weights with tiny gradients move less in the first thousand steps.

    Args:
        params: parameters or groups.
        lr: learning rate.
        eps: epsilon (Keras: 1e-7).
        weight_decay: must be 0; here for the signature that other optimisers share.
    """

    def __init__(self, params: Any, lr: float = 1e-3, eps: float = 1e-7, weight_decay: float = 0.0) -> None:
        super().__init__(params, lr=lr, eps=eps, weight_decay=weight_decay)

    def step(self, closure: Callable[[], float] | None = None) -> Any:
        """One step of all groups."""
        for group in self.param_groups:
            done = [self.state[p]["step"] for p in group["params"] if self.state.get(p)]
            number = (float(done[0]) if done else 0.0) + 1
            group["eps"] = self.defaults["eps"] / math.sqrt(1 - group["betas"][1] ** number)
        return super().step(closure)
