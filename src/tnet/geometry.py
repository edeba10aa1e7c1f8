"""Grids, boxes and levels: where regions are.

Pure arithmetic, on integers except for the centres of crops. No other module adds, scales or clips boxes.

Frames and units: a box is ``(y0, x0, y1, x1)`` in *level-0 pixels*, the pixels of the full-resolution image, with
``y1`` and ``x1`` exclusive. A box may reach past the edge of its image (by the padding below), where the scene's
padding is shown. *Level* counts from 0, the whole image (the paper counts processing levels from 1).

Grid geometry (paper, section 3.1; constants as in the reference implementation): a parent of ``size`` pixels along an
axis is covered by ``n`` cells of ``round(size * cell_extent)`` pixels (halves round to even), ``ceil((size - cell) /
(n - 1))`` pixels apart. The excess over the parent's size is split: ``ceil(total / 2)`` before, the rest after.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tnet.errors import GeometryError

_MAX_CELLS = 64  # per axis: some policies compare every cell with every other
_MOST_SQUARES = 16  # of one image
_FINE_PX = 10**6  # an axis long enough for rounding to whole pixels not to matter


@dataclass(frozen=True)
class Grid:
    """Division of a region into cells.

    Attributes:
        rows: number of cells down.
        cols: number of cells across.
        cell_extent: side of a cell as a fraction of the side of its region, in (0, 1]. (Called "overlap" in the
            reference implementation: with 5 cells of 0.34375, neighbours share about half.)
    """

    rows: int = 5
    cols: int = 5
    cell_extent: float = 0.34375

    def __post_init__(self) -> None:
        if self.rows < 1 or self.cols < 1:
            raise GeometryError(f"grid.rows x grid.cols is {self.rows} x {self.cols}; give at least 1 each")
        if max(self.rows, self.cols) > _MAX_CELLS:
            sizes = f"{str(self.rows)[:20]} x {str(self.cols)[:20]}"
            raise GeometryError(f"grid.rows x grid.cols is {sizes}; give at most {_MAX_CELLS} each")
        if not 0 < self.cell_extent <= 1:
            raise GeometryError(f"grid cell_extent is {self.cell_extent}; give a fraction above 0 and at most 1")
        for cells in (self.rows, self.cols):
            if cells > 1 and self.cell_extent == 1:
                raise GeometryError(f"{cells} cells of cell_extent 1 all cover the same place; give a fraction below 1")

    @property
    def cells(self) -> int:
        """Number of cells."""
        return self.rows * self.cols


class AxisCells(NamedTuple):
    """First pixel of each cell along an axis of a parent, relative to the parent's (negative in the padding); size."""

    starts_px: tuple[int, ...]
    cell_px: int


