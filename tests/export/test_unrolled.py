"""Unrolled models look and answer as the models do, before any exporter is involved."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.export.forms import as_floats, build, forms, noise
from tests.helpers import three_levels, tiny_config

from tnet.backbones import BackboneConfig
from tnet.errors import ConfigError, GeometryError
from tnet.export import resize as resize_module
from tnet.export import unrolled as unrolled_module
from tnet.export.resize import Resized, is_reproduced, regular_taps, resize_weights
from tnet.export.unrolled import FixedLooks
from tnet.geometry import Grid
from tnet.models import LocatorConfig, PolicyConfig, TNet, TNetConfig
from tnet.models.registry import list_models, model_config
from tnet.scenes.base import Resize
from tnet.scenes.resample import interpolate

FORMS = forms()


def assert_same(model: TNet, size_hw: tuple[int, int], looks: tuple[int, ...]) -> None:
    images = noise(model.config.in_channels, size_hw)
    with torch.no_grad():
        expected = model(images, looks)
        actual = FixedLooks(model, looks, size_hw)(images)
    assert torch.equal(actual["boxes"], expected.regions.box_l0_yxyx[expected.rows])
    for name, value in (("weights", expected.weights), ("region_logits", expected.feature_logits)):
        torch.testing.assert_close(actual[name], value, rtol=1e-4, atol=1e-5)
    assert float((actual["logits"] - expected.logits).abs().max()) <= 1e-4 * float(expected.logits.abs().max())


def test_forms_stand_for_every_registered_model() -> None:
    names = {name for name in list_models() if isinstance(model_config(name), TNetConfig)}
    kinds = {(config.levels, config.resize, config.aggregation, config.locator.kind) for config in FORMS.values()}
    assert set(FORMS) <= names and len(kinds) >= 6


@pytest.mark.parametrize("name", FORMS)
def test_registered_forms(name: str) -> None:
    model = build(FORMS[name])
    assert_same(model, (131, 150), model.config.looks)


@pytest.mark.parametrize(
    ("changes", "size_hw", "looks"),
    [
        ({"aggregation": "canvas"}, (131, 96), (2, 1)),
        ({"aggregation": "attention", "grid": Grid(5, 4, 0.35)}, (120, 171), (3, 2)),
        ({"aggregation": "max", "policy": PolicyConfig(max_overlap=0.5)}, (97, 97), (4,)),
        (
            {"policy": PolicyConfig(eval="centre"), "in_channels": 4},
            (64, 128),
            (2, 2),
        ),  # 64 px: a level without resizing
        ({"batch_norm": "per_level"}, (40, 33), ()),
        ({"resize": "bilinear"}, (24, 20), (1,)),  # enlarged
        ({"backbone": BackboneConfig("test_resnet"), "base_px": 48, "look_px": 32}, (150, 131), (2, 1)),
        ({"look_weights": "separate"}, (150, 131), (2, 1)),
    ],
)
def test_other_forms(changes: dict[str, Any], size_hw: tuple[int, int], looks: tuple[int, ...]) -> None:
    assert_same(build(three_levels(**changes)), size_hw, looks)


def test_weights_of_an_antialiased_halving_are_a_triangle() -> None:
    weights = resize_weights(8, 4, "antialias")
    torch.testing.assert_close(weights[1], torch.tensor([0.0, 1, 3, 3, 1, 0, 0, 0]) / 8)
    torch.testing.assert_close(weights[0], torch.tensor([3.0, 3, 1, 0, 0, 0, 0, 0]) / 7)
    torch.testing.assert_close(resize_weights(8, 4, "bilinear")[1], torch.tensor([0.0, 0, 1, 1, 0, 0, 0, 0]) / 2)


@pytest.mark.parametrize("resize", ["antialias", "bilinear"])
@pytest.mark.parametrize(("height", "width", "side"), [(97, 131, 32), (448, 300, 224), (45, 40, 64), (30, 800, 30)])
def test_pixels_are_those_of_pytorch(resize: Resize, height: int, width: int, side: int) -> None:
    assert is_reproduced(resize)
    pixels = noise(3, (height, width))
    expected = interpolate(pixels, (side, side), resize).float()
    assert torch.equal(Resized((height, width), side, resize)(pixels), expected)


@pytest.mark.parametrize("resize", ["antialias", "bilinear"])
@pytest.mark.parametrize(
    ("size_hw", "steps_px"),
    [
        ((128, 128), [32, 16]),  # halves, reduced by whole numbers
        ((64, 96), [24, 12]),  # enlarged
        ((131, 150), [None, None]),  # regions begin anywhere, and beyond the edges
    ],
)
def test_regions_are_read_in_parts_of_rows(
    resize: Resize, size_hw: tuple[int, int], steps_px: list[int | None]
) -> None:
    model = build(three_levels(resize=resize, grid=Grid(3, 3, 0.5)))
    assert FixedLooks(model, (3, 2), size_hw).steps_px == steps_px
    assert_same(model, size_hw, (3, 2))


@pytest.mark.parametrize(
    ("size_px", "side_px", "resize", "taps"),
    [
        (32, 8, "bilinear", [1, 2]), (24, 8, "bilinear", [1]), (8, 8, "antialias", [0]), (16, 8, "antialias", None),
        (20, 8, "bilinear", None), (4, 8, "bilinear", None),
    ],
)  # fmt: skip
def test_pixels_that_are_averaged(size_px: int, side_px: int, resize: Resize, taps: list[int] | None) -> None:
    assert regular_taps(resize_weights(size_px, side_px, resize, rounded=True)) == taps


def test_without_rounding_floating_point_images_are_met(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on processors where PyTorch resizes in another way."""
    for module in (resize_module, unrolled_module):
        monkeypatch.setattr(module, "is_reproduced", lambda resize: False)
    model, images = build(FORMS["tnet_efficientnet_b0.fmow_448"]), noise(3, (131, 150))
    with torch.no_grad():
        exported = FixedLooks(model, (2,), (131, 150))(images)["logits"]
        torch.testing.assert_close(exported, model(as_floats(model, images), (2,)).logits, rtol=1e-4, atol=1e-4)
        rounded = model(images, (2,)).logits
    assert 0 < float((exported - rounded).abs().max() / rounded.abs().max()) < 0.02


@pytest.mark.parametrize(
    ("config", "looks", "text"),
    [
        (tiny_config(policy=PolicyConfig(eval="sample")), (2,), "eval is 'sample'.*--parts, or the whole image"),
        (tiny_config(policy=PolicyConfig(eval="random")), (2,), "eval is 'random'"),
        (tiny_config(locator=LocatorConfig(context="collected")), (2,), "'collected'.*only the whole image"),
    ],
)
def test_looks_that_cannot_be_unrolled(config: TNetConfig, looks: tuple[int, ...], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        FixedLooks(TNet(config), looks, (96, 96))
    assert FixedLooks(TNet(config), (), (96, 96))(noise(1, (96, 96)))["boxes"].tolist() == [[[0, 0, 96, 96]]] * 2


def test_images_too_small_for_cells() -> None:
    with pytest.raises(GeometryError, match="2 x 2 px .height x width. have too few.*export for larger images"):
        FixedLooks(TNet(three_levels()), (2, 1), (2, 2))
