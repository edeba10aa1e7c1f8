"""Named models: patterns, overrides, published settings and sizes; the registry of model kinds."""

from __future__ import annotations

import subprocess
import sys

import pytest
import timm
import torch
from tests.helpers import TINY_RESNET

from tnet.baselines.dram import DRAMConfig
from tnet.baselines.saccader import SaccaderConfig
from tnet.cost import build_outline, cost_by_module, count_parameters, multiply_adds
from tnet.errors import ConfigError, GeometryError
from tnet.geometry import Grid
from tnet.models import registry
from tnet.models.base import ModelConfig
from tnet.models.config import PositionConfig, TNetConfig
from tnet.models.kind import MODEL_KINDS, kind_of
from tnet.models.registry import create_model, list_models, model_config
from tnet.models.tnet import TNet

SIZES = ("b0", "b1", "b2", "b3", "b4")


def test_list_models() -> None:
    names = list_models()
    assert names == sorted(set(names)) and "tnet_bagnet77.imagenet" in names
    sizes = [f"b{number}" for number in range(8)]
    assert list_models("tnet*.cub") == [f"tnet_efficientnet_{size}.cub" for size in sizes]
    assert list_models("eff*.nabirds") == [f"efficientnet_{size}.nabirds" for size in sizes]
    assert list_models("*_b0.fmow_???") == ["tnet_efficientnet_b0.fmow_448", "tnet_efficientnet_b0.fmow_896"]
    assert list_models("TNET*") == [] == list_models("")  # case counts; no name is empty
    for name in names:
        architecture, _, tag = name.partition(".")
        assert architecture and tag
        config = model_config(name)
        assert architecture.startswith("tnet_") == (isinstance(config, TNetConfig) and config.levels > 1)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("tnet_resnet18.won", "tnet_resnet18.own"),
        ("tnet_efficientnet_b8.cub", r"tnet_efficientnet_b\d.cub"),
        ("zzz", "`tnet models`"),
    ],
)
def test_an_unknown_name_raises(name: str, hint: str) -> None:
    with pytest.raises(ConfigError, match=f"'{name}'.*{hint}"):
        create_model(name)


@pytest.mark.parametrize("name", list_models())
def test_the_backbone_exists(name: str) -> None:
    config = model_config(name)
    if isinstance(config, (SaccaderConfig, DRAMConfig)):
        return  # built without a named backbone
    assert config.backbone.name == "bagnet77" or timm.is_model(config.backbone.name)
    assert not config.backbone.pretrained and config.backbone.weights is None


def test_published_settings() -> None:
    imagenet = model_config("tnet_bagnet77.imagenet")
    assert (imagenet.num_classes, imagenet.base_px, imagenet.levels, imagenet.grid.cells) == (1000, 77, 2, 25)
    two, three = model_config("tnet_efficientnet_b0.fmow_448"), model_config("tnet_efficientnet_b0.fmow_896")
    assert (two.levels, two.looks, three.levels, three.looks) == (2, (2,), 3, (2, 1))
    assert (two.num_classes, two.base_px, two.grid) == (62, 224, Grid(3, 3, 0.5))
    for size in SIZES:
        cub, nabirds = (model_config(f"tnet_efficientnet_{size}.{tag}") for tag in ("cub", "nabirds"))
        assert (cub.num_classes, nabirds.num_classes, cub.aggregation) == (200, 555, "weighted")
        assert cub.grid == nabirds.grid == Grid(5, 5, 0.35)


def test_overrides() -> None:
    name = "tnet_resnet18.own"
    changes = {"num_classes": 3, "in_channels": 1, "mean": (0.5,), "std": (0.5,), "base_px": 32}
    position = PositionConfig("add", divisor=2)
    model = create_model(name, backbone=TINY_RESNET, position=position, **changes)
    assert (model.config.num_classes, model.config.in_channels, model.config.base_px) == (3, 1, 32)
    assert model.config.grid == model_config(name).grid  # the rest stays
    assert model_config(name).num_classes == 1000  # and the registered one too
    assert model.eval()(torch.zeros(1, 1, 96, 96), looks=2).logits.shape == (1, 3)


@pytest.mark.parametrize(
    ("name", "published"),
    [("bagnet77_lowd.imagenet", 20_628_393), ("saccader.imagenet", 35_583_913), ("dram.imagenet", 45_610_219)],
)
def test_published_sizes_of_the_baselines(name: str, published: int) -> None:
    outline = build_outline(model_config(name))
    assert count_parameters(outline).total == published


def test_published_cost_of_saccader() -> None:
    outline = build_outline(model_config("saccader.imagenet"))
    costs = {part.name: part.macs for part in cost_by_module(outline, 6)}
    assert round(multiply_adds(outline, 2) / 1e9, 2) == 19.50
    assert sum(costs.values()) == multiply_adds(outline, 6) < 1.001 * multiply_adds(outline, 1)
    # The representation network dominates; the cell is almost free.
    assert costs["backbone"] > 0.7 * sum(costs.values()) and 0 < costs["cell"] < 0.001 * sum(costs.values())


def test_the_cost_of_ips_grows_with_the_image() -> None:
    outline = build_outline(model_config("ips.digits"))
    small, large = (multiply_adds(outline, 10, (side, side)) for side in (1500, 3000))
    assert 3.9 < large / small < 4.1 and multiply_adds(outline, 10) == small


def test_an_unknown_override_raises() -> None:
    with pytest.raises(ConfigError, match="num_clases"):
        create_model("tnet_resnet18.own", num_clases=3)


def test_an_invalid_override_raises() -> None:
    with pytest.raises(ConfigError, match="26"):
        create_model("tnet_resnet18.own", looks=(26,))
    with pytest.raises(GeometryError, match="0 x 5"):
        create_model("tnet_resnet18.own", grid=Grid(0, 5))


def test_pretrained_applies_to_the_backbone(monkeypatch: pytest.MonkeyPatch) -> None:
    class Unbuilt(TNet):
        def __init__(self, config: TNetConfig) -> None:
            torch.nn.Module.__init__(self)
            self.config = config

    monkeypatch.setattr(registry, "build_model", Unbuilt)
    for given, pretrained in (({"pretrained": True}, True), ({"pretrained": False}, False), ({}, False)):
        assert create_model("tnet_resnet18.own", **given).config.backbone.pretrained is pretrained
    # It overrides the setting of a given backbone.
    other = create_model("tnet_resnet18.own", backbone=TINY_RESNET, pretrained=True).config.backbone
    assert other.name == TINY_RESNET.name and other.pretrained
    assert not model_config("tnet_resnet18.own").backbone.pretrained


@pytest.mark.slow  # each is a process that imports PyTorch
@pytest.mark.parametrize(
    "module",
    ["tnet.baselines.ips", "tnet.models.registry"],
)
def test_model_types_are_complete_for_any_order_of_imports(module: str) -> None:
    code = (
        f"import {module}; from tnet.models.kind import MODEL_KINDS, kind_of\n"
        "print(*(kind_of(kind.config()) == kind_of(kind.objective_config()) == name "
        "for name, kind in MODEL_KINDS.items()))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["True"] * len(MODEL_KINDS)


def test_config_of_no_model_type() -> None:
    with pytest.raises(ConfigError, match="ModelConfig"):
        kind_of(ModelConfig())
