"""Optimizers, parameter groups and learning rate schedules."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from tnet.training.config import OptimConfig


class KerasAdam(torch.optim.Adam):
    """Adam as in Keras, with epsilon outside the bias correction, for the published recipes.

    A step is ``lr * sqrt(1 - b2^t) / (1 - b1^t) * m / (sqrt(v) + eps)``, where PyTorch adds epsilon to the corrected
    ``sqrt(v / (1 - b2^t))``. This is PyTorch's Adam with an epsilon of ``eps / sqrt(1 - b2^t)``, 32 times as large in
    the first step: weights with tiny gradients move less in the first thousand steps.
    """

    def __init__(self, params: Any, lr: float = 1e-3, eps: float = 1e-7, weight_decay: float = 0.0) -> None:
        super().__init__(params, lr=lr, eps=eps, weight_decay=weight_decay)

    def step(self, closure: Callable[[], float] | None = None) -> Any:
        """Take one step in all groups."""
        for group in self.param_groups:
            done = [self.state[p]["step"] for p in group["params"] if self.state.get(p)]
            number = (float(done[0]) if done else 0.0) + 1
            group["eps"] = self.defaults["eps"] / math.sqrt(1 - group["betas"][1] ** number)
        return super().step(closure)


def schedule_factor(config: OptimConfig, progress: float) -> float:
    """Return the factor of the learning rate after a share of the training."""
    if config.warmup and progress < config.warmup:
        return max(progress / config.warmup, 0.01)
    if config.schedule == "step":
        return config.drop_factor if progress > config.drop_at else 1.0
    if config.schedule == "cosine":
        share = (progress - config.warmup) / (1 - config.warmup)
        return 0.5 * (1 + math.cos(math.pi * min(1.0, share)))
    return 1.0


def parameter_groups(model: nn.Module, config: OptimConfig) -> list[dict[str, Any]]:
    """Group trainable parameters by learning rate (backbone or new) and weight decay (none on biases and norms)."""
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups.setdefault((name.startswith(("backbone.", "look_backbone.")), parameter.ndim >= 2), []).append(
                parameter
            )
    decay = config.weight_decay if config.name == "adamw" else 0.0
    backbone_lr = config.lr if config.backbone_lr is None else config.backbone_lr
    settings = []
    for (is_backbone, is_matrix), parameters in groups.items():
        name, lr = ("backbone", backbone_lr) if is_backbone else ("new", config.lr)
        name, decayed = (name, decay) if is_matrix else (f"{name}_bias", 0.0)
        settings.append({"params": parameters, "lr": lr, "weight_decay": decayed, "name": name})
    return settings


def build_optimizer(model: nn.Module, config: OptimConfig) -> torch.optim.Optimizer:
    """Build the optimizer that a configuration describes."""
    optimizers = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam, "keras_adam": KerasAdam}
    return optimizers[config.name](parameter_groups(model, config), lr=config.lr, eps=config.eps)
