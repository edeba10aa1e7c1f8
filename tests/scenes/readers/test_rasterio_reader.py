from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from tests.scenes.readers import make

from tnet.errors import ImageError
from tnet.scenes.readers import ReaderOptions, open_reader, sniff
from tnet.scenes.readers.rasterio_reader import RasterioReader

pytest.importorskip("rasterio")

RAMPS = make.ramps(100, 150)


def whole(path: Path, level: int = 0, options: ReaderOptions | None = None) -> Any:
    reader = RasterioReader(path, options or ReaderOptions())
    try:
        pixels = reader.read(level, (0, 0, *reader.info.levels[level].size_hw))
        assert pixels.dtype == reader.info.dtype and pixels.shape[2] == reader.info.channels
        return pixels
    finally:
        reader.close()


def test_where_it_lies_is_told(tmp_path: Path) -> None:
    info = RasterioReader(make.geotiff(tmp_path / "a", RAMPS), ReaderOptions()).info
    assert info.georeference is not None
    assert info.georeference.transform == make.GEO_TRANSFORM and info.georeference.crs == "EPSG:32632"
    assert info.spacing_m_yx == (10.0, 10.0)


@pytest.mark.parametrize(("crs", "metres"), [("EPSG:4326", None), ("EPSG:2263", 10 * 0.3048006096)])
def test_spacing_is_in_metres_or_unknown(tmp_path: Path, crs: str, metres: float | None) -> None:
    info = RasterioReader(make.geotiff(tmp_path / "a", RAMPS, crs=crs), ReaderOptions()).info
    assert info.georeference is not None and info.georeference.crs == crs
    assert info.spacing_m_yx == (None if metres is None else pytest.approx((metres, metres)))


def test_a_crs_without_a_number_is_text(tmp_path: Path) -> None:
    crs = "+proj=laea +lat_0=10 +lon_0=20 +datum=WGS84 +units=m"
    info = RasterioReader(make.geotiff(tmp_path / "a", RAMPS, crs=crs), ReaderOptions()).info
    assert info.georeference is not None and "Lambert_Azimuthal" in info.georeference.crs


def test_a_tiff_without_georeference_has_none(tmp_path: Path) -> None:
    info = RasterioReader(make.geotiff(tmp_path / "a", RAMPS, crs=None), ReaderOptions()).info
    assert info.georeference is None and info.spacing_m_yx is None


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float32", "float64"])
@pytest.mark.parametrize("channels", [1, 2, 5])
def test_types_and_bands_stay(tmp_path: Path, dtype: str, channels: int) -> None:
    pixels = make.ramps(100, 150, dtype, channels)
    path = make.geotiff(tmp_path / "a", pixels)
    info = RasterioReader(path, ReaderOptions()).info
    assert info.color == ("grey" if channels == 1 else "bands") and not info.has_alpha
    np.testing.assert_array_equal(whole(path), pixels)
    np.testing.assert_array_equal(
        whole(path)[20:30, 90:], RasterioReader(path, ReaderOptions()).read(0, (20, 90, 30, 150))
    )


@pytest.mark.parametrize("interleave", ["band", "pixel"])
def test_bytes_are_those_of_the_tiles(tmp_path: Path, interleave: str) -> None:
    path = make.geotiff(tmp_path / "a", make.ramps(128, 128), overviews=(), interleave=interleave)
    reader = RasterioReader(path, ReaderOptions())
    reader.read(0, (0, 0, 128, 128))
    size = path.stat().st_size
    assert reader.tiles_read == (12 if interleave == "band" else 4)
    assert size - 2000 < reader.bytes_read < size


