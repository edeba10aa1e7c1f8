from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms
from tests.scenes.readers import make

from tnet.errors import ImageError
from tnet.scenes.decode import image_size_hw
from tnet.scenes.readers import Reader, ReaderOptions
from tnet.scenes.readers.pillow_reader import open_pillow

RAMPS = make.ramps(40, 60)


def whole(reader: Reader, level: int = 0) -> Any:
    pixels = reader.read(level, (0, 0, *reader.info.levels[level].size_hw))
    assert pixels.shape[2] == reader.info.channels and pixels.dtype == reader.info.dtype
    return pixels


def saved(path: Path, picture: Image.Image, form: str, **options: Any) -> Reader:
    picture.save(path, format=form, **options)
    return open_pillow(path, ReaderOptions())


def test_colours_are_those_of_pillow(tmp_path: Path) -> None:
    rgb = Image.fromarray(RAMPS)
    cases: list[tuple[str, Image.Image, str, str]] = [
        ("bit", rgb.convert("1"), "PNG", "L"),
        ("grey", rgb.convert("L"), "PNG", "L"),
        ("grey_alpha", rgb.convert("LA"), "PNG", "LA"),
        ("palette", rgb.convert("P"), "PNG", "RGB"),
        ("rgba", rgb.convert("RGBA"), "PNG", "RGBA"),
        ("cmyk", rgb.convert("CMYK"), "TIFF", "RGB"),
        ("bmp", rgb, "BMP", "RGB"),
        ("gif", rgb.convert("P"), "GIF", "RGB"),
    ]
    for name, picture, form, mode in cases:
        reader = saved(tmp_path / name, picture, form)
        with Image.open(tmp_path / name) as again:
            expected = np.asarray(again.convert(mode))
        np.testing.assert_array_equal(whole(reader), expected if expected.ndim == 3 else expected[..., None])
        assert reader.info.has_alpha == mode.endswith("A")
        assert reader.info.color == ("rgb" if mode.startswith("RGB") else "grey")


@pytest.mark.parametrize("form", ["PNG", "TIFF"])
def test_16_bits_stay(tmp_path: Path, form: str) -> None:
    grey = make.ramps(40, 60, "uint16", 1)
    reader = saved(tmp_path / "grey", Image.fromarray(grey[..., 0]), form)
    assert reader.info.dtype == np.uint16 and reader.info.color == "grey"
    np.testing.assert_array_equal(whole(reader), grey)


def test_numbers_stay(tmp_path: Path) -> None:
    for dtype in ("float32", "int32"):
        grey = make.ramps(40, 60, dtype, 1)
        np.testing.assert_array_equal(whole(saved(tmp_path / dtype, Image.fromarray(grey[..., 0]), "TIFF")), grey)


def test_a_transparent_colour_becomes_alpha(tmp_path: Path) -> None:
    rgb = saved(tmp_path / "rgb", Image.fromarray(RAMPS), "PNG", transparency=tuple(RAMPS[3, 4].tolist()))
    pixels = whole(rgb)
    assert rgb.info.channels == 4 and pixels[3, 4, 3] == 0 and (pixels[..., 3] == 255).sum() == 40 * 60 - 1
    grey = make.ramps(40, 60, "uint16", 1)
    deep = saved(tmp_path / "grey", Image.fromarray(grey[..., 0]), "PNG", transparency=int(grey[0, 7, 0]))
    pixels = whole(deep)
    assert deep.info.has_alpha and deep.info.channels == 2
    assert (pixels[:, 7, 1] == 0).all() and (np.delete(pixels[..., 1], 7, axis=1) == 65535).all()


@pytest.mark.parametrize("form", ["JPEG", "TIFF", "PNG"])
@pytest.mark.parametrize("orientation", [1, 3, 5, 6, 8])
def test_pictures_are_turned_upright_once(tmp_path: Path, form: str, orientation: int) -> None:
    path = tmp_path / "turned"
    exif = Image.Exif()
    exif[0x0112] = orientation
    # Bands of single grey levels, so that JPEG loses nothing.
    stored = np.repeat(np.repeat(np.arange(15, dtype=np.uint8).reshape(3, 5) * 16, 16, axis=0), 16, axis=1)
    Image.fromarray(stored).save(path, format=form, exif=exif)
    turns = {1: stored, 3: stored[::-1, ::-1], 5: stored.T, 6: np.rot90(stored, -1), 8: np.rot90(stored)}
    upright = open_pillow(path, ReaderOptions())
    np.testing.assert_array_equal(whole(upright)[..., 0], turns[orientation])
    assert image_size_hw(path) == upright.info.levels[0].size_hw == turns[orientation].shape
    np.testing.assert_array_equal(whole(open_pillow(path, ReaderOptions(apply_orientation=False)))[..., 0], stored)


