"""What every objective is put together from: losses, rewards, penalties. Imports no model."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from tnet.errors import ConfigError


@dataclass(frozen=True)
class Loss:
    """The terms of the objective, each already weighted, and what training logs beside them.

    Attributes:
        terms: by name; they add up to ``total``.
        total: what is minimised.
        reward: mean reward of the joint prediction.
        reward_per_feature: mean reward of single regions.
    """

    terms: dict[str, Float[Tensor, ""]]
    total: Float[Tensor, ""]
    reward: Float[Tensor, ""]
    reward_per_feature: Float[Tensor, ""]

    @classmethod
    def of(
        cls, terms: dict[str, Float[Tensor, ""]], reward: Float[Tensor, ""], reward_per_feature: Float[Tensor, ""]
    ) -> Loss:
        """The loss that these terms add up to."""
        return cls(terms, torch.stack(list(terms.values())).sum(), reward, reward_per_feature)


def reward(
    logits: Float[Tensor, "*n classes"], target: Int[Tensor, "*n"] | Float[Tensor, "*n classes"]
) -> Float[Tensor, "*n"]:
    """How right a prediction is, between 0 and 1, without gradient.

    For classes that exclude each other: 1 if the most probable class is the right one (paper). For several labels:
    what predicted and true labels share, over their union (1 if both are empty), which is 1 only if all are right and
    does not reward predicting nothing.
    """
    if not target.is_floating_point():
        return (logits.argmax(dim=-1) == target).float()
    predicted, true = logits.detach() > 0, target > 0.5
    union = (predicted | true).sum(dim=-1)
    shared = (predicted & true).sum(dim=-1)
    return torch.where(union > 0, shared / union.clamp_min(1), torch.ones_like(shared, dtype=torch.float32))


def classification_loss(
    logits: Float[Tensor, "n classes"],
    target: Int[Tensor, " n"] | Float[Tensor, "n classes"],
    label_smoothing: float = 0.0,
) -> Float[Tensor, " n"]:
    """Cross entropy, or the mean binary cross entropy over the classes for several labels; one value an example."""
    if not target.is_floating_point():
        return F.cross_entropy(logits, target, reduction="none", label_smoothing=label_smoothing)
    target = target * (1 - label_smoothing) + label_smoothing / 2
    return F.binary_cross_entropy_with_logits(logits, target, reduction="none").mean(dim=1)


def contrastive_loss(
    features: Float[Tensor, "batch dim"], same: Bool[Tensor, "batch batch"], margin: float
) -> Float[Tensor, ""]:
    """Pull features of a class together, push others apart beyond a margin (mean over all pairs, diagonal included)."""
    unit = F.normalize(features, dim=1)
    similarity = unit @ unit.T
    return torch.where(same, 1 - similarity, (similarity - margin).clamp_min(0)).mean()


def penalised_parameters(model: nn.Module, scope: Literal["all", "new"]) -> list[nn.Parameter]:
    """Parameters under the L2 penalty: biases included, norm layers excluded; ``new`` leaves out the backbone."""
    norms = (nn.modules.batchnorm._BatchNorm, nn.LayerNorm, nn.GroupNorm)
    parameters = []
    for name, module in model.named_modules():
        if isinstance(module, norms) or (scope == "new" and name.split(".")[0] == "backbone"):
            continue
        parameters += [p for p in module.parameters(recurse=False) if p.requires_grad]
    return parameters


def l2_term(parameters: Iterable[nn.Parameter], weight: float) -> Float[Tensor, ""]:
    """The sum of squares of all parameters, times a weight."""
    return torch.stack([parameter.square().sum() for parameter in parameters]).sum() * weight


def check_weights(config: object, *names: str) -> None:
    """Refuse weights of terms that are negative or no numbers.

    Raises:
        ConfigError: one is.
    """
    for name in names:
        if not 0 <= getattr(config, name) < math.inf:
            raise ConfigError(f"objective.{name} is {getattr(config, name)}; give a number, 0 or more")


def check_smoothing(label_smoothing: float) -> None:
    """Refuse a label smoothing that cannot be.

    Raises:
        ConfigError: it is not in [0, 1).
    """
    if not 0 <= label_smoothing < 1:
        raise ConfigError(f"objective.label_smoothing is {label_smoothing}; give a number in [0, 1)")


class ModelObjective(nn.Module):
    """What is minimised in training: ``forward(output, target, model) -> Loss``.

    Args:
        config: weights of the terms.
    """

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config

    @property
    def forward_options(self) -> dict[str, int | str | bool]:
        """Arguments beside the images that the model's ``forward`` takes in training."""
        return {}

    def trained(self, model: nn.Module) -> dict[str, nn.Parameter]:
        """The parameters that are trained, by name."""
        return dict(model.named_parameters())