def test_no_data_is_transparent(tmp_path: Path) -> None:
    pixels = make.ramps(100, 150, "uint16")
    pixels[:40, :30] = 7
    path = make.geotiff(tmp_path / "a", pixels, nodata=7)
    info = RasterioReader(path, ReaderOptions()).info
    assert info.has_alpha and info.channels == 4 and info.color == "rgb"
    got = whole(path)
    assert (got[:40, :30] == 0).all() and (got[40:, :, 3] == 65535).all()
    np.testing.assert_array_equal(got[40:, :, :3], pixels[40:])
    coarse = whole(path, 1)
    assert (coarse[:20, :15, 3] == 0).all() and (coarse[20:, :, 3] == 65535).all()


def test_no_data_of_floats_is_transparent_and_finite(tmp_path: Path) -> None:
    pixels = make.ramps(100, 150, "float32", 1)
    pixels[10:20] = np.nan
    got = whole(make.geotiff(tmp_path / "a", pixels, nodata=np.nan))
    assert np.isfinite(got).all() and (got[10:20] == 0).all() and (got[20:, :, 1] == 1).all()


def test_a_mask_is_transparent(tmp_path: Path) -> None:
    mask = np.full((100, 150), 255, np.uint8)
    mask[:, 100:] = 0
    path = make.geotiff(tmp_path / "a", RAMPS, mask=mask)
    got = whole(path)
    assert (got[:, 100:] == 0).all()
    np.testing.assert_array_equal(got[:, :100, :3], RAMPS[:, :100])
    assert (whole(path, 1)[:, 51:] == 0).all() and (whole(path, 1)[:, :49, 3] == 255).all()


def test_an_alpha_band_is_alpha(tmp_path: Path) -> None:
    pixels = make.ramps(100, 150, channels=4)
    path = make.geotiff(tmp_path / "a", pixels, alpha="unspecified")
    path_alpha = make.geotiff(tmp_path / "b", pixels, alpha="yes")
    assert not RasterioReader(path, ReaderOptions()).info.has_alpha
    info = RasterioReader(path_alpha, ReaderOptions()).info
    assert info.has_alpha and info.channels == 4 and info.color == "rgb"
    np.testing.assert_array_equal(whole(path_alpha), pixels)


