"""Boxes that only the baselines use: patches on a grid, crops around a point, windows of a feature map's positions.

Frames and units are those of :mod:`tnet.geometry`: boxes are ``(y0, x0, y1, x1)`` in level-0 pixels, end exclusive.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tnet.errors import GeometryError
from tnet.geometry import Regions

Looks = int | Sequence[int] | None
"""Number of looks; the configured one if ``None``."""


def _level_1(
    image: Int[Tensor, " n"], boxes: Int[Tensor, "n 4"], cell: Int[Tensor, " n"], position_yx: Int[Tensor, "n 2"]
) -> Regions:
    """Regions whose parents are the whole images."""
    return Regions(torch.ones_like(image), image, boxes, cell, image.clone(), position_yx)


def patch_boxes(size_hw: tuple[int, int], patch_px: int, stride_px: int) -> Int[Tensor, "rows cols 4"]:
    """Place square patches, with starts ``stride_px`` apart, to cover an image with as few as possible.

    Patches reach past both sides of the image equally, as cells do: ``ceil(total / 2)`` before, the rest after.
    """
    if min(*size_hw, patch_px) < 1 or not 1 <= stride_px <= patch_px:
        gaps = f"patch_px {patch_px} and stride_px {stride_px} leave gaps in {size_hw} px"
        raise GeometryError(f"{gaps}; give 1 to patch_px as stride_px")
    starts = []
    for size in size_hw:
        count = 1 + max(0, math.ceil((size - patch_px) / stride_px))
        total_pad = (count - 1) * stride_px + patch_px - size
        starts.append(torch.arange(count) * stride_px - math.ceil(total_pad / 2))
    return _boxes_from_starts(starts, patch_px)


def position_boxes(size_hw: tuple[int, int], map_hw: tuple[int, int], patch_px: int) -> Int[Tensor, "rows cols 4"]:
    """Place square patches centred on the positions of a map of an image.

    Position ``i`` of ``n`` stands for ``[i, i + 1) / n`` of the image's side; its patch is centred in the middle of
    that, to the nearest pixel (halves round up), and may reach past the image's edge.
    """
    if min(*size_hw, *map_hw, patch_px) < 1:
        raise GeometryError(f"patch_px {patch_px}, map {map_hw} or image {size_hw} is empty; give at least 1 each")
    starts = [
        torch.div((2 * torch.arange(n) + 1) * size - patch_px * n + n, 2 * n, rounding_mode="floor")
        for size, n in zip(size_hw, map_hw, strict=True)
    ]
    return _boxes_from_starts(starts, patch_px)


def _boxes_from_starts(starts_yx: Sequence[Int[Tensor, " _"]], side_px: int) -> Int[Tensor, "rows cols 4"]:
    top, left = torch.meshgrid(*starts_yx, indexing="ij")
    return torch.stack([top, left, top + side_px, left + side_px], dim=-1)


def chosen_patches(
    boxes: Sequence[Int[Tensor, "_ _ 4"]], chosen: Sequence[Int[Tensor, " _"]], images: Sequence[int] | None = None
) -> Regions:
    """Return the regions of patches chosen from one grid of boxes per image, by flat (row-major) indices.

    ``images`` are the indices of the images in the batch: 0, 1, ... if ``None``.
    """
    columns = []
    for index, grid, patches in zip(images or range(len(boxes)), boxes, chosen, strict=True):
        rows, cols = grid.shape[:2]
        patches = patches.cpu().long()
        if patches.numel() and not 0 <= int(patches.min()) <= int(patches.max()) < rows * cols:
            raise GeometryError(f"patch indices must be in 0..{rows * cols - 1} for {rows} x {cols} boxes")
        position = torch.stack([patches // cols, patches % cols], dim=1)
        columns.append((torch.full_like(patches, index), grid.flatten(0, 1)[patches], patches, position))
    return _level_1(*map(torch.cat, zip(*columns, strict=True)))


def crop_sizes_px(glimpse_px: int, input_px: int, scales: int) -> tuple[int, ...]:
    """Return the sides of concentric crops, from the glimpse to the whole image of ``input_px`` in equal steps.

    77 px of 224 px in 3 scales are crops of 77, 150 and 224 px (rounded down, as in the original).
    """
    steps = max(scales - 1, 1)
    return tuple(glimpse_px + scale * (input_px - glimpse_px) // steps for scale in range(scales))


def crop_boxes(
    location_yx: Float[Tensor, "batch 2"],
    sizes_hw: Sequence[tuple[int, int]],
    crop_px: int,
    input_px: int,
    keep_inside: bool = False,
) -> Int[Tensor, "batch 4"]:
    """Return the box of one crop per image, centred on a location from -1 to 1, the image's first and last edge.

    Its first pixel is ``floor((side * (1 + location) - crop) / 2)`` on each axis, as in the original. A crop has side
    ``crop_px`` in a square image of ``input_px``; in other images the same share of each side, rounded, at least 1 px.
    ``keep_inside`` shifts boxes into their image; otherwise they may reach past the edge.
    """
    sides = torch.tensor(sizes_hw, dtype=torch.float64).reshape(-1, 2)
    crops = (sides * crop_px / input_px).round().clamp_min(1)
    # Double precision: a location at the border must not be pushed out by rounding.
    starts = ((sides * (1 + location_yx.cpu().double()) - crops) / 2).floor()
    if keep_inside:
        starts = torch.minimum(starts.clamp_min(0), sides - crops)
    return torch.cat([starts, starts + crops], dim=1).long()


def clip_boxes(box_l0_yxyx: Int[Tensor, "batch 4"], sizes_hw: Sequence[tuple[int, int]]) -> Int[Tensor, "batch 4"]:
    """Clip each box to its image; a box outside it becomes the nearest pixel."""
    sides = torch.tensor(sizes_hw, dtype=torch.long).reshape(-1, 2)
    starts = torch.minimum(box_l0_yxyx[:, :2].clamp_min(0), sides - 1)
    stops = torch.minimum(box_l0_yxyx[:, 2:].clamp_min(1), sides)
    return torch.cat([starts, stops], dim=1)


def box_regions(box_l0_yxyx: Int[Tensor, "batch n 4"]) -> Regions:
    """Return boxes outside any grid as regions, in order."""
    batch, n = box_l0_yxyx.shape[:2]
    image = torch.arange(batch).repeat_interleave(n)
    nowhere = torch.zeros(batch * n, 2, dtype=torch.long)
    return _level_1(image, box_l0_yxyx.reshape(-1, 4), torch.full_like(image, -1), nowhere)


def window_regions(
    whole: Regions, cells: Int[Tensor, "batch looks"], side: int, field_px: int, input_px: int
) -> Regions:
    """Return the windows around positions of a feature map of ``side`` x ``side`` as regions, in each whole image.

    Along an axis of ``input_px`` pixels position ``i`` of ``side`` covers ``field_px`` pixels from pixel ``floor(i *
    (input_px - field_px) / (side - 1))``: the first and the last touch the edges (as in the original). Scaled to images
    of other sizes, edges are rounded, halves up, and a window keeps at least a pixel.
    """
    if cells.is_meta:  # outlines have shapes but no values
        cells = torch.zeros(cells.shape, dtype=torch.long)
    cells = cells.cpu()
    position_yx = torch.stack([cells // side, cells % side], dim=-1)
    start = position_yx * (input_px - field_px) // max(side - 1, 1)
    size = whole.size_hw[:, None, :]
    low = torch.minimum((2 * start * size + input_px) // (2 * input_px), size - 1)
    high = torch.maximum((2 * (start + field_px) * size + input_px) // (2 * input_px), low + 1)
    boxes = torch.cat([low, high], dim=-1).reshape(-1, 4)
    image = whole.image.repeat_interleave(cells.shape[1])
    return _level_1(image, boxes, cells.reshape(-1), position_yx.reshape(-1, 2))
