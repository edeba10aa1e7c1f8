"""Feature extractors: any timm model, and BagNet-77."""

from __future__ import annotations

from typing import Any, cast

import timm

from tnet.backbones.bagnet import BagNet77
from tnet.backbones.base import Backbone, BackboneConfig, BatchNormMode, Described, PopulationNorms
from tnet.backbones.fusion import fuse
from tnet.backbones.precision import Precision
from tnet.backbones.timm_backbone import TimmBackbone
from tnet.errors import ConfigError, TnetError

__all__ = [
    "Backbone", "BackboneConfig", "BagNet77", "BatchNormMode", "Described", "PopulationNorms", "Precision",
    "TimmBackbone", "create_backbone", "fuse", "pretrained_normalization",
]  # fmt: skip


def create_backbone(config: BackboneConfig, in_channels: int, base_px: int, grid_side: int) -> Backbone:
    """Build a backbone for glimpses of ``base_px``; ``grid_side`` is the larger of the grid's rows and columns."""
    if config.name != "bagnet77":
        return TimmBackbone(config, in_channels, base_px, grid_side)
    if config.pretrained:
        raise ConfigError("bagnet77 has no pretrained weights; set backbone.pretrained: false")
    if base_px < BagNet77.min_px:
        raise ConfigError(f"base_px {base_px} is too small for bagnet77; give at least {BagNet77.min_px}")
    try:
        return BagNet77(in_channels, **cast("dict[str, Any]", config.kwargs))
    except TnetError:
        raise
    except (TypeError, ValueError) as error:
        raise ConfigError(f"backbone bagnet77 does not take kwargs {config.kwargs}: {error}") from None


def pretrained_normalization(name: str, in_channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return the mean and standard deviation expected by a backbone's pretrained weights, without fetching them.

    They are 0.5 for backbones without pretrained weights (as published for BagNet-77), and averaged over the channels
    if ``in_channels`` differs from the weights'.
    """
    pretrained = timm.get_pretrained_cfg(name) if timm.is_model(name) else None
    if pretrained is None:
        return (0.5,), (0.5,)
    mean, std = tuple(map(float, pretrained.mean)), tuple(map(float, pretrained.std))
    if len(mean) == in_channels:
        return mean, std
    return (round(sum(mean) / len(mean), 6),), (round(sum(std) / len(std), 6),)
