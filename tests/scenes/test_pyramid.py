from __future__ import annotations

import errno
import os
import shutil
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tnet.errors import ConfigError, ImageError, OutputError, ResourceError
from tnet.scenes import pyramid
from tnet.scenes.pyramid import level_sizes, write_pyramid
from tnet.scenes.readers import open_reader
from tnet.scenes.readers.base import GeoReference, ImageInfo, StoredLevel

tifffile = pytest.importorskip("tifffile")


class ArrayReader:
    """An image in memory, or one whose rows repeat; notes what is asked of it."""

    thread_safe = True
    bytes_read = 0
    tiles_read = 0

    def __init__(self, pixels: NDArray[Any], height: int | None = None, **about: Any) -> None:
        self.pixels = pixels
        colors = "rgb" if pixels.shape[2] - about.get("has_alpha", False) == 3 else "grey"
        about = {"color": colors, "tile_hw": (256, 256), **about}
        levels = (StoredLevel((height or pixels.shape[0], pixels.shape[1])),)
        self.info = ImageInfo(levels=levels, channels=pixels.shape[2], dtype=pixels.dtype, **about)
        self.boxes: list[tuple[int, int, int, int]] = []

    def read(self, level: int, box_yxyx: tuple[int, int, int, int]) -> NDArray[Any]:
        assert level == 0
        self.boxes.append(box_yxyx)
        y0, x0, y1, x1 = box_yxyx
        return self.pixels[np.arange(y0, y1) % len(self.pixels), x0:x1]

    def close(self) -> None:
        raise AssertionError("a reader that was given belongs to the caller")


def noise(height: int, width: int, channels: int, dtype: str = "uint8") -> NDArray[Any]:
    generator = np.random.default_rng(0)
    if np.dtype(dtype).kind == "f":
        return generator.normal(size=(height, width, channels)).astype(dtype)
    bounds = np.iinfo(dtype)
    return generator.integers(bounds.min, bounds.max, (height, width, channels), dtype=dtype, endpoint=True)


def pages(path: Path) -> list[NDArray[Any]]:
    with tifffile.TiffFile(path) as file:
        return [page.asarray() for page in file.pages]


def means(pixels: NDArray[Any], factor: int) -> NDArray[np.float64]:
    """Means over cells, from exact sums of what there is in each."""
    sums = pixels.astype(np.int64 if pixels.dtype.kind in "ui" else np.float64)
    counts = np.ones((*sums.shape[:2], 1), np.int64)
    for axis in (0, 1):
        starts = np.arange(0, pixels.shape[axis], factor)
        sums, counts = np.add.reduceat(sums, starts, axis), np.add.reduceat(counts, starts, axis)
    return sums / counts


def test_sizes_of_levels_are_halved_and_rounded_up() -> None:
    assert level_sizes((1031, 777), 300) == ((1031, 777), (516, 389), (258, 195))
    assert level_sizes((256, 200)) == ((256, 200),)
    assert level_sizes((257, 1)) == ((257, 1), (129, 1))


@pytest.mark.parametrize(("channels", "dtype"), [(1, "int16"), (2, "uint16"), (3, "uint8"), (5, "uint8")])
def test_every_level_is_the_exact_mean_of_the_pixels(tmp_path: Path, channels: int, dtype: str) -> None:
    pixels = noise(301, 523, channels, dtype)
    written = write_pyramid(ArrayReader(pixels, color="bands"), tmp_path / "made.tif", smallest_px=40)
    levels = pages(tmp_path / "made.tif")
    assert written.levels_hw == tuple(level.shape[:2] for level in levels)
    assert [level.shape[0] for level in levels] == [301, 151, 76, 38, 19]
    assert written.bytes == (tmp_path / "made.tif").stat().st_size
    for number, level in enumerate(levels):
        expected = np.floor(means(pixels, 2**number) + 0.5)
        np.testing.assert_array_equal(level.reshape(expected.shape), expected)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_levels_of_floats_are_means_too(tmp_path: Path, dtype: str) -> None:
    pixels = noise(300, 290, 1, dtype)
    write_pyramid(ArrayReader(pixels), tmp_path / "made.tif", smallest_px=100)
    for number, level in enumerate(pages(tmp_path / "made.tif")):
        np.testing.assert_allclose(level, means(pixels, 2**number)[..., 0], rtol=1e-6, atol=1e-7)


def test_the_largest_values_do_not_overflow(tmp_path: Path) -> None:
    for dtype, side in (("uint8", 1100), ("uint16", 600), ("uint32", 600)):
        pixels = np.full((side, 300, 1), np.iinfo(dtype).max, dtype)
        write_pyramid(ArrayReader(pixels), tmp_path / "made.tif", smallest_px=1, overwrite=True)
        levels = pages(tmp_path / "made.tif")
        assert levels[-1].size == 1 and len(levels) > 9
        assert all((level == np.iinfo(dtype).max).all() for level in levels)


