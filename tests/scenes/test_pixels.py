"""Changes of pixels in memory: each against another implementation of the same, or against arithmetic."""

from __future__ import annotations

import colorsys
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from scipy.ndimage import map_coordinates  # type: ignore[import-untyped]
from tests.helpers import pictures
from torch import Tensor

from tnet.errors import ConfigError
from tnet.scenes.memory import MemoryScene
from tnet.scenes.pixels import RESIZE_METHODS, PixelChange, PixelColour, RandAugmentDraw, change_pixels, resize_by
from tnet.scenes.transform import ImageChange, TransformedScene, change_image

SIZES = [((7, 9), (13, 20)), ((13, 20), (7, 9)), ((8, 8), (8, 8)), ((1, 5), (3, 2)), ((40, 30), (5, 7))]


def noise(channels: int, size_hw: tuple[int, int]) -> Tensor:
    return torch.rand(channels, *size_hw)


@pytest.mark.parametrize(("size_hw", "new_hw"), SIZES)
def test_methods_that_pytorch_has_are_the_same(size_hw: tuple[int, int], new_hw: tuple[int, int]) -> None:
    pixels = noise(3, size_hw)
    expected = F.interpolate(pixels[None], new_hw, mode="bilinear", align_corners=False)[0]
    torch.testing.assert_close(resize_by(pixels, new_hw, "bilinear"), expected, atol=1e-6, rtol=0)
    expected = F.interpolate(pixels[None], new_hw, mode="nearest-exact")[0]
    assert torch.equal(resize_by(pixels, new_hw, "nearest"), expected)


@pytest.mark.parametrize(
    ("method", "same"),
    [("bilinear", Image.Resampling.BILINEAR), ("bicubic", Image.Resampling.BICUBIC),
     ("lanczos3", Image.Resampling.LANCZOS)],
)  # fmt: skip
def test_enlarging_is_what_pillow_does(method: Any, same: Image.Resampling) -> None:
    # Pillow antialiases, which in an enlargement is nothing.
    pixels = noise(1, (9, 14))
    picture = Image.fromarray(pixels[0].numpy()).resize((31, 20), same)
    torch.testing.assert_close(
        resize_by(pixels, (20, 31), method)[0], torch.from_numpy(np.array(picture)), atol=1e-5, rtol=0
    )


def test_area_averages_what_a_pixel_covers() -> None:
    pixels = noise(2, (6, 9))
    torch.testing.assert_close(resize_by(pixels, (2, 3), "area"), F.avg_pool2d(pixels, 3), atol=1e-6, rtol=0)
    row = torch.tensor([[[1.0, 2.0, 4.0]]])
    torch.testing.assert_close(resize_by(row, (1, 2), "area"), torch.tensor([[[4 / 3, 10 / 3]]]))


def test_gaussian_and_mitchell_weigh_by_their_formulas() -> None:
    spike = torch.zeros(1, 1, 7)
    spike[..., 3] = 1
    away = torch.tensor([0.0, 1.0])
    bell = torch.exp(-2 * away.square())
    expected = (bell / (bell[0] + 2 * bell[1])).tolist()
    found = resize_by(spike, (1, 7), "gaussian")[0, 0].tolist()
    assert found == pytest.approx([0, 0, expected[1], expected[0], expected[1], 0, 0], abs=1e-6)
    found = resize_by(spike, (1, 7), "mitchell")[0, 0].tolist()
    assert found == pytest.approx([0, 0, 1 / 18, 16 / 18, 1 / 18, 0, 0], abs=1e-6)


@pytest.mark.parametrize("method", RESIZE_METHODS)
def test_a_plain_picture_stays_plain_and_a_reduction_has_no_antialiasing(method: Any) -> None:
    plain = torch.full((3, 11, 17), 0.25)
    for new_hw in ((5, 6), (30, 40)):
        torch.testing.assert_close(resize_by(plain, new_hw, method), torch.full((3, *new_hw), 0.25))
    # Centres of the new pixels are 20, 60, 100 and 140: nothing beyond 5 pixels of them is read, but by area.
    row = torch.zeros(1, 1, 160)
    row[..., 30:50] = 1
    assert bool(resize_by(row, (1, 4), method).any()) == (method == "area")


# --- colours


def of_colour(values: tuple[float, float, float]) -> Tensor:
    levels = torch.tensor([round(value * 255) for value in values], dtype=torch.uint8)
    return levels[:, None, None].expand(3, 2, 2).clone()


def coloured(image: Tensor, *colours: tuple[PixelColour, float]) -> list[float]:
    return (change_pixels(image, PixelChange(colours=colours)).float() / 255)[:, 0, 0].tolist()


@pytest.mark.parametrize(
    "colour", [(0.2, 0.5, 0.9), (0.6, 0.4, 0.1), (0.3, 0.8, 0.3), (0.5, 0.5, 0.5), (0.0, 0.0, 0.0)]
)
def test_saturation_and_hue_are_those_of_hsv(colour: tuple[float, float, float]) -> None:
    hue, saturation, value = colorsys.rgb_to_hsv(*(round(part * 255) / 255 for part in colour))
    for factor in (0.5, 1.0, 1.5):
        expected = colorsys.hsv_to_rgb(hue, min(1.0, saturation * factor), value)
        assert coloured(of_colour(colour), ("saturation", factor)) == pytest.approx(expected, abs=0.5 / 255 + 1e-6)
    for turn in (-0.2, 0.1):
        expected = colorsys.hsv_to_rgb((hue + turn) % 1, saturation, value)
        assert coloured(of_colour(colour), ("hue", turn)) == pytest.approx(expected, abs=0.5 / 255 + 1e-5)


