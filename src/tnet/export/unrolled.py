"""A model as one function of a tensor: preprocessing, and a fixed number of looks, unrolled."""

from __future__ import annotations

import math
from itertools import pairwise

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Num, UInt8
from torch import Tensor, nn

from tnet.errors import ConfigError, GeometryError
from tnet.export.parts import Answer, describe
from tnet.export.resize import UNALIGNED_PX, Resized, is_reproduced
from tnet.geometry import axis_cells, cell_boxes, cell_spans, image_shares, whole_images
from tnet.models.tnet import TNet
from tnet.traversal import FixedCells, TopK

_LEAST_STEP_PX = 8  # pixels per part of a row, as each costs an index
OUTPUTS = {
    "logits": "float32 [batch, classes]",
    "boxes": "int64 [batch, n, 4]: the whole image first, then in the order of looking",
    "weights": "float32 [batch, n]: share of each region in the decision",
    "region_logits": "float32 [batch, n, classes]: from each region alone",
}
"""Outputs of :class:`FixedLooks`."""


class FixedLooks(nn.Module):
    """A TNet on images of one size, with the same number of looks in each: nothing but tensors, to be exported.

    The result is that of the model for ``uint8`` images on the CPU or, where :attr:`rounded` is false, for normalised
    floating point images; see :mod:`tnet.export.resize`.

    Args:
        model: the model.
        looks: locations per region for levels 1, 2, ...
        size_hw: height and width of the images, pixels.

    Raises:
        ConfigError: the looks cannot be unrolled.
        GeometryError: images of this size are too small for the looks.
    """

    def __init__(self, model: TNet, looks: tuple[int, ...], size_hw: tuple[int, int]) -> None:
        super().__init__()
        self.model, self.looks, self.size_hw = model, looks, size_hw
        self.policy = check_unrollable(model, looks)
        self.answer = Answer(model)
        self.rounded = is_reproduced(model.config.resize)
        problem = model.config.size_problem(size_hw, looks)
        if problem:
            size = f"images of {size_hw[0]} x {size_hw[1]} px (height x width)"
            raise GeometryError(f"{size} have {problem}; export for larger images, or with fewer levels (--looks)")
        config, grid = model.config, model.grid
        self.levels = [Level(size_hw, config.base_px, config.resize)]
        low, high, first, last = [0, 0], list(size_hw), [0, 0], [0, 0]
        for _ in looks:
            parent = whole_images([self.levels[-1].size_hw])
            y_spans, x_spans = cell_spans(parent, grid)
            self.levels[-1].divide(cell_boxes(parent, grid)[0, :, :2], y_spans, x_spans)
            axes = [(0, grid.rows), (1, grid.cols)]
            cells = [axis_cells(self.levels[-1].size_hw[axis], count, grid.cell_extent) for axis, count in axes]
            for axis, cell in enumerate(cells):
                first[axis] += cell.starts_px[0]
                last[axis] += cell.starts_px[-1]
                low[axis] = min(low[axis], first[axis])
                high[axis] = max(high[axis], last[axis] + cell.cell_px)
            self.levels.append(Level((cells[0].cell_px, cells[1].cell_px), config.region_px, config.resize))
        self.stages = nn.ModuleList(self.levels)
        self.before = (-low[0], -low[1])  # padding that the farthest regions reach into
        self.after = (high[0] - size_hw[0], high[1] - size_hw[1])
        step_px, steps_px = math.gcd(high[1] - low[1], self.before[1]), list[int]()
        for outer, inner in pairwise(self.levels):
            step_px = math.gcd(step_px, *outer.starts[:, 1].tolist())
            steps_px.append(math.gcd(step_px, inner.size_hw[1]))
        self.is_aligned = all(step >= _LEAST_STEP_PX for step in steps_px)
        self.steps_px = steps_px if self.is_aligned else [None] * len(steps_px)

    def forward(self, image: UInt8[Tensor, "batch channels height width"]) -> dict[str, Tensor]:
        """Classify raw images of ``size_hw``, values 0 to 255; returns :data:`OUTPUTS`."""
        model, grid = self.model, self.model.grid
        mean, std = model.get_buffer("mean"), model.get_buffer("std")
        glimpses = self.levels[0](image)
        padded = self._padded(image)
        batch = image.shape[0]
        origin = image.new_zeros(batch, 1, 2, dtype=torch.long)
        position = origin
        features, boxes, whole_map = [], [], None
        for level, stage in enumerate(self.levels):
            described = describe(model, (glimpses / 255 - mean) / std, level)
            whole_map = described.cell_map if whole_map is None else whole_map
            place = position.reshape(-1, 2).float()
            feature = model.position(described.pooled, F.pad(place, (0, 1), value=float(level)))
            features.append(feature.reshape(batch, -1, feature.shape[1]))
            boxes.append(torch.cat([origin, origin + torch.tensor(stage.size_hw)], dim=2))
            if level == len(self.looks):
                break
            assert self.policy is not None
            scores = feature.new_zeros(feature.shape[0], grid.cells)
            if self.policy.needs_logits:
                y_spans, x_spans = (edges.expand(place.shape[0], -1, -1) for edges in (stage.y_spans, stage.x_spans))
                scores = model.score(described.cell_map, described.pooled, y_spans, x_spans)
            cells = self.policy(scores, self.looks[level]).cells
            origin = (origin.reshape(-1, 1, 2) + stage.starts[cells]).reshape(batch, -1, 2)
            inner = torch.stack([cells // grid.cols, cells % grid.cols], dim=2)
            position = (position.reshape(-1, 1, 2) * torch.tensor([grid.rows, grid.cols]) + inner).reshape(batch, -1, 2)
            glimpses = self.levels[level + 1].cropped(padded, origin + torch.tensor(self.before), self.steps_px[level])
        table = torch.cat(boxes, dim=1)
        shares = image_shares(table, torch.tensor(self.size_hw).expand(batch, 2))
        answered = self.answer(torch.cat(features, dim=1), None, shares, whole_map)
        values = (answered.logits, table, answered.weights, answered.region_logits)
        return dict(zip(OUTPUTS, values, strict=True))

    def _padded(self, image: UInt8[Tensor, "batch channels height width"]) -> Num[Tensor, "batch channels h w"]:
        """Return the image with what regions beyond its edges see there, and room to read parts of rows."""
        (top, left), (bottom, right), padded = self.before, self.after, image
        if top or left or bottom or right:
            mean = self.model.get_buffer("mean")
            outside = (255 * mean).round() if self.rounded else 255 * mean
            padded = F.pad(image.float() - outside, (left, right, top, bottom)) + outside
        if not self.is_aligned:
            padded = F.pad(padded, (0, UNALIGNED_PX + -padded.shape[3] % UNALIGNED_PX))
        return padded


def check_unrollable(model: TNet, looks: tuple[int, ...]) -> TopK | FixedCells | None:
    """Return the policy that chooses looks; ``None`` for no looks.

    Raises:
        ConfigError: the looks cannot be unrolled; the message says what can be exported.
    """
    if not looks:
        return None
    if model.sees_collected:
        problem = "model.locator.context is 'collected', so that scores depend on all that was seen"
        raise ConfigError(f"{problem}; only the whole image alone can be exported, with --looks 0")
    policy = model.policy(model.config.policy.eval)
    if not isinstance(policy, (TopK, FixedCells)):
        problem = f"model.policy.eval is {model.config.policy.eval!r}, whose looks cannot be unrolled"
        raise ConfigError(f"{problem}; export see, locate and answer with --parts, or the whole image with --looks 0")
    return policy


class Level(Resized):
    """Constants of a level, whose regions all have one size."""

    starts: Int[Tensor, "cells 2"]  # first pixel of each cell in its parent
    y_spans: Float[Tensor, "1 rows 2"]
    x_spans: Float[Tensor, "1 cols 2"]

    def divide(self, starts: Tensor, y_spans: Tensor, x_spans: Tensor) -> None:
        """Set the geometry of cells."""
        self.register_buffer("starts", starts)
        self.register_buffer("y_spans", y_spans)
        self.register_buffer("x_spans", x_spans)