def test_a_palette_is_looked_up(tmp_path: Path) -> None:
    import rasterio

    path = make.geotiff(tmp_path / "a", make.ramps(100, 150, channels=1) // 64, overviews=(), photometric="palette")
    table = {0: (255, 0, 0, 255), 1: (0, 255, 0, 255), 2: (0, 0, 255, 255), 3: (9, 8, 7, 255)}
    with rasterio.open(path, "r+") as dataset:
        dataset.write_colormap(1, table)
    reader = RasterioReader(path, ReaderOptions())
    assert reader.info.color == "rgb" and reader.info.channels == 3
    indices = (make.ramps(100, 150, channels=1) // 64)[..., 0]
    np.testing.assert_array_equal(whole(path), np.array([table[value][:3] for value in range(4)], np.uint8)[indices])


def test_overviews_are_read_as_stored(tmp_path: Path) -> None:
    """Of noise: whatever resampled on the way would show."""
    import rasterio

    noise = np.random.default_rng(0).integers(0, 255, (100, 150, 3), dtype=np.uint8)
    path = make.geotiff(tmp_path / "a", noise, overviews=(2, 4, 8))
    for level in (1, 2, 3):
        with rasterio.open(path, OVERVIEW_LEVEL=level - 1) as dataset:
            stored = np.moveaxis(dataset.read(), 0, 2)
        np.testing.assert_array_equal(whole(path, level), stored)
    assert np.abs(whole(path, 1).astype(float) - make.halved(noise)).max() <= 1  # and GDAL averaged


def test_levels_of_tnet_are_exact_halves(tmp_path: Path) -> None:
    import rasterio

    path = make.geotiff(tmp_path / "a", make.ramps(101, 151))
    assert RasterioReader(path, ReaderOptions()).info.levels[1].downsample_yx == (101 / 51, 151 / 76)
    with rasterio.open(path, "r+") as dataset:
        dataset.update_tags(TIFFTAG_SOFTWARE="tnet")
    assert RasterioReader(path, ReaderOptions()).info.levels[1].downsample_yx == (2.0, 2.0)


def test_tiles_that_are_left_out_are_zero(tmp_path: Path) -> None:
    import rasterio

    path = tmp_path / "a"
    form: Any = {"driver": "GTiff", "width": 512, "height": 512, "count": 1, "dtype": "uint8", "tiled": True}
    with rasterio.open(
        path, "w", SPARSE_OK=True, crs="EPSG:32632", transform=rasterio.Affine(*make.GEO_TRANSFORM), **form
    ):
        pass
    reader = RasterioReader(path, ReaderOptions())
    assert not reader.read(0, (0, 0, 512, 512)).any() and reader.bytes_read == 0


def test_files_beside_it_are_not_looked_at(tmp_path: Path) -> None:
    path = make.geotiff(tmp_path / "a.tif", RAMPS, overviews=(), crs=None)
    (tmp_path / "a.tif.aux.xml").write_text("<PAMDataset><SRS>EPSG:4326</SRS></PAMDataset>")
    (tmp_path / "a.tfw").write_text("1\n0\n0\n-1\n0\n0\n")
    (tmp_path / "a.tif.ovr").write_bytes(make.geotiff(tmp_path / "b.tif", make.ramps(50, 75), crs=None).read_bytes())
    info = RasterioReader(path, ReaderOptions()).info
    assert info.georeference is None and len(info.levels) == 1


@pytest.mark.parametrize("name", ["a.vrt", "a.tif"])
def test_a_vrt_is_refused_unless_allowed(tmp_path: Path, name: str) -> None:
    source = make.geotiff(tmp_path / "source", make.ramps(64, 64, channels=1), overviews=())
    path = make.vrt(tmp_path / name, str(source))
    with pytest.raises(ImageError, match="VRT.*remote=True"):
        open_reader(path)
    with pytest.raises(ImageError, match="neither a TIFF nor a JPEG 2000"):
        RasterioReader(path, ReaderOptions())
    assert sniff(path, ReaderOptions(remote=True)) == "rasterio"
    np.testing.assert_array_equal(whole(path, options=ReaderOptions(remote=True)), make.ramps(64, 64, channels=1))


@pytest.mark.parametrize("name", ["/vsicurl/http://127.0.0.1:9/a.tif", "http://127.0.0.1:9/a.tif", "GTIFF_DIR:1:a"])
def test_names_that_gdal_would_resolve_are_no_files(name: str) -> None:
    for open_it in (open_reader, lambda path: RasterioReader(path, ReaderOptions())):
        with pytest.raises(ImageError, match="no such file|is a remote address"):
            open_it(Path(name))


def test_a_georeferenced_jpeg2000_has_levels(tmp_path: Path) -> None:
    path = make.jp2(tmp_path / "a", make.ramps(243, 317))
    info = open_reader(path).info
    assert [level.size_hw for level in info.levels] == [(243, 317), (122, 159), (61, 80)]
    assert [level.downsample_yx for level in info.levels] == [(1, 1), (2, 2), (4, 4)]
    assert info.georeference is not None and info.georeference.crs == "EPSG:32632"


def test_complex_numbers_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="1 bands of complex64"):
        RasterioReader(make.geotiff(tmp_path / "a", np.zeros((64, 64, 1), np.complex64), overviews=()), ReaderOptions())


def _with_mask_after_overviews(path: Path, mask: Any, internal: bool) -> Path:
    import rasterio

    make.geotiff(path, np.full((256, 256, 3), 90, np.uint8), overviews=(2, 4))
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=internal), rasterio.open(path, "r+") as dataset:
        dataset.write_mask(mask)
    return path


