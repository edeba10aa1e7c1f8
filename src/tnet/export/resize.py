"""Cropping and resizing as tensor operations that any exporter knows and every engine runs fast.

PyTorch resizes ``uint8`` pixels in integers: columns first, with weights of 16 bits, and rounds after each axis. The
same weights give the same pixels here. On a processor where PyTorch does otherwise, nothing is rounded.

Pixels stay ``uint8`` until few are left, since engines convert a whole image slowly.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Num
from torch import Tensor, nn
from typing_extensions import override

from tnet.scenes.base import Resize
from tnet.scenes.resample import interpolate

_WEIGHT_BITS = 15
UNALIGNED_PX = 16
"""Pixels per part of a row, for regions that begin anywhere."""


class Resized(nn.Module):
    """Resizing of images or regions of one size to a square glimpse; pixels are 0 to 255.

    Args:
        size_hw: height and width of the images or regions, pixels.
        side_px: side of the glimpse.
        resize: the model's filter.
        rounded: whether to round as PyTorch does for ``uint8``; ``None`` to do so where it does.
    """

    def __init__(self, size_hw: tuple[int, int], side_px: int, resize: Resize, rounded: bool | None = None) -> None:
        super().__init__()
        rounded = is_reproduced(resize) if rounded is None else rounded
        self.size_hw = size_hw
        self.vertical, self.horizontal = (Axis(size_px, side_px, resize, rounded) for size_px in size_hw)

    @override
    def forward(self, pixels: Num[Tensor, "n channels h w"]) -> Float[Tensor, "n channels side side"]:
        """Resize whole images."""
        return self.vertical.mixed([self.horizontal.across(taken) for taken in self.vertical.taken(pixels)])

    def cropped(
        self, image: Num[Tensor, "batch channels h w"], origin_yx: Int[Tensor, "batch k 2"], step_px: int | None
    ) -> Float[Tensor, "regions channels side side"]:
        """Crop regions of this size and resize them.

        Rows are read in parts of ``step_px``, which divides the first columns of the regions, their width and the
        image's. If ``None``, regions may begin anywhere; the width of the image is then a multiple of
        :data:`UNALIGNED_PX`, with at least as many columns beyond those that any region needs.
        """
        (batch, channels, height, width), count = image.shape, origin_yx.shape[1]
        y0, x0 = origin_yx.reshape(-1, 2).unbind(1)
        owner = torch.arange(batch)[:, None].expand(batch, count).reshape(-1)
        part_px = step_px or UNALIGNED_PX
        reach_px = self.size_hw[1] + (UNALIGNED_PX - 1 if step_px is None else 0)  # from the first part's first column
        parts = -(-reach_px // part_px)
        rows = torch.arange(channels)[:, None, None] * height + torch.arange(self.size_hw[0])[:, None]
        inside = rows * (width // part_px) + torch.arange(parts)
        first = (owner * (channels * height) + y0) * (width // part_px) + x0 // part_px
        indices = (first[:, None] + inside.reshape(-1)).reshape(-1)
        pixels = image.reshape(-1, part_px).index_select(0, indices)
        pixels = pixels.reshape(-1, channels, self.size_hw[0], parts * part_px)
        if step_px is not None:
            return self(pixels)
        shift = x0 % part_px
        return self.vertical.mixed([self.horizontal.shifted(taken, shift) for taken in self.vertical.taken(pixels)])


class Axis(nn.Module):
    """Resizing along one axis: means of few pixels at regular distances, or a matrix product."""

    weights: Float[Tensor, "side size"]

    def __init__(self, size_px: int, side_px: int, resize: Resize, rounded: bool) -> None:
        super().__init__()
        self.side_px, self.step_px, self.rounded = side_px, size_px // side_px, rounded
        weights = resize_weights(size_px, side_px, resize, rounded)
        self.taps = regular_taps(weights)
        self.register_buffer("weights", weights)

    def across(self, pixels: Num[Tensor, "n channels h size"]) -> Float[Tensor, "n channels h side"]:
        """Resize the width."""
        if self.taps is None:
            return self._round(pixels.float() @ self.weights.T)
        if self.step_px == 1:
            return pixels.float()
        groups = pixels.reshape(*pixels.shape[:3], self.side_px, self.step_px)
        return self._mean([groups[..., index].float() for index in self.taps])

    def shifted(
        self, pixels: Num[Tensor, "n channels h wide"], shift_px: Int[Tensor, " n"]
    ) -> Float[Tensor, "n channels h side"]:
        """Resize the width of what begins ``shift_px`` pixels, fewer than a part of a row, from the left."""
        n, channels, height, wide = pixels.shape
        rows = (UNALIGNED_PX - 1 - shift_px)[:, None] + torch.arange(wide)
        shifted = F.pad(self.weights.T, (0, 0, UNALIGNED_PX - 1, wide - self.weights.shape[1]))
        weights = shifted.index_select(0, rows.reshape(-1)).reshape(n, wide, self.side_px)
        resized = pixels.float().reshape(n, channels * height, wide) @ weights
        return self._round(resized.reshape(n, channels, height, self.side_px))

    def taken(self, pixels: Num[Tensor, "n channels size w"]) -> list[Num[Tensor, "n channels _ w"]]:
        """Return the rows that are needed: one tensor for each weight, or all of them in one."""
        if self.taps is None or self.step_px == 1:
            return [pixels]
        n, channels, _, width = pixels.shape
        groups = pixels.reshape(n, channels, self.side_px, self.step_px, width)
        return [groups[:, :, :, index] for index in self.taps]

    def mixed(self, rows: Sequence[Float[Tensor, "n channels _ w"]]) -> Float[Tensor, "n channels side w"]:
        """Resize the height, given the rows of :meth:`taken`, resized in width."""
        return self._round(self.weights @ rows[0]) if self.taps is None else self._mean(rows)

    def _mean(self, values: Sequence[Tensor]) -> Tensor:
        return values[0] if len(values) == 1 else self._round(sum(values[1:], values[0]) / len(values))

    def _round(self, values: Tensor) -> Tensor:
        return (values + 0.5).floor() if self.rounded else values


def regular_taps(weights: Float[Tensor, "side size"]) -> list[int] | None:
    """Return which pixels of each group are averaged to one; ``None`` if they, or their weights, differ."""
    side, size = weights.shape
    group = weights[0, : size // side]
    if size % side or not torch.equal(weights, torch.block_diag(*[group[None]] * side)):
        return None
    taps = group.nonzero().flatten().tolist()
    return taps if torch.equal(group[taps], torch.full((len(taps),), 1 / len(taps))) else None


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
        ours = Resized(size_hw, side, resize, rounded=True)(pixels)
        if not torch.equal(ours, interpolate(pixels, (side, side), resize).float()):
            return False
    return True
