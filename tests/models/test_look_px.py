"""Looks of another size than the overview, and with weights of their own."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tests.helpers import pictures, three_levels, tiny_config

from tnet.backbones import BackboneConfig
from tnet.cost import multiply_adds
from tnet.errors import ConfigError
from tnet.geometry import whole_images
from tnet.models import TNet, TNetConfig, load_model, save_model
from tnet.models.io import fill_from
from tnet.objectives import Objective, ObjectiveConfig
from tnet.scenes import TensorBatch
from tnet.traversal import BestFirst

CONFIG = replace(tiny_config(), backbone=BackboneConfig("test_resnet"), base_px=48, look_px=32)


def seen_sides(model: TNet) -> list[tuple[int, int]]:
    """Record the number and the side of the glimpses of each call of a backbone."""
    sides: list[tuple[int, int]] = []
    for backbone in (model.backbone, model.look_backbone):
        if backbone is not None:
            backbone.register_forward_hook(lambda _, inputs, __: sides.append((len(inputs[0]), inputs[0].shape[-1])))
    return sides


@pytest.mark.parametrize("weights", ["shared", "separate"])
def test_overview_and_looks_have_their_own_sizes(weights: str) -> None:
    model = TNet(replace(CONFIG, look_weights=weights)).eval()
    sides = seen_sides(model)
    images = pictures((96, 96), (96, 96))
    model(images, looks=2)
    assert sides == [(2, 48), (4, 32)]
    sides.clear()
    model(images[:1], search=BestFirst(looks=3, levels=2))
    assert sides == [(1, 48), (1, 32), (1, 32), (1, 32)]


def test_glimpses_show_the_region_at_its_size() -> None:
    model = TNet(CONFIG).eval()
    images = torch.rand(1, 1, 96, 96)
    scene = TensorBatch(images)
    whole = whole_images([(96, 96)])
    part = replace(whole, box_l0_yxyx=torch.tensor([[16, 32, 48, 64]]), level=torch.tensor([1]))
    torch.testing.assert_close(model.look_pixels(scene, part), images[..., 16:48, 32:64])
    assert model.look_pixels(scene, whole).shape == (1, 1, 48, 48)
    with pytest.raises(ConfigError, match="48 and 32 px"):
        model.look_pixels(scene, type(whole).concat([whole, part]))


def test_cost_follows_the_sizes() -> None:
    def cost(base_px: int, look_px: int | None, looks: int) -> int:
        return multiply_adds(TNet(replace(CONFIG, base_px=base_px, look_px=look_px)), looks)

    # A look of 32 px costs what it costs beside an overview of 32 px, whose cell map is smaller.
    assert cost(48, None, 0) == cost(48, 32, 0)
    assert cost(48, 32, 2) - cost(48, 32, 1) == cost(32, None, 2) - cost(32, None, 1)


def test_separate_weights_start_alike_and_learn_apart() -> None:
    model = TNet(replace(CONFIG, look_weights="separate"))
    assert model.look_backbone is not None
    for one, other in zip(model.backbone.parameters(), model.look_backbone.parameters(), strict=True):
        torch.testing.assert_close(one, other)
        assert one is not other
    whole = model(pictures((96, 96), (96, 96)), looks=0)
    whole.logits.sum().backward()
    assert all(p.grad is None for p in model.look_backbone.parameters())
    objective = Objective(ObjectiveConfig())
    objective(model(pictures((96, 96), (96, 96)), looks=2), torch.tensor([0, 1]), model).total.backward()
    assert all(p.grad is not None for p in model.look_backbone.parameters())


def test_separate_weights_are_saved_and_start_from_a_plain_network(tmp_path: Path) -> None:
    model = TNet(replace(CONFIG, look_weights="separate")).eval()
    save_model(model, tmp_path / "separate")
    images = pictures((96, 96), (96, 96))
    torch.testing.assert_close(load_model(tmp_path / "separate")(images).logits, model(images).logits)
    plain = TNet(replace(CONFIG, look_px=None, levels=1, looks=(), batch_norm="shared"))
    save_model(plain, tmp_path / "plain")
    missing = fill_from(model, tmp_path / "plain")
    assert model.look_backbone is not None and not [name for name in missing if "backbone" in name]
    for name, value in plain.backbone.state_dict().items():
        torch.testing.assert_close(model.backbone.state_dict()[name], value)
        torch.testing.assert_close(model.look_backbone.state_dict()[name], value)


def test_three_levels() -> None:
    model = TNet(replace(three_levels(), backbone=BackboneConfig("test_resnet"), base_px=48, look_px=32)).eval()
    assert len(model(torch.rand(1, 1, 300, 300)).regions) > 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"look_px": 0}, "model.look_px is 0"),
        ({"look_px": 10**6}, "model.look_px is 1000000"),
        ({"levels": 1, "looks": ()}, "model.look_px is 32, but model.levels is 1"),
    ],
)
def test_sizes_that_cannot_be(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        replace(CONFIG, **changes)  # type: ignore[arg-type]


def test_sizes_that_the_backbone_does_not_take() -> None:
    with pytest.raises(ConfigError, match="regions of 32 px"):
        TNet(replace(CONFIG, backbone=BackboneConfig("vit_tiny_patch16_224"), in_channels=3, base_px=224))
    with pytest.raises(ConfigError, match="16 px are too small"):
        TNet(TNetConfig(backbone=BackboneConfig("bagnet77"), base_px=77, look_px=16))
