"""What stored values become, for every number of channels, type and transparency."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from tests.scenes.fakes import noise

from tnet.errors import ImageError
from tnet.scenes.channels import map_channels
from tnet.scenes.readers.base import Color, ImageInfo, StoredLevel

PATH = Path("somewhere/picture.tif")


def info(channels: int, dtype: Any = np.uint8, color: Color = "bands", has_alpha: bool = False) -> ImageInfo:
    return ImageInfo((StoredLevel((4, 4)),), channels, np.dtype(dtype), color, has_alpha)


def mapped(pixels: NDArray[Any], channels: int, color: Color = "bands", has_alpha: bool = False, **options: Any) -> Any:
    mapping = map_channels(PATH, info(pixels.shape[2], pixels.dtype, color, has_alpha), channels, **options)
    result = mapping.apply(pixels)
    assert result.dtype == mapping.dtype and result.shape == (*pixels.shape[:2], channels)
    return result


def test_eight_bits_stay_what_they_are() -> None:
    pixels = noise(5, 6)
    assert mapped(pixels, 3, "rgb") is pixels


def test_grey_becomes_three_equal_channels_and_colour_luma() -> None:
    grey, colour = noise(5, 6, 1), noise(50, 60, 3)
    assert np.array_equal(mapped(grey, 3, "grey"), np.concatenate([grey] * 3, axis=2))
    assert np.array_equal(mapped(colour, 1, "rgb")[..., 0], np.asarray(Image.fromarray(colour).convert("L")))
    exact = mapped(colour.astype(np.uint16) * 257, 1, "rgb")[..., 0]
    np.testing.assert_allclose(exact, colour @ [0.299, 0.587, 0.114] / 255, atol=1e-6)


@pytest.mark.parametrize(("alpha", "background"), [("white", 255), ("black", 0)])
def test_transparency_is_laid_over_white_or_black_as_pillow_does(alpha: Any, background: int) -> None:
    pixels = np.concatenate([noise(64, 64, 3), np.arange(4096).reshape(64, 64, 1).astype(np.uint8)], axis=2)
    below = Image.new("RGBA", (64, 64), (background,) * 3)
    expected = np.asarray(Image.alpha_composite(below, Image.fromarray(pixels)).convert("RGB"))
    assert np.array_equal(mapped(pixels, 3, "rgb", True, alpha=alpha), expected)
    grey = mapped(pixels[..., [0, 3]], 3, "grey", True, alpha=alpha)
    assert np.array_equal(grey, np.stack([expected[..., 0]] * 3, axis=-1))
    deep = mapped(pixels.astype(np.uint16) * 257, 3, "rgb", True, alpha=alpha)
    assert np.abs(deep - expected / 255).max() < 0.51 / 255  # what is left is the rounding to 8 bits


@pytest.mark.parametrize(("alpha", "seen"), [("white", (1.0, 0.75, 0.5)), ("black", (0.0, 0.25, 0.5))])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.int16, np.int32, np.uint16, np.uint32])
def test_alpha_is_a_share_of_its_type_whatever_the_range(dtype: Any, alpha: Any, seen: tuple[float, ...]) -> None:
    full = 1.0 if np.dtype(dtype).kind == "f" else float(np.iinfo(dtype).max)
    pixels = np.array([[[15, 0], [15, full / 2], [15, full]]]).astype(dtype)
    got = mapped(pixels, 1, "grey", True, alpha=alpha, value_range=(10, 20))[0, :, 0]
    np.testing.assert_allclose(got, seen, atol=0.25 / 10 if dtype == np.float16 else 1e-4)
    as_channel = mapped(pixels, 2, "grey", True, value_range=(10, 20))[0]
    np.testing.assert_allclose(as_channel, [[0.5, 0], [0.5, 0.5], [0.5, 1]], atol=1e-4)


def test_what_is_transparent_need_not_be_a_number() -> None:
    pixels = np.array([[[np.nan, 0.0], [np.inf, 0.0]]], np.float32)
    assert mapped(pixels, 1, "grey", True, value_range=(0, 1)).ravel().tolist() == [1, 1]


def test_sixteen_bits_and_ranges() -> None:
    deep = np.array([0, 1, 30_000, 65_535], np.uint16).reshape(2, 2, 1)
    np.testing.assert_allclose(mapped(deep, 1).ravel(), [0, 1 / 65535, 30_000 / 65535, 1], rtol=1e-6)
    np.testing.assert_allclose(mapped(deep, 1, value_range=(1, 30_001)).ravel(), [0, 0, 29_999 / 30_000, 1], rtol=1e-6)
    assert mapped(np.array([[[True], [False]]]), 1).ravel().tolist() == [1, 0]
    narrow = mapped(np.array([[[100], [200]]], np.uint8), 1, value_range=(100, 300))
    assert narrow.ravel().tolist() == [0, 0.5]


@pytest.mark.parametrize("dtype", [np.int32, np.float64, np.int64])
def test_a_large_offset_leaves_the_precision_of_the_rest(dtype: Any) -> None:
    pixels = np.array([10**9, 10**9 + 1, 10**9 + 2], dtype).reshape(1, 3, 1)
    assert mapped(pixels, 1, value_range=(10**9, 10**9 + 2)).ravel().tolist() == [0, 0.5, 1]


def test_infinite_values_are_cut_off_and_missing_ones_filled() -> None:
    pixels = np.array([[[np.nan, 1.0, np.inf], [-np.inf, 0.5, np.nan]]], np.float32)
    mapping = map_channels(PATH, info(3, np.float32, "rgb"), 3, value_range=(0, 2))
    expected = np.array([[[0.1, 0.5, 1.0], [0.0, 0.25, 0.3]]], np.float32)
    assert np.array_equal(mapping.apply(pixels, (0.1, 0.2, 0.3)), expected)
    assert mapping.apply(pixels, (0.7,))[0, 1, 2] == np.float32(0.7)


@pytest.mark.parametrize("dtype", [np.int8, np.int16, np.int32, np.uint32, np.uint64, np.float16, np.float32])
def test_a_type_without_a_range_of_its_own_needs_one(dtype: Any) -> None:
    with pytest.raises(ImageError, match=rf"picture.tif holds {np.dtype(dtype).name} values.* value_range=\(black"):
        map_channels(PATH, info(1, dtype, "grey"), 1)
    assert map_channels(PATH, info(1, dtype, "grey"), 1, value_range=(-1, 1)).dtype == np.float32
    with pytest.raises(ImageError, match="complex64"):
        map_channels(PATH, info(1, np.complex64, "grey"), 1, value_range=(0, 1))


@pytest.mark.parametrize(
    ("channels", "wanted", "alpha", "bands", "taken"),
    [
        (13, 13, False, None, range(13)),
        (13, 3, False, None, (0, 1, 2)),
        (5, 3, True, None, (0, 1, 2)),
        (4, 4, True, None, (0, 1, 2, 3)),  # the alpha is the fourth channel that the model takes
        (13, 3, False, (7, 3, 2), (7, 3, 2)),
        (13, 1, False, (9,), (9,)),
        (13, 3, False, (9,), (9, 9, 9)),
        (4, 1, True, (3,), (3,)),  # the alpha itself
        (4, 2, True, (3, 0), (3, 0)),
        (2, 2, True, None, (0, 1)),
    ],
)
def test_bands(channels: int, wanted: int, alpha: bool, bands: Any, taken: Any) -> None:
    pixels = noise(5, 6, channels)
    if alpha and wanted != channels and bands is None:
        pixels[..., -1] = 255
    assert np.array_equal(mapped(pixels, wanted, "bands", alpha, bands=bands), pixels[..., list(taken)])


@pytest.mark.parametrize(
    ("channels", "wanted", "color", "options", "message"),
    [
        (2, 3, "bands", {}, "has 2 bands, but the model takes 3; choose 3 of its 2"),
        (13, 4, "bands", {}, "has 13 bands, but the model takes 4"),
        (3, 1, "bands", {}, "has 3 bands, but the model takes 1"),  # not colours: no luma
        (1, 13, "grey", {}, "has 1 bands, but the model takes 13"),
        (13, 3, "bands", {"bands": (1, 2)}, "has 2 chosen bands"),
        (3, 1, "rgb", {"bands": (0, 1, 2)}, "has 3 chosen bands"),
        (3, 3, "rgb", {"bands": (1, 2, 3)}, r"has 3 bands, not bands=\(1, 2, 3\)"),
    ],
)
def test_unavailable_channels(channels: int, wanted: int, color: Any, options: Any, message: str) -> None:
    with pytest.raises(ImageError, match=f"image {PATH} {message}"):
        map_channels(PATH, info(channels, color=color), wanted, **options)
