"""What several readers share: errors, limits, orientation, colour profiles."""

from __future__ import annotations

import math
import zlib
from dataclasses import replace
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tnet.errors import GeometryError
from tnet.scenes.guard import unreadable
from tnet.scenes.readers.base import ImageInfo, Reader, ReaderOptions, StoredLevel

_T = TypeVar("_T")

MAX_CHANNELS = 4096
"""Most values of a pixel that are believed."""

_TEXT_LIMIT = 500
_STEP_BYTES = 1 << 20

# (transposed, then flipped vertically, then horizontally): what turns a stored picture upright, by EXIF orientation.
_TURNS = {
    2: (False, False, True),
    3: (False, True, True),
    4: (False, True, False),
    5: (True, False, False),
    6: (True, False, True),
    7: (True, True, True),
    8: (True, True, False),
}
INVERSE_ORIENTATION = {6: 8, 8: 6}
"""Orientations that are undone by another; the others undo themselves."""


def check_window(path: Path, info: ImageInfo, level: int, box_yxyx: tuple[int, int, int, int]) -> None:
    """Refuse a window that is empty or not inside its level.

    Raises:
        GeometryError: it is.
    """
    y0, x0, y1, x1 = box_yxyx
    if not 0 <= level < len(info.levels):
        raise GeometryError(f"{path} has no level {level}; it has {len(info.levels)}, counted from 0")
    height, width = info.levels[level].size_hw
    if not (0 <= y0 < y1 <= height and 0 <= x0 < x1 <= width):
        raise GeometryError(f"window {box_yxyx} is empty or not inside level {level} of {path}, {height} x {width}")


def check_block(path: Path, block_hw: tuple[int, int], pixel_bytes: int, options: ReaderOptions) -> None:
    """Hold what has to be decoded at once against the limit, before anything is.

    Raises:
        ImageError: a stored tile or strip is larger than ``max_pixels``, or takes more than 4 bytes for each of them.
    """
    height, width = block_hw
    pixels = height * width
    if pixels > options.max_pixels or pixels * pixel_bytes > 4 * options.max_pixels:
        raise unreadable(
            path,
            f"its tiles or strips of {width:,} x {height:,} pixels of {pixel_bytes:,} bytes are decoded as a whole, "
            f"over the limit max_pixels={options.max_pixels:,} of up to 4 bytes",
            "raise max_pixels if there is memory for it",
        )


def check_deflated(data: bytes, limit: int) -> None:
    """Hold zlib's data against the checksum that they end with; what they unpack to is thrown away.

    Args:
        data: as stored.
        limit: most bytes that they may unpack to.

    Raises:
        ValueError: they end early, or unpack to more.
        zlib.error: they are damaged.
    """
    decoder, total = zlib.decompressobj(), 0
    while not decoder.eof:
        step = len(decoder.decompress(data, _STEP_BYTES))
        data = decoder.unconsumed_tail
        total += step
        if total > limit or not (step or data):
            raise ValueError(f"a tile unpacks to {total:,} bytes {'or more' if total > limit else 'and ends early'}")


def only_series(path: Path, options: ReaderOptions, count: int = 1) -> None:
    """Refuse a ``series`` that a file does not have.

    Raises:
        ImageError: there are fewer images.
    """
    if not 0 <= options.series < count:
        raise unreadable(
            path, f"series {options.series} was asked for, but it holds {count:,}, counted from 0", "name one of those"
        )