@lru_cache(maxsize=4096)
def axis_cells(size_px: int, count: int, cell_extent: float) -> AxisCells:
    """Place ``count`` cells along an axis of ``size_px`` pixels; raise GeometryError if it is too short for them."""
    cell_px = round(size_px * cell_extent)
    if cell_px < 1 or (count > 1 and size_px - cell_px < 1):
        cells = f"{count} cells of {cell_extent} of its side"
        raise GeometryError(f"a region of {size_px} px cannot hold {cells}; use fewer levels or larger images")
    if count == 1:
        return AxisCells(((size_px - cell_px) // 2,), cell_px)
    stride_px = math.ceil((size_px - cell_px) / (count - 1))
    pad_before_px = math.ceil(max(stride_px * (count - 1) + cell_px - size_px, 0) / 2)
    return AxisCells(tuple(i * stride_px - pad_before_px for i in range(count)), cell_px)


@lru_cache(maxsize=64)
def covered_shares(grid: Grid) -> Float[Tensor, "cells cells"]:
    """Return the share of each cell's area covered by every other cell of the region, rounding to pixels ignored."""

    def along(count: int) -> Tensor:
        starts_px, cell_px = axis_cells(_FINE_PX, count, grid.cell_extent)
        starts = torch.tensor(starts_px, dtype=torch.float64)
        return (1 - (starts[:, None] - starts).abs() / cell_px).clamp(min=0)

    return torch.kron(along(grid.rows), along(grid.cols)).float()


@dataclass(frozen=True)
class Regions:
    """Table of regions of a batch of images, at any mix of levels; row ``i`` of each column is region ``i``.

    Attributes:
        level: 0 for a whole image, 1 for a cell of a whole image, ...
        image: index of the image in the batch.
        box_l0_yxyx: box in level-0 pixels; may reach past the edge of the image.
        cell: flat (row-major) grid cell in the parent; -1 for a whole image, and for a region that a caller placed.
        parent: row of the parent in the table; -1 for a whole image.
        position_yx: row and column in the grid that the level would have if every cell were divided: cell (i, j)
            of a parent at (y, x) is at ``(y * rows + i, x * cols + j)`` (paper, positional encoding).
    """

    level: Int[Tensor, " regions"]
    image: Int[Tensor, " regions"]
    box_l0_yxyx: Int[Tensor, "regions 4"]
    cell: Int[Tensor, " regions"]
    parent: Int[Tensor, " regions"]
    position_yx: Int[Tensor, "regions 2"]

    def __len__(self) -> int:
        return int(self.image.shape[0])

    @property
    def size_hw(self) -> Int[Tensor, "regions 2"]:
        """Height and width of each region in level-0 pixels."""
        return self.box_l0_yxyx[:, 2:] - self.box_l0_yxyx[:, :2]

    @property
    def position_yxl(self) -> Float[Tensor, "regions 3"]:
        """Row, column and level of each region: the input of the positional encoding."""
        return torch.cat([self.position_yx, self.level[:, None]], dim=1).float()

    @property
    def depth(self) -> int:
        """Deepest level in the table."""
        return int(self.level.max())

    def take(self, rows: Int[Tensor, " kept"] | Bool[Tensor, " regions"]) -> Regions:
        """Return a selection of rows; ``parent`` still refers to rows of this table."""
        return Regions(*(getattr(self, field.name)[rows] for field in fields(self)))

    def at_level(self, level: int) -> Regions:
        """Return the rows of one level; ``parent`` still refers to rows of this table."""
        return self.take(self.level == level)

    @staticmethod
    def concat(tables: Sequence[Regions]) -> Regions:
        """Concatenate tables whose ``parent`` already refers to rows of the result."""
        return Regions(*(torch.cat([getattr(table, field.name) for table in tables]) for field in fields(Regions)))


def square_boxes(size_hw: tuple[int, int]) -> list[tuple[int, int, int, int]]:
    """Divide an image along its longer side into nearly square boxes without overlap; one below an aspect of 1.5.

    The sides of a box differ by less than half, except in images more than 16 times as long as wide: those have 16.
    """
    longer, shorter = max(size_hw), min(size_hw)
    count = min(max((2 * longer + shorter) // (2 * shorter), 1), _MOST_SQUARES)
    edges = [longer * part // count for part in range(count + 1)]
    is_wide = size_hw[1] == longer
    return [(0, low, shorter, high) if is_wide else (low, 0, high, shorter) for low, high in pairwise(edges)]


def whole_images(sizes_hw: Sequence[tuple[int, int]], *, squares: bool = False) -> Regions:
    """Return level 0 of images of height and width ``sizes_hw`` in pixels, image by image.

    One region per image, or with ``squares`` one per :func:`square_boxes`, each with the position of a whole image.
    """
    if not sizes_hw or min(min(size) for size in sizes_hw) < 1:
        raise GeometryError(f"image sizes {list(sizes_hw)[:4]} are empty; each side needs at least 1 px")
    listed = [square_boxes(size) if squares else [(0, 0, *size)] for size in sizes_hw]
    image = torch.tensor([index for index, boxes in enumerate(listed) for _ in boxes])
    boxes = torch.tensor([box for boxes in listed for box in boxes], dtype=torch.long)
    none, position = torch.full_like(image, -1), torch.zeros(len(image), 2, dtype=torch.long)
    return Regions(position[:, 0], image, boxes, none, none.clone(), position)


def _starts_and_sizes(
    sizes_px: Int[Tensor, " regions"], count: int, cell_extent: float
) -> tuple[Int[Tensor, "regions count"], Int[Tensor, " regions"]]:
    """Return first pixels and size of the cells along one axis of each region."""
    cells = [axis_cells(size, count, cell_extent) for size in sizes_px.tolist()]
    starts = torch.tensor([axis.starts_px for axis in cells], dtype=torch.long).reshape(-1, count)
    return starts, torch.tensor([axis.cell_px for axis in cells], dtype=torch.long)


def divisible(regions: Regions, grid: Grid) -> Bool[Tensor, " regions"]:
    """Return which regions have at least a pixel for each cell."""
    size = regions.size_hw.double()
    cell = (size * grid.cell_extent).round()
    single = torch.tensor([grid.rows == 1, grid.cols == 1])
    return ((cell >= 1) & ((size - cell >= 1) | single)).all(dim=1)


def cell_boxes(parents: Regions, grid: Grid) -> Int[Tensor, "regions cells 4"]:
    """Return the boxes of all cells of each parent in raster order, in level-0 pixels."""
    size = parents.size_hw
    y_starts, height = _starts_and_sizes(size[:, 0], grid.rows, grid.cell_extent)
    x_starts, width = _starts_and_sizes(size[:, 1], grid.cols, grid.cell_extent)
    y0 = (parents.box_l0_yxyx[:, 0:1] + y_starts)[:, :, None].expand(-1, -1, grid.cols)
    x0 = (parents.box_l0_yxyx[:, 1:2] + x_starts)[:, None, :].expand(-1, grid.rows, -1)
    boxes = torch.stack([y0, x0, y0 + height[:, None, None], x0 + width[:, None, None]], dim=-1)
    return boxes.reshape(len(parents), grid.cells, 4)


def choose_cells(
    parents: Regions, grid: Grid, cells: Int[Tensor, "regions k"], rows: Int[Tensor, " regions"] | None = None
) -> Regions:
    """Return the chosen cells of each parent, at any levels, as regions.

    ``cells`` are flat indices, ascending per parent (raster order); ``rows`` are the rows of the parents in the table
    that the result is added to: 0, 1, ... if ``None``.
    """
    cells = cells.cpu()
    if cells.numel() and (int(cells.min()) < 0 or int(cells.max()) >= grid.cells):
        raise GeometryError(f"cell indices must lie in 0..{grid.cells - 1} for a {grid.rows} x {grid.cols} grid")
    k = cells.shape[1]
    rows = torch.arange(len(parents)) if rows is None else rows
    boxes = torch.gather(cell_boxes(parents, grid), 1, cells[:, :, None].expand(-1, -1, 4))
    in_parent = torch.stack([cells // grid.cols, cells % grid.cols], dim=-1)
    position = parents.position_yx[:, None, :] * torch.tensor([grid.rows, grid.cols]) + in_parent
    level, image, parent = (column.repeat_interleave(k) for column in (parents.level + 1, parents.image, rows))
    return Regions(level, image, boxes.reshape(-1, 4), cells.reshape(-1), parent, position.reshape(-1, 2))


def box_overlap(boxes_yxyx: Int[Tensor, "*boxes 4"], other_yxyx: Int[Tensor, "4"]) -> Float[Tensor, "*boxes"]:
    """Return the share of each box's area that another box covers."""
    low = torch.maximum(boxes_yxyx[..., :2], other_yxyx[:2])
    high = torch.minimum(boxes_yxyx[..., 2:], other_yxyx[2:])
    size = boxes_yxyx[..., 2:] - boxes_yxyx[..., :2]
    return (high - low).clamp_min(0).prod(dim=-1) / size.prod(dim=-1).clamp_min(1)


def covered_share(boxes_yxyx: Float[Tensor, "boxes 4"], others_yxyx: Float[Tensor, "others 4"]) -> float:
    """Return the share of the area of boxes (at least one, taken together) that other boxes, taken together, cover."""
    edges = torch.cat([boxes_yxyx, others_yxyx]).double()
    y, x = (edges[:, axis::2].unique() for axis in (0, 1))
    areas = (y[1:] - y[:-1])[:, None] * (x[1:] - x[:-1])
    middle_y, middle_x = ((values[1:] + values[:-1]) / 2 for values in (y, x))

    def inside(given: Tensor) -> Tensor:
        y0, x0, y1, x1 = (side[:, None] for side in given.double().unbind(1))
        rows, cols = (y0 < middle_y) & (middle_y < y1), (x0 < middle_x) & (middle_x < x1)
        return (rows[:, :, None] & cols[:, None, :]).any(0)

    wanted = inside(boxes_yxyx)
    return float(areas[wanted & inside(others_yxyx)].sum() / areas[wanted].sum())


def contains(boxes_yxyx: Float[Tensor, "boxes 4"], points_yx: Float[Tensor, "points 2"]) -> Bool[Tensor, " points"]:
    """Return which points lie in one of the boxes."""
    points = points_yx[:, None]
    return ((points >= boxes_yxyx[:, :2]) & (points < boxes_yxyx[:, 2:])).all(-1).any(1)


def pixel_cover(
    frames_yxyx: Int[Tensor, "regions 4"], boxes_yxyx: Int[Tensor, "regions n 4"], size_px: int
) -> Float[Tensor, "regions {size_px} {size_px}"]:
    """Return how much of each pixel of a glimpse of each frame its boxes cover, 0 to 1 (seams are rounded up)."""
    low, side = frames_yxyx[:, None, :2].double(), (frames_yxyx[:, None, 2:] - frames_yxyx[:, None, :2]).double()
    step = torch.arange(size_px, device=frames_yxyx.device)
    shares = []
    for axis in (0, 1):
        start, pitch = low[..., axis, None], side[..., axis, None] / size_px
        first, last = boxes_yxyx[..., axis, None], boxes_yxyx[..., axis + 2, None]
        ends = torch.minimum(start + (step + 1) * pitch, last), torch.maximum(start + step * pitch, first)
        shares.append(((ends[0] - ends[1]).clamp_min(0) / pitch).float())
    return torch.einsum("rny,rnx->ryx", *shares).clamp_max(1)


def clipped_box(box_yxyx: Sequence[int], size_hw: tuple[int, int]) -> tuple[int, int, int, int] | None:
    """Return the part of a box inside an image; ``None`` if there is none."""
    (y0, x0, y1, x1), (height, width) = box_yxyx, size_hw
    y0, x0, y1, x1 = max(y0, 0), max(x0, 0), min(y1, height), min(x1, width)
    return (y0, x0, y1, x1) if y0 < y1 and x0 < x1 else None


def region_at(
    wholes: Regions,
    rows: Int[Tensor, " wholes"],
    size_hw: tuple[int, int],
    grid: Grid,
    box_l0_yxyx: Sequence[int],
    deepest: int,
) -> Regions:
    """Return a region at any place of an image, as a child of the whole image but none of its cells.

    Its level (at most ``deepest``) and position are those of the nearest cell of a similar size. ``wholes`` are the
    image's regions of level 0, usually one, and ``rows`` their rows; the parent is the one that shows most of the box.

    Raises:
        GeometryError: the box is empty or outside the image.
    """
    y0, x0, y1, x1 = (int(side) for side in box_l0_yxyx)
    height, width = size_hw
    if y0 >= y1 or x0 >= x1 or y1 <= 0 or x1 <= 0 or y0 >= height or x0 >= width:
        where = f"image {int(wholes.image[0])}, {height} x {width} px"
        problem = f"box {(y0, x0, y1, x1)} (y0, x0, y1, x1) shows nothing of {where}"
        raise GeometryError(f"{problem}; give a box that overlaps it")
    box, area = torch.tensor([[y0, x0, y1, x1]]), wholes.size_hw.prod(dim=1)
    most = (box_overlap(wholes.box_l0_yxyx, box[0]) * area).argmax().reshape(1)
    whole, parent = wholes.take(most), rows[most]
    share = math.sqrt((y1 - y0) * (x1 - x0) / int(area[most]))
    extent = min(grid.cell_extent, 0.99)
    level = min(max(round(math.log(max(share, 1e-9)) / math.log(extent)), 1), max(deepest, 1))
    centre = torch.tensor([y0 + y1, x0 + x1])
    nearest = whole
    for _ in range(level):
        boxes = cell_boxes(nearest, grid)[0]
        distance = (boxes[:, :2] + boxes[:, 2:] - centre).float().square().sum(dim=1)
        cell = int(distance.argmin())
        nearest = choose_cells(nearest, grid, torch.tensor([[cell]]))
    return replace(nearest, box_l0_yxyx=box, parent=parent, cell=torch.tensor([-1]))


def scaled_box(box_yxyx: Sequence[int], scale_yx: tuple[float, float]) -> tuple[int, int, int, int]:
    """Scale a box ``(y0, x0, y1, x1)`` by factors down and across, rounded to whole pixels."""
    (y0, x0, y1, x1), (down, across) = box_yxyx, scale_yx
    return round(y0 * down), round(x0 * across), round(y1 * down), round(x1 * across)


def cell_spans(parents: Regions, grid: Grid) -> tuple[Float[Tensor, "regions rows 2"], Float[Tensor, "regions cols 2"]]:
    """Return the first and last edge of each cell per axis, as fractions of the parent's side.

    Padding is clipped, so all values lie in [0, 1] and select the part of the parent's feature map that describes a
    cell. A cell entirely in the padding (many cells in a small parent) is described by the parent's edge pixel.
    """
    spans = []
    for axis, count in ((0, grid.rows), (1, grid.cols)):
        size = parents.size_hw[:, axis]
        starts, cell = _starts_and_sizes(size, count, grid.cell_extent)
        last = size[:, None] - 1
        low = torch.minimum(starts.clamp_min(0), last)
        high = torch.minimum((starts + cell[:, None]).clamp_min(1), last + 1)
        spans.append(torch.stack([low, high], dim=-1) / size[:, None, None])
    return spans[0], spans[1]


def image_shares(boxes_yxyx: Int[Tensor, "rows n 4"], sizes_hw: Int[Tensor, "rows 2"]) -> Float[Tensor, "rows n 4"]:
    """Return boxes as shares of the height and width of their images; clipped, with a pixel of the image at least."""
    size = sizes_hw[:, None, :]
    low = torch.minimum(boxes_yxyx[..., :2].clamp_min(0), size - 1)
    high = torch.minimum(boxes_yxyx[..., 2:].clamp_min(1), size)
    return torch.cat([low / size, high / size], dim=-1)


def resolve_looks(looks: int | Sequence[int], default: Sequence[int], grid: Grid, levels: int) -> tuple[int, ...]:
    """Expand a number of looks to locations per region for levels 1, 2, ...; empty for 0 looks.

    ``looks`` is ``0`` (only the whole image), a number for level 1 (deeper levels keep their ``default``), or one
    number per level; a sequence shorter than ``levels - 1`` stops early.
    """
    if isinstance(looks, int):
        chosen = () if looks == 0 else (looks, *default[1:])
    else:
        chosen = tuple(looks)
        while chosen and chosen[-1] == 0:
            chosen = chosen[:-1]
    if len(chosen) > levels - 1:
        asked = f"{len(chosen)} levels of regions but the model has {levels - 1}"
        raise GeometryError(f"looks {looks} asks for {asked}; give at most {levels - 1} number(s)")
    for number in chosen:
        if not 1 <= number <= grid.cells:
            asked = f"{number} locations in a grid of {grid.rows} x {grid.cols} cells"
            raise GeometryError(f"looks {looks} asks for {asked}; give between 0 and {grid.cells}")
    return chosen


def total_looks(looks: Sequence[int]) -> int:
    """Return the number of regions seen per image after the whole: 2 then 1 each is 2 + 2 = 4."""
    return sum(math.prod(looks[: level + 1]) for level in range(len(looks)))


@dataclass(frozen=True)
class GridFit:
    """Traversal for images of a given size, and why; see :func:`fit_grid`."""

    levels: int
    grid: Grid
    looks: tuple[int, ...]
    finest_scale: float  # image pixels per glimpse pixel at the last level; 1 is full resolution
    why: str


def fit_grid(image_size_hw: tuple[int, int], base_px: int, *, min_cell_extent: float = 0.3) -> GridFit:
    """Propose levels and a grid that reach full resolution at the last level.

    The cell extent is the same at every level and shrinks the image's longer side to ``base_px`` over ``levels - 1``
    steps, with the fewest levels for which a cell is at least ``min_cell_extent`` of its parent (smaller cells are too
    faint in the parent to be chosen well). Neighbouring cells overlap by at least half, so an object of up to half a
    cell is entirely inside some cell. For 224 px and base 77 this gives the paper's 5 x 5 cells of 0.344; for 448 and
    896 px and base 224, 2 and 3 levels of 3 x 3 cells of 0.5.

    Args:
        image_size_hw: typical height and width, pixels.
        base_px: side of a glimpse, pixels.
        min_cell_extent: smallest acceptable cell, in (0, 1).

    Raises:
        GeometryError: the image is smaller than ``base_px``, or an argument is out of range.
    """
    longer = max(image_size_hw)
    if base_px < 1 or not 0 < min_cell_extent < 1:
        raise GeometryError(f"base_px {base_px} and min_cell_extent {min_cell_extent} must be positive, the second < 1")
    if longer < base_px:
        sizes = f"{image_size_hw[0]} x {image_size_hw[1]} px are smaller than the base resolution {base_px} px"
        raise GeometryError(f"images of {sizes}; use a plain network or a smaller base")
    ratio = longer / base_px
    steps = max(1, math.ceil(math.log(ratio) / math.log(1 / min_cell_extent) - 1e-9))
    extent = min(ratio ** (-1 / steps), 0.9)
    count = math.ceil((1 - extent) / (extent / 2) - 1e-9) + 1
    looks = ((2,) * (steps - 1) + (1,)) if steps > 1 else (min(3, count * count),)
    scale = max(1.0, ratio * extent**steps)
    why = (
        f"{longer} px is {ratio:.1f} times the base of {base_px} px; {steps} step(s) of {extent:.3f} reach "
        f"{scale:.2f} image pixel(s) per glimpse pixel, and {count} x {count} cells overlap by half or more."
    )
    return GridFit(steps + 1, Grid(count, count, round(extent, 6)), looks, scale, why)
