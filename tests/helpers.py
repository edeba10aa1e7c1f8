"""Small configurations and recipes that several tests build on."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from tnet.backbones import BackboneConfig
from tnet.baselines.attention_sampling import AttentionSamplingConfig
from tnet.baselines.dram import DRAMConfig
from tnet.baselines.ips import IPSConfig
from tnet.baselines.saccader import SaccaderConfig
from tnet.data.config import DataConfig
from tnet.data.digits import DigitsConfig
from tnet.geometry import Grid, Regions
from tnet.models import LocatorConfig, PolicyConfig, PositionConfig, TNet, TNetConfig, TNetOutput
from tnet.models.base import ModelConfig
from tnet.training.config import TrainConfig
from tnet.training.recipe import Recipe
from tnet.traversal import Calibrated, LookGain

Module = TypeVar("Module", bound=nn.Module)

# 16 features, 9 x 9 positions for the tap of a 3 x 3 grid at 32 px; a forward takes milliseconds.
TINY_RESNET = BackboneConfig("resnet10t", kwargs={"channels": [8, 8, 16, 16], "stem_width": 8})
TINY_BAGNET = BackboneConfig(
    "bagnet77",
    kwargs={"planes": [4, 4, 8, 8], "blocks": [1, 1, 2, 1], "expansion": 1, "feature_dim": 16, "spatial_dropout": 0.0},
)


def tiny_config(**changes: Any) -> TNetConfig:
    """A TNet of some ten thousand parameters over grey images: 32 px glimpses, 3 x 3 cells, 2 looks."""
    base = TNetConfig(
        backbone=TINY_RESNET,
        num_classes=5,
        in_channels=1,
        base_px=32,
        grid=Grid(3, 3, 0.5),
        looks=(2,),
        position=PositionConfig("add", divisor=2),
        # As published, so that what tests expect can be computed by hand.
        locator=LocatorConfig("squeeze", logits="l2"),
        policy=PolicyConfig(train="topk", max_overlap=1.0),
        dropout=0.0,
        mean=(0.5,),
        std=(0.5,),
        batch_norm="shared",
    )
    return replace(base, **changes)


def three_levels(**changes: Any) -> TNetConfig:
    """The same with a third level: two regions, and two regions in each of these."""
    return tiny_config(**({"levels": 3, "looks": (2, 2)} | changes))


def tiny_recipe(**changes: Any) -> Recipe:
    """Three epochs of three steps on 96 px scenes of one digit; a run takes about a second.

    Args:
        changes: of the recipe, a section's name with a mapping of changes in it (``train={"epochs": 1}``).
    """
    digits = DigitsConfig(
        task="max", canvas_px=96, target_copies=1, other_digits=0, noise_patterns=2, images_train=40, images_val=16
    )
    recipe = Recipe(
        model=tiny_config(
            dropout=0.1, locator=LocatorConfig("squeeze"), policy=PolicyConfig(train="sample", max_overlap=1.0)
        ),
        data=DataConfig(kind="digits", digits=digits),
        train=TrainConfig(
            epochs=3, batch_size=8, images_per_epoch=24, accelerator="cpu", overlays=0, recalibrate_batches=0
        ),
    )
    sections = {name: replace(getattr(recipe, name), **change) for name, change in changes.items() if name != "seed"}
    return replace(recipe, **sections, seed=changes.get("seed", 0))


_GREY: dict[str, Any] = {"in_channels": 1, "num_classes": 5}
_PATCHES: dict[str, Any] = {**_GREY, "backbone": TINY_RESNET, "patch_px": 32, "looks": 2}
_POSITIONS: dict[str, Any] = {
    **_GREY, "input_px": 96, "planes": (4, 4, 4, 4), "blocks": (1, 1, 1, 1), "wide_blocks": (1, 1, 1, 0),
    "expansion": 1, "feature_dim": 8, "attention_dims": (8, 4), "mixed_dim": 8,
}  # fmt: skip
EVERY_KIND: dict[str, ModelConfig] = {
    "tnet": tiny_config(),
    "plain network": tiny_config(levels=1, looks=()),
    "bagnet": tiny_config(backbone=TINY_BAGNET),
    "dram": DRAMConfig(
        **_GREY, input_px=64, glimpse_px=32, scales=2, looks=2, stem_dim=4, planes=(4, 4), blocks=(1, 1), expansion=1,
        classifier_dim=8, location_dim=8,
    ),
    "saccader": SaccaderConfig(**_POSITIONS, looks=2),
    "bagnet-lowd": SaccaderConfig(**_POSITIONS, looks=0),
    "ips": IPSConfig(**_PATCHES, backbone_stages=4, step=4, heads=2, hidden=8),
    "attention sampling": AttentionSamplingConfig(**_PATCHES, features="backbone", low_px=32),
}  # fmt: skip
"""Tiny models of every kind."""


def regions(boxes: list[tuple[int, int, int, int]], images: list[int] | None = None, level: int = 1) -> Regions:
    """Regions with these boxes, for what looks at boxes and images only."""
    count = len(boxes)
    nowhere = torch.zeros(count, dtype=torch.long)
    return Regions(
        level=torch.full((count,), level),
        image=torch.tensor(images if images is not None else [0] * count),
        box_l0_yxyx=torch.tensor(boxes),
        cell=nowhere,
        parent=nowhere,
        position_yx=torch.zeros(count, 2, dtype=torch.long),
    )


def by_level(found: Regions) -> list[Regions]:
    """The table of each level, level 0 first; ``parent`` counts rows of the table of the level before."""
    tables, before = [], torch.zeros(0, dtype=torch.long)
    for level in range(found.depth + 1):
        rows = (found.level == level).nonzero().flatten()
        table = found.take(rows)
        parent = torch.searchsorted(before, table.parent) if level else table.parent
        tables.append(replace(table, parent=parent))
        before = rows
    return tables


def location_logits_by_level(output: TNetOutput) -> list[Tensor]:
    """Location logits of the regions of each level that was divided, level 0 first."""
    level = output.regions.level[output.divided]
    return [output.location_logits[level == depth] for depth in range(len(level.unique()))]


def pictures(*sizes_hw: tuple[int, int], channels: int = 1, seed: int = 0) -> list[Tensor]:
    """Noise images (uint8) of these sizes; noise, so that no two places look alike."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(0, 256, (channels, *size), generator=generator, dtype=torch.uint8) for size in sizes_hw]


