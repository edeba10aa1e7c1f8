"""Models by name: ``architecture.tag``, as timm names its own."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import fields, replace
from fnmatch import fnmatchcase
from functools import partial
from typing import Any, cast

from tnet.backbones.base import BackboneConfig, PlainArgument
from tnet.baselines.attention_sampling import AttentionSamplingConfig
from tnet.baselines.dram import DRAMConfig
from tnet.baselines.ips import IPSConfig
from tnet.baselines.saccader import SaccaderConfig
from tnet.errors import ConfigError
from tnet.geometry import Grid
from tnet.models.base import Model, ModelConfig
from tnet.models.config import LocatorConfig, PositionConfig, TNetConfig
from tnet.models.kinds import build_model
from tnet.traversal import PolicyConfig

_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

# Keras' momentum of 0.99, in PyTorch's terms.
_BN_MOMENTUM = 0.01

# The block that cell features come from, first position, step: the first block of the 80-channel stage (14 x 14) in
# B0, the second of the 40-channel stage (28 x 28) in B1 to B5, its first in B6 and B7.
_BIRD_TAPS = {
    "b0": ("blocks.3.0", 2, 2),
    **dict.fromkeys(("b1", "b2", "b3", "b4", "b5"), ("blocks.2.1", 5, 4)),
    **dict.fromkeys(("b6", "b7"), ("blocks.2.0", 5, 4)),
}

# Species of CUB-200-2011, classes of NABirds.
_BIRDS = {"cub": 200, "nabirds": 555}

# Side of the images that each EfficientNet was pretrained on, pixels.
_IMAGENET_PX = {"b0": 224, "b1": 240, "b2": 260, "b3": 300, "b4": 380, "b5": 456, "b6": 528, "b7": 600}


def _efficientnet(size: str, stochastic_depth: float, tap: str = "auto") -> BackboneConfig:
    """EfficientNet as the reference implementation trains it."""
    kwargs: dict[str, PlainArgument] = {"bn_momentum": _BN_MOMENTUM, "stochastic_depth": stochastic_depth}
    return BackboneConfig(f"tf_efficientnet_{size}", tap=tap, kwargs=kwargs)


# What the paper does, and our own defaults do not.
_PUBLISHED: dict[str, Any] = {
    "policy": PolicyConfig(train="topk", max_overlap=1.0),
    "batch_norm": "shared",
    "mean": (0.5,),
    "std": (0.5,),
    "resize": "bilinear",
}


def _plain(backbone: BackboneConfig, classes: int, base_px: int, dropout: float = 0.0) -> TNetConfig:
    """A backbone and its classifier on the whole image: the paper's baselines."""
    return TNetConfig(
        backbone=backbone,
        num_classes=classes,
        base_px=base_px,
        levels=1,
        looks=(),
        position=PositionConfig("none"),
        locator=LocatorConfig(logits="l2"),
        dropout=dropout,
        **_PUBLISHED,
    )


def _imagenet() -> TNetConfig:
    """The paper's ImageNet TNet: 224 px images, base 77 px."""
    return TNetConfig(
        backbone=BackboneConfig("bagnet77"),
        num_classes=1000,
        base_px=77,
        grid=Grid(5, 5, 0.34375),
        looks=(3,),
        position=PositionConfig("concat"),
        locator=LocatorConfig("context", logits="l2", cells="positions", position_step=2),
        dropout=0.0,
        **_PUBLISHED,
    )


def _fmow(levels: int) -> TNetConfig:
    """The paper's Functional Map of the World TNet: 448 px with 2 levels, 896 px with 3."""
    return TNetConfig(
        backbone=_efficientnet("b0", {2: 0.3, 3: 0.5}[levels], tap="blocks.3"),
        num_classes=62,
        base_px=224,
        levels=levels,
        grid=Grid(3, 3, 0.5),
        looks=(2, 1)[: levels - 1],
        position=PositionConfig("add"),
        locator=LocatorConfig("squeeze", logits="l2", cells="positions", position_start=2, position_step=4),
        dropout=0.5,
        **_PUBLISHED,
    )


