"""The three steps of a TNet as functions of tensors, to be exported: a loop outside decides where to look."""

from __future__ import annotations

from contextlib import nullcontext
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from tnet.backbones import Described
from tnet.errors import ConfigError
from tnet.models.aggregation import Places
from tnet.models.tnet import TNet

SEE_OUTPUTS = ("feature", "pooled", "cell_map")
LOCATE_OUTPUTS = ("scores",)
ANSWER_OUTPUTS = ("logits", "region_logits", "aggregate", "weights")


def describe(model: TNet, pixels: Float[Tensor, "regions channels height width"], level: int) -> Described:
    """Run the backbone on normalised glimpses of one level, as :meth:`TNet.describe` does, without reading values."""
    norms = model.population_norms
    backbone = model.backbone if model.look_backbone is None or not level else model.look_backbone
    with nullcontext() if norms is None else norms.of_level(level):
        return backbone(pixels)


class See(nn.Module):
    """Features of glimpses in [0, 1]: of whole images (level 0) or regions, which may have their own batch norm.

    ``position`` is :attr:`tnet.geometry.Regions.position_yxl`: row, column and level of each region.
    """

    def __init__(self, model: TNet, level: int) -> None:
        super().__init__()
        self.model, self.level = model, level

    def forward(
        self, pixels: Float[Tensor, "regions channels side side"], position: Float[Tensor, "regions 3"]
    ) -> tuple[Float[Tensor, "regions dim"], Float[Tensor, "regions dim"], Float[Tensor, "regions cell_dim h w"]]:
        """Return the feature to classify, the pooled feature and the cell map, which ``Locate`` takes."""
        model = self.model
        described = describe(model, (pixels - model.get_buffer("mean")) / model.get_buffer("std"), self.level)
        return model.position(described.pooled, position), described.pooled, described.cell_map


class Locate(nn.Module):
    """Scores of the cells of regions; spans are those of :func:`tnet.geometry.cell_spans`."""

    def __init__(self, model: TNet) -> None:
        super().__init__()
        self.model = model

    def forward(
        self,
        cell_map: Float[Tensor, "regions cell_dim h w"],
        pooled: Float[Tensor, "regions dim"],
        y_spans: Float[Tensor, "regions rows 2"],
        x_spans: Float[Tensor, "regions cols 2"],
    ) -> Float[Tensor, "regions cells"]:
        """Return the scores in raster order."""
        return self.model.score(cell_map, pooled, y_spans, x_spans)


class Answered(NamedTuple):
    """Output of :class:`Answer`."""

    logits: Float[Tensor, "batch classes"]
    region_logits: Float[Tensor, "batch n classes"]
    aggregate: Float[Tensor, "batch dim"]
    weights: Float[Tensor, "batch n"]


class Answer(nn.Module):
    """Logits from the features of each image where ``seen`` is true.

    A canvas also takes the ``boxes`` of the features, as shares of the image (:func:`tnet.geometry.image_shares`), and
    the cell map of the whole image.
    """

    def __init__(self, model: TNet) -> None:
        super().__init__()
        self.model = model

    def forward(
        self,
        features: Float[Tensor, "batch n dim"],
        seen: Bool[Tensor, "batch n"] | None,
        boxes: Float[Tensor, "batch n 4"] | None = None,
        cell_map: Float[Tensor, "batch cell_dim h w"] | None = None,
    ) -> Answered:
        """Return logits of all features, those of each feature, the aggregate and the weights."""
        places = None
        if self.model.placed is not None:
            assert boxes is not None and cell_map is not None
            whole = torch.tensor([[0.0, 0.0, 1.0, 1.0]]).expand(cell_map.shape[0], 4)
            places = Places(boxes, self.model.placed.views(cell_map, whole))
        return Answered(*self.model.decide(features, seen, places))


def check_parts(model: TNet, looks: tuple[int, ...]) -> None:
    """Raise ConfigError if the model does not look, or looks in another way than see, locate and answer."""
    if model.locator is None or not looks:
        why = "model.levels is 1" if model.locator is None else "looks is 0"
        raise ConfigError(f"{why}, so that there is nothing to locate; export the whole without --parts")
    if model.sees_collected:
        problem = "model.locator.context is 'collected', so that scores depend on all that was seen"
        raise ConfigError(f"{problem}; only the whole image alone can be exported, with --looks 0")
    if len(looks) > 1 and model.config.region_px != model.config.base_px:
        sizes = f"whole images of {model.config.base_px} px and regions of {model.config.region_px} px are both divided"
        raise ConfigError(f"{sizes}, which one exported locator cannot; export the whole model without --parts")
