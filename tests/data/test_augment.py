"""Random changes: what they do to the levels, that they repeat, and which settings are rejected."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tnet.data.augment import PRESETS, Augment, AugmentConfig, sample_generator
from tnet.errors import ConfigError
from tnet.scenes.memory import MemoryScene
from tnet.scenes.transform import ImageChange
from tnet.training.recipe import load_recipe


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
    results = changed(image, 100, **{setting: True})
    flipped = sum(torch.equal(result, image.flip(axis)) for result in results)
    kept = sum(torch.equal(result, image) for result in results)
    assert flipped + kept == 100
    assert 25 < flipped < 75  # five standard deviations


def test_quarter_turns_are_equally_likely_and_turn_the_shape() -> None:
    image = numbered(3, 4)
    turns = [torch.rot90(image, turn, (1, 2)) for turn in range(4)]
    counts = Counter(
        next(turn for turn in range(4) if torch.equal(result, turns[turn]))
        for result in changed(image, 160, quarter_turns=True)
    )
    assert len(counts) == 4 and min(counts.values()) > 13
    assert turns[1].shape == (1, 4, 3)


@given(
    height=st.integers(1, 40),
    width=st.integers(1, 40),
    area=st.tuples(st.floats(0.01, 1), st.floats(0.01, 1)).map(lambda pair: tuple(sorted(pair))),
    aspect=st.tuples(st.floats(0.1, 10), st.floats(0.1, 10)).map(lambda pair: tuple(sorted(pair))),
    index=st.integers(0, 1000),
)
def test_crop_is_a_part_of_the_image_of_the_asked_area(
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
    crops = changed(image, 200, crop_area=(0.25, 0.5), crop_aspect=(0.5, 2.0))
    areas = torch.tensor([crop.numel() / image.numel() for crop in crops])
    aspects = torch.tensor([crop.shape[2] / crop.shape[1] / 2 for crop in crops])
    assert 0.245 < areas.min() < 0.27 and 0.48 < areas.max() < 0.505
    assert abs(areas.mean() - 0.375) < 0.02  # uniform
    assert 0.49 < aspects.min() < 0.55 and 1.8 < aspects.max() < 2.02
    assert abs(aspects.log().mean()) < 0.1  # as often flat as tall
    middle = image[:, 50:150, 100:300]
    assert not any(torch.equal(crop, middle) for crop in crops)
    assert len({crop.shape for crop in crops}) > 100


def test_crop_keeps_the_shape_of_the_image_by_default() -> None:
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
        ({"crop_area": (0.5, 1.5)}, "up to 1"),
        ({"crop_area": (0.9, 0.5)}, "smaller first"),
        ({"crop_area": (math.nan, 1.0)}, "crop_area"),
        ({"crop_area": (0.5, 1.0), "crop_aspect": (0.0, 1.0)}, "crop_aspect"),
        ({"crop_area": (0.5, 1.0), "crop_aspect": (2.0, 0.5)}, "smaller first"),
        ({"crop_area": (0.5, 1.0), "crop_aspect": (1.0, math.inf)}, "crop_aspect"),
        ({"crop_aspect": (0.5, 2.0)}, "set crop_area"),
        ({"brightness": 1.1}, r"brightness is 1\.1.* 1$"),
        ({"contrast": -0.1}, "contrast"),
        ({"saturation": math.nan}, "saturation"),
        ({"hue": 0.6}, r"hue is 0\.6.* 0\.5$"),
    ],
)
def test_settings_out_of_range_are_rejected(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        AugmentConfig(**settings)


# --- the published augmentation

PUBLISHED: dict[str, Any] = {
    "crop_area": (0.85, 1.0),
    "crop_aspect": (0.5, 2.0),
    "crop_aspect_absolute": True,
    "crop_box_share": 0.1,
    "resize_px": 32,
    "resize_methods": "eight",
    "horizontal_flip": True,
}
COLOURS: dict[str, Any] = {
    "colour_cases": True, "brightness": 32 / 255, "saturation": 0.5, "hue": 0.2, "contrast": 0.5
}  # fmt: skip
BIRDS: dict[str, Any] = {"rotation": 20.0, "rotation_fill": "black", "rotation_nearest": True, "translation": 0.1}


def test_presets_are_the_published_augmentation() -> None:
    exact = {"resize_px": 224, "brightness": 0.12549}
    assert PRESETS["tnet"] == AugmentConfig(**PUBLISHED | COLOURS | exact)
    assert PRESETS["tnet_birds"] == AugmentConfig(**PUBLISHED | BIRDS | {"resize_px": 224})


@pytest.mark.parametrize("name", ["imagenet_tnet", "fmow_b0_448", "cub_tnet_b0", "nabirds_b0"])
def test_published_recipes_use_the_presets(repository: Path, name: str) -> None:
    augment = load_recipe(repository / "recipes" / "published" / f"{name}.yaml").data.augment
    preset = PRESETS["tnet_birds" if name.startswith(("cub", "nabirds")) else "tnet"]
    assert augment == replace(preset, resize_px=augment.resize_px)


def drawn(
    times: int, settings: dict[str, Any], size_hw: tuple[int, int] = (60, 80), boxes: Tensor | None = None
) -> list[ImageChange]:
    augment = Augment(AugmentConfig(**settings))
    return [augment.draw(size_hw, sample_generator(0, 0, index), boxes) for index in range(times)]


@pytest.mark.parametrize("size_hw", [(60, 80), (500, 334), (64, 64)])
def test_crops_of_an_absolute_aspect_have_area_and_aspect_as_asked(size_hw: tuple[int, int]) -> None:
    height, width = size_hw
    crops = [change.crop_yxyx for change in drawn(150, PUBLISHED, size_hw)]
    found = [crop for crop in crops if crop is not None]
    assert len(found) > 125  # where 50 tries fail, it is the whole image
    for y0, x0, y1, x1 in found:
        assert 0 <= y0 < y1 <= height and 0 <= x0 < x1 <= width
        assert 0.85 <= (y1 - y0) * (x1 - x0) / (height * width) <= 1
    aspects = [(x1 - x0) / (y1 - y0) for y0, x0, y1, x1 in found]
    middle = width / height
    assert middle * 0.84 < min(aspects) < middle * 0.9 and middle * 1.1 < max(aspects) < middle / 0.84
    assert len({crop[:2] for crop in found}) > 20


def test_an_aspect_that_does_not_fit_keeps_the_whole_image() -> None:
    assert {change.crop_yxyx for change in drawn(20, PUBLISHED, (20, 200))} == {None}
    narrow = {"crop_area": (0.2, 0.4), "crop_aspect": (1.0, 1.0), "crop_aspect_absolute": True}
    for change in drawn(20, narrow, (50, 100)):
        assert change.crop_yxyx is not None
        y0, x0, y1, x1 = change.crop_yxyx
        assert y1 - y0 == x1 - x0 and 1000 <= (y1 - y0) ** 2 <= 2000


def covered(crop: tuple[int, int, int, int], box: tuple[int, int, int, int]) -> float:
    height, width = (max(0, min(crop[axis + 2], box[axis + 2]) - max(crop[axis], box[axis])) for axis in (0, 1))
    return height * width / ((box[2] - box[0]) * (box[3] - box[1]))


@pytest.mark.parametrize("absolute", [True, False])
def test_crops_show_enough_of_a_box(absolute: bool) -> None:
    settings = {"crop_area": (0.05, 0.2), "crop_aspect": (0.8, 1.25), "crop_aspect_absolute": absolute}
    first, second = (2, 3, 22, 33), (70, 60, 90, 80)
    boxes = torch.tensor([first, second], dtype=torch.float32)
    for share, everywhere in ((0.5, False), (0.0, True)):
        changes = drawn(80, {**settings, "crop_box_share": share}, (100, 90), boxes)
        shares = [[covered(c.crop_yxyx, box) for box in (first, second)] for c in changes if c.crop_yxyx is not None]
        assert len(shares) > 75
        assert any(max(both) < 0.5 for both in shares) == everywhere
        assert any(both[0] >= 0.5 for both in shares) and any(both[1] >= 0.5 for both in shares)


def test_without_a_box_the_whole_image_is_one_and_what_never_fits_keeps_it() -> None:
    settings = {"crop_area": (0.3, 0.6), "crop_box_share": 0.5}
    for boxes in (None, torch.zeros(0, 4)):
        for change in drawn(50, settings, boxes=boxes):
            assert change.crop_yxyx is not None and covered(change.crop_yxyx, (0, 0, 60, 80)) >= 0.49
    beyond = np.array([[0.0, 0.0, 600.0, 800.0], [5.0, 5.0, 5.0, 9.0]])
    config = Augment(AugmentConfig(**settings))
    assert config.draw((60, 80), sample_generator(0, 0, 0), beyond).crop_yxyx is None


def test_the_published_change_has_its_parts_as_often_as_published() -> None:
    changes = [change.pixels for change in drawn(400, PUBLISHED | COLOURS)]
    found = [change for change in changes if change is not None]
    assert len(found) == 400 and {change.size_px for change in found} == {32}
    methods = Counter(change.method for change in found)
    assert len(methods) == 8 and min(methods.values()) > 25
    orders = Counter(tuple(name for name, _ in change.colours) for change in found)
    assert len(orders) == 5 and min(orders.values()) > 50 and () in orders
    amounts = [dict(change.colours) for change in found if change.colours]
    for name, low, high in (
        ("brightness", -32 / 255, 32 / 255), ("saturation", 0.5, 1.5), ("hue", -0.2, 0.2), ("contrast", 0.5, 1.5)
    ):  # fmt: skip
        values = [amount[name] for amount in amounts]  # type: ignore[index]
        assert low <= min(values) < low + 0.05 * (high - low) and high - 0.05 * (high - low) < max(values) <= high


def test_birds_are_rotated_and_shifted() -> None:
    changes = [change.pixels for change in drawn(300, PUBLISHED | BIRDS)]
    found = [change for change in changes if change is not None]
    assert all(change.nearest and not change.colours for change in found)
    for values, limit in (
        ([c.angle_deg for c in found], 20), ([c.shift_yx[0] for c in found], 0.1), ([c.shift_yx[1] for c in found], 0.1)
    ):  # fmt: skip
        assert -limit <= min(values) < -0.9 * limit and 0.9 * limit < max(values) <= limit
    assert all(change.angle_deg == 0 for change in drawn(5, PUBLISHED | BIRDS))  # not below the crop as well


@pytest.mark.parametrize("settings", [PUBLISHED | COLOURS, PUBLISHED | BIRDS, {"rand_augment": 2}])
@pytest.mark.parametrize("channels", [1, 3])
def test_published_changes_are_repeated_by_their_numbers(settings: dict[str, Any], channels: int) -> None:
    image = random_image(channels, 40, 50)
    found = changed(image, 6, **settings)
    assert all(torch.equal(first, second) for first, second in zip(found, changed(image, 6, **settings), strict=True))
    assert len({tuple(picture.flatten().tolist()) for picture in found}) > 3
    if "resize_px" in settings:
        assert {picture.shape for picture in found} == {(channels, 32, 32)}


def test_other_changes_stay_what_they_were_when_new_ones_come() -> None:
    before = {"crop_area": (0.5, 1.0), "horizontal_flip": True, "rotation": 10.0, "hue": 0.1}
    for old, new in zip(drawn(5, before), drawn(5, before | {"rand_augment": 1, "translation": 0.1}), strict=True):
        assert old == replace(new, pixels=None)


@pytest.mark.parametrize("key", ["resize_px", "translation", "rand_augment"])
def test_what_needs_all_pixels_is_rejected_for_scenes(key: str) -> None:
    scene = MemoryScene(random_image(), "a.png")
    settings = {"resize_px": 8, "translation": 0.1, "rand_augment": 2}
    augment = Augment(AugmentConfig(**{key: settings[key]}))  # type: ignore[arg-type]
    assert augment.config.memory_only == (key,)
    with pytest.raises(ConfigError, match=r"a\.png is read lazily"):
        augment(scene, sample_generator(0, 0, 0))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"crop_area": (0.5, 1.0), "crop_tries": 0}, "crop_tries is 0"),
        ({"crop_aspect_absolute": True}, "set crop_area"),
        ({"crop_box_share": 0.1}, "set crop_area"),
        ({"crop_area": (0.5, 1.0), "crop_box_share": 1.1}, "crop_box_share is 1.1"),
        ({"resize_px": 0}, "resize_px is 0"),
        ({"resize_px": 10**6}, "resize_px is 1000000"),
        ({"resize_methods": "eight"}, "set resize_px"),
        ({"colour_cases": True}, "set brightness"),
        ({"rotation_fill": "black"}, "set rotation"),
        ({"rotation": 5.0, "rotation_nearest": True}, "rotation_nearest"),
        ({"translation": -0.1}, "translation is -0.1"),
        ({"rand_augment": -1}, "rand_augment is -1"),
        ({"rand_augment_magnitude": 31}, "rand_augment_magnitude is 31"),
    ],
)
def test_published_settings_that_contradict_are_rejected(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        AugmentConfig(**settings)
