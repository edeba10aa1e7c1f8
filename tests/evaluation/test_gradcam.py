from __future__ import annotations

import pytest
import torch
from tests.helpers import TINY_BAGNET, pictures, tiny_config

from tnet.backbones import BackboneConfig
from tnet.errors import ConfigError
from tnet.evaluation import gradcam
from tnet.evaluation.gradcam import GradCam, best_windows
from tnet.models.tnet import TNet


def plain_net(**changes: object) -> TNet:
    return TNet(tiny_config(levels=1, looks=(), **changes)).eval()


def test_a_map_is_the_one_worked_out_by_hand() -> None:
    pytest.importorskip("captum")
    model = plain_net(base_px=64)
    cam = GradCam(model, "runs/plain")
    pixels = cam.pixels(pictures((64, 64), (96, 64)))
    assert pixels.shape == (2, 1, 64, 64)
    classes = cam.answer(pixels)
    assert classes.tolist() == model(pixels, looks=0).logits.argmax(1).tolist()
    found = cam.maps(pixels, classes)
    net = model.backbone.model
    features = net.forward_features(pixels)
    pooled = net.forward_head(features, pre_logits=True)
    score = model.classifier(model.position(pooled, torch.zeros(2, 3))).gather(1, classes[:, None]).sum()
    (slope,) = torch.autograd.grad(score, features)
    expected = torch.stack([(slope[i].mean((1, 2))[:, None, None] * features[i]).sum(0).relu() for i in range(2)])
    assert torch.allclose(found, expected, atol=1e-5) and float(found.max()) > 0


def test_backbones_without_batch_norm_have_a_map_too() -> None:
    pytest.importorskip("captum")
    model = plain_net(backbone=TINY_BAGNET)
    cam = GradCam(model, "runs/plain")
    assert cam.maps(cam.pixels(pictures((64, 64))), torch.tensor([0])).ndim == 3


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (TNet(tiny_config()), "runs/x is a TNet of 2 levels.*model.levels=1"),
        (plain_net(backbone=BackboneConfig("test_vit", kwargs={"img_size": 32})), "runs/x .test_vit.*convolutional"),
    ],
    ids=["looks", "tokens"],
)
def test_other_networks_are_refused(model: TNet, message: str) -> None:
    pytest.importorskip("captum")
    with pytest.raises(ConfigError, match=message):
        GradCam(model, "runs/x")


def test_without_captum_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gradcam, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'tnet\[gradcam\]'"):
        GradCam(plain_net(), "runs/plain")


def test_windows_are_the_best_that_do_not_overlap() -> None:
    cam = torch.zeros(2, 4, 4)
    cam[0, 3, 0], cam[0, 0, 3], cam[0, 0, 0] = 5.0, 3.0, 1.0  # corners, which half of the image shows one each of
    cam[1] = 1.0
    found = best_windows(cam, torch.tensor([[0.5, 0.5], [1.0, 0.5]]), 3)
    middles = (found[0, :, :2] + found[0, :, 2:]) / 2
    assert [(y > 0.5, x > 0.5) for y, x in middles.tolist()] == [(True, False), (False, True), (False, False)]
    assert torch.allclose(found[0, :, 2:] - found[0, :, :2], torch.tensor(0.5))
    assert found[1].tolist() == [[0, 0, 1, 0.5], [0, 0.5, 1, 1], [0, 0.5, 1, 1]]  # no third one fits
