"""Aggregations of the features of an image into the one that is classified.

An aggregation is an ``nn.Module`` built with the feature size. ``forward(features, seen)`` ignores features where
``seen`` is false; ``None`` stands for all. It is independent of regions, levels and classes. A
:class:`PlacedAggregation` also knows where features were seen.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from tnet.registry import Registry

Features = Float[Tensor, "batch n dim"]
Mask = Bool[Tensor, "batch n"] | None


class Aggregated(NamedTuple):
    """Feature to classify, and the share of each feature in it (rows sum to 1)."""

    feature: Float[Tensor, "batch dim"]
    weights: Float[Tensor, "batch n"]


class Places(NamedTuple):
    """Where features were seen, for a :class:`PlacedAggregation`."""

    boxes: Float[Tensor, "batch n 4"]  # (y0, x0, y1, x1) as shares of the image's height and width, within it
    start: Float[Tensor, "batch channels side side"] | None  # of the map, from the whole image; None without it

    def ordered(self, order: Int[Tensor, "batch n"]) -> Places:
        """Return the places in another order."""
        order = order.to(self.boxes.device)
        return Places(self.boxes.gather(1, order[:, :, None].expand(-1, -1, 4)), self.start)

    def at(self, columns: Int[Tensor, "groups n"]) -> Places:
        """Return the places of groups of features of each image, one image's groups after another."""
        start = None if self.start is None else self.start.repeat_interleave(len(columns), dim=0)
        return Places(self.boxes[:, columns].flatten(0, 1), start)


class PlacedAggregation(nn.Module):
    """Base of aggregations that keep a map of the image, in which features have places.

    Built with the size of features and of the cells of the cell map; ``forward(features, seen, places)``.

    Attributes:
        channels: of the map, as :meth:`read` returns it.
    """

    channels: int

    def __init__(self, dim: int, cell_dim: int) -> None:
        super().__init__()

    def begin(
        self,
        cell_map: Float[Tensor, "views cell_dim h w"],
        boxes: Float[Tensor, "views 4"],
        image: Int[Tensor, " views"],
    ) -> Float[Tensor, "batch channels side side"]:
        """Return the start of the map of each image from the cell maps of the views that show all of it.

        Args:
            cell_map: cell maps of whole images, or of the squares of long ones.
            boxes: their places, ``(y0, x0, y1, x1)`` as shares of the image's height and width.
            image: their images.
        """
        views = self.views(cell_map, boxes)
        return views.new_zeros(int(image.max()) + 1, *views.shape[1:]).index_add(0, image.to(views.device), views)

    def views(
        self, cell_map: Float[Tensor, "views cell_dim h w"], boxes: Float[Tensor, "views 4"]
    ) -> Float[Tensor, "views channels side side"]:
        """Return what each view writes into the start of its image's map; arguments: see :meth:`begin`."""
        raise NotImplementedError

    def read(self, features: Features, seen: Mask, places: Places | None) -> Float[Tensor, "batch channels side side"]:
        """Return what the map says after these features, for a locator that sees what was collected."""
        raise NotImplementedError


AGGREGATIONS: Registry[Callable[..., nn.Module]] = Registry("aggregation")
"""Aggregations by name: values of ``model.aggregation`` in a recipe."""


@AGGREGATIONS.register("mean")
class MeanAggregation(nn.Module):
    """Mean of all features (published)."""

    def __init__(self, dim: int) -> None:
        super().__init__()

    def forward(self, features: Features, seen: Mask = None) -> Aggregated:
        """Average the features."""
        return mean_of(features, seen)


@AGGREGATIONS.register("max")
class MaxAggregation(nn.Module):
    """Elementwise maximum over all features, so that a single region is not averaged away.

    The usual pooling of multiple-instance learning (not in the paper). The weight of a feature is the share of elements
    that it contributes.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()

    def forward(self, features: Features, seen: Mask = None) -> Aggregated:
        """Take the maximum of the features."""
        if seen is not None:
            features = features.masked_fill(~seen[:, :, None], -torch.inf)
        feature, winner = features.max(dim=1)
        shares = F.one_hot(winner, features.shape[1]).to(features.dtype).mean(dim=1)
        return Aggregated(feature, shares)


@AGGREGATIONS.register("weighted")
class FeatureWeighting(nn.Module):
    """Sum with learned weights (paper, fine-grained experiments).

    Squeeze-and-excitation on the mean feature gates the features for weighting; the ungated features are summed.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        squeezed = max(1, dim // 4)
        self.squeeze = nn.Linear(dim, squeezed)
        self.excite = nn.Linear(squeezed, dim)
        self.rate = nn.Linear(dim, 1)

    def forward(self, features: Features, seen: Mask = None) -> Aggregated:
        """Sum the features by their weights."""
        if seen is None:
            mean = features.mean(dim=1)
        else:
            mean = (features * seen[:, :, None]).sum(1) / seen.sum(1, keepdim=True).to(features.dtype)
        gate = self.excite(F.silu(self.squeeze(mean))).sigmoid()
        rates = self.rate(features * gate[:, None, :]).squeeze(2)
        if seen is not None:
            rates = rates.masked_fill(~seen, -torch.inf)
        return _weighted_sum(features, rates.softmax(dim=1))


@AGGREGATIONS.register("attention")
class AttentionAggregation(nn.Module):
    """Features that take in one another, then a sum with learned weights (not in the paper).

    One layer of self-attention adds to each feature what the others say about it: a region is read in the context of
    the whole and of the other regions, whose positions and levels are encoded in their features. The classified feature
    is their sum by attention of a learned query. Before training it equals ``mean``.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.heads = math.gcd(dim, 8)
        self.to_qkv = nn.Linear(dim, 3 * dim)
        self.context = nn.Linear(dim, dim)
        self.rate = nn.Linear(dim, 1)
        for layer in (self.context, self.rate):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, features: Features, seen: Mask = None) -> Aggregated:
        """Sum the features in context."""
        hidden = self.norm(features)
        batch, n, dim = features.shape
        query, key, value = (
            self.to_qkv(hidden).reshape(batch, n, 3, self.heads, dim // self.heads).permute(2, 0, 3, 1, 4)
        )
        mask = None if seen is None else seen[:, None, None, :]
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        context = self.context(mixed.transpose(1, 2).reshape(batch, n, dim))
        rates = self.rate(hidden + context).squeeze(2)
        if seen is not None:
            rates = rates.masked_fill(~seen, -torch.inf)
        return _weighted_sum(features + context, rates.softmax(dim=1))


def mean_of(features: Features, seen: Mask) -> Aggregated:
    """Average the features where ``seen`` is true."""
    if seen is None:
        return _weighted_sum(features, features.new_full(features.shape[:2], 1 / features.shape[1]))
    return _weighted_sum(features, seen / seen.sum(1, keepdim=True).to(features.dtype))


def _weighted_sum(features: Float[Tensor, "batch n dim"], weights: Float[Tensor, "batch n"]) -> Aggregated:
    return Aggregated(torch.einsum("bn,bnd->bd", weights, features), weights)
