"""One picture in every format: the same sizes, the same pixels, at places that the levels' geometry says."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.scenes.readers import make

from tnet.errors import GeometryError
from tnet.scenes import readers
from tnet.scenes.readers import Reader, ReaderOptions, open_reader, sniff

SIZES = {"even": (256, 320), "odd": (243, 317)}
READERS = {
    **{"png": "pillow", "jpeg": "pillow", "geotiff": "rasterio", "cog": "rasterio", "jp2": "rasterio"},
    **{"tiled_tiff": "tifffile", "pyramid_tiff": "tifffile", "subifd_tiff": "tifffile", "ome_tiff": "tifffile"},
    **{"planar_ome_tiff": "tifffile", "ome_zarr_0_4": "zarr", "ome_zarr_0_5": "zarr", "sharded_zarr": "zarr"},
}
# Levels, and how far from the ramps' own values theirs may be: rounding once in the file and once in the picture (1),
# JPEG's quantisation (3); the wavelet of JPEG 2000 centres a pixel on the first of those that it stands for (1.5 of
# level 2) and rounds at every step (2).
EXPECTED: dict[str, tuple[int, float]] = dict.fromkeys(READERS, (3, 1.2)) | {
    **{"png": (1, 0.5), "tiled_tiff": (1, 0.5), "jpeg": (4, 3.0), "jp2": (3, 1.5 + 2.0)}
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every form of the picture, without a suffix that would give it away."""
    folder = tmp_path_factory.mktemp("formats")
    for size_name, size_hw in SIZES.items():
        for form, write in make.WRITERS.items():
            write(folder / f"{form}-{size_name}", make.ramps(*size_hw))
    return folder


EVEN = ("jpeg", "cog", "jp2", "subifd_tiff")  # whose levels are rounded differently; the others only if slow tests run
SLOW = [pytest.param((form, "even"), marks=pytest.mark.slow) for form in READERS if form not in EVEN]


@pytest.fixture(params=[*((form, "odd") for form in READERS), *((form, "even") for form in EVEN), *SLOW], ids="-".join)
def opened(request: pytest.FixtureRequest, folder: Path) -> Any:
    form, size_name = request.param
    reader = open_reader(folder / f"{form}-{size_name}")
    yield form, SIZES[size_name], reader
    reader.close()


def test_the_content_decides_on_the_reader(folder: Path) -> None:
    for form, kind in READERS.items():
        assert sniff(folder / f"{form}-odd") == kind, form
    assert set(READERS.values()) == set(readers.READERS) - {"openslide"}


def test_all_say_the_same_of_the_picture(opened: tuple[str, tuple[int, int], Reader]) -> None:
    form, size_hw, reader = opened
    info = reader.info
    assert isinstance(reader, Reader)
    assert info.levels[0].size_hw == size_hw and info.levels[0].downsample_yx == (1.0, 1.0)
    assert info.channels == 3 and info.dtype == np.uint8 and not info.has_alpha
    assert info.color == ("bands" if form == "planar_ome_tiff" else "rgb")
    assert (info.tile_hw is None) == (READERS[form] == "pillow")


def test_pixels_lie_where_the_levels_say(opened: tuple[str, tuple[int, int], Reader]) -> None:
    form, size_hw, reader = opened
    count, tolerance = EXPECTED[form]
    step = make.ramp_step(*size_hw)
    assert len(reader.info.levels) == count
    for index, level in enumerate(reader.info.levels):
        height, width = level.size_hw
        pixels = reader.read(index, (0, 0, height, width)).astype(np.float64)
        down_y, down_x = level.downsample_yx
        x = step * ((np.arange(width) + 0.5) * down_x - 0.5)
        y = step * ((np.arange(height) + 0.5) * down_y - 0.5)
        whole = np.s_[: int(size_hw[0] / down_y + 1e-9), : int(size_hw[1] / down_x + 1e-9)]  # not the partial ones
        assert np.abs(pixels[..., 0] - x)[whole].max() < tolerance + 1e-6
        assert np.abs(pixels[..., 1] - y[:, None])[whole].max() < tolerance + 1e-6


def test_windows_are_parts_of_the_whole(opened: tuple[str, tuple[int, int], Reader]) -> None:
    form, size_hw, reader = opened
    for index, level in enumerate(reader.info.levels):
        height, width = level.size_hw
        whole = reader.read(index, (0, 0, height, width))
        if index == 0 and form != "jpeg":
            np.testing.assert_array_equal(whole, make.ramps(*size_hw))
        windows = [
            (0, 0, 1, 1),
            (height - 1, width - 1, height, width),
            (height // 3, width // 4, height // 3 + 21, width // 4 + 17),
            (0, width - 5, height, width),
            (height - 3, 0, height, width),
        ]
        for y0, x0, y1, x1 in windows:
            part = reader.read(index, (y0, x0, y1, x1))
            assert part.dtype == np.uint8 and part.flags.c_contiguous
            np.testing.assert_array_equal(part, whole[y0:y1, x0:x1])


def test_what_is_read_is_counted(opened: tuple[str, tuple[int, int], Reader]) -> None:
    form, (height, width), reader = opened
    reader.read(0, (0, 0, 16, 16))
    few_tiles, few_bytes = reader.tiles_read, reader.bytes_read
    assert few_tiles >= 1 and few_bytes > 0
    reader.read(0, (0, 0, height, width))
    if READERS[form] == "pillow":  # decoded as a whole for the first window
        assert reader.tiles_read == few_tiles == 1
    else:
        assert reader.tiles_read > 6 * few_tiles and reader.bytes_read > 1.5 * few_bytes


def test_a_window_outside_is_refused(opened: tuple[str, tuple[int, int], Reader]) -> None:
    for window in [(0, 0, 0, 5), (0, 0, 5, 1000), (-1, 0, 5, 5), (5, 5, 4, 6)]:
        with pytest.raises(GeometryError, match="inside level 0"):
            opened[2].read(0, window)
    with pytest.raises(GeometryError, match="no level 9"):
        opened[2].read(9, (0, 0, 1, 1))


def test_threads_read_the_same(opened: tuple[str, tuple[int, int], Reader]) -> None:
    _, (height, width), reader = opened
    if not reader.thread_safe:
        return
    random = np.random.default_rng(0)
    corners = random.integers(0, (height - 32, width - 32), (12, 2)).tolist()
    windows = [(y, x, y + 32, x + 32) for y, x in corners]
    alone = [reader.read(0, window) for window in windows]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda window: reader.read(0, window), windows))
    for one, other in zip(alone, together, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("form", [form for form, kind in READERS.items() if kind != "pillow"])
def test_a_chunk_over_the_limit_is_refused_before_it_is_decoded(form: str, folder: Path) -> None:
    from tnet.errors import ImageError

    with pytest.raises(ImageError, match="max_pixels=100 "):
        open_reader(folder / f"{form}-odd", ReaderOptions(max_pixels=100))