def ratio_levels(
    sizes_hw: list[tuple[int, int]], *, halves: bool = False, cut_off: bool = False
) -> tuple[StoredLevel, ...]:
    """Levels whose downsamples follow from their sizes.

    Args:
        sizes_hw: of the levels, finest first.
        halves: a pixel stands for exactly a power of two of level-0 pixels, so that the last one may stand for fewer;
            otherwise the levels' edges coincide.
        cut_off: the same of sizes that were rounded down, where the image's edge is left out (slides, as comparing
            their levels shows; not what GDAL writes).
    """
    height, width = sizes_hw[0]
    levels = []
    for level_height, level_width in sizes_hw:
        down_yx = (height / level_height, width / level_width)
        power = 2 ** round(math.log2(max(down_yx)))
        size_hw = (level_height, level_width)
        rounded_down = cut_off and (height // power, width // power) == size_hw
        if rounded_down or (halves and (-(-height // power), -(-width // power)) == size_hw):
            down_yx = (float(power), float(power))
        levels.append(StoredLevel((level_height, level_width), down_yx))
    return tuple(levels)


def pyramid_of(sizes_hw: list[tuple[int, int]]) -> list[int]:
    """Which of several stored pictures are reductions of the first, itself included: ever smaller, of its shape.

    Args:
        sizes_hw: in the order of the file.
    """
    (height, width), kept = sizes_hw[0], [0]
    for index, (own_height, own_width) in enumerate(sizes_hw[1:], 1):
        is_smaller = own_height * own_width < math.prod(sizes_hw[kept[-1]])
        # The factors that come to this size, rounded whichever way, down and across: is there one for both?
        least = max(height / (own_height + 1), width / (own_width + 1))
        most = min(height / max(own_height - 1, 1e-9), width / max(own_width - 1, 1e-9))
        if is_smaller and least <= most:
            kept.append(index)
    return kept


def clip_text(value: object) -> str:
    """A text out of a file, bounded and on one line."""
    text = " ".join(str(value)[: 4 * _TEXT_LIMIT].split())
    return text if len(text) <= _TEXT_LIMIT else text[:_TEXT_LIMIT] + "..."


def opaque(dtype: np.dtype[Any]) -> int:
    """The alpha value that stands for opaque: the largest of an integer type, else 1."""
    return int(np.iinfo(dtype).max) if dtype.kind in "ui" else 1


def unpremultiplied(pixels: NDArray[Any]) -> NDArray[Any]:
    """Colours that were stored times alpha (the last channel), as they are without it."""
    colors, alpha = pixels[..., :-1], pixels[..., -1:]
    full = opaque(pixels.dtype)
    straight = colors.astype(np.float64) * full / np.maximum(alpha.astype(np.float64), 1e-9)
    if pixels.dtype.kind in "ui":
        straight = np.minimum(np.rint(straight), full)
    out = np.concatenate([straight.astype(pixels.dtype), alpha], axis=2)
    out[alpha[..., 0] == 0] = 0
    return out


class SrgbTransform:
    """From the colours of an embedded profile to sRGB, for 8-bit RGB pixels; safe to use in several threads.

    Args:
        profile: ICC profile of the file.

    Raises:
        Exception: whatever LittleCMS makes of a damaged profile, or of one that is not for RGB.
    """

    def __init__(self, profile: bytes) -> None:
        from PIL import ImageCms

        source = ImageCms.ImageCmsProfile(BytesIO(profile))
        # Without LittleCMS's one-pixel cache, which threads would share.
        self._transform = ImageCms.buildTransform(
            source, _srgb(), "RGB", "RGB", ImageCms.Intent.RELATIVE_COLORIMETRIC, ImageCms.Flags.NOCACHE
        )

    def __call__(self, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Convert ``[height, width, 3 or 4]``; alpha stays."""
        from PIL import ImageCms

        image = Image.fromarray(np.ascontiguousarray(pixels[..., :3]))
        colors = np.asarray(ImageCms.applyTransform(image, self._transform))
        return np.concatenate([colors, pixels[..., 3:]], axis=2)


@lru_cache(maxsize=1)
def _srgb() -> Any:
    from PIL import ImageCms

    return ImageCms.createProfile("sRGB")


def oriented(reader: Reader, orientation: int) -> Reader:
    """A reader that hands out a picture turned by its EXIF orientation; ``reader`` itself where nothing is to turn."""
    if orientation not in _TURNS:
        return reader
    return OrientedReader(reader, orientation)


class OrientedReader:
    """Another reader's picture, turned.

    Levels whose last pixels stand for less than the others would start with those after a flip; such levels are left
    out.

    Args:
        reader: closed by :meth:`close`.
        orientation: EXIF orientation, 2 to 8.
    """

    def __init__(self, reader: Reader, orientation: int) -> None:
        self._reader = reader
        self._transposed, self._flip_y, self._flip_x = _TURNS[orientation]
        self.thread_safe = reader.thread_safe
        self.bytes_read, self.tiles_read = reader.bytes_read, reader.tiles_read
        info = reader.info
        levels = [(index, self._turned_level(level)) for index, level in enumerate(info.levels)]
        full_hw = levels[0][1].size_hw
        kept = [(index, level) for index, level in levels if self._is_exact(level, full_hw)]
        self._stored_levels = [index for index, _ in kept]
        self.info = replace(
            info,
            levels=tuple(level for _, level in kept),
            spacing_m_yx=self._swapped(info.spacing_m_yx) if info.spacing_m_yx else None,
            tile_hw=self._swapped(info.tile_hw) if info.tile_hw else None,
            georeference=None,
        )

    def read(self, level: int, box_yxyx: tuple[int, int, int, int]) -> NDArray[Any]:
        """Pixels of a window of the turned picture; see :class:`~tnet.scenes.readers.base.Reader`."""
        y0, x0, y1, x1 = box_yxyx
        height, width = self.info.levels[level].size_hw
        if self._flip_y:
            y0, y1 = height - y1, height - y0
        if self._flip_x:
            x0, x1 = width - x1, width - x0
        stored = (x0, y0, x1, y1) if self._transposed else (y0, x0, y1, x1)
        pixels = self._reader.read(self._stored_levels[level], stored)
        self.bytes_read, self.tiles_read = self._reader.bytes_read, self._reader.tiles_read
        if self._transposed:
            pixels = pixels.swapaxes(0, 1)
        if self._flip_y:
            pixels = pixels[::-1]
        if self._flip_x:
            pixels = pixels[:, ::-1]
        return np.ascontiguousarray(pixels)

    def close(self) -> None:
        """Release the file."""
        self._reader.close()

    def _swapped(self, pair: tuple[_T, _T]) -> tuple[_T, _T]:
        return (pair[1], pair[0]) if self._transposed else pair

    def _turned_level(self, level: StoredLevel) -> StoredLevel:
        return StoredLevel(self._swapped(level.size_hw), self._swapped(level.downsample_yx))

    def _is_exact(self, level: StoredLevel, full_hw: tuple[int, int]) -> bool:
        flips = (self._flip_y, self._flip_x)
        return all(
            not flip or abs(size * down - full) < 1e-3
            for flip, size, down, full in zip(flips, level.size_hw, level.downsample_yx, full_hw, strict=True)
        )