def test_transparent_pixels_do_not_colour_their_surroundings(tmp_path: Path) -> None:
    pixels = noise(300, 300, 4)
    pixels[:2, :2, 3] = 0
    write_pyramid(ArrayReader(pixels, has_alpha=True), tmp_path / "made.tif", smallest_px=150)
    level = pages(tmp_path / "made.tif")[1].astype(np.float64)
    alpha = pixels[..., 3:].astype(np.float64)
    weighted = means(pixels[..., :3] * alpha, 2) / np.maximum(means(alpha, 2), 1e-9)
    assert np.abs(level[..., :3] - weighted)[means(alpha, 2)[..., 0] > 0].max() <= 0.5 + 1e-6
    assert (level[0, 0] == 0).all()
    np.testing.assert_array_equal(level[..., 3:], np.floor(means(alpha, 2) + 0.5))
    with tifffile.TiffFile(tmp_path / "made.tif") as file:
        assert file.pages[0].extrasamples == (2,)  # alpha that colours were not multiplied with


def test_levels_are_tiled_pages_marked_as_reduced(tmp_path: Path) -> None:
    write_pyramid(ArrayReader(noise(600, 500, 3)), tmp_path / "made.tif")
    with tifffile.TiffFile(tmp_path / "made.tif") as file:
        assert not file.is_bigtiff
        assert [(page.is_tiled, bool(page.is_reduced), page.tile) for page in file.pages] == [
            (True, False, (256, 256)), (True, True, (256, 256)), (True, True, (256, 256)),
        ]  # fmt: skip
        assert file.pages[0].photometric == 2 and file.pages[0].compression == 8


def test_jpeg_is_close_and_small(tmp_path: Path) -> None:
    y, x = np.mgrid[:400, :500]
    pixels = np.stack([y / 2, x / 2, (x + y) / 4], axis=2).astype(np.uint8)
    write_pyramid(ArrayReader(pixels), tmp_path / "lossy.tif", compression="jpeg", quality=90)
    write_pyramid(ArrayReader(noise(300, 300, 1)), tmp_path / "grey.tif", compression="jpeg")
    levels = pages(tmp_path / "lossy.tif")
    # Quality 90 keeps smooth content within a few levels; the far corner lies in a tile that is padded.
    assert np.abs(levels[0].astype(int) - pixels).max() <= 6
    assert np.abs(levels[1] - means(pixels, 2)).max() <= 6
    assert (tmp_path / "lossy.tif").stat().st_size < pixels.size / 10
    with tifffile.TiffFile(tmp_path / "lossy.tif") as file:
        assert file.pages[0].compression == 7


def test_zstd_is_lossless(tmp_path: Path) -> None:
    pixels = noise(300, 300, 3)
    write_pyramid(ArrayReader(pixels), tmp_path / "made.tif", compression="zstd")
    np.testing.assert_array_equal(pages(tmp_path / "made.tif")[0], pixels)


def test_other_libraries_read_it(tmp_path: Path) -> None:
    from PIL import Image

    pixels = noise(600, 700, 3)
    path = tmp_path / "made.tif"
    write_pyramid(ArrayReader(pixels, spacing_m_yx=(5e-7, 2.5e-7)), path)
    with Image.open(path) as picture:
        np.testing.assert_array_equal(np.asarray(picture), pixels)
        assert picture.n_frames == 3
    openslide = pytest.importorskip("openslide")
    with openslide.OpenSlide(path) as slide:
        assert slide.level_dimensions == ((700, 600), (350, 300), (175, 150))
        region = np.asarray(slide.read_region((0, 0), 1, (350, 300)))[..., :3]
        np.testing.assert_array_equal(region, np.floor(means(pixels, 2) + 0.5))
        assert float(slide.properties["openslide.mpp-x"]) == pytest.approx(0.25)
        assert float(slide.properties["openslide.mpp-y"]) == pytest.approx(0.5)


@pytest.mark.parametrize("transform", [(10.0, 0.0, 5e5, 0.0, -10.0, 4e6), (10.0, 2.0, 5e5, 3.0, -10.0, 4e6)])
def test_the_georeference_is_kept(tmp_path: Path, transform: tuple[float, ...]) -> None:
    rasterio = pytest.importorskip("rasterio")
    pixels = noise(300, 600, 4, "uint16")
    where = GeoReference(transform, "EPSG:32633")
    write_pyramid(ArrayReader(pixels, color="bands", georeference=where), tmp_path / "made.tif")
    with rasterio.open(tmp_path / "made.tif") as dataset:
        assert dataset.crs.to_epsg() == 32633
        assert tuple(dataset.transform)[:6] == pytest.approx(transform)
        assert dataset.overviews(1) == [2, 4]
        np.testing.assert_array_equal(dataset.read(), pixels.transpose(2, 0, 1))


