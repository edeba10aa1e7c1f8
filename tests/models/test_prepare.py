"""Models prepared for inference: the same answers and regions, but no training, saving or exporting."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tests.export.forms import build, forms, noise
from tests.helpers import EVERY_KIND, as_trained, awaken, tiny_config
from torch import Tensor

from tnet.backbones import BackboneConfig
from tnet.backbones.base import batch_norms
from tnet.cost import multiply_adds
from tnet.errors import ConfigError
from tnet.export import export_model
from tnet.models import TNet, save_model
from tnet.models.base import Model, ModelOutput
from tnet.models.io import load_for_inference
from tnet.models.kind import build_model


def assert_same(model: Model, images: Tensor) -> Model:
    """Compare a model with its prepared copy, and with itself after the copy was made."""

    def answer(of: Model) -> ModelOutput:
        torch.manual_seed(0)  # some draw their locations
        return of(images)

    with torch.inference_mode():
        wanted = answer(model)
        prepared = model.prepare_for_inference()
        given, after = answer(prepared), answer(model)
    assert torch.equal(after.logits, wanted.logits)
    assert torch.equal(given.regions.box_l0_yxyx, wanted.regions.box_l0_yxyx)
    assert (given.logits - wanted.logits).abs().max() <= 1e-4 * wanted.logits.abs().max()
    assert prepared.prepare_for_inference() is prepared and not prepared.training
    return prepared


@pytest.mark.parametrize("name", forms())
def test_every_published_form_stays_the_same(name: str) -> None:
    config = forms()[name]
    side_px = 96 * config.levels
    prepared = assert_same(build(config), noise(config.in_channels, (side_px, side_px)))
    assert not batch_norms(prepared)


@pytest.mark.parametrize("kind", EVERY_KIND)
def test_every_kind_of_model_stays_the_same(kind: str) -> None:
    torch.manual_seed(3)
    assert_same(as_trained(awaken(build_model(EVERY_KIND[kind]))).eval(), noise(1, (96, 96)))


@pytest.mark.parametrize("changes", [{"batch_norm": "per_level"}, {"look_weights": "separate"}, {"look_px": 48}])
def test_whole_images_and_regions_keep_statistics_of_their_own(changes: dict[str, object]) -> None:
    model = build(tiny_config(**changes))
    if model.look_backbone is not None:
        as_trained(model.look_backbone)
    prepared = assert_same(model, noise(1, (96, 96)))
    assert not batch_norms(prepared)


def test_a_backbone_that_cannot_be_fused_stays_as_it_is() -> None:
    model = build(replace(tiny_config(base_px=64), backbone=BackboneConfig("resnetv2_50x1_bit"), in_channels=3))
    assert_same(model, noise(3, (128, 128), 1))


def test_a_model_loads_prepared(tmp_path: Path) -> None:
    model = build(tiny_config())
    save_model(model, tmp_path / "model")
    loaded = load_for_inference(tmp_path / "model")
    assert loaded.is_prepared
    images = noise(1, (96, 96))
    with torch.inference_mode():
        torch.testing.assert_close(loaded(images).logits, model(images).logits, rtol=1e-4, atol=1e-5)


def test_a_prepared_model_costs_as_much() -> None:
    model = TNet(tiny_config())
    assert multiply_adds(model.prepare_for_inference()) == multiply_adds(model)


def test_a_prepared_model_is_for_inference_only(tmp_path: Path) -> None:
    prepared = TNet(tiny_config()).prepare_for_inference()
    with pytest.raises(ConfigError, match="trained"):
        prepared.train()
    with pytest.raises(ConfigError, match="saved"):
        save_model(prepared, tmp_path / "model")
    with pytest.raises(ConfigError, match="exported"):
        export_model(prepared, tmp_path / "export")
    assert not any(tmp_path.iterdir())
    assert not any(parameter.requires_grad for parameter in prepared.parameters())
