"""Decode one image file into a tensor, through Pillow.

Formats that Pillow decodes by itself are recognised by content; anything else (EPS, for one, would be passed to another
program) is refused, whatever its suffix. How stored values become 0 to 255:

======================================  =====================================================================
stored as                               becomes
======================================  =====================================================================
8-bit greyscale, RGB                    unchanged
1 bit                                   0 and 255
palette                                 its colours
16 bits per channel                     the high byte: 0 to 65535 becomes 0 to 255, whatever range is in use
CMYK, YCbCr, HSV                        RGB by Pillow's formula; colour profiles and gamma are not applied
CMYK in JPEG                            inverted, with or without Adobe's marker, as Photoshop writes it
alpha, transparent colour               composited onto white
32-bit integer, signed, floating point  refused: the white level is unknown
animation, several pages                the first
TIFF of which Pillow loses something    refused: nodata, masks, stacks of channels, planar and unusual samples
======================================  =====================================================================

One channel from RGB is luma (ITU-R BT.601: 0.299 R + 0.587 G + 0.114 B); three channels from greyscale are equal. The
EXIF orientation is applied.
"""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Literal

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image, ImageFile, ImageOps, JpegImagePlugin, PngImagePlugin
from torch import Tensor

from tnet.errors import ConfigError
from tnet.scenes.checksums import check_pixels
from tnet.scenes.guard import guarded, open_file, unreadable

DEFAULT_MAX_PIXELS = 2**28  # 16,384 x 16,384
_FORMATS = ("JPEG", "PNG", "TIFF", "WEBP", "BMP", "GIF", "PPM", "JPEG2000", "AVIF")
_CHECKED_WHILE_OPENING = ("GIF", "WEBP")  # their Pillow plugins check Pillow's own pixel limit while opening
_PILLOW_NEVER_COMPLAINS_PX = 1 << 26  # Pillow's own limit is a third more than this
_REDUCING_GAP = 1.5  # on photographs as close to a plain resize as 2, Pillow's choice for thumbnails, and quicker
_PILLOW_LIMIT_LOCK = threading.Lock()
_CONVERT = "save it again as an 8-bit PNG, JPEG or TIFF, or remove it"
_TRANSPOSED = {5, 6, 7, 8}  # EXIF orientations that exchange height and width
_ORIENTATION = 0x0112


def check_limits(max_side_px: int | None, max_short_side_px: int | None, max_pixels: int) -> None:
    """Raise ``ConfigError`` if a size limit of :func:`load_image` is below 1."""
    limits = {"max_side_px": max_side_px, "max_short_side_px": max_short_side_px, "max_pixels": max_pixels}
    for name, value in limits.items():
        if value is not None and value < 1:
            remedy = "" if name == "max_pixels" else ", or None to keep the size"
            raise ConfigError(f"{name} is {value}; give at least 1{remedy}")


def load_image(
    path: str | os.PathLike[str],
    *,
    channels: Literal[1, 3] = 3,
    max_side_px: int | None = None,
    max_short_side_px: int | None = None,
    max_pixels: int = DEFAULT_MAX_PIXELS,
) -> UInt8[Tensor, "channels height width"]:
    """Decode one image into memory: values 0 to 255, upright; see the table in :mod:`tnet.scenes.decode`.

    The size in the header is checked against ``max_pixels`` before any pixel is decoded. Peak memory is 9 to 13 bytes
    per pixel (16 to 18 with transparency), of which ``channels`` (3 for RGB, 1 for greyscale) remain.

    ``max_side_px`` and ``max_short_side_px`` downscale (bilinear, antialiased, aspect ratio kept) to a longer and
    shorter side; with both, to the smaller result. JPEGs are decoded at 1/2, 1/4 or 1/8 of their size if that leaves
    1.5 times the requested pixels, other formats are first averaged over 2x2, 3x3, ... pixels; this saves time and
    memory, and differs from a plain antialiased resize by less than 1 level on average.

    Raises:
        ImageError: the file is missing, damaged, larger than ``max_pixels``, or in an unsupported format.
    """
    from tnet.scenes.readers import lost_by  # which imports this module
    from tnet.scenes.readers.content import Content

    check_limits(max_side_px, max_short_side_px, max_pixels)
    path = Path(path)
    with open_file(path) as stream, guarded(path, _CONVERT):
        if reason := lost_by("pillow", Content(path), keep_depth=False):
            raise unreadable(path, f"decoding it as a whole would lose {reason}", "read it lazily (--read lazy)")
        header = read_header(stream, path, max_pixels)
        with pillow_limit(header.width * header.height):
            image = _decode(header, path, channels, shrunk_size(header.size, max_side_px, max_short_side_px))
        return _to_tensor(image)


