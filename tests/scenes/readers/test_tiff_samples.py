"""Meaning of samples by the header alone; the matrix tests it through the readers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from tests.scenes.readers import make

from tnet.errors import ImageError
from tnet.scenes.readers.tiff_header import TiffHeader, read_tiff_header
from tnet.scenes.readers.tiff_samples import lost, tiff_samples


def header(**tags: tuple[int, ...] | bytes) -> TiffHeader:
    """A header of one directory, ``t277=(3,)`` for the tag 277."""
    return TiffHeader(Path("a.tif"), [{int(name[1:]): value for name, value in tags.items()}], 1)


@pytest.mark.parametrize(
    ("text", "bits", "format_", "expected"),
    [
        (b"7", 8, 1, 7),
        (b" 7.0 \0rest", 8, 1, 7),
        (b"-9999", 16, 2, -9999),
        (b"18446744073709551615", 64, 1, 2**64 - 1),  # which no double holds
        (b"256", 8, 1, None),
        (b"-1", 8, 1, None),
        (b"7.5", 8, 1, None),
        (b"nan", 8, 1, None),
        (b"inf", 8, 1, None),
        (b"hello", 32, 3, None),
        (b"", 8, 1, None),
        (b"-3.40282346638529e+38", 32, 3, np.finfo(np.float32).min),
        (b"0.1", 32, 3, np.float32(0.1)),
    ],
)
def test_nodata_is_a_value_of_the_type(text: bytes, bits: int, format_: int, expected: Any) -> None:
    found = tiff_samples(header(t258=(bits,), t339=(format_,), t42113=text)).nodata
    assert found == expected and (found is None) == (expected is None)


def test_nodata_is_missing_in_all_samples_but_alpha() -> None:
    samples = tiff_samples(header(t258=(8,) * 4, t262=(2,), t277=(4,), t338=(2,), t42113=b"0"))
    stored = np.array([[[0, 0, 0, 255], [0, 0, 1, 255], [0, 0, 0, 0], [9, 9, 9, 7]]], np.uint8)
    expected = [[0, 0, 0, 0], [0, 0, 1, 255], [0, 0, 0, 0], [9, 9, 9, 7]]
    assert samples.apply(stored).tolist() == [expected]


def test_alpha_among_the_extra_samples_comes_last() -> None:
    samples = tiff_samples(header(t258=(8,) * 5, t262=(2,), t277=(5,), t338=(2, 0)))
    assert samples.form == (5, np.uint8, "bands", True)
    assert samples.apply(np.arange(5, dtype=np.uint8).reshape(1, 1, 5)).tolist() == [[[0, 1, 2, 4, 3]]]


def test_alpha_of_few_bits_has_the_range_of_the_type() -> None:
    samples = tiff_samples(header(t258=(12, 12), t277=(2,), t338=(2,)))
    assert samples.apply(np.array([[[4000, 4095], [4000, 0]]], np.uint16)).tolist() == [[[4000, 65535], [4000, 0]]]


def test_a_mask_shows_a_share_of_alpha() -> None:
    samples = tiff_samples(header(t258=(16,), t277=(1,)), is_masked=True)
    got = samples.apply(np.full((1, 3, 1), 9, np.uint16), np.array([[0, 51, 255]], np.uint8))
    assert got.tolist() == [[[0, 0], [9, 13107], [9, 65535]]]


@pytest.mark.parametrize("scale", [257, 1])
def test_palettes_of_few_bits_and_of_8_bit_colours(scale: int) -> None:
    """Some writers store 0 to 255 where 0 to 65535 is meant, as libtiff allows for."""
    table = np.arange(48).reshape(3, 16) * 5
    samples = tiff_samples(header(t258=(4,), t262=(3,), t320=tuple((table * scale).ravel().tolist())))
    assert samples.form == (3, np.uint8, "rgb", False)
    assert samples.apply(np.array([[[3], [15]]], np.uint8)).tolist() == [table[:, [3, 15]].T.tolist()]


def test_planes_of_a_stack_are_bands_without_alpha_or_palette() -> None:
    samples = tiff_samples(header(t258=(8,), t262=(3,), t320=(0,) * 768), planes=3)
    assert samples.form == (3, np.uint8, "bands", False)


@pytest.mark.parametrize(
    ("tags", "reason"),
    [
        ({"t258": (64,), "t339": (6,)}, "complex numbers, 64 bits"),
        ({"t258": (8, 16), "t277": (2,)}, "different types, 16 bits"),
        ({"t258": (8,), "t339": (4,)}, "format 4"),
        ({"t258": (8,) * 4, "t262": (5,), "t277": (4,), "t332": (2,)}, "inks other than CMYK"),
        ({"t258": (32,) * 4, "t262": (5,), "t277": (4,), "t339": (3,)}, "inks other than CMYK"),
        ({"t258": (8,), "t262": (3,)}, "a palette that is not one of colours"),
        ({"t258": (16,) * 3, "t262": (8,), "t277": (3,)}, "the photometric CIELAB"),
        ({"t258": (8,) * 3, "t262": (6,), "t277": (3,)}, "the photometric YCbCr"),
        ({"t258": (8,), "t262": (60000,)}, "the photometric 60000"),
    ],
)
def test_what_has_no_meaning_is_refused(tags: Any, reason: str) -> None:
    with pytest.raises(ImageError, match=f"a.tif cannot be read: it has .*{reason}.*; save it as RGB or grey"):
        tiff_samples(header(**tags))
    assert reason in lost(header(**tags), "tifffile") and reason in lost(header(**tags), "rasterio")


@pytest.mark.parametrize(
    ("form", "readers"),
    [
        ({}, {"pillow", "tifffile", "rasterio"}),
        ({"tile": (16, 16)}, {"pillow", "tifffile", "rasterio", "openslide"}),
        ({"planarconfig": "separate"}, {"tifffile", "rasterio"}),
        ({"extratags": [(42113, "s", 0, "9", True)]}, {"tifffile", "rasterio"}),
        ({"byteorder": ">", "bigtiff": True}, {"tifffile", "rasterio"}),
        ({"compression": "lerc"}, {"rasterio"}),
    ],
)
def test_a_reader_that_would_lose_something_is_named(tmp_path: Path, form: Any, readers: set[str]) -> None:
    pixels = make.ramps(32, 32)
    data = np.moveaxis(pixels, 2, 0) if "planarconfig" in form else pixels
    tifffile.imwrite(tmp_path / "a.tif", data, photometric="rgb", metadata=None, **form)
    found = read_tiff_header(tmp_path / "a.tif")
    kept = {name for name in ("pillow", "tifffile", "rasterio", "openslide") if not lost(found, name)}
    assert kept - (set() if "tile" in form else {"openslide"}) == readers
