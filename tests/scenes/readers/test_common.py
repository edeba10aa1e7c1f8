from __future__ import annotations

import errno
import os
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageOps
from tests.scenes.readers import make

from tnet.errors import ImageError, ResourceError
from tnet.scenes.guard import accessing, guarded
from tnet.scenes.readers.base import ImageInfo, StoredLevel
from tnet.scenes.readers.common import oriented, pyramid_of, ratio_levels, unpremultiplied


class ArrayReader:
    """Levels in memory."""

    thread_safe = True

    def __init__(self, levels: list[NDArray[Any]], downsamples: list[float]) -> None:
        self.levels = levels
        self.bytes_read = self.tiles_read = 0
        stored = [StoredLevel(each.shape[:2], (down, down)) for each, down in zip(levels, downsamples, strict=True)]
        self.info = ImageInfo(tuple(stored), 3, np.dtype(np.uint8), "rgb", spacing_m_yx=(1.0, 2.0), tile_hw=(3, 4))

    def read(self, level: int, box_yxyx: tuple[int, int, int, int]) -> NDArray[Any]:
        self.tiles_read += 1
        y0, x0, y1, x1 = box_yxyx
        return self.levels[level][y0:y1, x0:x1]

    def close(self) -> None:
        self.levels = []


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_that_of_pillow(orientation: int) -> None:
    stored = make.ramps(20, 30)
    picture = Image.fromarray(stored)
    picture.getexif()[0x0112] = orientation
    upright = np.asarray(ImageOps.exif_transpose(picture))
    reader = oriented(ArrayReader([stored, make.halved(stored)], [1.0, 2.0]), orientation)
    assert reader.info.levels[0].size_hw == upright.shape[:2]
    assert len(reader.info.levels) == 2 and reader.info.levels[1].size_hw == (len(upright) // 2, upright.shape[1] // 2)
    assert reader.info.spacing_m_yx == ((2.0, 1.0) if orientation > 4 else (1.0, 2.0))
    assert reader.info.tile_hw == ((4, 3) if orientation > 4 else (3, 4))
    np.testing.assert_array_equal(reader.read(0, (0, 0, *upright.shape[:2])), upright)
    np.testing.assert_array_equal(reader.read(0, (3, 5, 11, 18)), upright[3:11, 5:18])
    assert reader.tiles_read == 2


@pytest.mark.parametrize(("orientation", "levels"), [(1, 2), (2, 1), (3, 1), (4, 2), (5, 2), (6, 2), (7, 1), (8, 1)])
def test_a_level_whose_partial_pixels_would_come_first_is_left_out(orientation: int, levels: int) -> None:
    stored = make.ramps(20, 31)  # partial across: a flip across, of the stored picture, is what hurts
    reader = oriented(ArrayReader([stored, make.halved(stored)], [1.0, 2.0]), orientation)
    assert len(reader.info.levels) == levels


def test_errors_of_libraries_name_the_file() -> None:
    for error in (ValueError("bad\nthing"), KeyError(3), SyntaxError("x"), OSError(5, "io"), RecursionError()):
        with (
            pytest.raises(ImageError, match="some/file.*truncated, damaged"),
            guarded(Path("some/file")),
        ):
            raise error
    with pytest.raises(KeyboardInterrupt), guarded(Path("some/file")):
        raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (MemoryError(), "not enough memory"),
        (OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)), "not enough memory"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to"), "not enough memory"),
        (OSError("out of memory error when reading image file"), "not enough memory"),  # Pillow's
        (zlib.error("Error -4 while decompressing data"), "not enough memory"),
        (OSError(errno.EMFILE, os.strerror(errno.EMFILE)), "too many files are open"),
    ],
    ids=str,
)
def test_a_process_without_resources_does_not_call_an_image_damaged(error: Exception, reason: str) -> None:
    """`ImageError` is what is skipped."""
    for guard in (guarded, accessing) if isinstance(error, (OSError, MemoryError)) else (guarded,):
        message = f"some/file cannot be read: .*{reason}.*; "
        with pytest.raises(ResourceError, match=message) as caught, guard(Path("some/file")):
            raise error
        assert not isinstance(caught.value, ImageError)


def test_an_error_while_memory_is_short_is_not_damage(monkeypatch: pytest.MonkeyPatch) -> None:
    """Libraries that give no reason, as libjpeg."""

    def fail(*arguments: object) -> None:
        raise MemoryError

    monkeypatch.setattr("tnet.scenes.guard.np.empty", fail)
    with pytest.raises(ResourceError, match="may be not enough memory"), guarded(Path("some/file")):
        raise OSError("broken data stream when reading image file")


def test_downsamples_follow_from_sizes() -> None:
    sizes = [(101, 200), (51, 100), (26, 50)]
    by_ratio = ratio_levels(sizes)
    assert by_ratio[1].downsample_yx == (101 / 51, 2.0) and by_ratio[2].downsample_yx == (101 / 26, 4.0)
    by_halves = ratio_levels(sizes, halves=True)
    assert [level.downsample_yx for level in by_halves] == [(1.0, 1.0), (2.0, 2.0), (4.0, 4.0)]
    assert ratio_levels([(101, 200), (50, 100)], halves=True)[1].downsample_yx == (101 / 50, 2.0)  # not halves
    assert ratio_levels([(101, 200), (50, 100)], cut_off=True)[1].downsample_yx == (2.0, 2.0)
    assert ratio_levels([(101, 200), (51, 100)], cut_off=True)[1].downsample_yx == (101 / 51, 2.0)


def test_a_pyramid_is_told_from_other_pictures() -> None:
    assert pyramid_of([(2967, 2220), (768, 574), (463, 387), (431, 1280)]) == [0, 1]  # a slide, its label and macro
    assert pyramid_of([(9221, 7026), (4610, 3513), (2305, 1756), (144, 109), (1, 1)]) == [0, 1, 2, 3, 4]
    assert pyramid_of([(30_000, 1000), (58, 1), (29, 1)]) == [0, 1, 2]
    assert pyramid_of([(100, 100), (100, 100), (200, 200), (50, 50), (60, 60)]) == [0, 3]


def test_multiplied_colours_are_divided_by_alpha() -> None:
    straight = np.array([[[200, 100, 0, 255], [200, 100, 50, 128], [0, 0, 0, 0]]], np.uint8)
    share = straight[..., 3:] / 255
    multiplied = np.concatenate([np.rint(straight[..., :3] * share).astype(np.uint8), straight[..., 3:]], axis=2)
    assert np.abs(unpremultiplied(multiplied).astype(int) - straight).max() <= 1
