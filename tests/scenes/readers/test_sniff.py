from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image
from tests.scenes.readers import make

from tnet.errors import ConfigError, ImageError
from tnet.scenes.readers import READERS, Reader, base, open_reader, sniff
from tnet.scenes.readers.base import ReaderEntry

RAMPS = make.ramps(100, 150)


def whole(reader: Reader) -> Any:
    try:
        return reader.read(0, (0, 0, *reader.info.levels[0].size_hw))
    finally:
        reader.close()


@pytest.fixture
def without(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Hide readers as if they were not installed."""

    def hide(*names: str) -> None:
        hidden = [READERS[name] for name in names]
        installed = property(lambda entry: all(entry is not other for other in hidden))
        monkeypatch.setattr(ReaderEntry, "is_installed", installed)

    return hide


def _flat(path: Path, pixels: Any, **options: Any) -> Path:
    tifffile.imwrite(path, pixels, metadata=None, **options)
    return path


def test_flat_tiffs_that_pillow_reads_without_loss_are_for_pillow(tmp_path: Path) -> None:
    deep = make.ramps(100, 150, "uint16")
    assert sniff(_flat(tmp_path / "a", RAMPS, photometric="rgb")) == "pillow"
    assert sniff(_flat(tmp_path / "b", deep[..., 0], photometric="minisblack")) == "pillow"
    assert sniff(_flat(tmp_path / "c", deep, photometric="rgb")) == "tifffile"  # Pillow would keep the high byte
    five = make.ramps(100, 150, channels=5)
    path = _flat(tmp_path / "d", five, photometric="minisblack", planarconfig="contig")
    np.testing.assert_array_equal(whole(open_reader(path)), five)
    np.testing.assert_array_equal(whole(open_reader(tmp_path / "c")), deep)
    Image.fromarray(RAMPS).convert("CMYK").save(tmp_path / "e", format="TIFF", tile=(64, 64))
    assert sniff(tmp_path / "e") == "pillow"


def test_large_flat_tiffs_are_read_by_rows(tmp_path: Path) -> None:
    path = _flat(tmp_path / "a", np.zeros((4200, 4200), np.uint8), photometric="minisblack", compression="zlib")
    assert sniff(path) == "tifffile"


@pytest.mark.parametrize("name", ["a.png", "a.svs", "a.zarr", "a"])
def test_names_do_not_matter(tmp_path: Path, name: str) -> None:
    for write, kind in ((make.png, "pillow"), (make.geotiff, "rasterio"), (make.tiled_tiff, "tifffile")):
        path = write(tmp_path / name, RAMPS)
        assert sniff(path) == kind
        np.testing.assert_array_equal(whole(open_reader(path)), RAMPS)


def test_a_reader_can_be_forced(tmp_path: Path) -> None:
    path = make.tiled_tiff(tmp_path / "a", RAMPS)
    for name in ("pillow", "tifffile", "rasterio", "openslide"):
        np.testing.assert_array_equal(whole(open_reader(path, name=name)), RAMPS)
    with pytest.raises(ImageError, match="a cannot be read"):
        open_reader(path, name="zarr")
    with pytest.raises(ConfigError, match="reader 'gdal'"):
        open_reader(path, name="gdal")


@pytest.mark.parametrize(
    ("write", "name", "extra"),
    [
        (make.ome_zarr, "zarr", "ome"),
        (make.slide, "openslide", "wsi"),
        (make.geotiff, "rasterio", "geo"),
        (make.pyramid_tiff, "tifffile", "ome"),
    ],
)
def test_missing_library_is_named_with_its_extra(
    tmp_path: Path, without: Callable[..., None], write: Any, name: str, extra: str
) -> None:
    content = make.pyramid(RAMPS, 2) if write in (make.ome_zarr, make.pyramid_tiff) else RAMPS
    path = write(tmp_path / "a", content)
    without("openslide", "rasterio", "tifffile", "zarr")
    with pytest.raises(ImageError, match=rf"a cannot be read.*pip install 'tnet\[{extra}\]'"):
        open_reader(path)
    without(name)
    with pytest.raises(ImageError, match=rf"pip install 'tnet\[{extra}\]'"):
        open_reader(path, name=name)
    assert READERS[name].extra == extra


def test_another_reader_that_loses_nothing_stands_in(tmp_path: Path, without: Callable[..., None]) -> None:
    tiled = make.tiled_tiff(tmp_path / "tiled", RAMPS)
    pyramid = make.pyramid_tiff(tmp_path / "pyramid", make.fitted(RAMPS, 2))
    slide = make.slide(tmp_path / "slide", RAMPS)
    geo = make.geotiff(tmp_path / "geo", RAMPS)
    jp2 = make.jp2(tmp_path / "jp2", RAMPS)
    nodata = make.geotiff(tmp_path / "nodata", RAMPS, nodata=0)
    for path, hidden, levels in (
        *((tiled, ("tifffile",), 1), (tiled, ("tifffile", "rasterio"), 1), (pyramid, ("tifffile",), 2)),
        (tiled, ("tifffile", "rasterio", "openslide"), 1),
        *((pyramid, ("tifffile", "rasterio"), 2), (slide, ("openslide",), 3), (geo, ("rasterio",), 3)),
        (jp2, ("rasterio",), 1),
    ):
        without(*hidden)
        reader = open_reader(path)
        assert len(reader.info.levels) == levels, path
        np.testing.assert_array_equal(whole(reader), RAMPS)
    without("rasterio")
    np.testing.assert_array_equal(whole(open_reader(nodata))[1:, 1:, :3], RAMPS[1:, 1:])
    mask = np.full((100, 150), 255, np.uint8)
    with pytest.raises(ImageError, match=r"tnet\[geo\]"):  # what is masked would be shown
        open_reader(make.geotiff(tmp_path / "mask", RAMPS, mask=mask))


def test_slides_are_recognised_without_openslide(tmp_path: Path, without: Callable[..., None]) -> None:
    without("openslide")
    assert sniff(make.slide(tmp_path / "a", RAMPS)) == "openslide"
    (tmp_path / "b").write_bytes(b"ZISRAWFILE" + bytes(600))
    (tmp_path / "c").write_bytes(bytes(128) + b"DICM" + bytes(600))
    for name in "bc":
        with pytest.raises(ImageError, match=r"openslide.*pip install 'tnet\[wsi\]'"):
            open_reader(tmp_path / name)
    assert sniff(make.png(tmp_path / "d", RAMPS)) == "pillow"


def test_openslide_without_its_library_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str) -> Any:
        raise ModuleNotFoundError("Couldn't locate OpenSlide shared library.")

    monkeypatch.setattr(base, "import_module", fail)
    assert not replace(READERS["openslide"]).is_installed  # a copy, which has not been asked yet


def test_files_that_are_not_images_are_refused(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(ImageError, match="not an OME-Zarr"):
        open_reader(tmp_path / "folder")
    with pytest.raises(ImageError, match="no such file"):
        open_reader(tmp_path / "nothing.tif")
    (tmp_path / "empty.svs").touch()
    with pytest.raises(ImageError, match="0 bytes"):
        open_reader(tmp_path / "empty.svs")
    make.ome_zarr(tmp_path / "zipped", [RAMPS])
    shutil.make_archive(str(tmp_path / "zipped"), "zip", tmp_path / "zipped")
    with pytest.raises(ImageError, match="ZIP archive"):
        open_reader(tmp_path / "zipped.zip")
    for name, content in {"a.tif": b"hello, world", "b.png": b"<svg/>", "c.jpg": b"%PDF-1.4"}.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ImageError, match=f"{name} cannot be read"):
            open_reader(tmp_path / name)


def test_all_readers_are_installed_here() -> None:
    assert all(entry.is_installed for entry in READERS.values())
