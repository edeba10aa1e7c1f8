"""Aggregations: how the features of an image become the one that is classified.

An aggregation is an ``nn.Module`` that is built with the feature size and called with ``(features, seen)``. It knows
nothing of regions, levels or classes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from tnet.registry import Registry


class Aggregated(NamedTuple):
    """What an aggregation returns.

    Attributes:
        feature: the feature to classify.
        weights: share of each feature in it; each row sums to 1.
    """

    feature: Float[Tensor, "batch dim"]
    weights: Float[Tensor, "batch n"]


AGGREGATIONS: Registry[Callable[[int], nn.Module]] = Registry("aggregation")
"""Aggregations by name: what ``model.aggregation`` of a recipe can be. An entry takes the feature size."""


@AGGREGATIONS.register("mean")
class MeanAggregation(nn.Module):
    """The mean of all features (published).

    Args:
        dim: feature size.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()

    def forward(
        self, features: Float[Tensor, "batch n dim"], seen: Bool[Tensor, "batch n"] | None = None
    ) -> Aggregated:
        """Average the features that were seen; all of them if ``seen`` is ``None``."""
        if seen is None:
            return _weighted_sum(features, features.new_full(features.shape[:2], 1 / features.shape[1]))
        return _weighted_sum(features, seen / seen.sum(1, keepdim=True).to(features.dtype))


@AGGREGATIONS.register("max")
class MaxAggregation(nn.Module):
    """The maximum over all features, value by value, so that what one region shows is not averaged away.

    The usual pooling of multiple-instance learning (not in the paper). The weight of a feature is the share of values
    that it contributes.

    Args:
        dim: feature size.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()

    def forward(
        self, features: Float[Tensor, "batch n dim"], seen: Bool[Tensor, "batch n"] | None = None
    ) -> Aggregated:
        """Take the maximum over the features that were seen; over all of them if ``seen`` is ``None``."""
        if seen is not None:
            features = features.masked_fill(~seen[:, :, None], -torch.inf)
        feature, winner = features.max(dim=1)
        shares = F.one_hot(winner, features.shape[1]).to(features.dtype).mean(dim=1)
        return Aggregated(feature, shares)


@AGGREGATIONS.register("weighted")
class FeatureWeighting(nn.Module):
    """A sum with learned weights (paper, fine-grained experiments).

    Squeeze-and-excitation on the mean feature gates the features that are rated; the ungated features are summed.

    Args:
        dim: feature size.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        squeezed = max(1, dim // 4)
        self.squeeze = nn.Linear(dim, squeezed)
        self.excite = nn.Linear(squeezed, dim)
        self.rate = nn.Linear(dim, 1)

    def forward(
        self, features: Float[Tensor, "batch n dim"], seen: Bool[Tensor, "batch n"] | None = None
    ) -> Aggregated:
        """Weigh the features that were seen; all of them if ``seen`` is ``None``."""
        if seen is None:
            mean = features.mean(dim=1)
        else:
            mean = (features * seen[:, :, None]).sum(1) / seen.sum(1, keepdim=True).to(features.dtype)
        gate = self.excite(F.silu(self.squeeze(mean))).sigmoid()
        rates = self.rate(features * gate[:, None, :]).squeeze(2)
        if seen is not None:
            rates = rates.masked_fill(~seen, -torch.inf)
        return _weighted_sum(features, rates.softmax(dim=1))


def _weighted_sum(features: Float[Tensor, "batch n dim"], weights: Float[Tensor, "batch n"]) -> Aggregated:
    return Aggregated(torch.einsum("bn,bnd->bd", weights, features), weights)
