from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from tests.scenes.readers import make

from tnet.errors import ImageError
from tnet.scenes.readers import ReaderOptions, open_reader, sniff
from tnet.scenes.readers.openslide_reader import OpenSlideReader

pytest.importorskip("openslide")

RAMPS = make.ramps(243, 317)


def test_a_slide_is_told_by_its_content(tmp_path: Path) -> None:
    path = make.slide(tmp_path / "holiday.png", RAMPS)
    assert sniff(path) == "openslide"
    reader = open_reader(path)
    info = reader.info
    assert [level.size_hw for level in info.levels] == [(243, 317), (122, 159), (61, 80)]  # not the thumbnail
    assert info.levels[1].downsample_yx == (243 / 122, 317 / 159)
    assert info.spacing_m_yx == pytest.approx((0.5e-6, 0.5e-6)) and info.tile_hw == (64, 64)
    assert info.properties["openslide.vendor"] == "aperio" and info.properties["aperio.AppMag"] == "20"


def test_pixels_are_those_stored(tmp_path: Path) -> None:
    reader = OpenSlideReader(make.slide(tmp_path / "slide", RAMPS), ReaderOptions())
    np.testing.assert_array_equal(reader.read(0, (0, 0, 243, 317)), RAMPS)
    np.testing.assert_array_equal(reader.read(0, (100, 90, 163, 221)), RAMPS[100:163, 90:221])
    for number, level in enumerate(make.fitted(RAMPS, 3)[1:], 1):
        height, width = level.shape[:2]
        np.testing.assert_array_equal(reader.read(number, (0, 0, height, width)), level)
        # Positions are whole level-0 pixels: off by up to half of one, and so by half a step of the ramps (0.4); and
        # what OpenSlide then has to interpolate it rounds twice where tiles meet (1).
        window = reader.read(number, (5, 7, height, width)).astype(int)
        assert np.abs(window - level[5:, 7:]).max() < 0.5 * make.ramp_step(243, 317) + 1 + 1
    assert reader.tiles_read > 20 and 0 < reader.bytes_read < 4 * (tmp_path / "slide").stat().st_size


def test_tiles_that_are_not_stored_are_background(tmp_path: Path) -> None:
    path = make.slide(tmp_path / "slide", RAMPS, levels=1)
    with tifffile.TiffFile(path, mode="r+") as file:
        tag = file.pages[0].tags["TileByteCounts"]
        tag.overwrite([0, *tag.value[1:]])
    reader = OpenSlideReader(path, ReaderOptions())
    pixels = reader.read(0, (0, 0, 128, 128))
    assert (pixels[:64, :64] == 255).all()
    np.testing.assert_array_equal(pixels[64:], RAMPS[64:128, :128])


@pytest.mark.parametrize(("mpp", "expected"), [(None, None), (0.25, 0.25e-6)])
def test_spacing_is_that_of_the_file(tmp_path: Path, mpp: float | None, expected: float | None) -> None:
    info = OpenSlideReader(make.slide(tmp_path / "slide", RAMPS, mpp=mpp), ReaderOptions()).info
    assert info.spacing_m_yx == (None if expected is None else pytest.approx((expected, expected)))


def _damage(path: Path, tile: int) -> None:
    with tifffile.TiffFile(path) as file:
        at, count = file.pages.first.dataoffsets[tile], file.pages.first.databytecounts[tile]
    data = bytearray(path.read_bytes())
    data[at : at + count] = bytes(count)
    path.write_bytes(bytes(data))


def test_one_damaged_tile_leaves_the_others_readable(tmp_path: Path) -> None:
    path = make.slide(tmp_path / "slide", RAMPS)
    _damage(path, 7)
    reader = OpenSlideReader(path, ReaderOptions())
    reader.read(0, (0, 0, 64, 64))
    for _ in range(2):
        with pytest.raises(ImageError, match=r"slide.*window \(64, 128, 128, 192\) of level 0 is damaged"):
            reader.read(0, (64, 128, 128, 192))
        np.testing.assert_array_equal(reader.read(0, (0, 0, 64, 64)), RAMPS[:64, :64])


def test_a_tile_too_large_for_memory_is_refused_before_openslide_ends_the_process(tmp_path: Path) -> None:
    path = make.slide(tmp_path / "slide", RAMPS, levels=1)
    with tifffile.TiffFile(path, mode="r+") as file:
        file.pages[0].tags["TileWidth"].overwrite(1 << 18)
        file.pages[0].tags["TileLength"].overwrite(1 << 18)
    with pytest.raises(ImageError, match="262,144 x 262,144 pixels"):
        OpenSlideReader(path, ReaderOptions())


@pytest.mark.parametrize("content", [b"", b"no slide", b"II*\0\x08\0\0\0"])
def test_what_is_no_slide_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "image.svs"
    path.write_bytes(content)
    with pytest.raises(ImageError, match="image.svs"):
        OpenSlideReader(path, ReaderOptions())


def test_there_is_one_picture(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="series is 1"):
        OpenSlideReader(make.slide(tmp_path / "slide", RAMPS), ReaderOptions(series=1))


def test_closing_twice_is_harmless(tmp_path: Path) -> None:
    reader: Any = OpenSlideReader(make.slide(tmp_path / "slide", RAMPS), ReaderOptions())
    reader.close()
    reader.close()
