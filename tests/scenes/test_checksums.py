"""Damage that decodes without an error is found by checksums, where a format has them."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from tests.scenes.readers import make

from tnet.errors import ImageError
from tnet.scenes import open_scene
from tnet.scenes.decode import load_image

Y, X = np.mgrid[:120, :160]
PICTURES = {
    "flat": np.full((120, 160), 90),
    "ramp": np.stack([X * 255 // 160, Y * 255 // 120, (X + Y) * 255 // 280], 2),
    "mask": ((X - 80) ** 2 + (Y - 60) ** 2 < 1600) * 255,
}


def seen(path: Path) -> tuple[NDArray[Any], NDArray[Any]]:
    """What both ways of reading a file show."""
    view = open_scene(path).glimpse((0, 0, 120, 160), 160, channels=3, resize="antialias", fill=(0.0,))
    return load_image(path).numpy(), view.numpy()


@pytest.mark.parametrize("name", PICTURES)
@pytest.mark.parametrize("form", ["png", "palette", "tif"])
def test_no_flipped_bit_passes_for_another_picture(tmp_path: Path, name: str, form: str) -> None:
    path = tmp_path / f"a.{form}"
    image = Image.fromarray(PICTURES[name].astype(np.uint8))
    if form == "palette":
        image.convert("RGB").quantize(16).save(path, "PNG", transparency=bytes([255, 9, 0]))
    else:
        image.save(path, **({"compression": "tiff_adobe_deflate"} if form == "tif" else {}))
    whole, expected = path.read_bytes(), seen(path)
    first, last = 8, len(whole)
    if form == "tif":  # what its tags say has no checksum
        with Image.open(path) as opened:
            first = min(opened.tag_v2[273])
            last = max(map(sum, zip(opened.tag_v2[273], opened.tag_v2[279], strict=True)))
    random, caught = np.random.default_rng(0), 0
    for _ in range(40):
        data = bytearray(whole)
        data[int(random.integers(first, last))] ^= 1 << int(random.integers(8))
        path.write_bytes(data)
        try:
            found = seen(path)
        except ImageError:
            caught += 1
        else:
            assert all(np.array_equal(*pair) for pair in zip(found, expected, strict=True))
    assert caught > 20


def png(rows: bytes, *, checksum: bytes | None = None, end: bytes | None = None) -> bytes:
    packed = zlib.compress(rows)
    header = make.png_chunk(b"IHDR", struct.pack(">IIBBBBB", 160, 120, 8, 0, 0, 0, 0))
    packed = packed[:-4] + (packed[-4:] if checksum is None else checksum)
    end = make.png_chunk(b"IEND", b"") if end is None else end
    return b"\x89PNG\r\n\x1a\n" + header + make.png_chunk(b"IDAT", packed) + end


ROWS = (b"\0" + b"\x50" * 160) * 120


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (png(ROWS[: 161 * 60]), "9,660 of 19,320 bytes"),
        (png(ROWS, checksum=b"\0\0\0\1"), "incorrect data check|broken data stream"),
        (png(ROWS, checksum=b""), "end early|truncated"),
        (png(ROWS, end=b""), "requires a buffer of 8 bytes"),
        (png(ROWS, end=make.png_chunk(b"tEXt", b"a\0b")[:-1]), "b'tEXt'.*does not match"),
    ],
)
def test_a_png_that_ends_early_is_refused(tmp_path: Path, content: bytes, reason: str) -> None:
    (tmp_path / "a.png").write_bytes(png(ROWS))
    assert (load_image(tmp_path / "a.png") == 0x50).all()
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(ImageError, match=rf"a\.png cannot be read: it is truncated, damaged.*({reason})"):
        load_image(tmp_path / "a.png")


def test_what_follows_the_pixels_is_ignored(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(ROWS + bytes(5000)) + b"and more")
    assert (load_image(tmp_path / "a.png") == 0x50).all()
