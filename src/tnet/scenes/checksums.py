"""Checksums of image files that Pillow does not verify, so that damage is not taken for pixels.

PNG has one per chunk and, like TIFF's deflate, one of the data before compression. JPEG, JPEG 2000, GIF, WebP, AVIF,
BMP and TIFF's other compressions have none.
"""

from __future__ import annotations

import os
import struct
import zlib
from typing import IO

from PIL import ImageFile, TiffImagePlugin

_STEP_BYTES = 1 << 20
_SLACK_BYTES = 1 << 26  # after the pixels, where decoders ignore it
_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # by PNG's type of colour
# Data that compress less, most photographs, are not decompressed twice: it takes long, and damage ends in an error.
_COMPRESSIBLE = 10


def check_pixels(image: ImageFile.ImageFile) -> None:
    """Raise ``ValueError``, or what zlib does, if checksums of an image that is not decoded yet do not match."""
    assert image.fp is not None
    position = image.fp.tell()
    if image.format == "PNG":
        _check_png(image.fp)
    elif isinstance(image, TiffImagePlugin.TiffImageFile):
        tags, limit = image.tag_v2, 64 * image.width * image.height + _SLACK_BYTES
        is_deflated = tags.get(259) in (8, 32946) and tags.get(266, 1) == 1  # bits in the usual order
        spans = zip(tags.get(273) or tags[324], tags.get(279) or tags[325], strict=True) if is_deflated else ()
        size = image.fp.seek(0, os.SEEK_END)
        for start, count in spans:
            image.fp.seek(start)
            check_deflated(image.fp.read(min(count, size)), limit)
    image.fp.seek(position)


def check_deflated(data: bytes | bytearray, limit: int) -> int:
    """Decompress zlib data of up to ``limit`` bytes to verify their checksum; return their size.

    Raises what zlib does, or ``ValueError``.
    """
    decoder, total = zlib.decompressobj(), 0
    while not decoder.eof:
        step = len(decoder.decompress(data, _STEP_BYTES))
        data = decoder.unconsumed_tail
        total += step
        if total > limit or not (step or data):
            raise ValueError(f"compressed data end early, or decompress to more than {limit:,} bytes ({total:,})")
    return total


def _check_png(stream: IO[bytes]) -> None:
    stream.seek(16)
    width, height, bits, color, _, _, interlaced = struct.unpack(">IIBBBBB", stream.read(13))
    row = width * bits * _CHANNELS[color]
    expected = height * row // 8 if interlaced else height * (1 + -(-row // 8))  # at least
    stream.seek(8)
    kind, packed = b"", bytearray()
    while kind != b"IEND":
        length, kind = struct.unpack(">I4s", stream.read(8))
        checksum = zlib.crc32(kind)
        while length:
            part = stream.read(min(length, _STEP_BYTES))
            if not part:
                raise ValueError("its last chunk is cut off")
            checksum, length = zlib.crc32(part, checksum), length - len(part)
            if kind == b"IDAT" and len(packed) * _COMPRESSIBLE < expected:
                packed += part
        if stream.read(4) != checksum.to_bytes(4, "big"):
            raise ValueError(f"the checksum of its chunk {kind!r} before byte {stream.tell():,} does not match")
    if len(packed) * _COMPRESSIBLE < expected:
        size = check_deflated(packed, expected + _SLACK_BYTES)
        if size < expected:
            raise ValueError(f"it holds {size:,} of {expected:,} bytes of pixels")