def test_an_unknown_coordinate_system_is_an_error(tmp_path: Path) -> None:
    pytest.importorskip("rasterio")
    where = GeoReference((1.0, 0.0, 0.0, 0.0, -1.0, 9.0), "no such system")
    with pytest.raises(ImageError, match="georeference cannot be written"):
        write_pyramid(ArrayReader(noise(10, 10, 1), georeference=where), tmp_path / "made.tif")
    assert list(tmp_path.iterdir()) == []


def test_an_image_is_swept_once_whatever_its_height(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pyramid, "_READ_BYTES", 2**20)
    monkeypatch.setattr(pyramid, "_ENCODE_BYTES", 2**20)
    peaks = []
    for height in (2_000, 16_000):
        reader = ArrayReader(noise(256, 512, 3), height)
        tracemalloc.start()
        write_pyramid(reader, tmp_path / f"{height}.tif", compression="zstd")
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert [box[0] for box in reader.boxes] == [0, *(box[2] for box in reader.boxes[:-1])]
        assert reader.boxes[-1][2] == height and all(box[2] - box[0] <= 512 for box in reader.boxes)
    assert peaks[1] < 1.3 * peaks[0]
    assert peaks[1] < 16_000 * 512 * 3 / 2


def test_what_cannot_be_read_in_windows_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pyramid, "_READ_BYTES", 1)
    reader = ArrayReader(noise(600, 100, 3), tile_hw=None)
    write_pyramid(reader, tmp_path / "made.tif")
    assert reader.boxes == [(0, 0, 600, 100)]


def test_progress_counts_tiles_of_all_levels(tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    write_pyramid(ArrayReader(noise(600, 300, 1)), tmp_path / "made.tif", on_tile=lambda *counts: told.append(counts))
    assert told == [(n, 6 + 2 + 1) for n in range(1, 10)]


def test_large_images_become_bigtiff(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pyramid, "_CLASSIC_BYTES", 2 * 256 * 256)
    for side, is_big in ((256, False), (300, True)):
        write_pyramid(ArrayReader(noise(side, side, 1)), tmp_path / f"{side}.tif")
        with tifffile.TiffFile(tmp_path / f"{side}.tif") as file:
            assert file.is_bigtiff == is_big


class Failing(ArrayReader):
    def __init__(self, error: BaseException) -> None:
        super().__init__(noise(256, 4000, 3), 40_000)
        self.error = error

    def read(self, level: int, box_yxyx: tuple[int, int, int, int]) -> NDArray[Any]:
        if box_yxyx[0] > 0:
            raise self.error
        return super().read(level, box_yxyx)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ImageError("tile 7 is damaged"), ImageError),
        (KeyboardInterrupt(), KeyboardInterrupt),
        (OSError(errno.EIO, "Input/output error"), ImageError),
        (ValueError("odd"), ImageError),
        (MemoryError(), ResourceError),
    ],
)
def test_nothing_is_left_when_reading_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, expected: type[BaseException]
) -> None:
    monkeypatch.setattr(pyramid, "_READ_BYTES", 2**20)
    with pytest.raises(expected):
        write_pyramid(Failing(error), tmp_path / "made.tif")
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_left_when_the_disk_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "made.tif").write_bytes(b"older")
    real = tifffile.TiffWriter.write

    def full(self: Any, *arguments: Any, **options: Any) -> Any:
        if options["subfiletype"]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(self, *arguments, **options)

    monkeypatch.setattr(tifffile.TiffWriter, "write", full)
    with pytest.raises(OutputError, match=r"made.tif cannot be written \(No space left on device\)"):
        write_pyramid(ArrayReader(noise(300, 300, 1)), tmp_path / "made.tif", overwrite=True)
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("made.tif", b"older")]


def test_too_little_room_is_known_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 9, 1))
    reader = ArrayReader(noise(300, 300, 1))
    with pytest.raises(OutputError, match="GB free, but the coarser levels need"):
        write_pyramid(reader, tmp_path / "new" / "made.tif")
    assert reader.boxes == [] and list(tmp_path.iterdir()) == []


def test_a_file_is_replaced_only_when_allowed(tmp_path: Path) -> None:
    path = tmp_path / "made.tif"
    path.write_bytes(b"older")
    reader = ArrayReader(noise(30, 20, 1))
    with pytest.raises(OutputError, match=r"made.tif exists; .*--overwrite"):
        write_pyramid(reader, path)
    assert path.read_bytes() == b"older"
    write_pyramid(reader, path, overwrite=True)
    np.testing.assert_array_equal(pages(path)[0], reader.pixels[..., 0])