def looks_until(certainty: Tensor, threshold: float) -> list[int]:
    """Per image, the first number of looks at which it is certain; ``certainty``: [images, numbers of looks]."""
    last = certainty.shape[1] - 1
    return [next((n for n, value in enumerate(row) if value >= threshold), last) for row in certainty.tolist()]


def until_certain(threshold: float, measure: str = "confidence") -> Calibrated:
    """The rule that stops when the answer is that certain, after any number of looks."""
    return Calibrated(1 - threshold + 1e-9, (LookGain((0.0, 1.0), (1.0, 0.0)),), measure)


def dividing_threshold(certainty: Tensor) -> float:
    """A threshold at which images stop after different numbers of looks."""
    values: list[float] = certainty.flatten().sort().values.tolist()
    return max(values, key=lambda value: len(set(looks_until(certainty, value))))


@torch.no_grad()
def make_unsure(model: TNet, image: Tensor) -> TNet:
    """Change the classifier so that the whole image alone says little, and each look changes the answer."""
    model.classifier.weight.mul_(100)
    model.classifier.bias.sub_(model(image, looks=0).logits[0])
    return model


def awaken(module: Module) -> Module:
    """Give the layers that start at zero random weights, as after some training."""
    for parameter in module.parameters():
        if not bool(parameter.any()):
            nn.init.normal_(parameter, std=0.5)
    return module


def as_trained(module: Module) -> Module:
    """Give batch norms statistics unlike those of a new network."""
    for name, buffer in module.named_buffers():
        if "mean" in name and "." in name:
            buffer.normal_(std=0.2)
        elif name.endswith("_var"):
            buffer.uniform_(0.5, 2)
    return module