def tensor_of(image: Image.Image, channels: int) -> UInt8[Tensor, "channels height width"]:
    """Convert an image that Pillow opened or made, as :func:`load_image` does one in a file."""
    name = Path(getattr(image, "filename", "") or "(opened with Pillow)")
    if channels not in (1, 3):
        raise unreadable(name, f"Pillow's images become 1 or 3 channels, not {channels}", "give a tensor or a scene")
    with guarded(name, _CONVERT):
        own = image.copy()
        own.format = image.format
        return _to_tensor(_decode(own, name, channels, own.size))


def image_size_hw(path: str | os.PathLike[str], *, max_pixels: int = DEFAULT_MAX_PIXELS) -> tuple[int, int]:
    """Read the height and width of an image, upright (EXIF orientation), from its header."""
    path = Path(path)
    with open_file(path) as stream, guarded(path, _CONVERT):
        header = read_header(stream, path, max_pixels)
        # Pillow reports the size of a TIFF after applying the orientation, and the stored size of other formats.
        transposed = header.format != "TIFF" and orientation_of(header) in _TRANSPOSED
        return (header.width, header.height) if transposed else (header.height, header.width)


def shrunk_size(
    size: tuple[int, int], max_side_px: int | None, max_short_side_px: int | None = None
) -> tuple[int, int]:
    """Return both sides of an image, in the given order, downscaled to a maximum longer and shorter side."""
    limits = ((max_side_px, max(size)), (max_short_side_px, min(size)))
    scale = min((limit / side for limit, side in limits if limit is not None), default=1.0)
    return size if scale >= 1 else (max(1, round(size[0] * scale)), max(1, round(size[1] * scale)))


def read_header(stream: IO[bytes], path: Path, max_pixels: int) -> ImageFile.ImageFile:
    """Recognise the format by the first bytes, read the header, and check the size.

    This calls Pillow's plugins itself: ``Image.open`` would compare the size with a process-wide limit first.
    """
    Image.init()
    prefix = stream.read(16)
    limit, remedy = f"the limit max_pixels={max_pixels:,}", "downscale or crop the image, or raise max_pixels"
    for name in _FORMATS:
        plugin, accepts = Image.OPEN.get(name, (None, None))  # some builds of Pillow lack AVIF or JPEG 2000
        if plugin is None or accepts is None or accepts(prefix) is not True:
            continue
        if name == "JPEG":  # only the first of several images, without the index of the others
            plugin = JpegImagePlugin.JpegImageFile
        stream.seek(0)
        try:
            with pillow_limit(max_pixels if name in _CHECKED_WHILE_OPENING else 0):
                image = plugin(stream, "")
        except Image.DecompressionBombError as error:
            raise unreadable(path, f"it is larger than {limit} ({error})", remedy) from error
        pixels = image.width * image.height
        if pixels > max_pixels:
            size = f"{image.width:,} x {image.height:,} = {pixels:,}"
            raise unreadable(path, f"it has {size} pixels, over {limit}", remedy)
        if name == "PNG":
            _scale_transparent(image)
        return image
    raise unreadable(path, f"its format is not supported ({', '.join(_FORMATS)})", _CONVERT)


