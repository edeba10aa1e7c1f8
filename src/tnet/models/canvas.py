"""Aggregation on a canvas: what was seen is written into a map of the image at its place, and the map is read."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn
from typing_extensions import override

from tnet.errors import ConfigError
from tnet.models.aggregation import AGGREGATIONS, Aggregated, Features, Mask, PlacedAggregation, Places, mean_of

SIDE = 16  # cells of the canvas per axis
CHANNELS = 32

Canvas = Float[Tensor, "batch channels side side"]


def overlap(spans: Float[Tensor, "*spans 2"]) -> Float[Tensor, "*spans side"]:
    """Return which share of each of ``SIDE`` equal parts of [0, 1] spans cover."""
    edges = torch.arange(SIDE + 1, device=spans.device) / SIDE
    shared = torch.minimum(spans[..., 1:], edges[1:]) - torch.maximum(spans[..., :1], edges[:-1])
    return SIDE * shared.clamp_min(0)


def cover(spans: Float[Tensor, "*spans 2"]) -> Float[Tensor, "*spans side"]:
    """Return the overlap, but a span shorter than a part is as heavy as a whole part: small is not faint."""
    return overlap(spans) / (SIDE * spans.diff(dim=-1)).clamp(1e-9, 1.0)


def _parts(spans: Float[Tensor, "views 2"], count: int) -> Float[Tensor, "views count 2"]:
    """Divide spans into equal parts."""
    edges = spans[:, :1] + spans.diff(dim=1) * torch.arange(count + 1, device=spans.device) / count
    return torch.stack([edges[:, :-1], edges[:, 1:]], dim=2)


@AGGREGATIONS.register("canvas")
class CanvasAggregation(PlacedAggregation):
    """Mean of all features plus what a map of the image says, into which each was written at its place.

    The map starts as the cell map of the whole image. A small convolutional head reads it: regions that show one place,
    or neighbours, are read together, and one lesion stands out among healthy regions. Before training the result equals
    ``mean``, whose weights it reports: what the map adds is not divided among features.
    """

    channels = CHANNELS

    def __init__(self, dim: int, cell_dim: int) -> None:
        super().__init__(dim, cell_dim)
        self.start = nn.Conv2d(cell_dim, CHANNELS, 1)
        self.write = nn.Linear(dim, CHANNELS)
        layers: list[nn.Module] = []
        for _ in range(2):  # normalised per image: the batch does not matter
            layers += [nn.GroupNorm(1, CHANNELS), nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1), nn.SiLU()]
        self.head = nn.Sequential(*layers)
        self.evidence = nn.Linear(2 * CHANNELS, dim)
        nn.init.zeros_(self.evidence.weight)
        nn.init.zeros_(self.evidence.bias)

    @override
    def views(self, cell_map: Float[Tensor, "views cell_dim h w"], boxes: Float[Tensor, "views 4"]) -> Canvas:
        start = self.start(cell_map)
        boxes, (h, w) = boxes.to(start), start.shape[2:]
        down, across = overlap(_parts(boxes[:, 0::2], h)), overlap(_parts(boxes[:, 1::2], w))
        return torch.einsum("vchw,vhi,vwj->vcij", start, down, across)

    def written(self, features: Features, seen: Mask, places: Places) -> Canvas:
        """Return the canvas with features added at their places."""
        down, across = cover(places.boxes[..., 0::2]), cover(places.boxes[..., 1::2])
        if seen is not None:
            down = down * seen[:, :, None]
        values = self.write(features).transpose(1, 2)
        shares = (down[..., :, None] * across[..., None, :]).flatten(2).to(values.dtype)
        canvas = (values @ shares).unflatten(2, (SIDE, SIDE))
        return canvas if places.start is None else canvas + places.start

    @override
    def read(self, features: Features, seen: Mask, places: Places | None) -> Canvas:
        if places is None:
            raise ConfigError("aggregation canvas got features without their places; give those of the output")
        return self.head(self.written(features, seen, places))

    def forward(self, features: Features, seen: Mask = None, places: Places | None = None) -> Aggregated:
        """Add what the canvas says to the mean of the features."""
        canvas = self.read(features, seen, places)
        pooled = torch.cat([canvas.mean(dim=(2, 3)), canvas.amax(dim=(2, 3))], dim=1)
        mean, weights = mean_of(features, seen)
        return Aggregated(mean + self.evidence(pooled), weights)
