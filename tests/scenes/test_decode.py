"""Decoding images: pixel values, downscaling, and what is refused."""

from __future__ import annotations

import io
import os
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, JpegImagePlugin, features
from tests.scenes.readers import make

from tnet.errors import ConfigError, ImageError
from tnet.scenes import decode, open_scene
from tnet.scenes.decode import image_size_hw, load_image
from tnet.scenes.reading import ReadOptions

LOSSLESS = {"PNG": ".png", "BMP": ".bmp", "TIFF": ".tif", "PPM": ".ppm", "WEBP": ".webp"}
LOSSY = {"JPEG": ".jpg", "GIF": ".gif", "JPEG2000": ".jp2"} | ({"AVIF": ".avif"} if features.check("avif") else {})
COLOURS = np.random.default_rng(0).integers(0, 256, (7, 11, 3), dtype=np.uint8)


def encoded(levels: np.ndarray, kind: str, **options: object) -> bytes:
    stream = io.BytesIO()
    extra = {"lossless": True} if kind == "WEBP" else {}
    Image.fromarray(levels).save(stream, kind, **extra, **options)
    return stream.getvalue()


def put(folder: Path, name: str, content: bytes | Image.Image) -> Path:
    path = folder / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        content.save(path)
    return path


def png_16_bit(levels: np.ndarray, transparent: tuple[int, ...] = ()) -> bytes:
    """Pillow cannot write 16-bit colour, nor a transparent 16-bit level."""
    height, width, channels = levels.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in levels)
    header = struct.pack(">IIBBBBB", width, height, 16, {1: 0, 3: 2}[channels], 0, 0, 0)
    parts = [(b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    if transparent:
        parts.insert(1, (b"tRNS", struct.pack(f">{len(transparent)}H", *transparent)))
    chunks = [
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in parts
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


# --- levels


@pytest.mark.parametrize(("kind", "suffix"), LOSSLESS.items())
def test_lossless_colours_come_back_exactly(tmp_path: Path, kind: str, suffix: str) -> None:
    image = load_image(put(tmp_path, f"a{suffix}", encoded(COLOURS, kind)))
    assert image.dtype == torch.uint8
    assert image.is_contiguous()
    np.testing.assert_array_equal(image.permute(1, 2, 0).numpy(), COLOURS)


@pytest.mark.parametrize(("kind", "suffix"), LOSSY.items())
def test_lossy_formats_come_back_nearly(tmp_path: Path, kind: str, suffix: str) -> None:
    ramp = np.repeat(np.linspace(20, 200, 48, dtype=np.uint8)[None, :, None], 32, axis=0).repeat(3, axis=2)
    image = load_image(put(tmp_path, f"a{suffix}", encoded(ramp, kind)))
    assert image.shape == (3, 32, 48)
    assert np.abs(image.permute(1, 2, 0).numpy().astype(int) - ramp).max() <= 6


def test_one_channel_from_colour_is_luma(tmp_path: Path) -> None:
    image = load_image(put(tmp_path, "a.png", encoded(COLOURS, "PNG")), channels=1)
    assert image.shape == (1, 7, 11)
    assert np.abs(image[0].numpy() - COLOURS @ [0.299, 0.587, 0.114]).max() <= 0.51


def test_three_channels_from_grey_are_equal(tmp_path: Path) -> None:
    grey = COLOURS[..., 0]
    image = load_image(put(tmp_path, "a.png", encoded(grey, "PNG")))
    for channel in image:
        np.testing.assert_array_equal(channel.numpy(), grey)


def one_pixel(mode: str, colour: object) -> Image.Image:
    return Image.new(mode, (3, 2), colour)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "picture", "expected"),
    [
        ("bit.png", one_pixel("1", 1), (255, 255, 255)),
        ("opaque.png", one_pixel("RGBA", (10, 20, 30, 255)), (10, 20, 30)),
        ("clear.png", one_pixel("RGBA", (10, 20, 30, 0)), (255, 255, 255)),
        ("half.png", one_pixel("RGBA", (0, 100, 200, 51)), (204, 224, 244)),  # a fifth of the colour, the rest white
        ("half.webp", one_pixel("RGBA", (0, 100, 200, 51)), (204, 224, 244)),
        ("half_grey.png", one_pixel("LA", (100, 51)), (224, 224, 224)),
        ("ink.tif", one_pixel("CMYK", (255, 0, 0, 0)), (0, 255, 255)),
        ("ink.jpg", one_pixel("CMYK", (0, 0, 0, 255)), (0, 0, 0)),
        ("palette.png", one_pixel("RGB", (1, 2, 3)).quantize(2), (1, 2, 3)),
        ("palette.gif", one_pixel("RGB", (1, 2, 3)).quantize(2), (1, 2, 3)),
        ("deep.png", one_pixel("I;16", 0x80FF), (128, 128, 128)),
        ("deep.tif", one_pixel("I;16", 0xFFFF), (255, 255, 255)),
        ("big_endian.tif", one_pixel("I;16B", 0x1234), (0x12, 0x12, 0x12)),
        ("deep.pgm", one_pixel("I;16", 0x4001), (0x40, 0x40, 0x40)),
        ("deep.jp2", one_pixel("I;16", 0x4001), (0x40, 0x40, 0x40)),
    ],
)
def test_pixels_of_every_mode(tmp_path: Path, name: str, picture: Image.Image, expected: tuple[int, int, int]) -> None:
    path = put(tmp_path, name, picture)
    image = load_image(path)
    assert image.shape == (3, 2, 3)
    assert (image == torch.tensor(expected, dtype=torch.uint8)[:, None, None]).all(), image[:, 0, 0]
    luma = sum(weight * level for weight, level in zip((0.299, 0.587, 0.114), expected, strict=True))
    assert abs(load_image(path, channels=1).float() - luma).max() <= 1


def test_transparent_colours_and_palettes_are_composited_onto_white(tmp_path: Path) -> None:
    grey = np.array([[10, 20]], dtype=np.uint8)
    assert load_image(put(tmp_path, "l.png", encoded(grey, "PNG", transparency=10)), channels=1).tolist() == [
        [[255, 20]]
    ]
    colours = np.array([[[1, 2, 3], [4, 5, 6]]], dtype=np.uint8)
    path = put(tmp_path, "rgb.png", encoded(colours, "PNG", transparency=(1, 2, 3)))
    assert load_image(path)[:, 0].T.tolist() == [[255, 255, 255], [4, 5, 6]]
    palette = Image.fromarray(grey // 20).convert("P")
    palette.putpalette([1, 2, 3, 4, 5, 6])
    palette.save(tmp_path / "p.png", transparency=bytes([255, 0]))
    assert load_image(tmp_path / "p.png")[:, 0].T.tolist() == [[1, 2, 3], [255, 255, 255]]


def test_16_bit_png_colour_and_transparent_level(tmp_path: Path) -> None:
    colours = np.array([[[0x0102, 0x80FF, 0xFFFF]]])
    assert load_image(put(tmp_path, "c.png", png_16_bit(colours))).flatten().tolist() == [0x01, 0x80, 0xFF]
    grey = np.array([[[0x1001], [0x1002]]])
    path = put(tmp_path, "g.png", png_16_bit(grey, transparent=(0x1001,)))
    assert load_image(path, channels=1).flatten().tolist() == [255, 0x10]


PNG_FORMS = [(bits, 0) for bits in (1, 2, 4, 8, 16)] + [(8, 2), (16, 2)] + [(bits, 3) for bits in (1, 2, 4, 8)]
PNG_FORMS += [(8, 4), (16, 4), (8, 6), (16, 6)]


@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize(("bits", "color"), PNG_FORMS)
def test_transparency_of_every_kind_of_png(tmp_path: Path, bits: int, color: int, interlaced: bool) -> None:
    """One colour is transparent, and those nearest to it are not."""
    count, top = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[color], 2**bits - 1
    samples = np.random.default_rng(bits).integers(0, top + 1, (13, 11, count))
    samples[::2] = min(top, 0x1122 % (top + 1))
    samples[1::2, 0, 0] ^= 1
    chunks = [make.png_chunk(b"gAMA", (45455).to_bytes(4, "big"))]  # which is not applied
    shown, opaque = samples[..., : 3 if color in (2, 6) else 1] / top, np.ones((13, 11))
    if color in (0, 2):
        key = samples[0, 5]
        chunks.append(make.png_chunk(b"tRNS", b"".join(int(level).to_bytes(2, "big") for level in key)))
        opaque = (samples != key).any(axis=2).astype(float)
    elif color == 3:
        palette = np.random.default_rng(1).integers(0, 256, (top + 1, 4))
        chunks.append(make.png_chunk(b"PLTE", palette[:, :3].astype(np.uint8).tobytes()))
        chunks.append(make.png_chunk(b"tRNS", palette[:, 3].astype(np.uint8).tobytes()))
        shown, opaque = palette[samples[..., 0], :3] / 255, palette[samples[..., 0], 3] / 255
    else:
        opaque = samples[..., -1] / top
    expected = np.broadcast_to(shown * opaque[..., None] + 1 - opaque[..., None], (13, 11, 3))
    path = make.raw_png(tmp_path / "a.png", samples, bits, color, *chunks, interlaced=interlaced)
    decoded = load_image(path).permute(1, 2, 0).numpy() / 255
    assert np.abs(decoded - expected).max() < 2.1 / 255  # 16 bits: the high byte of both
    view = open_scene(path).glimpse((0, 0, 13, 11), 143, channels=3, resize="bilinear", fill=(0.0,)).permute(1, 2, 0)
    assert np.abs(view[5::11, 6::13].numpy() - expected).max() < 2.1 / 255


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_excess_bits_of_a_transparent_level_are_ignored(tmp_path: Path, bits: int) -> None:
    levels = np.array([[[1], [0]]])
    path = make.raw_png(
        tmp_path / "a.png", levels, bits, 0, make.png_chunk(b"tRNS", (0xFF00 + 2**bits - 1).to_bytes(2, "big"))
    )
    top = make.raw_png(tmp_path / "b.png", levels, bits, 0)
    assert load_image(path, channels=1)[0, 0, 1] == load_image(top, channels=1)[0, 0, 1] == 0
    path = make.raw_png(tmp_path / "c.png", levels, bits, 0, make.png_chunk(b"tRNS", b"\xff\0"))
    assert load_image(path, channels=1)[0, 0].tolist()[1] == 255


@pytest.mark.parametrize("marker", ["YCCK", "CMYK", "none"])
def test_inks_of_a_jpeg_are_inverted_with_and_without_adobes_marker(tmp_path: Path, marker: str) -> None:
    """As Photoshop writes them and browsers show them, whether or not a tool removed the marker."""
    inks, expected = np.zeros((64, 64, 4), np.uint8), (1.0, 1.0, 1.0)
    inks[:, 32:, 0] = 255
    path = tmp_path / "a.jpg"
    Image.fromarray(inks, "CMYK").save(path, quality=95)
    data = path.read_bytes()
    at = data.index(b"\xff\xee\0\x0eAdobe")
    assert data[at + 15] == 0  # CMYK
    if marker == "none":
        path.write_bytes(data[:at] + data[at + 16 :])
    elif marker == "YCCK":
        imagecodecs = pytest.importorskip("imagecodecs")
        path.write_bytes(imagecodecs.jpeg8_encode(255 - inks, 95, colorspace="CMYK", outcolorspace="YCCK"))
        assert path.read_bytes()[path.read_bytes().index(b"Adobe") + 11] == 2
    decoded = load_image(path).permute(1, 2, 0).numpy() / 255
    view = open_scene(path).glimpse((0, 0, 64, 64), 64, channels=3, resize="antialias", fill=(0.5,)).permute(1, 2, 0)
    for pixels in (decoded, view.numpy()):
        np.testing.assert_allclose(pixels[32, 8], expected, atol=0.03)
        np.testing.assert_allclose(pixels[32, 56], (0.0, 1.0, 1.0), atol=0.03)


@pytest.mark.parametrize(
    ("form", "options"),
    [("GIF", {}), ("WEBP", {"lossless": True}), ("WEBP", {"quality": 95}), ("AVIF", {"quality": 95})],
)
def test_transparency_of_other_formats(tmp_path: Path, form: str, options: dict[str, Any]) -> None:
    if form == "AVIF" and not features.check("avif"):
        pytest.skip("this Pillow has no AVIF")
    pixels = np.zeros((64, 64, 4), np.uint8)
    pixels[..., 3] = 255
    pixels[:, 32:] = (200, 40, 40, 0)
    path = tmp_path / "a"
    Image.fromarray(pixels).save(path, form, **options)
    view = open_scene(path).glimpse((0, 0, 64, 64), 64, channels=3, resize="antialias", fill=(0.5,)).permute(1, 2, 0)
    for found in (load_image(path).permute(1, 2, 0).numpy() / 255, view.numpy()):
        np.testing.assert_allclose(found[32, 8], (0.0, 0.0, 0.0), atol=0.03)
        np.testing.assert_allclose(found[32, 56], (1.0, 1.0, 1.0), atol=0.03)


@pytest.mark.parametrize("mode", ["I", "F"])
def test_values_of_unknown_range_are_refused(tmp_path: Path, mode: str) -> None:
    path = put(tmp_path, "a.tif", one_pixel(mode, 3))
    with pytest.raises(ImageError, match=rf"a\.tif .*mode {mode}"):
        load_image(path)


def test_first_frame_of_an_animation_and_first_page(tmp_path: Path) -> None:
    first, second = one_pixel("L", 40), one_pixel("L", 200)
    for name in ("a.gif", "a.tif", "a.webp", "a.png"):
        first.save(tmp_path / name, save_all=True, append_images=[second])
        assert abs(load_image(tmp_path / name).int() - 40).max() <= 2, name


def test_multi_picture_jpeg_gives_the_first(tmp_path: Path) -> None:
    one_pixel("L", 40).save(tmp_path / "a.mpo", save_all=True, append_images=[one_pixel("L", 200)])
    path = (tmp_path / "a.mpo").rename(tmp_path / "a.jpg")
    assert abs(load_image(path).int() - 40).max() <= 2


# --- orientation


def as_seen(stored: np.ndarray, orientation: int) -> np.ndarray:
    """By the EXIF standard: where the stored picture's first row and first column are in the one that is seen."""
    turned = {1: 0, 2: 0, 3: 2, 4: 2, 5: 1, 6: 3, 7: 3, 8: 1}[orientation]  # quarter turns, against the clock
    picture = np.rot90(stored, turned)
    if orientation in (2, 4):
        return np.fliplr(picture)
    return np.flipud(picture) if orientation in (5, 7) else picture


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF"])
def test_orientation_is_applied(tmp_path: Path, kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = put(tmp_path, f"a{LOSSLESS[kind]}", encoded(COLOURS, kind, exif=exif))
    np.testing.assert_array_equal(load_image(path).permute(1, 2, 0).numpy(), as_seen(COLOURS, orientation))
    assert image_size_hw(path) == as_seen(COLOURS, orientation).shape[:2]


def test_orientation_is_applied_to_shrunk_jpeg_and_to_transparent_picture(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # stored left side is seen on top
    stored = np.zeros((64, 128, 3), np.uint8)
    stored[:, :64] = 255
    image = load_image(put(tmp_path, "a.jpg", encoded(stored, "JPEG", exif=exif)), max_side_px=16)
    assert image.shape == (3, 16, 8)
    assert image[:, :7].min() > 240 and image[:, 9:].max() < 15
    see_through = np.dstack([COLOURS, np.full((7, 11), 255, np.uint8)])
    image = load_image(put(tmp_path, "a.png", encoded(see_through, "PNG", exif=exif)))
    np.testing.assert_array_equal(image.permute(1, 2, 0).numpy(), as_seen(COLOURS, 6))


def test_unreadable_exif_is_ignored(tmp_path: Path) -> None:
    path = put(tmp_path, "a.png", encoded(COLOURS, "PNG", exif=b"Exif\0\0 this is no TIFF header"))
    np.testing.assert_array_equal(load_image(path).permute(1, 2, 0).numpy(), COLOURS)


# --- shrinking


@given(
    width=st.integers(1, 300),
    height=st.integers(1, 300),
    side=st.integers(1, 400),
    kind=st.sampled_from(["JPEG", "PNG"]),
)
def test_shrunk_size_keeps_the_aspect_and_never_enlarges(
    tmp_path_factory: pytest.TempPathFactory, width: int, height: int, side: int, kind: str
) -> None:
    content = encoded(np.full((height, width), 90, np.uint8), kind)
    path = put(tmp_path_factory.mktemp("shrink"), "a", content)
    image = load_image(path, channels=1, max_side_px=side)
    new_height, new_width = image.shape[1:]
    assert max(new_height, new_width) == min(side, max(height, width))
    scale = max(new_height, new_width) / max(height, width)
    assert abs(new_height - height * scale) <= 0.5 or new_height == 1
    assert abs(new_width - width * scale) <= 0.5 or new_width == 1
    assert abs(image.int() - 90).max() <= 1


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
@pytest.mark.parametrize("side", [7, 30, 100])
def test_shrinking_is_antialiased(tmp_path: Path, kind: str, side: int) -> None:
    rows, columns = np.indices((256, 256))
    board = ((rows + columns) % 2 * 255).astype(np.uint8)
    image = load_image(
        put(tmp_path, "a", encoded(board, kind, **({"quality": 95} if kind == "JPEG" else {}))), max_side_px=side
    )
    inside = image[:, 1:-1, 1:-1].float()
    assert abs(inside - 127.5).max() < 6  # nearest or bilinear sampling would give 0s and 255s


@pytest.mark.parametrize("side", [50, 100, 170, 300])
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_shrunk_image_is_in_place(tmp_path: Path, kind: str, side: int) -> None:
    """Of an odd size, which decoding at a part of the size rounds up: a ramp must keep its ends and its slope."""
    width = 501
    ramp = np.repeat(np.linspace(0, 255, width)[None], 333, axis=0).astype(np.uint8)
    image = load_image(put(tmp_path, "a", encoded(ramp, kind)), channels=1, max_side_px=side)[0].float()
    centres = (np.arange(side) + 0.5) / side * width - 0.5
    expected = np.interp(centres, np.arange(width), ramp[0])
    assert np.abs(image.mean(0).numpy() - expected)[1:-1].max() < 1.5


def test_jpeg_is_decoded_at_a_part_of_its_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = put(tmp_path, "a.jpg", encoded(np.full((640, 800), 90, np.uint8), "JPEG"))
    decoded: list[tuple[int, int]] = []
    load = JpegImagePlugin.JpegImageFile.load

    def record(self: JpegImagePlugin.JpegImageFile) -> object:
        decoded.append(self.size)
        return load(self)

    monkeypatch.setattr(JpegImagePlugin.JpegImageFile, "load", record)
    for side in (100, 200, 533, 534, 800):
        decoded.clear()
        load_image(path, max_side_px=side)
        assert decoded[0] == {100: (200, 160), 200: (400, 320)}.get(side, (800, 640))


@pytest.mark.parametrize("option", ["max_side_px", "max_short_side_px", "max_pixels"])
def test_options_below_one_are_refused(tmp_path: Path, option: str) -> None:
    path = put(tmp_path, "a.png", encoded(COLOURS, "PNG"))
    with pytest.raises(ConfigError, match=f"{option} is 0"):
        load_image(path, **{option: 0})  # type: ignore[arg-type]


# --- what is refused


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"gone\.png"):
        load_image(tmp_path / "gone.png")
    (tmp_path / "link.png").symlink_to(tmp_path / "gone.png")
    with pytest.raises(ImageError, match="no such file"):
        load_image(tmp_path / "link.png")
    with pytest.raises(ImageError, match="cannot be opened"):
        load_image(str(tmp_path / "null\0.png"))


def test_folder_pipe_and_empty_file(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="it is a folder"):
        load_image(tmp_path)
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(ImageError, match="not a regular file"):
        load_image(tmp_path / "pipe.png")
    with pytest.raises(ImageError, match=r"e\.png.* 0 bytes|e\.png.*empty"):
        load_image(put(tmp_path, "e.png", b""))


def test_file_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = put(tmp_path, "a.png", encoded(COLOURS, "PNG"))

    def refuse(*_: object) -> None:  # the tests may run as a user to whom nothing is forbidden
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(ImageError, match=r"a\.png.*permission"):
        load_image(path)


@pytest.mark.parametrize("content", [b"hello, world", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", b"\0"])
def test_unsupported_format(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(ImageError, match=r"a\.jpg.*not supported \(JPEG, PNG"):
        load_image(put(tmp_path, "a.jpg", content))


@pytest.mark.parametrize(("kind", "suffix"), (LOSSLESS | LOSSY).items())
def test_truncated_file_is_refused(tmp_path: Path, kind: str, suffix: str) -> None:
    content = encoded(np.random.default_rng(1).integers(0, 256, (40, 40, 3), dtype=np.uint8), kind)
    whole = load_image(put(tmp_path, f"whole{suffix}", content))
    path = tmp_path / f"cut{suffix}"
    for length in range(1, len(content), max(1, len(content) // 25)):
        path.write_bytes(content[:length])
        try:
            image = load_image(path)
        except ImageError:
            continue
        assert length > 0.95 * len(content) and torch.equal(image, whole), length  # no pixels were in it


@given(
    kind=st.sampled_from(sorted(LOSSLESS | LOSSY)),
    changes=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=8),
    near=st.sampled_from([64, 256, 1 << 20]),
)
def test_damaged_file_gives_pixels_or_an_image_error(
    tmp_path_factory: pytest.TempPathFactory, kind: str, changes: list[tuple[float, int]], near: int
) -> None:
    content = bytearray(encoded(COLOURS, kind))
    for place, value in changes:
        content[int(place * min(near, len(content)))] = value
    path = put(tmp_path_factory.mktemp("damaged"), "a", bytes(content))
    try:
        image = load_image(path, max_pixels=10_000)
    except ImageError:
        return
    assert image.shape[0] == 3 and image[0].numel() <= 10_000


# --- the pixel budget


def test_budget_is_checked_before_decoding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = put(tmp_path, "a.png", encoded(COLOURS, "PNG"))
    assert load_image(path, max_pixels=77).shape == (3, 7, 11)
    monkeypatch.setattr(decode, "_decode", lambda *_: pytest.fail("decoded"))
    with pytest.raises(ImageError, match=r"77 pixels.* max_pixels=76"):
        load_image(path, max_pixels=76)


def test_header_that_claims_a_huge_size_is_refused(tmp_path: Path) -> None:
    """Without memory for it, and without Pillow's warning (warnings are errors here)."""
    content = encoded(COLOURS, "PNG")
    header = b"IHDR" + struct.pack(">II", 30_000, 10_000) + content[24:29]
    bomb = content[:12] + header + struct.pack(">I", zlib.crc32(header)) + content[33:]
    with pytest.raises(ImageError, match="300,000,000 pixels.* max_pixels=268,435,456"):
        load_image(put(tmp_path, "bomb.png", bomb))


@pytest.mark.parametrize("kind", ["TIFF", "WEBP", "GIF", "PNG", "JPEG", "MPO"])
def test_budget_above_pillows_limit_holds_without_touching_it_for_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """As for a picture above Pillow's real limit (89 million pixels), at a smaller scale."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 30)
    monkeypatch.setattr(decode, "_PILLOW_NEVER_COMPLAINS_PX", 20)
    frames = {"save_all": True, "append_images": [Image.fromarray(COLOURS)]} if kind == "MPO" else {}
    path = put(tmp_path, "a", encoded(COLOURS, kind, **frames))  # 77 pixels: a plain Image.open raises
    assert load_image(path).shape == (3, 7, 11)
    assert Image.MAX_IMAGE_PIXELS == 30
    with pytest.raises(ImageError, match="max_pixels=70"):
        load_image(path, max_pixels=70)
    assert Image.MAX_IMAGE_PIXELS == 30


def test_smaller_limit_of_pillow_set_by_the_program_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 30)
    path = put(tmp_path, "a.webp", encoded(COLOURS, "WEBP"))
    with pytest.raises(ImageError, match="max_pixels=1,000"):
        load_image(path, max_pixels=1000)


@pytest.mark.parametrize("form", [{"extratags": [(42113, "s", 0, "9", True)]}, {"planarconfig": "separate"}])
def test_a_tiff_that_would_lose_something_is_not_decoded(tmp_path: Path, form: Any) -> None:
    pixels = np.moveaxis(COLOURS, 2, 0) if "planarconfig" in form else COLOURS
    tifffile.imwrite(tmp_path / "a.tif", pixels, photometric="rgb", metadata=None, **form)
    with pytest.raises(ImageError, match=r"a.tif cannot be read: decoding it as a whole would lose .*; read it lazily"):
        load_image(tmp_path / "a.tif")
    assert ReadOptions("auto").is_lazy(tmp_path / "a.tif")
