"""Random changes: what they do to the levels, that they repeat, and which settings are refused."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tnet.data.augment import Augment, AugmentConfig, sample_generator
from tnet.errors import ConfigError


def numbered(height: int, width: int, channels: int = 1) -> Tensor:
    """Every pixel has a level of its own (up to 256 pixels)."""
    plane = torch.arange(height * width, dtype=torch.int64).remainder(256).to(torch.uint8).view(height, width)
    return plane.expand(channels, height, width).contiguous()


def random_image(channels: int = 3, height: int = 9, width: int = 13) -> Tensor:
    return torch.randint(0, 256, (channels, height, width), dtype=torch.uint8)


def changed(image: Tensor, times: int, **settings: Any) -> list[Tensor]:
    augment = Augment(AugmentConfig(**settings))
    return [augment(image, sample_generator(0, 0, index)) for index in range(times)]


def test_nothing_is_changed_unless_asked_for() -> None:
    image = random_image()
    assert torch.equal(changed(image, 1)[0], image)


@pytest.mark.parametrize(("setting", "axis"), [("horizontal_flip", 2), ("vertical_flip", 1)])
def test_flips_happen_half_of_the_time(setting: str, axis: int) -> None:
    image = numbered(3, 4)
    results = changed(image, 400, **{setting: True})
    flipped = sum(torch.equal(result, image.flip(axis)) for result in results)
    kept = sum(torch.equal(result, image) for result in results)
    assert flipped + kept == 400
    assert 150 < flipped < 250  # five standard deviations


def test_quarter_turns_are_equally_likely_and_turn_the_shape() -> None:
    image = numbered(3, 4)
    turns = [torch.rot90(image, turn, (1, 2)) for turn in range(4)]
    counts = Counter(
        next(turn for turn in range(4) if torch.equal(result, turns[turn]))
        for result in changed(image, 400, quarter_turns=True)
    )
    assert len(counts) == 4 and min(counts.values()) > 60
    assert turns[1].shape == (1, 4, 3)


@given(
    height=st.integers(1, 40),
    width=st.integers(1, 40),
    area=st.tuples(st.floats(0.01, 1), st.floats(0.01, 1)).map(lambda pair: tuple(sorted(pair))),
    aspect=st.tuples(st.floats(0.1, 10), st.floats(0.1, 10)).map(lambda pair: tuple(sorted(pair))),
    index=st.integers(0, 1000),
)
def test_crop_is_a_part_of_the_picture_of_the_asked_area(
    height: int, width: int, area: tuple[float, float], aspect: tuple[float, float], index: int
) -> None:
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    image = torch.stack([rows, columns]).to(torch.uint8)
    image = torch.cat([image, torch.zeros_like(image[:1])])
    if area == (1.0, 1.0):
        aspect = (1.0, 1.0)
    crop = Augment(AugmentConfig(crop_area=area, crop_aspect=aspect))(image, sample_generator(1, 2, index))
    top, left = crop[:2, 0, 0].tolist()
    crop_height, crop_width = crop.shape[1:]
    assert torch.equal(crop, image[:, top : top + crop_height, left : left + crop_width])
    # Each side is rounded to a whole pixel, and is at least one.
    smallest = max(0, crop_height - 0.501) * max(0, crop_width - 0.501) / (height * width)
    largest = (crop_height + 0.501) * (crop_width + 0.501) / (height * width)
    assert largest >= area[0] and (smallest <= area[1] or 1 in (crop_height, crop_width))


def test_crops_spread_over_area_aspect_and_place() -> None:
    image = random_image(1, 200, 400)
    crops = changed(image, 400, crop_area=(0.25, 0.5), crop_aspect=(0.5, 2.0))
    areas = torch.tensor([crop.numel() / image.numel() for crop in crops])
    aspects = torch.tensor([crop.shape[2] / crop.shape[1] / 2 for crop in crops])
    assert 0.245 < areas.min() < 0.27 and 0.48 < areas.max() < 0.505
    assert abs(areas.mean() - 0.375) < 0.02  # uniform
    assert 0.49 < aspects.min() < 0.55 and 1.8 < aspects.max() < 2.02
    assert abs(aspects.log().mean()) < 0.1  # as often flat as tall
    middle = image[:, 50:150, 100:300]
    assert not any(torch.equal(crop, middle) for crop in crops)
    assert len({crop.shape for crop in crops}) > 100


def test_crop_keeps_the_shape_of_the_picture_by_default() -> None:
    for crop in changed(random_image(1, 100, 300), 20, crop_area=(0.1, 0.9)):
        assert crop.shape[2] / crop.shape[1] == pytest.approx(3, rel=0.05)


def test_brightness_multiplies_levels_within_its_range() -> None:
    image = torch.full((3, 2, 2), 100, dtype=torch.uint8)
    levels = [int(result[0, 0, 0]) for result in changed(image, 200, brightness=0.4)]
    assert 60 <= min(levels) < 65 and 135 < max(levels) <= 140


def test_contrast_keeps_the_mean_and_scales_the_spread() -> None:
    image = torch.tensor([80, 120], dtype=torch.uint8).view(1, 1, 2).expand(3, 1, 2)
    spreads = []
    for result in changed(image, 200, contrast=0.5):
        assert abs(result.float().mean() - 100) <= 1
        spreads.append(int(result[0, 0, 1]) - int(result[0, 0, 0]))
    assert 19 <= min(spreads) < 24 and 56 < max(spreads) <= 61


def test_saturation_and_hue_change_colours_but_not_greys() -> None:
    colour = torch.tensor([200, 100, 50], dtype=torch.uint8).view(3, 1, 1)
    grey = torch.full((3, 1, 1), 77, dtype=torch.uint8)
    for setting in ("saturation", "hue"):
        assert len({tuple(result.flatten().tolist()) for result in changed(colour, 50, **{setting: 0.4})}) > 20
        assert all((result.int() - grey).abs().max() <= 1 for result in changed(grey, 20, **{setting: 0.4}))  # rounding
    spreads = [int(result.max()) - int(result.min()) for result in changed(colour, 100, saturation=0.5)]
    assert min(spreads) < 90 and max(spreads) > 190  # 150 as it is


def test_all_changes_work_on_one_channel_and_on_one_pixel() -> None:
    flips = {"horizontal_flip": True, "vertical_flip": True, "quarter_turns": True}
    crops = {"crop_area": (0.1, 1.0), "crop_aspect": (0.5, 2.0)}
    settings = flips | crops | {"brightness": 0.5, "contrast": 0.5, "saturation": 0.5, "hue": 0.5}
    for image in (random_image(1), random_image(3, 1, 1)):
        for result in changed(image, 50, **settings):
            assert result.dtype == torch.uint8 and result.shape[0] == image.shape[0] and result.is_contiguous()


def test_input_is_not_modified_and_result_owns_its_pixels() -> None:
    image = random_image()
    before = image.clone()
    results = changed(image, 30, horizontal_flip=True, crop_area=(0.2, 0.6), brightness=0.5, hue=0.3)
    assert torch.equal(image, before)
    assert all(result.untyped_storage().nbytes() == result.numel() for result in results)


@given(
    seed=st.integers(0, 2**40), epoch=st.integers(0, 10_000), index=st.integers(0, 2**33), other=st.integers(0, 2**33)
)
def test_random_numbers_belong_to_seed_epoch_and_index(seed: int, epoch: int, index: int, other: int) -> None:
    def draw(*key: int) -> list[float]:
        return torch.rand(3, generator=sample_generator(*key)).tolist()

    assert draw(seed, epoch, index) == draw(seed, epoch, index)
    for key in ((seed, epoch, other), (seed, other, index), (other, epoch, index)):
        assert (draw(*key) == draw(seed, epoch, index)) == (key == (seed, epoch, index))


def test_neighbouring_samples_are_unrelated() -> None:
    draws = torch.stack([torch.rand(4, generator=sample_generator(0, 0, index)) for index in range(2000)])
    neighbours = torch.corrcoef(torch.stack([draws[:-1, 0], draws[1:, 0]]))[0, 1]
    assert abs(neighbours) < 0.1
    assert abs(draws.mean() - 0.5) < 0.02


def test_default_generator_is_left_alone() -> None:
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    image = torch.zeros(3, 8, 8, dtype=torch.uint8)
    changed(image, 5, horizontal_flip=True, crop_area=(0.5, 1.0), hue=0.2, brightness=0.2)
    assert torch.equal(torch.rand(2), expected)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"crop_area": (0.0, 1.0)}, r"crop_area is \(0\.0, 1\.0\)"),
        ({"crop_area": (0.5, 1.5)}, "at most 1"),
        ({"crop_area": (0.9, 0.5)}, "smallest first"),
        ({"crop_area": (math.nan, 1.0)}, "crop_area"),
        ({"crop_area": (0.5, 1.0), "crop_aspect": (0.0, 1.0)}, "crop_aspect"),
        ({"crop_area": (0.5, 1.0), "crop_aspect": (2.0, 0.5)}, "smallest first"),
        ({"crop_area": (0.5, 1.0), "crop_aspect": (1.0, math.inf)}, "crop_aspect"),
        ({"crop_aspect": (0.5, 2.0)}, "give crop_area room"),
        ({"brightness": 1.1}, r"brightness is 1\.1, but must be from 0 \(off\) to 1"),
        ({"contrast": -0.1}, "contrast"),
        ({"saturation": math.nan}, "saturation"),
        ({"hue": 0.6}, r"hue is 0\.6, but must be from 0 \(off\) to 0\.5"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        AugmentConfig(**settings)
