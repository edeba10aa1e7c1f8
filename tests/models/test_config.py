"""Model configuration: defaults, and round trip through JSON."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from tests.helpers import three_levels, tiny_config

from tnet.backbones import BackboneConfig
from tnet.config import parse_dataclass, to_plain
from tnet.errors import ConfigError
from tnet.models.config import LocatorConfig, PolicyConfig, PositionConfig, TNetConfig
from tnet.models.tnet import TNet


def test_defaults() -> None:
    config = TNetConfig()
    assert (config.policy.train, config.policy.eval, config.policy.max_overlap) == ("sample", "topk", 0.5)
    assert (config.locator.logits, config.batch_norm, config.dropout) == ("l2_scaled", "per_level", 0.2)
    assert (config.grid.rows, config.grid.cols, config.grid.cell_extent) == (5, 5, 0.34375)


@pytest.mark.parametrize(
    ("backbone", "in_channels", "mean", "std"),
    [
        ("resnet18", 3, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ("tf_efficientnet_b0.ns_jft_in1k", 3, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ("vit_base_patch16_224", 3, (0.5,) * 3, (0.5,) * 3),
        ("resnet18", 1, (0.449,), (0.226,)),
        ("bagnet77", 3, (0.5,), (0.5,)),
    ],
)
def test_normalization_follows_the_backbone_by_default(
    backbone: str, in_channels: int, mean: tuple[float, ...], std: tuple[float, ...]
) -> None:
    config = TNetConfig(backbone=BackboneConfig(backbone), in_channels=in_channels)
    assert config.mean is None and config.normalization == (mean, std)
    assert replace(config, mean=(0.1,)).normalization == ((0.1,), std)


def test_model_config_stores_the_normalization() -> None:
    config = TNet(tiny_config(in_channels=3, mean=None, std=None)).config
    assert (config.mean, config.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@pytest.mark.parametrize(
    "config",
    [
        TNetConfig(),
        tiny_config(class_names=("a", "b", "c", "1", "null")),
        three_levels(
            backbone=BackboneConfig("bagnet77", tap=-2, kwargs={"planes": [1, 2, 3, 4], "feature_dim": 7}),
            locator=LocatorConfig("context", 3, "none", 1.0, "positions", 1, 2, "collected"),
            position=PositionConfig("concat"),
            policy=PolicyConfig("sample", "random", "set", 0.5),
            aggregation="weighted",
            batch_norm="per_level",
            resize="bilinear",
            multilabel=True,
            mean=(0.1,),
            std=(2.0,),
        ),
    ],
)
def test_json_round_trip(config: TNetConfig) -> None:
    assert parse_dataclass(TNetConfig, json.loads(json.dumps(to_plain(config))), "config.json") == config


def test_plain_network_has_no_looks() -> None:
    assert TNetConfig(levels=1, looks=()).looks == ()
    with pytest.raises(ConfigError, match="model.looks"):
        TNetConfig(levels=1)


def test_mean_per_channel_or_for_all() -> None:
    assert TNetConfig(mean=(0.1, 0.2, 0.3), std=(1.0,)).mean == (0.1, 0.2, 0.3)
    with pytest.raises(ConfigError, match=r"model\.std has 3 values"):
        TNetConfig(in_channels=1, std=(1.0, 1.0, 1.0))
