"""Configuration of a TNet: frozen dataclasses, the same in recipes, ``config.json`` and code."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal

from typing_extensions import override

from tnet.backbones import BackboneConfig, BatchNormMode, pretrained_normalization
from tnet.config import check_most
from tnet.errors import ConfigError, GeometryError
from tnet.geometry import Grid, axis_cells, resolve_looks, total_looks
from tnet.models.aggregation import AGGREGATIONS
from tnet.models.base import ModelConfig
from tnet.traversal import POLICIES, PolicyConfig

PositionKind = Literal["concat", "add", "none"]
LocatorKind = Literal["context", "squeeze"]
LogitNorm = Literal["l2", "l2_scaled", "none"]
Activation = Literal["relu", "silu", "leaky_relu", "gelu"]
CellPooling = Literal["area", "positions"]
LocatorContext = Literal["none", "collected"]
_MOST_CHANNELS = 8192
_MOST_LEVELS = 16
_MOST_REGIONS = 16_384  # per image
_MAX_IMAGE_PX = 2**24  # per side


@dataclass(frozen=True)
class PositionConfig:
    """Positional encoding of features.

    Attributes:
        kind: ``concat``, a linear layer over feature and encoding (the paper's ImageNet form); ``add``, an activation
            over the feature plus a linear map of a shorter encoding (its EfficientNet form); or ``none``.
        divisor: feature size over encoding size, for ``add``.
        activation: activation of the ``add`` form.
    """

    kind: PositionKind = "add"
    divisor: int = 4
    activation: Activation = "silu"

    def __post_init__(self) -> None:
        if self.divisor < 1:
            raise ConfigError(f"model.position.divisor is {self.divisor}; give at least 1")
        check_most(self, "model.position.", {"divisor": _MOST_CHANNELS})


@dataclass(frozen=True)
class LocatorConfig:
    """Scoring of the cells of a region.

    Attributes:
        kind: ``squeeze`` (squeeze-and-excitation over the grid, the paper's EfficientNet form) or ``context`` (the
            region's pooled feature beside each cell's, its ImageNet form).
        hidden: channels of the hidden layer; 0 for those of the cell features (``squeeze``) or 512 (``context``).
        logits: ``l2``, logits divided by their norm over the cells (the paper's; nearly uniform over many cells);
            ``l2_scaled``, the same times a learned scale; or ``none``, unchanged.
        initial_scale: initial value of the learned scale of ``l2_scaled``.
        cells: ``area``, a cell's feature is the average of the map over the cell's true extent; or ``positions``,
            single positions ``start::step`` of the map (the paper's).
        position_start, position_step: first position and step between positions, for ``positions``.
        context: what scores depend on besides the region: ``none`` (the paper's), or ``collected``, what was seen of
            the image so far: the canvas at the cell, or the mean feature without a canvas. Looks are then taken one by
            one, and regions scored again after each.
        value: whether a second locator predicts what looking at each cell gains, in nats of log-likelihood of the right
            answer, for search and stopping by gain; trained by ``objective.gain_weight``.
    """

    kind: LocatorKind = "squeeze"
    hidden: int = 0
    logits: LogitNorm = "l2_scaled"
    initial_scale: float = 5.0
    cells: CellPooling = "area"
    position_start: int = 0
    position_step: int = 1
    context: LocatorContext = "none"
    value: bool = False

    def __post_init__(self) -> None:
        if self.value and self.context != "none":
            problem = "model.locator.value predicts gains once, but model.locator.context is 'collected'"
            raise ConfigError(f"{problem}; set one of them to its default")
        if not self.initial_scale > 0:
            raise ConfigError(f"model.locator.initial_scale is {self.initial_scale}; give a number above 0")
        for name, least in (("hidden", 0), ("position_start", 0), ("position_step", 1)):
            if getattr(self, name) < least:
                raise ConfigError(f"model.locator.{name} is {getattr(self, name)}; give at least {least}")
        most = dict.fromkeys(("hidden", "position_start", "position_step"), _MOST_CHANNELS)
        check_most(self, "model.locator.", {**most, "initial_scale": 1e6})


@dataclass(frozen=True, kw_only=True)
class TNetConfig(ModelConfig):
    """A TNet. Defaults are those supported by our own studies; published forms are in :mod:`tnet.models.registry`.

    Attributes:
        backbone: feature extractor of glimpses.
        base_px: side of a glimpse of the whole image, pixels.
        look_px: side of a glimpse of a region, pixels; ``base_px`` if ``None``.
        look_weights: backbone of regions: that of whole images (``shared``), or one of its own, which starts from the
            same weights (``separate``).
        levels: number of levels, including the whole image; 1 is a plain network on the downscaled image.
        grid: division of a region into cells.
        looks: locations per region for levels 1, 2, ...: the number in training and the default at inference.
        position: positional encoding of features.
        locator: scoring of cells.
        policy: choice of locations.
        aggregation: ``mean`` of the features; their elementwise ``max``, for classes decided by a single region (a
            lesion, a defect); ``weighted`` (the paper's feature weighting); ``attention``, each region in context of
            the others; or ``canvas``, the mean and a map of the image into which each region is written at its place.
        dropout: dropout probability before the classifier.
        batch_norm: running statistics ``shared`` by whole images and regions, or separate: ``per_level``.
        mean, std: as in :class:`ModelConfig`, but those of the backbone's pretrained weights if ``None``.
    """

    title: ClassVar[str] = "TNet"
    policies: ClassVar[Collection[str]] = POLICIES
    allows_no_looks: ClassVar[bool] = True
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    base_px: int = 224
    look_px: int | None = None
    look_weights: Literal["shared", "separate"] = "shared"
    levels: int = 2
    grid: Grid = field(default_factory=Grid)
    looks: tuple[int, ...] = (3,)
    position: PositionConfig = field(default_factory=PositionConfig)
    locator: LocatorConfig = field(default_factory=LocatorConfig)
    policy: PolicyConfig = field(default_factory=PolicyConfig)
    aggregation: str = "mean"
    dropout: float = 0.2
    batch_norm: BatchNormMode = "per_level"
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_most(self, "model.", {"levels": _MOST_LEVELS})
        if self.levels < 1:
            raise ConfigError(f"model.levels is {self.levels}; give 1 (a plain network) or more")
        if len(self.looks) != self.levels - 1:
            counts = f"{len(self.looks)} number(s) for {self.levels} levels"
            raise ConfigError(f"model.looks {list(self.looks)} has {counts}; give one per level after the first")
        for number in self.looks:
            if not 1 <= number <= self.grid.cells:
                asked = f"{number} locations in a grid of {self.grid.rows} x {self.grid.cols} cells"
                raise ConfigError(f"model.looks asks for {asked}; give between 1 and {self.grid.cells}")
        if (regions := total_looks(self.looks)) > _MOST_REGIONS:
            asked = f"{list(self.looks)}, which makes {regions:,} regions per image"
            raise ConfigError(f"model.looks is {asked}; give numbers for at most {_MOST_REGIONS:,}")
        if self.look_px is not None and self.levels == 1:
            raise ConfigError(f"model.look_px is {self.look_px}, but model.levels is 1: there are no looks; remove it")
        self._check_least(1, "base_px", *(("look_px",) if self.look_px is not None else ()))
        for side_px in (self.base_px, self.region_px):
            self._check_values(side_px)
        # In logarithms, since the size can exceed every number.
        deepest = math.log2(self.region_px) - (self.levels - 1) * math.log2(self.grid.cell_extent)
        if deepest > math.log2(_MAX_IMAGE_PX):
            sizes = f"model.levels is {self.levels} with model.grid.cell_extent {self.grid.cell_extent:g}"
            raise ConfigError(f"{sizes}, for images of 2^{deepest:.0f} px per side; use fewer levels, up to 2^24")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"model.dropout is {self.dropout}; give a probability in [0, 1)")
        if self.aggregation not in AGGREGATIONS:
            raise ConfigError(f"model.aggregation is {self.aggregation!r}; give one of {', '.join(AGGREGATIONS)}")

    @property
    @override
    def normalization(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        mean, std = pretrained_normalization(self.backbone.name, self.in_channels)
        return self.mean or mean, self.std or std

    def plain(self, base_px: int) -> TNetConfig:
        """Return the plain network of the same backbone, on the whole image at a resolution of its own."""
        return replace(
            self, levels=1, looks=(), base_px=base_px, look_px=None, look_weights="shared", batch_norm="shared"
        )

    @property
    @override
    def region_px(self) -> int:
        return self.base_px if self.look_px is None else self.look_px

    @property
    @override
    def whole_px(self) -> int:
        return self.base_px

    @property
    def typical_size_hw(self) -> tuple[int, int]:
        """Size of an image whose regions at the last level are as large as a glimpse."""
        side = round(self.region_px / self.grid.cell_extent ** (self.levels - 1)) + 1
        return side, side

    @override
    def resolve_looks(self, looks: int | Sequence[int] | None) -> tuple[int, ...]:
        return self.looks if looks is None else resolve_looks(looks, self.looks, self.grid, self.levels)

    def listed_looks(self) -> list[int | tuple[int, ...]]:
        """Return 0 to the configured number at level 1, and the configured looks up to each level."""
        chosen: list[int | tuple[int, ...]] = [0, *(self.looks[:depth] for depth in range(1, self.levels - 1))]
        chosen += range(1, sum(self.looks[:1]) + 1)
        return sorted(chosen, key=lambda looks: total_looks(self.resolve_looks(looks)))

    @property
    @override
    def eval_policy(self) -> str:
        return self.policy.eval

    @override
    def size_problem(self, size_hw: tuple[int, int], looks: Sequence[int]) -> str:
        for side_px, cells in zip(size_hw, (self.grid.rows, self.grid.cols), strict=True):
            for level, _ in enumerate(looks, start=1):
                try:
                    side_px = axis_cells(side_px, cells, self.grid.cell_extent).cell_px
                except GeometryError:
                    return f"too few for regions at level {level} (a region of {side_px} px cannot hold {cells} cells)"
        return ""

    @override
    def line(self) -> str:
        text = f"{self.backbone.name} at {self.base_px} px"
        if self.levels == 1:
            return f"{text}, the whole image only"
        looks = "x".join(map(str, self.looks))
        return f"{text}, {self.levels} levels, grid of {self.grid.rows} x {self.grid.cols}, {looks} look(s) by default"

    @override
    def facts(self) -> list[tuple[str, str]]:
        grid, locator = self.grid, self.locator
        glimpses = f"{self.base_px} px" + (f" and {self.region_px} px" if self.region_px != self.base_px else "")
        separate = ", separate weights for regions" if self.look_weights == "separate" else ""
        facts = [
            ("backbone", f"{self.backbone.name}, glimpses of {glimpses}, {self.in_channels} channel(s){separate}"),
            self._class_fact(),
            ("levels", f"{self.levels}, including the whole image"),
        ]
        if self.levels == 1:
            return facts
        context = "" if locator.context == "none" else f", context {locator.context}"
        return [
            *facts,
            ("grid", f"{grid.rows} x {grid.cols} cells, each {grid.cell_extent:g} of the side of its region"),
            ("looks", f"{'x'.join(map(str, self.looks))} by default"),
            ("locator", f"{locator.kind}, logits {locator.logits}, cells by {locator.cells}{context}"),
            ("tap", str(self.backbone.tap)),
            ("policy", f"{self.policy.train} in training, {self.policy.eval} in evaluation"),
            ("position", self.position.kind),
            ("aggregation", self.aggregation),
        ]
