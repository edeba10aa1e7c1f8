"""Parts of DRAM: concentric glimpses, the ResNet v2 that encodes them, and its recurrent cell."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

_EPS = 1e-5


def sample_points(
    box_l0_yxyx: Int[Tensor, "batch 4"], clipped_l0_yxyx: Int[Tensor, "batch 4"], count: int
) -> Float[Tensor, "batch 2 {count}"]:
    """Return the rows, then the columns that a resized crop's pixels come from, in level-0 pixel indices.

    They are half-pixel centres, clamped to the clipped box so that those outside the image repeat the nearest pixel.
    """
    start, side = box_l0_yxyx[:, :2, None].double(), (box_l0_yxyx[:, 2:] - box_l0_yxyx[:, :2])[:, :, None].double()
    points = start + (torch.arange(count, dtype=torch.float64) + 0.5) * side / count - 0.5
    low, high = clipped_l0_yxyx[:, :2, None].double(), clipped_l0_yxyx[:, 2:, None].double() - 1
    return torch.minimum(torch.maximum(points, low), high)


def replicate_edges(
    pixels: Float[Tensor, "batch channels side side"],
    points: Float[Tensor, "batch 2 side"],
    box_l0_yxyx: Int[Tensor, "batch 4"],
    clipped_l0_yxyx: Int[Tensor, "batch 4"],
) -> Float[Tensor, "batch channels side side"]:
    """Put clipped crops back into the frame of their whole boxes, edges repeated outward.

    A clipped crop is resampled from its glimpse, and is slightly softer than a crop of a padded image.
    """
    cut = (box_l0_yxyx != clipped_l0_yxyx).any(dim=1)
    if not bool(cut.any()):
        return pixels
    low, side = clipped_l0_yxyx[:, :2, None], (clipped_l0_yxyx[:, 2:] - clipped_l0_yxyx[:, :2])[:, :, None]
    # -1 to 1 from edge to edge of the glimpse, as grid_sample expects.
    scaled = (2 * (points + 0.5 - low) / side - 1).to(pixels)
    y, x = scaled[:, 0, :, None], scaled[:, 1, None, :]
    grid = torch.stack(torch.broadcast_tensors(x, y), dim=-1)
    spread = F.grid_sample(pixels, grid, mode="bilinear", padding_mode="border", align_corners=False)
    return torch.where(cut.to(pixels.device)[:, None, None, None], spread, pixels)


def position_channels(
    points: Float[Tensor, "batch 2 side"], sizes_hw: Sequence[tuple[int, int]]
) -> Float[Tensor, "batch 2 side side"]:
    """Return two channels with each pixel's row and column in the image, from -1, the first pixel, to 1, the last."""
    last = (torch.tensor(sizes_hw).reshape(-1, 2, 1) - 1).clamp_min(1)
    y, x = (2 * points / last - 1).float().unbind(dim=1)
    return torch.stack(torch.broadcast_tensors(y[:, :, None], x[:, None, :]), dim=1)


class PreActBottleneck(nn.Module):
    """Norm and ReLU before each of three convolutions (1x1, 3x3, 1x1), as in TensorFlow's slim models.

    The last convolution and the shortcut's have a bias and no norm; if the width stays, the shortcut subsamples.
    """

    def __init__(self, in_dim: int, planes: int, expansion: int, stride: int, momentum: float) -> None:
        super().__init__()
        out_dim = planes * expansion
        self.stride = stride
        self.norm_in = nn.BatchNorm2d(in_dim, _EPS, momentum)
        self.reduce = nn.Conv2d(in_dim, planes, 1, bias=False)
        self.norm_reduced = nn.BatchNorm2d(planes, _EPS, momentum)
        self.look = nn.Conv2d(planes, planes, 3, stride, padding=1, bias=False)
        self.norm_looked = nn.BatchNorm2d(planes, _EPS, momentum)
        self.expand = nn.Conv2d(planes, out_dim, 1)
        self.shortcut = nn.Conv2d(in_dim, out_dim, 1, stride) if in_dim != out_dim else None

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d i j"]:
        """Apply the block."""
        active = F.relu(self.norm_in(x))
        short = self.shortcut(active) if self.shortcut is not None else x[..., :: self.stride, :: self.stride]
        y = F.relu(self.norm_reduced(self.reduce(active)))
        y = F.relu(self.norm_looked(self.look(y)))
        return short + self.expand(y)


class ResNetV2(nn.Module):
    """ResNet v2 that strides in the last unit of every stage but the final one, followed by global average pooling.

    timm's pre-activation ResNets differ in parameter count and cost: they stride in the first unit of stages 2 to 4,
    and their convolutions before a residual sum have no bias.
    """

    def __init__(
        self, in_dim: int, planes: Sequence[int], blocks: Sequence[int], stem_dim: int, expansion: int, momentum: float
    ) -> None:
        super().__init__()
        self.stem = nn.Conv2d(in_dim, stem_dim, 7, stride=2, padding=3)
        self.pool = nn.MaxPool2d(3, stride=2, padding=1)
        units: list[nn.Module] = []
        dim = stem_dim
        for stage, (width, count) in enumerate(zip(planes, blocks, strict=True)):
            for unit in range(count):
                stride = 2 if unit == count - 1 and stage < len(planes) - 1 else 1
                units.append(PreActBottleneck(dim, width, expansion, stride, momentum))
                dim = width * expansion
        self.units = nn.Sequential(*units)
        self.norm = nn.BatchNorm2d(dim, _EPS, momentum)
        self.feature_dim = dim
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, glimpse: Float[Tensor, "batch channels h w"]) -> Float[Tensor, "batch dim"]:
        """Encode glimpses."""
        return F.relu(self.norm(self.units(self.pool(self.stem(glimpse))))).mean(dim=(2, 3))


class RecurrentCell(nn.Module):
    """An LSTM cell with one bias vector per gate (PyTorch's has two), 1 at first for the forget gate."""

    def __init__(self, in_dim: int, dim: int) -> None:
        super().__init__()
        self.dim = dim
        self.gates = nn.Linear(in_dim + dim, 4 * dim)
        nn.init.xavier_uniform_(self.gates.weight)
        nn.init.zeros_(self.gates.bias)
        with torch.no_grad():
            self.gates.bias[dim : 2 * dim] = 1.0

    def forward(
        self, x: Float[Tensor, "batch features"], state: tuple[Tensor, Tensor] | None
    ) -> tuple[Float[Tensor, "batch dim"], Float[Tensor, "batch dim"]]:
        """Return hidden state and memory after one step; ``None`` starts from zeros."""
        zeros = x.new_zeros(x.shape[0], self.dim)
        hidden, memory = (zeros, zeros) if state is None else state
        write, forget, read, value = self.gates(torch.cat([x, hidden], dim=1)).chunk(4, dim=1)
        memory = forget.sigmoid() * memory + write.sigmoid() * value.tanh()
        return read.sigmoid() * memory.tanh(), memory
