"""Multiply-adds of the published networks by arithmetic, from their descriptions alone.

Pure Python that shares no code with the package: what PyTorch's counter finds in the models is checked against it.
Convolutions and linear layers count one for each multiplication, biases nothing, as do activations, normalisation,
pooling, resizing and the product of features with their gates.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

# Width and depth of EfficientNet-B0 to B7 over those of B0 (Tan and Le 2019).
_SCALES = {
    "b0": (1.0, 1.0),
    "b1": (1.0, 1.1),
    "b2": (1.1, 1.2),
    "b3": (1.2, 1.4),
    "b4": (1.4, 1.8),
    "b5": (1.6, 2.2),
    "b6": (1.8, 2.6),
    "b7": (2.0, 3.1),
}
# Stages of B0: expansion, kernel, stride of the first block, channels, blocks.
_STAGES = (
    (1, 3, 1, 16, 1),
    (6, 3, 2, 24, 2),
    (6, 5, 2, 40, 2),
    (6, 3, 2, 80, 3),
    (6, 5, 1, 112, 3),
    (6, 5, 2, 192, 4),
    (6, 3, 1, 320, 1),
)
_STEM, _HEAD = 32, 1280


@dataclass(frozen=True)
class Cost:
    """What a feature extractor costs and gives.

    Attributes:
        macs: multiply-adds of one glimpse.
        feature_dim: size of its feature.
        cell_dim: channels of the map from which the paper takes cell features.
    """

    macs: int
    feature_dim: int
    cell_dim: int


def same(size: int, stride: int) -> int:
    """Side of what a padded convolution gives."""
    return math.ceil(size / stride)


def valid(size: int, kernel: int, stride: int = 1) -> int:
    """Side of what an unpadded convolution gives."""
    return (size - kernel) // stride + 1


def conv(side: int, kernel: int, in_dim: int, out_dim: int) -> int:
    """Multiply-adds of a convolution onto a square map."""
    return side**2 * kernel**2 * in_dim * out_dim


def bagnet77(px: int) -> Cost:
    """BagNet-77: a 3x3 stem and four stages of bottlenecks; 3x3 in the first two of a stage, unpadded in two places."""
    side, dim = valid(px, 3), 64
    macs = conv(side, 3, 3, dim)
    for stage, (planes, blocks, stride) in enumerate(((64, 3, 2), (128, 4, 2), (256, 6, 2), (512, 3, 1))):
        for block in range(blocks):
            kernel, step = (3, 1) if block == 1 else (3, stride) if block == 0 else (1, 1)
            before, side = side, valid(side, kernel, step) if stage >= 2 and block == 0 else same(side, step)
            macs += (
                conv(before, 1, dim, planes) + conv(side, kernel, planes, planes) + conv(side, 1, planes, 4 * planes)
            )
            if block == 0:
                macs += conv(side, 1, dim, 4 * planes)  # shortcut
            dim = 4 * planes
    return Cost(macs + conv(side, 1, dim, 512), 512, 1024)


def rounded(dim: float) -> int:
    """Channels after scaling: the nearest multiple of 8, but not more than a tenth less."""
    nearest = max(8, int(dim + 4) // 8 * 8)
    return nearest + 8 if nearest < 0.9 * dim else nearest


def efficientnet(size: str, px: int, cell_stage: int = 0) -> Cost:
    """EfficientNet without its classifier.

    Args:
        size: ``b0`` to ``b7``.
        px: side of a glimpse.
        cell_stage: which stage (from 0) cell features are taken from.
    """
    width, depth = _SCALES[size]
    side, dim, cell_dim = same(px, 2), rounded(_STEM * width), 0
    macs = conv(side, 3, 3, dim)
    for stage, (expansion, kernel, stride, planes, blocks) in enumerate(_STAGES):
        out_dim = rounded(planes * width)
        for block in range(math.ceil(blocks * depth)):
            wide, squeezed = expansion * dim, max(1, int(dim * 0.25))
            if expansion > 1:
                macs += conv(side, 1, dim, wide)
            side = same(side, stride if block == 0 else 1)
            macs += conv(side, kernel, 1, wide)  # depthwise
            macs += 2 * wide * squeezed  # squeeze and excitation
            macs += conv(side, 1, wide, out_dim)
            dim = out_dim
        if stage == cell_stage:
            cell_dim = dim
    head = rounded(_HEAD * width)
    return Cost(macs + conv(side, 1, dim, head), head, cell_dim)


@dataclass(frozen=True)
class Traversal:
    """A traversal network around a feature extractor.

    Attributes:
        glimpse: its feature extractor.
        classes: that it tells apart.
        grid: cells a side.
        form: ``imagenet`` or ``efficientnet``: position module and locator.
        weighted: features are weighted, not averaged.
    """

    glimpse: Cost
    classes: int
    grid: int = 0
    form: str = "efficientnet"
    weighted: bool = False

    def position(self) -> int:
        """Multiply-adds of telling one feature where it was seen."""
        dim = self.glimpse.feature_dim
        return 2 * dim * dim if self.form == "imagenet" else dim // 4 * dim

    def locator(self) -> int:
        """Multiply-adds of rating the cells of one region, the two layers that scale coordinates left out."""
        cells, dim = self.grid**2, self.glimpse.cell_dim
        if self.form == "imagenet":
            return cells * ((dim + self.glimpse.feature_dim + 2) * 512 + 512)
        squeeze = 2 * dim * (dim // 2)
        return cells * (dim * dim + (dim + 2) * dim + dim) + squeeze

    def coordinates(self, *, published: bool) -> int:
        """Multiply-adds of scaling both coordinates, once a level: of every cell, or of every row and column.

        Args:
            published: of every cell, as the published figures count.
        """
        return 2 * (self.grid**2 if published else self.grid)

    def macs(self, looks: tuple[int, ...], *, published: bool) -> int:
        """Multiply-adds of one image.

        Args:
            looks: regions chosen in each region, a number for each level after the whole image; empty for 0 looks.
            published: count as the published figures do: the locator rates the whole image even if nothing is chosen
                there, only the aggregate is classified, and forming it costs nothing. Else as ``TNet.forward`` runs:
                every feature is classified as well, and summing two or more of them costs their size.
        """
        level_regions = [math.prod(looks[:level]) for level in range(len(looks) + 1)]
        features = sum(level_regions)
        divided = level_regions[: max(len(looks), 1 if published else 0)]
        dim = self.glimpse.feature_dim
        macs = features * (self.glimpse.macs + self.position())
        macs += sum(divided) * self.locator() + len(divided) * self.coordinates(published=published)
        if self.weighted:
            macs += 2 * dim * (dim // 4) + features * dim
        if not published:
            macs += features * dim * self.classes + (features * dim if features > 1 else 0)
        return macs + dim * self.classes


def imagenet_tnet() -> Traversal:
    """The ImageNet form over 77 px glimpses."""
    return Traversal(bagnet77(77), 1000, grid=5, form="imagenet")


def fmow_tnet() -> Traversal:
    """The form for satellite images; cell features of 80 channels."""
    return Traversal(efficientnet("b0", 224, cell_stage=3), 62, grid=3)


def birds_tnet(size: str, classes: int) -> Traversal:
    """The form for birds; cell features from B0's stage of 80 channels, from that of 40 (scaled) in larger ones."""
    glimpse = efficientnet(size, 224, cell_stage=3 if size == "b0" else 2)
    return Traversal(glimpse, classes, grid=5, weighted=True)


def plain(glimpse: Cost, classes: int, *, published: bool) -> int:
    """Multiply-adds of a feature extractor with a classifier.

    Args:
        glimpse: the feature extractor.
        classes: that it tells apart.
        published: count the classifier once; else twice, as ``TNet.forward`` classifies aggregate and feature.
    """
    return glimpse.macs + (1 if published else 2) * glimpse.feature_dim * classes
