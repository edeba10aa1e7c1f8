from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray
from PIL import Image, ImageCms
from tests.scenes.readers import make

from tnet.errors import ImageError
from tnet.scenes.readers import Reader, ReaderOptions, open_reader
from tnet.scenes.readers.tifffile_reader import open_tifffile

RAMPS = make.ramps(100, 150)


def whole(reader: Reader, level: int = 0) -> Any:
    pixels = reader.read(level, (0, 0, *reader.info.levels[level].size_hw))
    assert pixels.shape[2] == reader.info.channels and pixels.dtype == reader.info.dtype
    return pixels


def opened(path: Path, **options: Any) -> Reader:
    return open_tifffile(path, ReaderOptions(**options))


@pytest.mark.parametrize(
    ("dtype", "channels", "layout"),
    [
        *((dtype, 3, "big-endian") for dtype in ("uint8", "int8", "uint16", "int16", "uint32", "float32", "float64")),
        *(("uint16", channels, layout) for channels in (1, 2, 3, 5) for layout in ("contig", "separate")),
    ],
)
def test_types_bands_and_layouts_stay(tmp_path: Path, dtype: str, channels: int, layout: str) -> None:
    pixels = make.ramps(100, 150, dtype, channels)
    form: dict[str, Any] = {"tile": (64, 64), "photometric": "rgb" if channels == 3 else "minisblack", "metadata": None}
    data = pixels[..., 0] if channels == 1 else pixels
    if channels > 1:
        planar = layout == "separate"
        form["planarconfig"] = "separate" if planar else "contig"
        form |= {"extrasamples": ["unspecified"] * (channels - 1)} if channels != 3 else {}
        data = np.moveaxis(pixels, 2, 0) if planar else pixels
    path = tmp_path / "a.tif"
    order = {"byteorder": ">"} if layout == "big-endian" else {}
    tifffile.imwrite(path, data, compression="lzw", **order, **form)
    reader = opened(path)
    assert reader.info.dtype == np.dtype(dtype) and reader.info.dtype.isnative and not reader.info.has_alpha
    assert reader.info.color == {1: "grey", 3: "rgb"}.get(channels, "bands")
    np.testing.assert_array_equal(whole(reader), pixels)
    np.testing.assert_array_equal(reader.read(0, (60, 50, 70, 150)), pixels[60:70, 50:])


@pytest.mark.parametrize("compression", [None, "lzw", "zlib", "packbits", "zstd", "lzma"])
@pytest.mark.parametrize("storage", ["one strip", "strips", "tiles"])
def test_strips_and_tiles_in_all_lossless_compressions(tmp_path: Path, compression: str | None, storage: str) -> None:
    form: dict[str, Any] = {
        "one strip": {"rowsperstrip": 100},
        "strips": {"rowsperstrip": 7},
        "tiles": {"tile": (32, 48)},
    }
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, RAMPS, photometric="rgb", compression=compression, metadata=None, **form[storage])
    reader = opened(path)
    np.testing.assert_array_equal(whole(reader), RAMPS)
    np.testing.assert_array_equal(reader.read(0, (33, 47, 71, 149)), RAMPS[33:71, 47:149])


@pytest.mark.parametrize("predictor", [True, False])
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_differences_are_summed(tmp_path: Path, predictor: bool, dtype: str) -> None:
    pixels = make.ramps(100, 150, dtype)
    path = make.tiled_tiff(tmp_path / "a.tif", pixels, predictor=predictor)
    np.testing.assert_array_equal(whole(opened(path)), pixels)


@pytest.mark.parametrize(("compression", "limit"), [("jpeg", 6), ("jpeg2000", 0), ("webp", 6)])
def test_coded_tiles(tmp_path: Path, compression: str, limit: int) -> None:
    args: Any = {"jpeg": {"level": 95}, "jpeg2000": {"reversible": True}, "webp": {"level": 95}}[compression]
    pixels = make.ramps(128, 192)  # of whole tiles: what fills the others up rings into the picture
    path = make.tiled_tiff(tmp_path / "a.tif", pixels, compression=compression, compressionargs=args)
    reader = opened(path)
    assert reader.info.color == "rgb"
    assert np.abs(whole(reader).astype(int) - pixels).max() <= limit