def test_coarse_versions_of_a_jpeg_cost_no_full_decoding(tmp_path: Path) -> None:
    path = make.jpeg(tmp_path / "photo", make.ramps(203, 301))
    reader = open_pillow(path, ReaderOptions())
    assert [level.size_hw for level in reader.info.levels] == [(203, 301), (102, 151), (51, 76), (26, 38)]
    assert [level.downsample_yx for level in reader.info.levels] == [(1, 1), (2, 2), (4, 4), (8, 8)]
    assert whole(reader, 3).shape == (26, 38, 3) and reader.tiles_read == 1
    np.testing.assert_array_equal(reader.read(3, (2, 3, 9, 11)), whole(reader, 3)[2:9, 3:11])
    tiny = open_pillow(make.jpeg(tmp_path / "tiny", make.ramps(3, 9)), ReaderOptions())
    assert [level.size_hw for level in tiny.info.levels] == [(3, 9), (2, 5)]


def test_one_decoded_level_is_kept(tmp_path: Path) -> None:
    reader = open_pillow(make.jpeg(tmp_path / "photo", make.ramps(64, 64)), ReaderOptions())
    for _ in range(3):
        reader.read(0, (0, 0, 5, 5))
    assert reader.tiles_read == 1
    reader.read(1, (0, 0, 5, 5))
    reader.read(0, (0, 0, 5, 5))
    assert reader.tiles_read == 3
    first = reader.read(0, (0, 0, 5, 5))
    first[:] = 0
    assert reader.read(0, (0, 0, 5, 5)).any()  # what was handed out is the caller's own


def test_profiles_are_applied_on_request(tmp_path: Path) -> None:
    wide = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB"))
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
    picture = Image.fromarray(RAMPS)
    same = saved(tmp_path / "srgb", picture, "PNG", icc_profile=srgb.tobytes())
    np.testing.assert_array_equal(whole(same), RAMPS)
    converted = whole(open_pillow(tmp_path / "srgb", ReaderOptions(apply_icc=True)))
    assert np.abs(converted.astype(int) - RAMPS).max() <= 1  # from sRGB to sRGB
    swapped = _swapping_profile(srgb.tobytes())
    picture.save(tmp_path / "swapped", format="PNG", icc_profile=swapped)
    np.testing.assert_array_equal(whole(open_pillow(tmp_path / "swapped", ReaderOptions())), RAMPS)
    turned = whole(open_pillow(tmp_path / "swapped", ReaderOptions(apply_icc=True)))
    assert np.abs(turned.astype(int) - RAMPS[..., ::-1]).max() <= 2
    picture.save(tmp_path / "wrong", format="PNG", icc_profile=wide.tobytes())
    with pytest.raises(ImageError, match="wrong"):
        whole(open_pillow(tmp_path / "wrong", ReaderOptions(apply_icc=True)))


def _swapping_profile(srgb: bytes) -> bytes:
    """An sRGB profile whose red and blue have changed places."""
    return srgb.replace(b"rXYZ", b"tmpX").replace(b"bXYZ", b"rXYZ").replace(b"tmpX", b"bXYZ")


def test_a_series_is_a_page(tmp_path: Path) -> None:
    pages = [Image.fromarray(make.ramps(20 + page, 30)) for page in range(3)]
    pages[0].save(tmp_path / "pages", format="TIFF", save_all=True, append_images=pages[1:])
    third = open_pillow(tmp_path / "pages", ReaderOptions(series=2))
    assert third.info.levels[0].size_hw == (22, 30)
    np.testing.assert_array_equal(whole(third), make.ramps(22, 30))
    with pytest.raises(ImageError, match="series=3"):
        open_pillow(tmp_path / "pages", ReaderOptions(series=3))
    with pytest.raises(ImageError, match="series=1"):
        open_pillow(make.jpeg(tmp_path / "photo", RAMPS), ReaderOptions(series=1))


@pytest.mark.parametrize("write", [make.giant_png, make.giant_jpeg])
def test_the_header_is_held_against_the_budget(tmp_path: Path, write: Callable[[Path], Path]) -> None:
    with pytest.raises(ImageError, match="over the limit max_pixels=268,435,456"):
        open_pillow(write(tmp_path / "giant"), ReaderOptions())
    png = make.png(tmp_path / "png", RAMPS)
    assert open_pillow(png, ReaderOptions(max_pixels=40 * 60))
    with pytest.raises(ImageError, match="max_pixels=2,399"):
        open_pillow(png, ReaderOptions(max_pixels=40 * 60 - 1))


def test_a_file_that_changes_or_goes_is_noticed(tmp_path: Path) -> None:
    path = make.png(tmp_path / "png", RAMPS)
    reader = open_pillow(path, ReaderOptions())
    make.png(path, make.ramps(41, 60))
    with pytest.raises(ImageError, match="has changed since it was opened"):
        reader.read(0, (0, 0, 5, 5))
    path.unlink()
    with pytest.raises(ImageError, match="no such file"):
        reader.read(0, (0, 0, 5, 5))


def test_an_unknown_kind_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "image.png"
    for content in (b"%!PS-Adobe-3.0 EPSF-3.0\n", b"<svg/>", b"RIFF----AVI LIST", bytes(100)):
        path.write_bytes(content)
        with pytest.raises(ImageError, match="image.png"):
            open_pillow(path, ReaderOptions())
