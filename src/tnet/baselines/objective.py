"""Common parts of the objectives of the baselines: configuration, REINFORCE, and the L2 term."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor, nn

from tnet.losses import Loss, ModelObjective, Target, check_weights, l2_term
from tnet.models.base import ModelOutput

Terms = tuple[dict[str, Float[Tensor, ""]], Float[Tensor, ""], Float[Tensor, ""]]
"""Weighted terms by name, mean reward of the prediction, mean reward of single regions."""


@dataclass(frozen=True)
class BaselineObjectiveConfig:
    """Weights of the terms; L2 is the sum of squares of the penalised parameters."""

    label_smoothing: float = 0.0
    l2_weight: float = 0.0

    def __post_init__(self) -> None:
        check_weights(self, *(name for name in vars(self) if name.endswith("_weight")))


class BaselineObjective(ModelObjective):
    """The terms of one baseline, and L2."""

    config: BaselineObjectiveConfig

    def terms(self, output: ModelOutput, target: Target) -> Terms:
        """Compute the terms other than L2 for one batch."""
        raise NotImplementedError

    def penalised(self, model: nn.Module) -> Iterable[nn.Parameter]:
        """Return the parameters of the L2 term."""
        raise NotImplementedError

    def forward(self, output: ModelOutput, target: Target, model: nn.Module | None = None) -> Loss:
        """Compute all terms for one batch in training mode; ``model`` is needed for L2 only."""
        self.check_model(model)
        terms, reward, reward_per_region = self.terms(output, target)
        if self.config.l2_weight and model is not None:
            terms["l2"] = l2_term(self.penalised(model), self.config.l2_weight)
        return Loss.of(terms, reward, reward_per_region)


def reinforce(rewards: Float[Tensor, "batch #looks"], log_prob: Float[Tensor, "batch looks"]) -> Float[Tensor, ""]:
    """Compute the REINFORCE term with the batch's mean reward as baseline, averaged over images and looks."""
    return ((rewards - rewards.mean()) * -log_prob).mean()