def _scale_transparent(image: ImageFile.ImageFile) -> None:
    """Scale the transparent colour of a PNG as its pixels of 1, 2 and 4 bits are; like libpng, ignore excess bits."""
    key, rawmode = image.info.get("transparency"), image.tile[0].args if image.tile else ""
    if isinstance(key, int) and rawmode in ("L", "L;2", "L;4"):
        bits = {"L;2": 2, "L;4": 4}.get(rawmode, 8)
        image.info["transparency"] = (key & (2**bits - 1)) * (255 // (2**bits - 1))
    elif isinstance(key, tuple) and rawmode == "RGB":
        image.info["transparency"] = tuple(level & 255 for level in key)


def decode(image: ImageFile.ImageFile) -> None:
    """Decode an open image in place, after verifying its checksums; a transparent 16-bit colour becomes alpha."""
    check_pixels(image)
    stream, key = image.fp, image.info.get("transparency")
    is_deep = isinstance(key, tuple) and image.format == "PNG" and image.tile[0].args == "RGB;16B"
    image.load()
    if is_deep:  # Pillow compares the colour with the high bytes alone
        assert stream is not None
        stream.seek(0)
        low = PngImagePlugin.PngImageFile(stream, "")
        low.tile = [low.tile[0]._replace(args="RGB;16L")]
        low.load()
        differs = [np.asarray(part) != np.asarray(key) // unit % 256 for part, unit in ((image, 256), (low, 1))]
        del image.info["transparency"]
        image.putalpha(Image.fromarray(np.any(differs[0] | differs[1], axis=2).astype(np.uint8) * 255))


@contextmanager
def pillow_limit(pixels: int) -> Iterator[None]:
    """Raise Pillow's process-wide limit to this many pixels meanwhile, for one image at a time and if it needs it."""
    if pixels <= _PILLOW_NEVER_COMPLAINS_PX:
        yield
        return
    with _PILLOW_LIMIT_LOCK:
        limit = Image.MAX_IMAGE_PIXELS
        try:
            if limit is not None:
                Image.MAX_IMAGE_PIXELS = max(limit, pixels)
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = limit


def orientation_of(image: Image.Image) -> int:
    """Return the EXIF orientation, 1 to 8; 1 if it is missing or invalid."""
    try:
        value = image.getexif().get(_ORIENTATION, 1)
    except MemoryError:
        raise
    except Exception:  # an unreadable EXIF block says nothing about orientation, and the pixels are sound
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def is_16_bit_grey(image: Image.Image) -> bool:
    """Return whether an open image stores 16-bit greyscale, which Pillow may open as 32-bit integers."""
    return image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM"))


def _decode(image: Image.Image, path: Path, channels: int, size: tuple[int, int]) -> Image.Image:
    """Decode, convert to greyscale or RGB, downscale to a width and height, and turn upright."""
    width, height = size
    box_px = None
    if (width, height) != image.size and isinstance(image, JpegImagePlugin.JpegImageFile):
        drafted = image.draft(None, (math.ceil(_REDUCING_GAP * width), math.ceil(_REDUCING_GAP * height)))
        box_px = drafted[1] if drafted else None  # the image's true extent: a draft rounds its size up
    if isinstance(image, ImageFile.ImageFile):
        decode(image)
    converted = _convert(image, path, channels)
    if converted.size != (width, height):
        converted = converted.resize((width, height), Image.Resampling.BILINEAR, box=box_px, reducing_gap=_REDUCING_GAP)
    converted.info = image.info
    try:
        ImageOps.exif_transpose(converted, in_place=True)
    except MemoryError:
        raise
    except Exception:  # an unreadable EXIF block says nothing about orientation, and the pixels are sound
        pass
    return converted


def _convert(image: Image.Image, path: Path, channels: int) -> Image.Image:
    """Convert to mode ``L`` or ``RGB``, as the table of the module says."""
    converted: Image.Image = image
    if is_16_bit_grey(image):
        values = np.asarray(image)
        grey = (values >> 8).astype(np.uint8)  # as Pillow itself reduces 16-bit colour
        transparent = image.info.get("transparency")
        if isinstance(transparent, int):
            grey[values == transparent] = 255
        converted = Image.fromarray(grey)
    elif image.mode in ("I", "F"):
        reason = f"its values are 32-bit or floating-point (mode {image.mode}), whose white level is unknown"
        raise unreadable(path, reason, "scale it to 8 or 16 bits")
    elif image.has_transparency_data:
        converted = image.convert("RGBA")
        converted = Image.alpha_composite(Image.new("RGBA", converted.size, "white"), converted)
    mode = "L" if channels == 1 else "RGB"
    return converted if converted.mode == mode else converted.convert(mode)  # convert always copies


def _to_tensor(image: Image.Image) -> UInt8[Tensor, "channels height width"]:
    """Copy channel by channel: a quarter of the time, and less memory, than to transpose all pixels at once."""
    pixels = torch.empty(len(image.getbands()), image.height, image.width, dtype=torch.uint8)
    for channel, plane in enumerate(pixels.numpy()):
        plane[:] = np.asarray(image.getchannel(channel))
    return pixels
