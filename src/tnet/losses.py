"""Losses, rewards and penalties that objectives are built from. Independent of any model."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from tnet.config import check_most
from tnet.errors import ConfigError, DataError

Target = Int[Tensor, " batch"] | Float[Tensor, "batch classes"]
"""Class index of each image, or 0/1 for each class if multilabel."""


@dataclass(frozen=True)
class Loss:
    """Weighted terms of an objective, their sum, and mean rewards of the joint prediction and of single regions."""

    terms: dict[str, Float[Tensor, ""]]
    total: Float[Tensor, ""]
    reward: Float[Tensor, ""]
    reward_per_feature: Float[Tensor, ""]

    @classmethod
    def of(
        cls, terms: dict[str, Float[Tensor, ""]], reward: Float[Tensor, ""], reward_per_feature: Float[Tensor, ""]
    ) -> Loss:
        """Build a loss whose total is the sum of the terms."""
        return cls(terms, torch.stack(list(terms.values())).sum(), reward, reward_per_feature)


def repeat_target(target: Target, looks: int) -> Int[Tensor, "batch {looks}"] | Float[Tensor, "batch {looks} classes"]:
    """Repeat the target of each image for each of its looks."""
    return target[:, None].expand(-1, looks, *target.shape[1:])


def reward(
    logits: Float[Tensor, "*n classes"], target: Int[Tensor, "*n"] | Float[Tensor, "*n classes"]
) -> Float[Tensor, "*n"]:
    """Return how correct each prediction is, in [0, 1], without gradient.

    Single label: 1 if the most probable class is correct (paper). Multiple labels: intersection over union of predicted
    and true labels (1 if both are empty), which is 1 only if all are correct and does not reward predicting nothing.
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
    """Return the cross entropy of each sample, or for multiple labels its mean binary cross entropy over classes."""
    if not target.is_floating_point():
        target = target.long()
        if target.device.type == "cpu":  # a GPU would have to wait
            check_labels(target, logits.shape[1])
        return F.cross_entropy(logits, target, reduction="none", label_smoothing=label_smoothing)
    target = target * (1 - label_smoothing) + label_smoothing / 2
    return F.binary_cross_entropy_with_logits(logits, target, reduction="none").mean(dim=1)


def divergence(
    taught: Float[Tensor, "n classes"], logits: Float[Tensor, "n classes"], multilabel: bool
) -> Float[Tensor, ""]:
    """Return the mean divergence of probabilities from those taught, in nats, over samples (and multiple labels)."""
    if multilabel:
        taught, logits = (torch.stack([item, -item], dim=-1).flatten(0, 1) / 2 for item in (taught, logits))
    found = F.kl_div(logits.log_softmax(-1), taught.log_softmax(-1), reduction="none", log_target=True)
    return found.sum(dim=-1).mean()


def check_labels(target: Int[Tensor, " n"], classes: int) -> None:
    """Raise DataError for class indices outside of the classes."""
    wrong = target[(target < 0) | (target >= classes)]
    if len(wrong):
        remedy = f"give class indices from 0 to {classes - 1}, or build the model with more classes"
        raise DataError(f"label {int(wrong[0])} is not one of the {classes} classes; {remedy}")


def contrastive_loss(
    features: Float[Tensor, "batch dim"], same: Bool[Tensor, "batch batch"], margin: float
) -> Float[Tensor, ""]:
    """Pull features of a class together and others apart beyond a margin (mean over all pairs, with the diagonal)."""
    unit = F.normalize(features, dim=1)
    similarity = unit @ unit.T
    return torch.where(same, 1 - similarity, (similarity - margin).clamp_min(0)).mean()


def penalised_parameters(model: nn.Module, scope: Literal["all", "new"]) -> list[nn.Parameter]:
    """Return the parameters under the L2 penalty: with biases, without norms; ``new`` excludes the backbone."""
    norms = (nn.modules.batchnorm._BatchNorm, nn.LayerNorm, nn.GroupNorm)
    parameters = []
    for name, module in model.named_modules():
        if isinstance(module, norms) or (scope == "new" and name.split(".")[0] in ("backbone", "look_backbone")):
            continue
        parameters += [p for p in module.parameters(recurse=False) if p.requires_grad]
    return parameters


def l2_term(parameters: Iterable[nn.Parameter], weight: float) -> Float[Tensor, ""]:
    """Return the weighted sum of squares of all parameters."""
    return torch.stack([parameter.square().sum() for parameter in parameters]).sum() * weight


def check_weights(config: Any, *names: str) -> None:
    """Raise ConfigError unless these weights are finite and not negative, and the label smoothing is in [0, 1)."""
    for name in names:
        if not 0 <= getattr(config, name) < math.inf:
            raise ConfigError(f"objective.{name} is {getattr(config, name)}; give a finite number of at least 0")
    check_most(config, "objective.", dict.fromkeys(names, 1e6))
    if not 0 <= config.label_smoothing < 1:
        raise ConfigError(f"objective.label_smoothing is {config.label_smoothing}; give a number in [0, 1)")


class ModelObjective(nn.Module):
    """Base of objectives: ``forward(output, target, model) -> Loss``; ``config`` holds the weights of the terms."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config

    def check_model(self, model: nn.Module | None) -> None:
        """Raise ConfigError if a term needs the model and it was not passed."""
        for name in ("worth_weight", "gain_weight", "every_look_weight", "distil_weight", "l2_weight"):
            if model is None and getattr(self.config, name, None):
                raise ConfigError(f"objective.{name} needs the model; call objective(output, target, model)")

    @property
    def forward_options(self) -> dict[str, int | str | bool]:
        """Extra arguments of the model's ``forward`` in training."""
        return {}

    def trained(self, model: nn.Module) -> dict[str, nn.Parameter]:
        """Return the trainable parameters by name."""
        return dict(model.named_parameters())