def test_invalid_outputs(tmp_path: Path) -> None:
    reader = ArrayReader(noise(30, 20, 1))
    (tmp_path / "folder.tif").mkdir()
    (tmp_path / "own.tif").write_bytes(b"pixels")
    with pytest.raises(OutputError, match=r"ends with '.png'"):
        write_pyramid(reader, tmp_path / "made.png")
    with pytest.raises(OutputError, match="is a folder"):
        write_pyramid(reader, tmp_path / "folder.tif")
    with pytest.raises(OutputError, match="is an input"):
        write_pyramid(tmp_path / "own.tif", tmp_path / "own.tif", overwrite=True)
    assert (tmp_path / "own.tif").read_bytes() == b"pixels"


@pytest.mark.parametrize(("options", "message"), [({"compression": "jpeg", "quality": 0}, "quality is 0"),
                                                  ({"smallest_px": 0}, "smallest_px is 0")])  # fmt: skip
def test_invalid_settings(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        write_pyramid(ArrayReader(noise(30, 20, 1)), tmp_path / "made.tif", **options)


@pytest.mark.parametrize(
    ("pixels", "compression", "message"),
    [
        (noise(9, 9, 1).astype(np.complex64), "deflate", "complex64"),
        (noise(9, 9, 1).astype(np.int64), "deflate", "int64"),
        (noise(9, 9, 1).astype(np.float16), "deflate", "float16"),
        (noise(9, 9, 3, "uint16"), "jpeg", "3 channel\\(s\\) of uint16, but JPEG needs"),
        (noise(9, 9, 2), "jpeg", "2 channel\\(s\\) of uint8, but JPEG needs"),
    ],
)
def test_unsupported_pixels(tmp_path: Path, pixels: NDArray[Any], compression: Any, message: str) -> None:
    with pytest.raises(ImageError, match=message):
        write_pyramid(ArrayReader(pixels), tmp_path / "made.tif", compression=compression)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("library", "extra", "options"),
    [("tifffile", "ome", {}), ("imagecodecs", "ome", {"compression": "zstd"}), ("rasterio", "geo", {})],
)
def test_missing_library_is_named_with_its_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, library: str, extra: str, options: dict[str, Any]
) -> None:
    real = pyramid.find_spec
    monkeypatch.setattr(pyramid, "find_spec", lambda name: None if name == library else real(name))
    where = GeoReference((1.0, 0.0, 0.0, 0.0, -1.0, 9.0), "EPSG:4326")
    with pytest.raises(ImageError, match=rf"{library} is needed .*pip install 'tnet\[{extra}\]'"):
        write_pyramid(ArrayReader(noise(9, 9, 1), georeference=where), tmp_path / "made.tif", **options)


def test_a_big_endian_image(tmp_path: Path) -> None:
    pixels = noise(300, 300, 1, "uint16").astype(">u2")
    write_pyramid(ArrayReader(pixels), tmp_path / "made.tif")
    levels = pages(tmp_path / "made.tif")
    np.testing.assert_array_equal(levels[0], pixels[..., 0])
    np.testing.assert_array_equal(levels[1], np.floor(means(pixels, 2)[..., 0] + 0.5))


@pytest.mark.parametrize("dtype", ["int16", "int32", "uint32", "float32"])
def test_means_leave_out_what_is_transparent_in_every_type(tmp_path: Path, dtype: str) -> None:
    """Weighted by an alpha of up to 2^32 - 1, sums of 32-bit values pass 64 bits."""
    full = 1 if dtype == "float32" else np.iinfo(dtype).max
    pixels = np.zeros((40, 64, 2), dtype)
    pixels[..., 0] = 30_000 if dtype == "int16" else 2_000_000_000
    pixels[..., 1] = full
    pixels[:, 1::2] = 0
    if dtype == "float32":
        pixels[:, 1::2, 0] = np.nan
    tifffile.imwrite(
        tmp_path / "a.tif", pixels, photometric="minisblack", extrasamples=[2], planarconfig="contig", metadata=None
    )
    write_pyramid(tmp_path / "a.tif", tmp_path / "b.tif", smallest_px=16)
    reader = open_reader(tmp_path / "b.tif")
    for level in (1, 2):
        size = reader.info.levels[level].size_hw
        got = reader.read(level, (0, 0, *size)).astype(np.float64)
        np.testing.assert_allclose(got[..., 0], pixels[0, 0, 0], rtol=1e-6)
        np.testing.assert_allclose(got[..., 1], full / 2, rtol=1e-4)