@pytest.mark.parametrize("internal", [True, False])
def test_a_mask_without_levels_of_its_own_hides_the_same_at_every_level(tmp_path: Path, internal: bool) -> None:
    mask = np.full((256, 256), 255, np.uint8)
    mask[:100] = 0
    path = _with_mask_after_overviews(tmp_path / "a.tif", mask, internal)
    assert (tmp_path / "a.tif.msk").exists() != internal
    reader = open_reader(path)
    for level, down in enumerate((1, 2, 4)):
        share = mask.reshape(256 // down, down, 256 // down, down).mean((1, 3))
        got = reader.read(level, (0, 0, 256 // down, 256 // down))
        np.testing.assert_allclose(got[..., 3], share, atol=1)
        assert (got[share == 0] == 0).all() and (got[share == 255][:, :3] == 90).all()
        part = reader.read(level, (20, 3, 50, 17))
        np.testing.assert_array_equal(part, got[20:50, 3:17])


def test_a_mask_beside_it_of_another_size_is_refused(tmp_path: Path) -> None:
    path = _with_mask_after_overviews(tmp_path / "a.tif", np.full((256, 256), 255, np.uint8), False)
    tifffile.imwrite(tmp_path / "a.tif.msk", np.zeros((20, 20), np.uint8), photometric="minisblack")
    with pytest.raises(
        ImageError, match=r"a.tif cannot be read: its mask does not fit the image; write the mask again"
    ):
        open_reader(path)
    (tmp_path / "a.tif.msk").write_text("of another program")
    assert not open_reader(path).info.has_alpha


def test_a_mask_beside_other_formats(tmp_path: Path) -> None:
    mask = np.zeros((100, 150), np.uint8)
    mask[:, 75:] = 1  # whatever is not 0
    for name in ("a.jp2", "a.png"):
        tifffile.imwrite(tmp_path / f"{name}.msk", mask, photometric="minisblack")
    make.jp2(tmp_path / "a.jp2", RAMPS)
    got = open_reader(tmp_path / "a.jp2").read(0, (0, 0, 100, 150))
    assert (got[:, :75] == 0).all()
    np.testing.assert_array_equal(got[:, 75:, :3], RAMPS[:, 75:])
    make.png(tmp_path / "a.png", RAMPS)
    with pytest.raises(ImageError, match=r"supports the mask beside it, a.png.msk; convert it to TIFF"):
        open_reader(tmp_path / "a.png")


@pytest.mark.parametrize("transform", [None, (1, 0, 0, 0, 1, 0), (1, 0, 0, 0, -1, 0)])
def test_a_crs_without_a_transform_is_no_place(tmp_path: Path, transform: Any) -> None:
    import rasterio

    form: Any = {"width": 64, "height": 64, "count": 1, "dtype": "uint8", "crs": "EPSG:32633"}
    form |= {"transform": rasterio.Affine(*transform)} if transform else {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
        with rasterio.open(tmp_path / "a.tif", "w", driver="GTiff", **form):
            pass
    info = open_reader(tmp_path / "a.tif").info
    assert info.georeference is None and info.spacing_m_yx is None


def test_a_masked_image_without_a_place_is_turned_upright(tmp_path: Path) -> None:
    stored = make.ramps(32, 48)
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        file.write(stored, photometric="rgb", metadata=None, extratags=[(274, "H", 1, 6, True)])
        file.write(np.arange(48) < np.full((32, 1), 40), photometric=4, subfiletype=4, metadata=None)
    got = open_reader(tmp_path / "a.tif").read(0, (0, 0, 48, 32))
    expected = np.dstack([stored, np.full((32, 48), 255, np.uint8)])
    expected[:, 40:] = 0
    np.testing.assert_array_equal(got, np.rot90(expected, -1))


@pytest.mark.parametrize(("code", "name"), [(34933, "PNG"), (34934, "JPEG XR")])
def test_a_missing_codec_is_named(tmp_path: Path, code: int, name: str) -> None:
    path = make.tiled_tiff(tmp_path / "a.tif", RAMPS)
    with tifffile.TiffFile(path, mode="r+") as file:
        file.pages[0].tags["Compression"].overwrite(code)
    with pytest.raises(ImageError, match=f"this build of GDAL lacks its compression {name}; save it with LZW"):
        open_reader(path)
