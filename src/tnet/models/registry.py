"""Named models: ``architecture.tag``, as in timm. Baselines are built through the registry of model kinds."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import fields, replace
from fnmatch import fnmatchcase
from functools import partial
from itertools import product
from typing import Any, cast

from tnet.backbones.base import BackboneConfig, PlainArgument
from tnet.errors import ConfigError
from tnet.geometry import Grid
from tnet.models.base import Model, ModelConfig
from tnet.models.config import LocatorConfig, PositionConfig, TNetConfig
from tnet.models.kind import MODEL_KINDS, build_model
from tnet.traversal import PolicyConfig

_NORMALIZATION: dict[str, Any] = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}  # of ImageNet

# EfficientNet block whose map gives the cell features, first position, step: the first block of the 80-channel stage
# (14 x 14) in B0, the second of the 40-channel stage (28 x 28) in B1 to B5, its first in B6 and B7.
_BIRD_TAPS = {
    "b0": ("blocks.3.0", 2, 2),
    **dict.fromkeys(("b1", "b2", "b3", "b4", "b5"), ("blocks.2.1", 5, 4)),
    **dict.fromkeys(("b6", "b7"), ("blocks.2.0", 5, 4)),
}

# Image side of each EfficientNet's pretraining, pixels.
_IMAGENET_PX = {"b0": 224, "b1": 240, "b2": 260, "b3": 300, "b4": 380, "b5": 456, "b6": 528, "b7": 600}


def _efficientnet(size: str, stochastic_depth: float, tap: str = "auto") -> BackboneConfig:
    """EfficientNet as trained by the reference implementation."""
    # Keras' batch norm momentum of 0.99 in PyTorch's convention.
    kwargs: dict[str, PlainArgument] = {"bn_momentum": 0.01, "stochastic_depth": stochastic_depth}
    return BackboneConfig(f"tf_efficientnet_{size}", tap=tap, kwargs=kwargs)


def _published(backbone: BackboneConfig, classes: int, base_px: int, **fields: Any) -> TNetConfig:
    """Return a configuration with the paper's choices where our own defaults differ."""
    policy = PolicyConfig(train="topk", max_overlap=1.0)
    fields |= {"policy": policy, "batch_norm": "shared", "mean": (0.5,), "std": (0.5,), "resize": "bilinear"}
    return TNetConfig(backbone=backbone, num_classes=classes, base_px=base_px, **fields)


def _plain(backbone: BackboneConfig, classes: int, base_px: int, dropout: float = 0.0) -> TNetConfig:
    """The paper's baselines: a backbone with a classifier on the whole image."""
    whole: dict[str, Any] = {"levels": 1, "looks": (), "position": PositionConfig("none")}
    return _published(backbone, classes, base_px, dropout=dropout, locator=LocatorConfig(logits="l2"), **whole)


def _imagenet() -> TNetConfig:
    """The paper's ImageNet TNet: 224 px images, base 77 px."""
    locator = LocatorConfig("context", logits="l2", cells="positions", position_step=2)
    grid, position = Grid(5, 5, 0.34375), PositionConfig("concat")
    backbone = BackboneConfig("bagnet77")
    return _published(backbone, 1000, 77, grid=grid, looks=(3,), position=position, locator=locator, dropout=0.0)


def _fmow(levels: int) -> TNetConfig:
    """The paper's TNet for Functional Map of the World: 448 px with 2 levels, 896 px with 3."""
    backbone = _efficientnet("b0", {2: 0.3, 3: 0.5}[levels], tap="blocks.3")
    locator = LocatorConfig("squeeze", logits="l2", cells="positions", position_start=2, position_step=4)
    grid, looks = Grid(3, 3, 0.5), (2, 1)[: levels - 1]
    return _published(backbone, 62, 224, levels=levels, grid=grid, looks=looks, locator=locator, dropout=0.5)


