"""BagNet-77 for TNet: no batch norm, and valid convolutions that limit the receptive field to 77 pixels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from timm.layers.conv2d_same import Conv2dSame
from torch import Tensor, nn

from tnet.backbones.base import Backbone, Described
from tnet.errors import ConfigError

_SLOPE = 0.2
_EXPANDED_BLOCKS = 2  # the first two blocks of a stage have kernel size 3, the others 1
_FEW = 4  # glimpses up to which the channels-last memory format is slower on a CPU (by up to a sixth), not faster


class Bottleneck(nn.Module):
    """1x1, k x k and 1x1 convolutions with a shortcut; all with biases, no normalisation."""

    def __init__(self, in_dim: int, planes: int, expansion: int, kernel: int, stride: int, valid: bool) -> None:
        super().__init__()
        out_dim = planes * expansion
        self.kernel, self.valid = kernel, valid
        self.reduce = nn.Conv2d(in_dim, planes, 1)
        # Padded as in the reference implementation: an odd pixel goes after the image.
        self.look = (nn.Conv2d if valid else Conv2dSame)(planes, planes, kernel, stride)
        self.expand = nn.Conv2d(planes, out_dim, 1)
        self.shortcut = nn.Conv2d(in_dim, out_dim, 1, stride) if stride > 1 or in_dim != out_dim else None
        self.reduce_act, self.look_act, self.act = (nn.LeakyReLU(_SLOPE) for _ in range(3))

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d i j"]:
        """Transform a feature map."""
        y = self.expand(self.look_act(self.look(self.reduce_act(self.reduce(x)))))
        # A valid 3x3 convolution loses one pixel per side; the shortcut is cropped likewise.
        short = x[..., 1:-1, 1:-1] if self.kernel > 1 and self.valid else x
        if self.shortcut is not None:
            short = self.shortcut(short)
        return self.act(y + short)


class BagNet77(Backbone):
    """Feature extractor of the paper's ImageNet models (paper, supplementary; receptive field 77 px).

    Cell features are the output of the third stage: 9 x 9 positions for 77 px, of which the paper uses every second.

    Args:
        in_channels: channels of a glimpse.
        planes: width of the four stages.
        blocks: number of bottlenecks per stage.
        expansion: output channels of a stage over its planes (4 as published; 1 in a narrow variant).
        feature_dim: size of the pooled feature.
        spatial_dropout: probability of dropping a channel of the last map (paper: 0.5 for TNet, 0.625 for the
            baseline).
    """

    min_px = 27  # leaves 3 x 3 positions for the last stage's valid convolution

    def __init__(
        self,
        in_channels: int = 3,
        *,
        planes: Sequence[int] = (64, 128, 256, 512),
        blocks: Sequence[int] = (3, 4, 6, 3),
        expansion: int = 4,
        feature_dim: int = 512,
        spatial_dropout: float = 0.5,
    ) -> None:
        super().__init__()
        if len(planes) != 4 or len(blocks) != 4 or min(*planes, *blocks, expansion, feature_dim) < 1:
            sizes = f"bagnet77 planes {tuple(planes)}, blocks {tuple(blocks)}, expansion {expansion} and feature_dim"
            raise ConfigError(f"{sizes} {feature_dim} must be positive numbers, four planes and blocks each")
        self.feature_dim = feature_dim
        self.cell_dim = planes[2] * expansion
        self.stem = nn.Conv2d(in_channels, planes[0], 3)
        dim = planes[0]
        stages = []
        for stage, (width, count, stride) in enumerate(zip(planes, blocks, (2, 2, 2, 1), strict=True)):
            layers = []
            for block in range(count):
                kernel = 3 if block < _EXPANDED_BLOCKS else 1
                # In the last two stages the first 3x3 is valid, the second padded.
                valid = stage >= 2 and block == 0
                layers.append(Bottleneck(dim, width, expansion, kernel, stride if block == 0 else 1, valid))
                dim = width * expansion
            stages.append(nn.Sequential(*layers))
        self.stages = nn.ModuleList(stages)
        self.head = nn.Conv2d(dim, feature_dim, 1)
        self.stem_act, self.head_act = nn.LeakyReLU(_SLOPE), nn.LeakyReLU(_SLOPE)
        self.dropout = nn.Dropout2d(spatial_dropout)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.xavier_normal_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, glimpses: Float[Tensor, "glimpses channels height width"]) -> Described:
        """Extract features of glimpses of at least ``min_px``."""
        is_many = torch.compiler.is_compiling() or len(glimpses) > _FEW  # compiled code is not tied to a number
        if is_many and glimpses.device.type == "cpu" and not self.training:
            glimpses = glimpses.contiguous(memory_format=torch.channels_last)
        x = self.stem_act(self.stem(glimpses))
        for stage in self.stages[:3]:
            x = stage(x)
        last = self.dropout(self.head_act(self.head(self.stages[3](x))))
        return Described(torch.mean(last, dim=(2, 3)), x)
