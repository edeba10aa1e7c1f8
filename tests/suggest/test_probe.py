"""The test for looks: small signs are found, differences beyond chance decide, and what cannot be tested is said."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

from tnet.backbones import BackboneConfig
from tnet.errors import ConfigError, DataError
from tnet.models.config import TNetConfig
from tnet.suggest.probe import Probe, Reading, probe, read_out
from tnet.suggest.reasons import probe_reason
from tnet.suggest.survey import Survey, find_layout, survey_images


def reading(side_px: int, whole: int, parts: int, area: float = 0.02) -> Reading:
    """A reading of 100 images, of which the first are right."""
    order = torch.arange(100)
    return Reading(side_px, side_px**2, order < whole, order < parts, area)


@pytest.mark.parametrize(
    ("base", "finest", "verdict", "words"),
    [
        ((30, 30), (35, 70), "looks", "half of the evidence is in 2.0% of the image: looks should pay"),
        ((30, 30), (70, 72), "pixels", "train a plain backbone of that size too"),
        ((70, 60), (71, 72), "plain", "the plain backbone at 64 px may be as good for less"),
        ((26, 25), (28, 27), "unreadable", "this test cannot tell"),
    ],
)
def test_verdicts(base: tuple[int, int], finest: tuple[int, int], verdict: str, words: str) -> None:
    found = Probe((reading(64, *base), reading(128, *finest)), chance=0.25)
    assert found.verdict == verdict
    reason = probe_reason(found)
    assert words in reason.text and "chance: 25%" in reason.text
    assert f"{max(base)}% at 64 px, {max(finest)}% at 128 px" in reason.text


def test_a_small_sign_is_read_from_its_place_alone() -> None:
    generator = torch.Generator().manual_seed(0)
    targets = torch.arange(200) % 2
    features = torch.randn(200, 64, 8, generator=generator)
    place = torch.randint(64, (200,), generator=generator)
    features[torch.arange(200), place, targets] += 12.0
    folds = torch.arange(200) % 7 % 5
    parts, area = read_out(features, targets, folds)
    whole, _ = read_out(features.mean(dim=1, keepdim=True), targets, folds)
    assert parts.float().mean() > 0.95 and parts.sum() > whole.sum()
    assert area[parts].median() == pytest.approx(1 / 64)


def test_each_image_is_read_by_what_others_taught() -> None:
    """Features that name the image, not the class."""
    features, targets = torch.eye(40)[:, None], torch.arange(40) % 4
    right, _ = read_out(features, targets, torch.arange(40) // 8)
    assert right.float().mean() < 0.5


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    path = tmp_path / "weights.safetensors"
    save_file(timm.create_model("test_resnet", num_classes=0).state_dict(), path)
    return path


@pytest.fixture
def config(weights: Path) -> TNetConfig:
    return TNetConfig(backbone=BackboneConfig("test_resnet", weights=str(weights)), base_px=64, mean=(0.5,), std=(0.5,))


def photos(folder: Path, size_hw: tuple[int, int], each: int = 6) -> Survey:
    """Images of noise, brighter in one channel."""
    noise = np.random.default_rng(0)
    for label in range(2):
        place = folder / "photos" / "train" / f"class{label}"
        place.mkdir(parents=True)
        for index in range(each):
            levels = noise.integers(0, 100, (*size_hw, 3), dtype=np.uint8)
            levels[:, :, label] += 120
            Image.fromarray(levels).save(place / f"{index}.png")
    return survey_images(find_layout(folder / "photos"))


def test_images_are_read_at_each_resolution_they_have(
    tmp_path: Path, config: TNetConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    survey = photos(tmp_path, (160, 200), each=14)
    monkeypatch.setattr("tnet.suggest.probe._STEPS", 20)
    found = probe(survey, config, images=10, progress=False)
    assert [reading.side_px for reading in found.readings] == [64, 128, 192]
    assert found.readings[0].macs < found.readings[1].macs < found.readings[2].macs
    assert found.chance == 0.5
    assert all(len(one.whole) == 10 and bool(one.whole.all()) for one in found.readings)  # colours fill the image
    assert found.verdict == "plain"


def test_what_cannot_be_tested_is_said(tmp_path: Path, config: TNetConfig) -> None:
    survey = photos(tmp_path, (70, 70), each=5)
    with pytest.raises(ConfigError, match="70 px.*80 px"):
        probe(survey, config, progress=False)
    large = replace(survey, images=tuple(replace(image, size_hw=(200, 200)) for image in survey.images))
    with pytest.raises(ConfigError, match="test_resnet has none"):
        probe(large, replace(config, backbone=BackboneConfig("test_resnet")), progress=False)
    with pytest.raises(ConfigError, match="one label per image"):
        probe(replace(large, multilabel=True), config, progress=False)


def test_too_few_images(tmp_path: Path, config: TNetConfig) -> None:
    survey = photos(tmp_path, (160, 200), each=5)  # of which one of each class is for validation
    with pytest.raises(DataError, match="5 training images of each class, and the rarest has"):
        probe(survey, config, progress=False)