def test_a_window_costs_its_tiles_and_a_raw_strip_only_its_rows(tmp_path: Path) -> None:
    tiled = opened(make.tiled_tiff(tmp_path / "a.tif", make.ramps(640, 640)))
    tiled.read(0, (100, 100, 140, 200))
    assert tiled.tiles_read == 6
    tifffile.imwrite(tmp_path / "b.tif", make.ramps(640, 640), rowsperstrip=640, photometric="rgb", metadata=None)
    flat = opened(tmp_path / "b.tif", max_pixels=100)  # the strip is never decoded as a whole
    flat.read(0, (100, 100, 140, 200))
    assert flat.bytes_read == 40 * 640 * 3 and flat.info.tile_hw == (640, 640)


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_few_bits_are_stretched(tmp_path: Path, bits: int) -> None:
    values = make.ramps(64, 80, channels=1)[..., 0] >> (8 - bits)
    stored: NDArray[Any] = values.astype(bool) if bits == 1 else values
    form: Any = {} if bits == 1 else {"bitspersample": bits}
    tifffile.imwrite(tmp_path / "a.tif", stored, photometric="minisblack", metadata=None, tile=(16, 16), **form)
    got = whole(opened(tmp_path / "a.tif"))
    assert got.dtype == np.uint8
    np.testing.assert_array_equal(got[..., 0], values * (255 // (2**bits - 1)))


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_where_white_is_zero_levels_are_inverted(tmp_path: Path, dtype: str) -> None:
    grey = make.ramps(100, 150, dtype, 1)
    path = make.tiled_tiff(tmp_path / "a.tif", grey, photometric="miniswhite")
    np.testing.assert_array_equal(whole(opened(path)), np.iinfo(dtype).max - grey)


def test_a_palette_is_looked_up(tmp_path: Path) -> None:
    indices = make.ramps(100, 150, channels=1)
    table = np.random.default_rng(0).integers(0, 65536, (3, 256)).astype(np.uint16)
    path = make.tiled_tiff(tmp_path / "a.tif", indices, photometric="palette", colormap=table)
    reader = opened(path)
    assert reader.info.color == "rgb" and reader.info.channels == 3
    np.testing.assert_array_equal(whole(reader), (table >> 8).astype(np.uint8).T[indices[..., 0]])


def test_alpha_is_told_and_divided_by(tmp_path: Path) -> None:
    pixels = make.ramps(100, 150, channels=4)
    reader = opened(make.tiled_tiff(tmp_path / "a.tif", pixels))
    assert reader.info.has_alpha and reader.info.color == "rgb" and reader.info.channels == 4
    np.testing.assert_array_equal(whole(reader), pixels)
    flat = np.full((64, 64, 4), 200, np.uint8)
    flat[..., :3] = (100, 50, 200)
    multiplied = opened(make.tiled_tiff(tmp_path / "b.tif", flat, extrasamples=["assocalpha"]))
    assert whole(multiplied)[5, 5].tolist() == [128, 64, 255, 200]
    unsaid = opened(make.tiled_tiff(tmp_path / "c.tif", pixels, extrasamples=["unspecified"]))
    assert not unsaid.info.has_alpha and unsaid.info.color == "bands"


def _overwrite(path: Path, tag: str, change: Any, page: int = 0) -> Path:
    with tifffile.TiffFile(path, mode="r+") as file:
        found = file.pages[page].tags[tag]
        found.overwrite(change(found.value))
    return path


@pytest.mark.parametrize("nodata", [None, "9"])
def test_tiles_that_are_left_out_are_no_data(tmp_path: Path, nodata: str | None) -> None:
    tags = [] if nodata is None else [(42113, "s", 0, nodata, True)]
    path = make.tiled_tiff(tmp_path / "a.tif", RAMPS, extratags=tags)
    _overwrite(path, "TileByteCounts", lambda value: (0, *value[1:]))
    got = whole(opened(path))
    assert (got[:64, :64] == 0).all()
    np.testing.assert_array_equal(got[64:, :, :3], RAMPS[64:])
    assert got.shape[2] == (3 if nodata is None else 4) and (got[64:, :, 3:] == 255).all()


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_it_is_turned_upright(tmp_path: Path, orientation: int) -> None:
    path = make.pyramid_tiff(tmp_path / "a.tif", make.pyramid(make.ramps(128, 192), 2))
    with tifffile.TiffWriter(tmp_path / "b.tif") as file:
        for number, pixels in enumerate(make.pyramid(make.ramps(128, 192), 2)):
            tags = [(274, "H", 1, orientation, True)]
            form: Any = {"tile": (64, 64), "photometric": "rgb", "extratags": tags, "metadata": None}
            file.write(pixels, subfiletype=1 if number else 0, **form)
    upright = {1: 0, 3: 2, 6: -1, 8: 1}[orientation]
    for level in (0, 1):
        stored = whole(opened(path), level)
        np.testing.assert_array_equal(whole(opened(tmp_path / "b.tif"), level), np.rot90(stored, upright))
    np.testing.assert_array_equal(whole(opened(tmp_path / "b.tif", apply_orientation=False)), make.ramps(128, 192))


@pytest.mark.parametrize(("form", "expected"), [("centimeter", (5e-6, 2.5e-6)), ("inch", None)])
def test_spacing_follows_from_pixels_a_centimetre(tmp_path: Path, form: str, expected: Any) -> None:
    path = make.tiled_tiff(tmp_path / "a.tif", RAMPS, resolution=(4000.0, 2000.0), resolutionunit=form)
    assert opened(path).info.spacing_m_yx == (expected and pytest.approx(expected))


def test_levels_of_tnet_are_exact_halves(tmp_path: Path) -> None:
    levels = make.pyramid(make.ramps(101, 151), 3)
    by_others = opened(make.pyramid_tiff(tmp_path / "a.tif", levels))
    assert by_others.info.levels[1].downsample_yx == (101 / 51, 151 / 76)
    by_tnet = opened(make.pyramid_tiff(tmp_path / "b.tif", levels, software="tnet"))
    assert [level.downsample_yx for level in by_tnet.info.levels] == [(1, 1), (2, 2), (4, 4)]


def test_an_aperio_slide_without_openslide(tmp_path: Path) -> None:
    pixels = make.ramps(243, 317)
    reader = opened(make.slide(tmp_path / "a.svs", pixels))
    assert [level.size_hw for level in reader.info.levels] == [(243, 317), (122, 159), (61, 80)]
    assert reader.info.spacing_m_yx == pytest.approx((0.5e-6, 0.5e-6))
    np.testing.assert_array_equal(whole(reader), pixels)


def test_series_are_the_images_of_a_file(tmp_path: Path) -> None:
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        for size in (100, 140):
            file.write(make.ramps(size, 90), tile=(64, 64), photometric="rgb", metadata=None)
    assert len(opened(tmp_path / "a.tif").info.levels) == 1
    np.testing.assert_array_equal(whole(opened(tmp_path / "a.tif", series=1)), make.ramps(140, 90))
    with pytest.raises(ImageError, match="series is 2, but it holds 2"):
        opened(tmp_path / "a.tif", series=2)


def test_of_a_stack_the_first_plane_and_all_channels(tmp_path: Path) -> None:
    stack = np.random.default_rng(0).integers(0, 65536, (3, 4, 2, 70, 90)).astype(np.uint16)  # t, c, z
    path = tmp_path / "a.ome.tif"
    tifffile.imwrite(path, stack, ome=True, metadata={"axes": "TCZYX"}, tile=(32, 32), photometric="minisblack")
    reader = opened(path)
    assert reader.info.channels == 4 and reader.info.color == "bands"
    np.testing.assert_array_equal(whole(reader), np.moveaxis(stack[0, :, 0], 0, 2))


@pytest.mark.parametrize(("unit", "metres"), [("nm", 1e-9), ("mm", 1e-3), ("Å", 1e-10), ("reference frame", None)])
def test_units_of_ome(tmp_path: Path, unit: str, metres: float | None) -> None:
    metadata = {"axes": "YX", "PhysicalSizeX": 3.0, "PhysicalSizeXUnit": unit, "PhysicalSizeY": 2.0}
    metadata["PhysicalSizeYUnit"] = unit
    tifffile.imwrite(tmp_path / "a.tif", RAMPS[..., 0], ome=True, metadata=metadata, photometric="minisblack")
    spacing = opened(tmp_path / "a.tif").info.spacing_m_yx
    assert spacing == (None if metres is None else pytest.approx((2 * metres, 3 * metres)))


def test_profiles_are_applied_on_request(tmp_path: Path) -> None:
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    swapped = srgb.replace(b"rXYZ", b"tmpX").replace(b"bXYZ", b"rXYZ").replace(b"tmpX", b"bXYZ")
    path = make.tiled_tiff(tmp_path / "a.tif", RAMPS, iccprofile=swapped)
    np.testing.assert_array_equal(whole(opened(path)), RAMPS)
    assert np.abs(whole(opened(path, apply_icc=True)).astype(int) - RAMPS[..., ::-1]).max() <= 2


# Bad input


@pytest.mark.parametrize("axis", ["C", "T"])
def test_other_files_that_an_ome_tiff_names_are_not_opened(tmp_path: Path, axis: str) -> None:
    secret = make.tiled_tiff(tmp_path / "secret.tif", make.ramps(64, 64, channels=1))
    xml = (
        '<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" UUID="urn:uuid:1"><Image ID="Image:0">'
        f'<Pixels ID="Pixels:0" DimensionOrder="XYCZT" Type="uint8" SizeX="64" SizeY="64" SizeC="{1 + (axis == "C")}" '
        f'SizeZ="1" SizeT="{1 + (axis == "T")}">'
        '<TiffData IFD="0" PlaneCount="1"><UUID FileName="a.tif">urn:uuid:1</UUID></TiffData>'
        f'<TiffData IFD="0" First{axis}="1" PlaneCount="1"><UUID FileName="{secret.name}">urn:uuid:2</UUID></TiffData>'
        "</Pixels></Image></OME>"
    )
    own = np.full((64, 64, 1), 3, np.uint8)
    path = make.tiled_tiff(tmp_path / "a.tif", own, description=xml)
    if axis == "C":
        with pytest.raises(ImageError, match=r"other files \(secret.tif\), which are not opened; merge them"):
            opened(path)
        return
    reader = opened(path)
    assert reader.info.channels == 1
    np.testing.assert_array_equal(whole(reader), own)


def test_a_description_in_another_file_is_refused(tmp_path: Path) -> None:
    xml = (
        '<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" UUID="urn:uuid:1">'
        '<BinaryOnly MetadataFile="all.companion.ome" UUID="urn:uuid:2"/></OME>'
    )
    path = make.tiled_tiff(tmp_path / "a.tif", make.ramps(64, 64, channels=1), description=xml)
    with pytest.raises(ImageError, match=r"all\.companion\.ome"):
        opened(path)


@pytest.mark.parametrize(
    "change",
    [
        'SizeT="999999999"',
        'SizeC="100000" SizeZ="100000"',
        'SizeT="-1"',
        'SizeT="&lol;"',
    ],
)
def test_planes_that_no_file_holds_are_refused(tmp_path: Path, change: str) -> None:
    xml = (
        '<?xml version="1.0"?><!DOCTYPE lolz [<!ENTITY lol "9999999999">]>'
        '<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06"><Image ID="Image:0"><Pixels ID="Pixels:0" '
        f'DimensionOrder="XYCZT" Type="uint8" SizeX="64" SizeY="64" {change}><TiffData/></Pixels></Image></OME>'
    )
    path = make.tiled_tiff(tmp_path / "a.tif", make.ramps(64, 64, channels=1), description=xml)
    with pytest.raises(ImageError, match="a.tif.*(OME-XML describes .* planes|OME-XML is damaged)"):
        opened(path)


def test_entities_that_multiply_are_refused(tmp_path: Path) -> None:
    entities = "".join(f'<!ENTITY a{n + 1} "{f"&a{n};" * 50}">' for n in range(8))
    xml = f'<?xml version="1.0"?><!DOCTYPE x [<!ENTITY a0 "aaaaaaaaaa">{entities}]><OME>&a8;</OME>'
    path = make.tiled_tiff(tmp_path / "a.tif", make.ramps(64, 64, channels=1), description=xml)
    with pytest.raises(ImageError, match="a.tif.*OME-XML is damaged"):
        opened(path)


def test_a_tile_that_unpacks_to_more_is_refused(tmp_path: Path) -> None:
    reader = opened(make.bomb_tiff(tmp_path / "bomb.tif"))
    with pytest.raises(ImageError, match="bomb.tif"):
        whole(reader)


@pytest.mark.parametrize("compression", ["jpeg", "jpeg2000", "webp"])
def test_a_picture_larger_than_its_tile_is_refused(tmp_path: Path, compression: str) -> None:
    large = make.tiled_tiff(tmp_path / "large.tif", make.ramps(512, 512), tile=512, compression=compression)
    _overwrite(large, "TileWidth", lambda _: 128)
    _overwrite(large, "TileLength", lambda _: 128)
    _overwrite(large, "ImageWidth", lambda _: 128)
    _overwrite(large, "ImageLength", lambda _: 128)
    with pytest.raises(ImageError, match="a tile of 128 x 128 pixels holds an image of 512 x 512"):
        whole(opened(large))


@pytest.mark.parametrize(
    ("ifd", "reason"),
    [
        (make.tiff_ifd(100_000), "lists 1 tiles or strips, but 100,000 x 100,000 pixels need 2,442,969"),
        (make.tiff_ifd(100_000, tile=100_000, t259=(3, 1, 8)), "100,000 x 100,000 .* max_pixels"),
        (make.tiff_ifd(100_000, tile=None, t259=(3, 1, 8)), "100,000 x 100,000 .* max_pixels"),
        (make.tiff_ifd(0), "its size is 0 x 0"),
        (make.tiff_ifd(t322=(4, 1, 0)), "64 x 64 pixels need 64"),
        (make.tiff_ifd(t277=(3, 1, 60_000)), "60,000 channels"),
        (make.tiff_ifd(t259=(3, 1, 34887)), "LERC"),
        (make.tiff_ifd(t259=(3, 1, 60_001)), "60001"),
        (make.tiff_ifd(t258=(3, 1, 77)), "77 bits"),
        (make.tiff_ifd(t262=(3, 1, 8)), "CIELAB"),
        (make.tiff_ifd(t262=(3, 1, 6)), "YCbCr"),
    ],
)
def test_directories_that_cannot_be_are_refused(tmp_path: Path, ifd: Any, reason: str) -> None:
    path = make.raw_tiff(tmp_path / "bad.tif", [ifd])
    with pytest.raises(ImageError, match=f"bad.tif.*{reason}"):
        opened(path)


def test_a_giant_raw_strip_ends_where_the_file_ends(tmp_path: Path) -> None:
    reader = opened(make.giant_tiff(tmp_path / "giant.tif", tile=None))
    with pytest.raises(ImageError, match="giant.tif.*(ends before|holds 4,294,967,295 bytes)"):
        reader.read(0, (50_000, 50_000, 50_064, 50_064))


@pytest.mark.parametrize("compression", [None, "zlib", "jpeg"])
def test_an_unreadable_tile_deep_in_the_pyramid(tmp_path: Path, compression: str | None) -> None:
    levels = make.pyramid(make.ramps(256, 256), 3)
    path = make.pyramid_tiff(tmp_path / "a.tif", levels, compression=compression)
    size = path.stat().st_size
    _overwrite(path, "TileOffsets", lambda value: (value[0], size + 5, *value[2:]), page=1)
    reader = opened(path)
    reader.read(1, (0, 0, 64, 64))
    with pytest.raises(ImageError, match="a.tif.*ends before"):
        reader.read(1, (0, 60, 10, 70))
    reader.read(2, (0, 0, 64, 64))


def test_a_file_cut_short_after_it_was_opened(tmp_path: Path) -> None:
    path = make.tiled_tiff(tmp_path / "a.tif", RAMPS)
    reader = opened(path)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ImageError, match="a.tif.*ends before"):
        whole(reader)


def test_a_file_that_has_gone_is_still_open(tmp_path: Path) -> None:
    path = make.tiled_tiff(tmp_path / "a.tif", RAMPS)
    reader = opened(path)
    path.unlink()
    np.testing.assert_array_equal(whole(reader), RAMPS)
    reader.close()
    with pytest.raises(ImageError, match="a.tif"):
        whole(reader)


def test_pillow_agrees(tmp_path: Path) -> None:
    path = make.tiled_tiff(tmp_path / "a.tif", RAMPS, compression="jpeg")
    with Image.open(path) as picture:
        assert np.abs(whole(opened(path)).astype(int) - np.asarray(picture)).max() <= 2


@pytest.mark.parametrize("where", ["next page", "SubIFD"])
def test_the_image_behind_a_thumbnail_is_read_with_its_levels(tmp_path: Path, where: str) -> None:
    levels = make.pyramid(make.ramps(256, 256), 4)
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        form: Any = {"photometric": "rgb", "metadata": None}
        file.write(levels[3], subfiletype=1, subifds=1 if where == "SubIFD" else None, **form)
        file.write(levels[0], tile=(64, 64), **form)
        file.write(levels[1], tile=(64, 64), subfiletype=1, **form)
    reader = open_reader(tmp_path / "a.tif")
    assert [level.size_hw for level in reader.info.levels] == [(256, 256), (128, 128), (32, 32)]
    for level, number in enumerate((0, 1, 3)):
        np.testing.assert_array_equal(whole(reader, level), levels[number])


def test_levels_whose_samples_mean_something_else_are_left_out(tmp_path: Path) -> None:
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        form: Any = {"tile": (64, 64), "metadata": None}
        file.write(np.full((256, 256), 250, np.uint8), photometric="minisblack", **form)
        file.write(np.full((128, 128), 5, np.uint8), photometric="miniswhite", subfiletype=1, **form)
    assert all(len(open_reader(tmp_path / "a.tif", name=name).info.levels) == 1 for name in ("tifffile", "rasterio"))


@pytest.mark.parametrize("bits", [10, 12, 24])
@pytest.mark.parametrize("compress", ["none", "deflate"])
def test_samples_that_fill_no_whole_type(tmp_path: Path, bits: int, compress: str) -> None:
    rasterio = pytest.importorskip("rasterio")
    values = np.random.default_rng(bits).integers(0, 2**bits, (64, 96)).astype("uint16" if bits < 16 else "uint32")
    form: Any = {"width": 96, "height": 64, "count": 1, "dtype": values.dtype, "nbits": bits, "compress": compress}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
        form |= {"tiled": True, "blockxsize": 32, "blockysize": 32}
        with rasterio.open(tmp_path / "a.tif", "w", driver="GTiff", **form) as dataset:
            dataset.write(values, 1)
    np.testing.assert_array_equal(whole(opened(tmp_path / "a.tif"))[..., 0], values)
    np.testing.assert_array_equal(opened(tmp_path / "a.tif").read(0, (5, 7, 20, 40))[..., 0], values[5:20, 7:40])


@pytest.mark.parametrize("kind", ["ImageJ", "shaped"])
def test_channels_of_a_small_stack_are_all_seen(tmp_path: Path, kind: str) -> None:
    planes = np.stack([np.full((64, 64), value, np.uint8) for value in (10, 100, 200)])
    tifffile.imwrite(
        tmp_path / "a.tif", planes, imagej=kind == "ImageJ", photometric="minisblack", metadata={"axes": "CYX"}
    )
    reader = open_reader(tmp_path / "a.tif")
    assert reader.info.color == "bands" and whole(reader)[5, 5].tolist() == [10, 100, 200]


def test_another_series_has_its_own_meaning(tmp_path: Path) -> None:
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        file.write(make.ramps(64, 64), tile=(64, 64), photometric="rgb", metadata=None)
        file.write(np.full((80, 64), 5, np.uint8), tile=(64, 64), photometric="miniswhite", metadata=None)
    reader = open_reader(tmp_path / "a.tif", ReaderOptions(series=1))
    assert reader.info.color == "grey" and (whole(reader) == 250).all()


def test_the_first_image_of_an_ome_tiff_need_not_be_its_first_page(tmp_path: Path) -> None:
    xml = (
        '<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06"><Image ID="Image:0"><Pixels ID="Pixels:0" '
        'DimensionOrder="XYCZT" Type="uint8" SizeX="64" SizeY="80" SizeC="1" SizeZ="1" SizeT="1"><TiffData IFD="1"/>'
        "</Pixels></Image></OME>"
    )
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        file.write(make.ramps(64, 64), photometric="rgb", description=xml, metadata=None)
        file.write(np.full((80, 64), 5, np.uint8), photometric="miniswhite", metadata=None)
    reader = open_reader(tmp_path / "a.tif")
    assert reader.info.color == "grey" and (whole(reader) == 250).all()
