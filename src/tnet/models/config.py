"""What a TNet is made of, as plain frozen data: the same in recipes, in ``config.json`` and in code."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from tnet.backbones.base import BackboneConfig, BatchNormMode
from tnet.errors import ConfigError
from tnet.geometry import Grid
from tnet.scenes.base import Resize

PositionKind = Literal["concat", "add", "none"]
LocatorKind = Literal["context", "squeeze"]
LogitNorm = Literal["l2", "l2_scaled", "none"]
AggregationKind = Literal["mean", "weighted"]
PolicyKind = Literal["topk", "sample", "random", "centre"]
Activation = Literal["relu", "silu", "leaky_relu", "gelu"]
CellPooling = Literal["area", "positions"]


@dataclass(frozen=True)
class PositionConfig:
    """How a feature learns where it was seen.

    Attributes:
        kind: ``concat``, a linear layer over feature and encoding (the paper's ImageNet form); ``add``, an activation
            over the feature plus a linear map of a shorter encoding (its EfficientNet form); or ``none``.
        divisor: the ``add`` form encodes positions in ``feature size / divisor`` numbers.
        activation: of the ``add`` form.
    """

    kind: PositionKind = "add"
    divisor: int = 4
    activation: Activation = "silu"

    def __post_init__(self) -> None:
        if self.divisor < 1:
            raise ConfigError(f"model.position.divisor is {self.divisor}; give at least 1")


@dataclass(frozen=True)
class LocatorConfig:
    """What rates the cells of a region.

    Attributes:
        kind: ``squeeze`` (squeeze-and-excitation over the grid, the paper's EfficientNet form) or ``context`` (the
            region's pooled feature beside each cell's, its ImageNet form).
        hidden: channels of the hidden layer; 0 takes the cell features' own number (``squeeze``) or 512 (``context``).
        logits: ``l2``, logits divided by their norm over the cells (the paper's; nearly uniform over many cells);
            ``l2_scaled``, the same times a learned scale; ``none``, as they come.
        initial_scale: where the learned scale of ``l2_scaled`` starts.
        cells: ``area``, a cell's feature is the average of the map over the cell's true extent; ``positions``, single
            positions ``start::step`` of the map (the paper's).
        position_start: first position, for ``positions``.
        position_step: step between positions, for ``positions``.
    """

    kind: LocatorKind = "squeeze"
    hidden: int = 0
    logits: LogitNorm = "l2"
    initial_scale: float = 5.0
    cells: CellPooling = "area"
    position_start: int = 0
    position_step: int = 1

    def __post_init__(self) -> None:
        if not self.initial_scale > 0:
            raise ConfigError(f"model.locator.initial_scale is {self.initial_scale}; give a number above 0")
        for name, least in (("hidden", 0), ("position_start", 0), ("position_step", 1)):
            if getattr(self, name) < least:
                raise ConfigError(f"model.locator.{name} is {getattr(self, name)}; give at least {least}")


@dataclass(frozen=True)
class PolicyConfig:
    """How locations are chosen.

    Attributes:
        train: in training: ``topk`` (published, deterministic) or ``sample`` (without replacement), or the controls
            ``random`` and ``centre``.
        eval: in evaluation.
        joint: log-probability of a sampled choice: of the ``sequence`` drawn or of the ``set``.
        temperature: of sampling in training.
    """

    train: PolicyKind = "topk"
    eval: PolicyKind = "topk"
    joint: Literal["sequence", "set"] = "sequence"
    temperature: float = 1.0

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise ConfigError(f"model.policy.temperature is {self.temperature}; give a number above 0")


@dataclass(frozen=True)
class TNetConfig:
    """A TNet.

    Attributes:
        backbone: what sees a glimpse.
        num_classes: outputs of the classifier.
        in_channels: channels of an image.
        base_px: side of every glimpse, pixels.
        levels: levels of processing, the whole image included; 1 is a plain network on the downsized image.
        grid: how a region is divided into cells.
        looks: locations per region for levels 1, 2, ...: the default at inference and the number in training.
        position: how a feature learns where it was seen.
        locator: what rates cells.
        policy: how locations are chosen.
        aggregation: ``mean`` of the features, or ``weighted`` (the paper's feature weighting).
        dropout: probability, before the classifier.
        batch_norm: running statistics ``shared`` by whole images and regions, or kept apart for the two, ``per_level``.
        resize: ``antialias``, or the reference's ``bilinear``.
        mean: per channel, of inputs in [0, 1].
        std: per channel, of inputs in [0, 1].
        multilabel: classes do not exclude each other (sigmoid instead of softmax).
        class_names: one for each class; empty if unknown.
    """

    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    num_classes: int = 10
    in_channels: int = 3
    base_px: int = 224
    levels: int = 2
    grid: Grid = field(default_factory=Grid)
    looks: tuple[int, ...] = (3,)
    position: PositionConfig = field(default_factory=PositionConfig)
    locator: LocatorConfig = field(default_factory=LocatorConfig)
    policy: PolicyConfig = field(default_factory=PolicyConfig)
    aggregation: AggregationKind = "mean"
    dropout: float = 0.0
    batch_norm: BatchNormMode = "shared"
    resize: Resize = "antialias"
    mean: tuple[float, ...] = (0.5,)
    std: tuple[float, ...] = (0.5,)
    multilabel: bool = False
    class_names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.levels < 1:
            raise ConfigError(f"model.levels is {self.levels}; give 1 (a plain network) or more")
        if len(self.looks) != self.levels - 1:
            raise ConfigError(
                f"model.looks {list(self.looks)} has {len(self.looks)} number(s) but {self.levels} levels need "
                f"{self.levels - 1}, one for each level after the first"
            )
        for number in self.looks:
            if not 1 <= number <= self.grid.cells:
                raise ConfigError(
                    f"model.looks asks for {number} locations in a grid of {self.grid.rows} x {self.grid.cols} cells; "
                    f"give between 1 and {self.grid.cells}"
                )
        for name in ("num_classes", "in_channels", "base_px"):
            if getattr(self, name) < 1:
                raise ConfigError(f"model.{name} is {getattr(self, name)}; give a positive number")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"model.dropout is {self.dropout}; give a probability in [0, 1)")
        for name in ("mean", "std"):
            values = getattr(self, name)
            if len(values) not in (1, self.in_channels):
                raise ConfigError(
                    f"model.{name} has {len(values)} values for {self.in_channels} channels; "
                    f"give 1 or {self.in_channels}"
                )
        if min(self.std) <= 0:
            raise ConfigError(f"model.std is {list(self.std)}; give numbers above 0")
        if self.class_names and len(self.class_names) != self.num_classes:
            raise ConfigError(
                f"model.class_names has {len(self.class_names)} names for {self.num_classes} classes; give one each"
            )
