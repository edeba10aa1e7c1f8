"""BagNet-77-lowD, the representation network of Saccader: describes every position from the 77 pixels around it.

Elsayed, Kornblith and Le, "Saccader: Improving accuracy of hard attention models for vision", NeurIPS 2019. All
convolutions are valid, so that no position sees padding, and have batch norm instead of biases.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from tnet.backbones.base import Backbone, Described
from tnet.errors import ConfigError

ShortcutNorm = Literal["branch", "shortcut"]


@dataclass(frozen=True)
class PositionGrid:
    """Receptive fields of the positions of a map: their side and the distance between neighbours, pixels."""

    field_px: int
    stride_px: int

    @classmethod
    def of(cls, blocks: Sequence[int], strides: Sequence[int], wide_blocks: Sequence[int]) -> PositionGrid:
        """Compute receptive field and stride of the last map of a :class:`BagNetLowD`, and check the arguments."""
        equal = len({len(blocks), len(strides), len(wide_blocks)}) == 1
        if not (equal and blocks and min(*blocks, *strides) >= 1 and min(wide_blocks) >= 0):
            stages = f"blocks {tuple(blocks)}, strides {tuple(strides)} and wide_blocks {tuple(wide_blocks)}"
            raise ConfigError(f"{stages} do not fit; give one number per stage, at least 1 (wide_blocks: 0)")
        field_px, stride_px = 3, 1  # of the stem
        for count, stride, wide in zip(blocks, strides, wide_blocks, strict=True):
            for block in range(count):
                field_px += 2 * stride_px if block < wide else 0
                stride_px *= stride if block == 0 else 1
        return cls(field_px, stride_px)

    def side(self, image_px: int) -> int:
        """Return the number of positions along a side of an image; 0 if it is smaller than a receptive field."""
        return max((image_px - self.field_px) // self.stride_px + 1, 0)


def conv_norm_relu(in_dim: int, out_dim: int, kernel: int = 1, *, dilation: int = 1, padding: int = 0) -> nn.Sequential:
    """Build a convolution without bias, batch norm and ReLU."""
    conv = nn.Conv2d(in_dim, out_dim, kernel, padding=padding, dilation=dilation, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(out_dim), nn.ReLU())


def init_glorot(module: nn.Module) -> None:
    """Initialise convolutions and linear layers as the original does: Glorot uniform weights, biases 0."""
    for layer in module.modules():
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            nn.init.xavier_uniform_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


class NormBottleneck(nn.Module):
    """Valid 1x1, k x k and 1x1 convolutions with batch norm, and a shortcut; see :class:`BagNetLowD` for its norm."""

    def __init__(self, in_dim: int, planes: int, expansion: int, kernel: int, stride: int, norms_branch: bool) -> None:
        super().__init__()
        out_dim = planes * expansion
        self.kernel, self.norms_branch = kernel, norms_branch
        self.reduce = nn.Conv2d(in_dim, planes, 1, bias=False)
        self.reduce_norm = nn.BatchNorm2d(planes)
        self.look = nn.Conv2d(planes, planes, kernel, stride, bias=False)
        self.look_norm = nn.BatchNorm2d(planes)
        self.expand = nn.Conv2d(planes, out_dim, 1, bias=False)
        self.expand_norm = nn.BatchNorm2d(out_dim)
        changes = stride > 1 or in_dim != out_dim
        self.shortcut = nn.Conv2d(in_dim, out_dim, 1, stride, bias=False) if changes else None
        self.shortcut_norm = nn.BatchNorm2d(out_dim) if changes else None

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d i j"]:
        """Apply the block."""
        y = F.relu(self.reduce_norm(self.reduce(x)))
        y = F.relu(self.look_norm(self.look(y)))
        y = self.expand_norm(self.expand(y))
        # A valid 3x3 convolution loses a pixel per side; the shortcut must lose the same.
        short = x[..., 1:-1, 1:-1] if self.kernel > 1 else x
        if self.shortcut is not None and self.shortcut_norm is not None:
            short = self.shortcut(short)
            if self.norms_branch:
                y = self.shortcut_norm(y)
            else:
                short = self.shortcut_norm(short)
        return F.relu(y + short)


class LowDMaps(NamedTuple):
    """Output of the last stage (2048 channels as published), and its projection (512), which is classified."""

    features: Float[Tensor, "images channels rows cols"]
    what: Float[Tensor, "images dim rows cols"]


class BagNetLowD(Backbone):
    """The representation network without its classifier.

    The pooled feature is the mean of ``what`` over the positions, so that a linear classifier on it gives the mean of
    the positions' logits; cell features are those of the last stage.

    In a block that changes the shape, the original's code applies the batch norm meant for the shortcut to the branch,
    after the branch's own, and leaves the shortcut unnormalised (``shortcut_norm="branch"``). The second norm undoes
    the branch's last scale, which starts at 0 so that blocks start as their shortcuts: the first step then turns the
    branch on at once, along a gradient about a hundred times as large. Prefer ``"shortcut"``, the usual residual block,
    unless published weights must fit; parameters and multiply-adds are the same.

    Args:
        in_channels: channels of an image.
        planes, blocks, strides: width, number of bottlenecks and stride of each stage; the stem has the first width.
        wide_blocks: number of bottlenecks per stage, from its first, that are 3 pixels wide; the others are 1.
        expansion: output channels of a stage over its planes.
        feature_dim: channels of ``what``; 0 for a quarter of the last stage's channels.
        shortcut_norm: ``branch`` or ``shortcut``.
    """

    def __init__(
        self,
        in_channels: int = 3,
        *,
        planes: Sequence[int] = (64, 128, 256, 512),
        blocks: Sequence[int] = (3, 4, 6, 3),
        strides: Sequence[int] = (2, 2, 2, 1),
        wide_blocks: Sequence[int] = (2, 2, 2, 2),
        expansion: int = 4,
        feature_dim: int = 0,
        shortcut_norm: str = "branch",
    ) -> None:
        super().__init__()
        self.grid = PositionGrid.of(blocks, strides, wide_blocks)
        if len(planes) != len(blocks) or min(*planes, expansion) < 1 or feature_dim < 0:
            sizes = f"planes {tuple(planes)}, expansion {expansion} or feature_dim {feature_dim} is wrong"
            remedy = f"give a positive number of planes for each of blocks {tuple(blocks)}, expansion from 1"
            raise ConfigError(f"{sizes}; {remedy}, feature_dim from 0")
        if shortcut_norm not in get_args(ShortcutNorm):
            raise ConfigError(f"shortcut_norm is {shortcut_norm!r}; give 'branch' or 'shortcut'")
        self.min_px = self.grid.field_px
        self.cell_dim = planes[-1] * expansion
        self.feature_dim = feature_dim or max(1, self.cell_dim // 4)
        self.stem = conv_norm_relu(in_channels, planes[0], 3)
        dim = planes[0]
        stages = []
        for width, count, stride, wide in zip(planes, blocks, strides, wide_blocks, strict=True):
            layers = []
            for block in range(count):
                kernel, step = 3 if block < wide else 1, stride if block == 0 else 1
                layers.append(NormBottleneck(dim, width, expansion, kernel, step, shortcut_norm == "branch"))
                dim = width * expansion
            stages.append(nn.Sequential(*layers))
        self.stages = nn.Sequential(*stages)
        self.head = conv_norm_relu(dim, self.feature_dim)
        init_glorot(self)
        for module in self.modules():
            if isinstance(module, NormBottleneck):
                nn.init.zeros_(module.expand_norm.weight)

    def describe(self, images: Float[Tensor, "images channels height width"]) -> LowDMaps:
        """Describe every position of images of at least ``min_px``."""
        features = self.stages(self.stem(images))
        return LowDMaps(features, self.head(features))

    def forward(self, glimpses: Float[Tensor, "glimpses channels height width"]) -> Described:
        """Describe glimpses of at least ``min_px``."""
        maps = self.describe(glimpses)
        return Described(maps.what.mean(dim=(2, 3)), maps.features)