def test_brightness_is_added_and_cut_off_after_the_last_change_only() -> None:
    assert coloured(of_colour((0.2, 0.5, 0.9)), ("brightness", 0.2)) == pytest.approx([0.4, 0.7, 1.0], abs=0.01)
    assert coloured(of_colour((0.2, 0.5, 0.9)), ("brightness", -0.3)) == pytest.approx([0, 0.2, 0.6], abs=0.01)
    back = coloured(of_colour((0.2, 0.5, 0.9)), ("brightness", 0.3), ("brightness", -0.3))
    assert back == pytest.approx([0.2, 0.5, 0.9], abs=0.01)


def test_contrast_is_about_the_mean_of_each_channel() -> None:
    image = torch.tensor([[[100, 140]], [[20, 20]], [[0, 200]]], dtype=torch.uint8)
    found = change_pixels(image, PixelChange(colours=(("contrast", 1.5),)))
    assert found.tolist() == [[[90, 150]], [[20, 20]], [[0, 250]]]


def test_grey_pictures_have_no_hue_and_others_no_colours() -> None:
    grey = pictures((4, 5))[0]
    assert torch.equal(change_pixels(grey, PixelChange(colours=(("hue", 0.2), ("saturation", 1.5)))), grey)
    four = pictures((4, 5), channels=4)[0]
    assert change_pixels(four, PixelChange(size_px=8)).shape == (4, 8, 8)
    for change in (PixelChange(colours=(("brightness", 0.1),)), PixelChange(rand_augment=RandAugmentDraw(2, 9, 0))):
        with pytest.raises(ConfigError, match="not 4"):
            change_pixels(four, change)


# --- turns, shifts, RandAugment


def test_a_shift_moves_down_and_right_and_leaves_black() -> None:
    image = pictures((10, 20))[0] | 1
    found = change_pixels(image, PixelChange(shift_yx=(0.2, -0.1), nearest=True))
    assert torch.equal(found[:, 2:, :-2], image[:, :-2, 2:])
    assert not found[:, :2].any() and not found[..., -2:].any()


@pytest.mark.parametrize(("down", "right"), [(0.2, -0.1), (0.13, 0.07), (-0.31, 0.0), (1.0, -1.0)])
def test_a_shift_by_parts_of_a_pixel_interpolates(down: float, right: float) -> None:
    image = pictures((10, 20))[0]
    found = change_pixels(image, PixelChange(shift_yx=(down, right)))
    padded = F.pad(image[0].double(), (20, 20, 10, 10))
    y, x = np.meshgrid(np.arange(10) + 10 - 10 * down, np.arange(20) + 20 - 20 * right, indexing="ij")
    expected = map_coordinates(padded.numpy(), [y, x], order=1)
    np.testing.assert_allclose(found[0].numpy(), expected, atol=0.5 + 1e-4)


def test_a_turn_is_counterclockwise_and_black_beyond_the_edge() -> None:
    image = pictures((9, 9), channels=3)[0] | 1
    turned = change_pixels(image, PixelChange(angle_deg=90, nearest=True))
    assert torch.equal(turned, torch.rot90(image, 1, dims=(1, 2)))
    corner = change_pixels(image, PixelChange(angle_deg=45, nearest=True))
    assert not corner[:, 0, 0].any() and set(corner.unique().tolist()) <= {0, *image.unique().tolist()}
    smooth = change_pixels(image, PixelChange(angle_deg=45))
    assert not torch.equal(smooth, corner)


def test_a_shift_comes_before_a_turn_and_what_it_moves_out_is_lost() -> None:
    image = pictures((8, 8), channels=3)[0] | 1
    found = change_pixels(image, PixelChange(angle_deg=90, shift_yx=(0.25, 0.0), nearest=True))
    shifted = change_pixels(image, PixelChange(shift_yx=(0.25, 0.0), nearest=True))
    assert torch.equal(found, torch.rot90(shifted, 1, dims=(1, 2)))
    # Turned first, the black would be above.
    assert not found[:, :, :2].any() and found[:, :, 2:].all()


def test_rand_augment_is_its_seed_s_and_leaves_the_generator_alone() -> None:
    image = pictures((24, 30), channels=3)[0]
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    found = [change_pixels(image, PixelChange(rand_augment=RandAugmentDraw(2, 9, seed))) for seed in range(8)]
    assert torch.equal(torch.rand(2), expected)
    again = [change_pixels(image, PixelChange(rand_augment=RandAugmentDraw(2, 9, seed))) for seed in range(8)]
    assert all(torch.equal(first, second) for first, second in zip(found, again, strict=True))
    assert len({tuple(picture.flatten().tolist()) for picture in found}) > 4


# --- as part of a change


def test_pixels_come_last_and_give_the_size() -> None:
    image = pictures((12, 20))[0]
    change = ImageChange(crop_yxyx=(2, 4, 8, 16), horizontal_flip=True, pixels=PixelChange(size_px=6, method="area"))
    assert change.size_of((12, 20)) == (6, 6)
    cropped = image[:, 2:8, 4:16].flip(-1).float() / 255
    expected = (resize_by(cropped, (6, 6), "area") * 255).round().byte()
    assert torch.equal(change_image(image, change), expected)


def test_a_scene_cannot_be_changed_so() -> None:
    scene = MemoryScene(pictures((12, 20))[0], "a.png")
    with pytest.raises(ConfigError, match=r"a\.png is read lazily, .*set data\.read to memory"):
        TransformedScene(scene, ImageChange(pixels=PixelChange(size_px=6)))