def _birds(size: str, classes: int) -> TNetConfig:
    """The paper's fine-grained TNets for 448 px images, with feature weighting."""
    tap, start, step = _BIRD_TAPS[size]
    return TNetConfig(
        backbone=_efficientnet(size, 0.5, tap=tap),
        num_classes=classes,
        base_px=224,
        grid=Grid(5, 5, 0.35),
        looks=(3,),
        position=PositionConfig("add"),
        locator=LocatorConfig("squeeze", logits="l2", cells="positions", position_start=start, position_step=step),
        aggregation="weighted",
        dropout=0.75,
        **_PUBLISHED,
    )


def _pretrained(size: str) -> TNetConfig:
    """Google's EfficientNet for ImageNet (also as retrained by NoisyStudent), which the bird models start from."""
    config = _plain(BackboneConfig(f"tf_efficientnet_{size}"), 1000, _IMAGENET_PX[size])
    return replace(config, mean=_IMAGENET_MEAN, std=_IMAGENET_STD, resize="antialias")


# Our own defaults over these backbones.
_OWN = {
    **{name: name for name in ("mobilenetv2_100", "resnet18", "convnext_tiny")},
    "vit_small_dinov2": "vit_small_patch14_dinov2",
}

_REGISTRY: dict[str, Callable[[], ModelConfig]] = {
    "tnet_bagnet77.imagenet": _imagenet,
    "bagnet77.imagenet": lambda: _plain(BackboneConfig("bagnet77", kwargs={"spatial_dropout": 0.625}), 1000, 224),
    "tnet_efficientnet_b0.fmow_448": partial(_fmow, 2),
    "tnet_efficientnet_b0.fmow_896": partial(_fmow, 3),
    "efficientnet_b0.fmow": lambda: _plain(_efficientnet("b0", 0.5), 62, 224, dropout=0.75),
    **{
        f"tnet_efficientnet_{size}.{birds}": partial(_birds, size, classes)
        for size in _BIRD_TAPS
        for birds, classes in _BIRDS.items()
    },
    **{
        f"efficientnet_{size}.{birds}": partial(_plain, _efficientnet(size, 0.5), classes, 448, 0.75)
        for size in _BIRD_TAPS
        for birds, classes in _BIRDS.items()
    },
    **{f"efficientnet_{size}.imagenet": partial(_pretrained, size) for size in _IMAGENET_PX},
    # 1001 classes: ImageNet's and one for the background, as published.
    "bagnet77_lowd.imagenet": lambda: SaccaderConfig(looks=0),
    "saccader.imagenet": SaccaderConfig,
    "dram.imagenet": DRAMConfig,
    "ips.digits": lambda: IPSConfig(in_channels=1),
    "attention_sampling.digits": lambda: AttentionSamplingConfig(in_channels=1),
    **{
        f"tnet_{name}.own": partial(TNetConfig, backbone=BackboneConfig(backbone), num_classes=1000)
        for name, backbone in _OWN.items()
    },
}


def list_models(pattern: str = "*") -> list[str]:
    """Names of registered models.

    Args:
        pattern: as for file names, e.g. ``*b0*``.
    """
    return sorted(name for name in _REGISTRY if fnmatchcase(name, pattern))


def model_config(name: str) -> ModelConfig:
    """The configuration of a registered model.

    Raises:
        ConfigError: no such name.
    """
    if name not in _REGISTRY:
        close = difflib.get_close_matches(name, _REGISTRY, n=3, cutoff=0.4)
        hint = f"did you mean {', '.join(close)}" if close else "see `tnet models`"
        raise ConfigError(f"model {name!r} is not registered; {hint}")
    return _REGISTRY[name]()


def create_model(name: str, **overrides: Any) -> Model:
    """Build a registered model with random weights (or those timm names, with ``pretrained=True``).

    Example:
        >>> model = create_model("tnet_resnet18.own", num_classes=7, pretrained=True)

    Args:
        name: one of :func:`list_models`.
        overrides: fields of the model's configuration, and ``pretrained`` where it has a backbone.

    Raises:
        ConfigError: no such name, or an override that is not a field or cannot be.
    """
    config = model_config(name)
    names = [field.name for field in fields(config)]
    if "pretrained" in overrides and "backbone" in names:
        backbone: BackboneConfig = overrides["backbone"] if "backbone" in overrides else cast("Any", config).backbone
        overrides["backbone"] = replace(backbone, pretrained=bool(overrides.pop("pretrained")))
    unknown = [key for key in overrides if key not in names]
    if unknown:
        raise ConfigError(f"create_model does not take {unknown[0]!r}; the fields are {', '.join(names)}, pretrained")
    return build_model(replace(config, **overrides))