def _birds(size: str, classes: int) -> TNetConfig:
    """The paper's fine-grained TNets for 448 px images, with feature weighting."""
    tap, start, step = _BIRD_TAPS[size]
    backbone, grid = _efficientnet(size, 0.5, tap=tap), Grid(5, 5, 0.35)
    locator = LocatorConfig("squeeze", logits="l2", cells="positions", position_start=start, position_step=step)
    return _published(backbone, classes, 224, grid=grid, locator=locator, aggregation="weighted", dropout=0.75)


def _pretrained(size: str) -> TNetConfig:
    """Google's EfficientNet for ImageNet (or as retrained by NoisyStudent), from which the bird models start."""
    config = _plain(BackboneConfig(f"tf_efficientnet_{size}"), 1000, _IMAGENET_PX[size])
    return replace(config, resize="antialias", **_NORMALIZATION)


def _ours(backbone: str) -> TNetConfig:
    """Our own defaults with any backbone."""
    return TNetConfig(backbone=BackboneConfig(backbone), num_classes=1000)


def _baseline(kind: str, **fields: Any) -> ModelConfig:
    """The published form of a baseline, with these fields changed."""
    return cast("type[Any]", MODEL_KINDS[kind].config)(**fields)


_REGISTRY: dict[str, Callable[[], ModelConfig]] = {
    "tnet_bagnet77.imagenet": _imagenet,
    "bagnet77.imagenet": lambda: _plain(BackboneConfig("bagnet77", kwargs={"spatial_dropout": 0.625}), 1000, 224),
    "tnet_efficientnet_b0.fmow_448": partial(_fmow, 2),
    "tnet_efficientnet_b0.fmow_896": partial(_fmow, 3),
    "efficientnet_b0.fmow": lambda: _plain(_efficientnet("b0", 0.5), 62, 224, dropout=0.75),
    **{f"efficientnet_{size}.imagenet": partial(_pretrained, size) for size in _IMAGENET_PX},
    # 1001 classes: ImageNet's and the background, as published.
    "bagnet77_lowd.imagenet": partial(_baseline, "saccader", looks=0),
    "saccader.imagenet": partial(_baseline, "saccader"),
    "dram.imagenet": partial(_baseline, "dram"),
    "ips.digits": partial(_baseline, "ips"),
    "attention_sampling.digits": partial(_baseline, "attention_sampling"),
    **{f"tnet_{name}.own": partial(_ours, name) for name in ("mobilenetv2_100", "resnet18", "convnext_tiny")},
    "tnet_vit_small_dinov2.own": partial(_ours, "vit_small_patch14_dinov2"),
}
for _size, (_tag, _classes) in product(_BIRD_TAPS, {"cub": 200, "nabirds": 555}.items()):
    _REGISTRY[f"tnet_efficientnet_{_size}.{_tag}"] = partial(_birds, _size, _classes)
    _REGISTRY[f"efficientnet_{_size}.{_tag}"] = partial(_plain, _efficientnet(_size, 0.5), _classes, 448, 0.75)


def list_models(pattern: str = "*") -> list[str]:
    """Return the names of registered models that match a pattern such as ``*b0*``, sorted."""
    return sorted(name for name in _REGISTRY if fnmatchcase(name, pattern))


def model_config(name: str) -> ModelConfig:
    """Return the configuration of a registered model."""
    if name not in _REGISTRY:
        close = difflib.get_close_matches(name, _REGISTRY, n=3, cutoff=0.4)
        hint = f"did you mean {', '.join(close)}" if close else "see `tnet models`"
        raise ConfigError(f"model {name!r} is not registered; {hint}")
    return _REGISTRY[name]()


def create_model(name: str, **overrides: Any) -> Model:
    """Build a registered model with random weights, or with timm's if ``pretrained=True``.

    Example:
        >>> model = create_model("tnet_resnet18.own", num_classes=7, pretrained=True)

    Args:
        name: one of :func:`list_models`.
        overrides: fields of the model's configuration, and ``pretrained`` for models with a backbone.

    Raises:
        ConfigError: unknown name, or an override that is not a field or has an invalid value.
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
