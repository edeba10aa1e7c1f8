"""Cropping and resizing as tensor operations that any exporter knows: indices, and two matrix products per glimpse.

PyTorch resizes ``uint8`` pixels in integers: columns first, with weights of 16 bits, and rounds after each axis. The
same weights give the same pixels here. On a processor where PyTorch does otherwise, nothing is rounded.
"""

from __future__ import annotations

from functools import cache

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from tnet.scenes.base import Resize
from tnet.scenes.resample import interpolate

_WEIGHT_BITS = 15


class Resized(nn.Module):
    """Resizing of images or regions of one size to a square glimpse; pixels are 0 to 255."""

    def __init__(self, size_hw: tuple[int, int], base_px: int, resize: Resize) -> None:
        super().__init__()
        self.size_hw, self.rounded = size_hw, is_reproduced(resize)
        for name, size_px in zip(("down", "across"), size_hw, strict=True):
            self.register_buffer(name, resize_weights(size_px, base_px, resize, self.rounded))

    def resized(self, pixels: Float[Tensor, "n channels h w"]) -> Float[Tensor, "n channels side side"]:
        """Resize whole images."""
        return self._along("down", self._along("across", pixels.mT).mT)

    def cropped(
        self, columns: Float[Tensor, "batch w channels h"], origin_yx: Int[Tensor, "batch k 2"]
    ) -> Float[Tensor, "regions channels side side"]:
        """Crop regions of this size and resize them; axis by axis, by indices of whole columns, then rows."""
        (batch, width, channels, height), count = columns.shape, origin_yx.shape[1]
        y0, x0 = origin_yx.reshape(-1, 2).unbind(1)
        image = torch.arange(batch)[:, None].expand(batch, count).reshape(-1)
        taken = (image * width + x0)[:, None] + torch.arange(self.size_hw[1])
        strips = self._along("across", columns.reshape(-1, channels * height)[taken])
        regions, side, _ = strips.shape
        rows = strips.reshape(regions, side * channels, height).mT.reshape(-1, side * channels)
        taken = (torch.arange(regions) * height + y0)[:, None] + torch.arange(self.size_hw[0])
        glimpses = self._along("down", rows[taken])
        return glimpses.reshape(regions, -1, side, channels).permute(0, 3, 1, 2)

    def _along(self, name: str, values: Float[Tensor, "*n size m"]) -> Float[Tensor, "*n side m"]:
        return resample(values, self.get_buffer(name), self.rounded)


def resample(
    values: Float[Tensor, "*n size m"], weights: Float[Tensor, "side size"], rounded: bool
) -> Float[Tensor, "*n side m"]:
    """Resample along the last axis but one; nothing to do if the size stays."""
    if weights.shape[0] == weights.shape[1]:
        return values
    resampled = weights @ values
    return (resampled + 0.5).floor() if rounded else resampled


def resize_weights(
    size_px: int, base_px: int, resize: Resize, rounded: bool = False
) -> Float[Tensor, "{base_px} {size_px}"]:
    """Return the matrix by which the model's filter resizes an axis; ``rounded`` to the precision for ``uint8``."""
    weights = interpolate(torch.eye(size_px, dtype=torch.float64)[None, None], (base_px, size_px), resize)[0, 0]
    if rounded:
        bits = 0
        while bits < 22 and int(0.5 + float(weights.max()) * 2 ** (bits + 1)) < 2**_WEIGHT_BITS:
            bits += 1
        weights = (weights * 2**bits + 0.5).floor() / 2**bits
    return weights.float()


@cache
def is_reproduced(resize: Resize) -> bool:
    """Return whether PyTorch resizes ``uint8`` pixels on this processor as described above."""
    generator = torch.Generator().manual_seed(0)
    for size_hw, side in (((97, 131), 32), ((45, 40), 64)):
        pixels = torch.randint(256, (1, 3, *size_hw), dtype=torch.uint8, generator=generator)
        down, across = (resize_weights(size, side, resize, rounded=True) for size in size_hw)
        ours = resample(resample(pixels.float().mT, across, True).mT, down, True)
        if not torch.equal(ours, interpolate(pixels, (side, side), resize).float()):
            return False
    return True
