"""Modules of a TNet between backbone and aggregation: positional encoding and locator.

They take only tensors, so that they can be exported.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from tnet.errors import ConfigError
from tnet.geometry import Grid
from tnet.models.config import Activation, LocatorConfig, LogitNorm, PositionConfig

_MAX_INVERSE_FREQUENCY = 100.0


def activation(name: Activation) -> nn.Module:
    """Return the activation of that name."""
    if name == "leaky_relu":
        return nn.LeakyReLU(0.2)
    return {"relu": nn.ReLU, "silu": nn.SiLU, "gelu": nn.GELU}[name]()


def positional_encoding(position: Float[Tensor, "regions 3"], dim: int) -> Float[Tensor, "regions {dim}"]:
    """Return sines and cosines of row and column in the level's overall grid, and of the level (paper).

    Uses ``dim // 6`` frequencies from 1 to 1/100 in geometric steps: for row, column and level in turn all sines, then
    all cosines; zeros fill the rest.
    """
    count = dim // 6
    steps = torch.arange(count, dtype=torch.float32, device=position.device)
    frequency = _MAX_INVERSE_FREQUENCY ** (-steps / max(count - 1, 1))
    angle = position[:, :, None] * frequency
    waves = torch.cat([angle.sin(), angle.cos()], dim=2).flatten(1)
    return F.pad(waves, (0, dim - waves.shape[1]))


class PositionModule(nn.Module):
    """Combination of features of size ``dim`` with their positional encoding."""

    def __init__(self, config: PositionConfig, dim: int) -> None:
        super().__init__()
        self.kind = config.kind
        self.encoding_dim = dim // config.divisor if config.kind == "add" else dim
        if config.kind != "none" and self.encoding_dim < 6:
            channels = f"{self.encoding_dim} of {dim} feature channels but needs at least 6"
            remedy = "reduce model.position.divisor or set model.position.kind: none"
            raise ConfigError(f"the positional encoding has {channels}; {remedy}")
        if config.kind == "concat":
            self.linear: nn.Module = nn.Linear(2 * dim, dim)
        elif config.kind == "add":
            self.linear = nn.Linear(self.encoding_dim, dim)
            self.activation = activation(config.activation)

    def forward(
        self, feature: Float[Tensor, "regions dim"], position_yxl: Float[Tensor, "regions 3"]
    ) -> Float[Tensor, "regions dim"]:
        """Combine features with their :attr:`Regions.position_yxl`."""
        if self.kind == "none":
            return feature
        position = position_yxl.to(feature.device)
        encoding = positional_encoding(position, self.encoding_dim).to(feature.dtype)
        if self.kind == "concat":
            return self.linear(torch.cat([feature, encoding], dim=1))
        return self.activation(feature + self.linear(encoding))


def _span_weights(spans: Float[Tensor, "regions cells 2"], size: int) -> Float[Tensor, "regions cells {size}"]:
    """Cover of each of ``size`` equal bins of [0, 1] by a span, as weights that sum to 1."""
    edges = torch.arange(size + 1, device=spans.device) / size
    low = torch.maximum(spans[:, :, 0:1], edges[:-1])
    high = torch.minimum(spans[:, :, 1:2], edges[1:])
    weights = (high - low).clamp_min(0)
    return weights / weights.sum(dim=2, keepdim=True)


def pool_cells(
    cell_map: Float[Tensor, "regions dim h w"],
    y_spans: Float[Tensor, "regions rows 2"],
    x_spans: Float[Tensor, "regions cols 2"],
) -> Float[Tensor, "regions dim rows cols"]:
    """Average a feature map over the exact extent of each cell; spans are those of :func:`tnet.geometry.cell_spans`."""
    y_weights = _span_weights(y_spans.to(cell_map.device), cell_map.shape[2]).to(cell_map.dtype)
    x_weights = _span_weights(x_spans.to(cell_map.device), cell_map.shape[3]).to(cell_map.dtype)
    return torch.einsum("nrh,ndhw,ncw->ndrc", y_weights, cell_map, x_weights)


def sample_cells(
    cell_map: Float[Tensor, "regions dim h w"], grid: Grid, start: int, step: int
) -> Float[Tensor, "regions dim {grid.rows} {grid.cols}"]:
    """Take one position of a feature map per cell (as in the reference implementation)."""
    stop_y, stop_x = start + step * (grid.rows - 1), start + step * (grid.cols - 1)
    if stop_y >= cell_map.shape[2] or stop_x >= cell_map.shape[3]:
        sizes = f"a map of {cell_map.shape[2]} x {cell_map.shape[3]} for a grid of {grid.rows} x {grid.cols}"
        remedy = "change model.locator.position_start and position_step, or use cells: area"
        raise ConfigError(f"positions {start}::{step} do not fit {sizes}; {remedy}")
    return cell_map[:, :, start : stop_y + 1 : step, start : stop_x + 1 : step]


class Coordinates(nn.Module):
    """Coordinates of cells in the grid, -1 to 1, as two channels, each with a learned scale and shift."""

    def __init__(self) -> None:
        super().__init__()
        self.scale_y = nn.Linear(1, 1)
        self.scale_x = nn.Linear(1, 1)
        for layer in (self.scale_y, self.scale_x):
            nn.init.ones_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, cells: Float[Tensor, "regions dim rows cols"]) -> Float[Tensor, "regions 2 rows cols"]:
        """Return the coordinates of the cells of a feature grid."""
        count, _, rows, cols = cells.shape
        y = self.scale_y(torch.linspace(-1, 1, rows, device=cells.device, dtype=cells.dtype)[:, None])
        x = self.scale_x(torch.linspace(-1, 1, cols, device=cells.device, dtype=cells.dtype)[:, None])
        return torch.stack([y.expand(rows, cols), x.T.expand(rows, cols)]).expand(count, 2, rows, cols)


def normalize_logits(
    logits: Float[Tensor, "regions cells"], kind: LogitNorm, log_scale: Float[Tensor, ""] | None
) -> Float[Tensor, "regions cells"]:
    """Scale location logits for the softmax (paper: L2 norm 1 over the cells, no epsilon)."""
    if kind == "none":
        return logits
    unit = logits / logits.norm(dim=1, keepdim=True)
    return unit if log_scale is None else unit * log_scale.exp()


class Locator(nn.Module):
    """Scores of the cells of a region; ``context_dim`` is the size of the pooled feature, for the ``context`` form.

    The input is detached from the backbone: the locator learns without affecting the features (paper, training). If it
    sees what was collected, ``collected_dim`` channels, :meth:`finish` adds that; before training it has no effect.
    """

    def __init__(self, config: LocatorConfig, cell_dim: int, context_dim: int, collected_dim: int = 0) -> None:
        super().__init__()
        self.kind = config.kind
        self.logits = config.logits
        self.coordinates = Coordinates()
        if config.kind == "context":
            hidden = config.hidden or 512
            self.hidden = nn.Conv2d(cell_dim + context_dim + 2, hidden, 1)
        else:
            hidden = config.hidden or cell_dim
            squeezed = max(1, hidden // 2)
            self.reduce = nn.Conv2d(cell_dim, hidden, 1)
            self.squeeze = nn.Conv2d(hidden, squeezed, 1)
            self.excite = nn.Conv2d(squeezed, hidden, 1)
            self.hidden = nn.Conv2d(hidden + 2, hidden, 1)
        self.output = nn.Conv2d(hidden, 1, 1)
        self.collected = nn.Conv2d(collected_dim, hidden, 1, bias=False) if collected_dim else None
        if self.collected is not None:
            nn.init.zeros_(self.collected.weight)
        scaled = config.logits == "l2_scaled"
        self.log_scale = nn.Parameter(torch.tensor(math.log(config.initial_scale))) if scaled else None
        # Apart from the locator, which learns as it does without it.
        plain = replace(config, value=False, logits="none")
        self.value = Locator(plain, cell_dim, context_dim) if config.value else None

    def forward(
        self, cells: Float[Tensor, "regions dim rows cols"], context: Float[Tensor, "regions features"]
    ) -> Float[Tensor, "regions ..."]:
        """Return location logits, normalised as configured, of cells in raster order, or their draft."""
        cells, context = cells.detach(), context.detach()
        if self.kind == "context":
            tiled = context[:, :, None, None].expand(-1, -1, *cells.shape[2:])
            x = self.hidden(torch.cat([cells, tiled, self.coordinates(cells)], dim=1))
        else:
            x = F.silu(self.reduce(cells))
            gate = self.excite(F.silu(self.squeeze(x.mean(dim=(2, 3), keepdim=True))))
            x = x * gate.sigmoid()
            x = self.hidden(torch.cat([x, self.coordinates(x)], dim=1))
        return x if self.collected is not None else self.finish(x)

    def finish(
        self,
        draft: Float[Tensor, "regions hidden rows cols"],
        collected: Float[Tensor, "regions dim _ _"] | None = None,
    ) -> Float[Tensor, "regions cells"]:
        """Return location logits from their draft and what was collected, at each cell or the same for all."""
        if self.collected is not None and collected is not None:
            draft = draft + self.collected(collected.detach())
        x = F.leaky_relu(draft, 0.2) if self.kind == "context" else F.silu(draft)
        return normalize_logits(self.output(x).flatten(1), self.logits, self.log_scale)
