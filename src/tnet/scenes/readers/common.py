"""Limits, levels, orientation and colour profiles, shared by readers."""

from __future__ import annotations

import math
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms

from tnet.errors import GeometryError
from tnet.scenes.base import Window
from tnet.scenes.checksums import check_deflated as check_deflated
from tnet.scenes.guard import unreadable
from tnet.scenes.readers.base import ImageInfo, Reader, ReaderOptions, StoredLevel

_T = TypeVar("_T")

MAX_CHANNELS = 4096
MAX_LEVELS = 64
_TEXT_LIMIT = 500

# (transpose, then flip vertically, then horizontally): what turns a stored image upright, by EXIF orientation.
_TURNS = {
    **{2: (False, False, True), 3: (False, True, True), 4: (False, True, False)},
    **{5: (True, False, False), 6: (True, False, True), 7: (True, True, True), 8: (True, True, False)},
}
INVERSE_ORIENTATION = {6: 8, 8: 6}  # the others undo themselves


def check_window(path: Path, info: ImageInfo, level: int, box_yxyx: Window) -> None:
    """Raise ``GeometryError`` if a window is empty or not inside its level, or the level does not exist."""
    y0, x0, y1, x1 = box_yxyx
    if not 0 <= level < len(info.levels):
        raise GeometryError(f"{path} has no level {level}; give 0 to {len(info.levels) - 1}")
    height, width = info.levels[level].size_hw
    if not (0 <= y0 < y1 <= height and 0 <= x0 < x1 <= width):
        raise GeometryError(f"window {box_yxyx} is empty or not inside level {level} of {path}, {height} x {width}")


def check_block(path: Path, block_hw: tuple[int, int], pixel_bytes: int, options: ReaderOptions) -> None:
    """Raise ``ImageError`` for a tile or strip of over ``max_pixels`` pixels, or over 4 bytes for each of them."""
    height, width = block_hw
    pixels = height * width
    if pixels > options.max_pixels or pixels * pixel_bytes > 4 * options.max_pixels:
        reason = f"its tiles or strips have {width:,} x {height:,} pixels of {pixel_bytes:,} bytes, over the limit "
        raise unreadable(path, f"{reason}max_pixels={options.max_pixels:,} of up to 4 bytes", "raise max_pixels")


def only_series(path: Path, options: ReaderOptions, count: int = 1) -> None:
    """Raise ``ImageError`` if a file with ``count`` images lacks the requested series."""
    if not 0 <= options.series < count:
        raise unreadable(path, f"series is {options.series}, but it holds {count:,}", "give one, counted from 0")


def ratio_levels(
    sizes_hw: list[tuple[int, int]], *, halves: bool = False, cut_off: bool = False
) -> tuple[StoredLevel, ...]:
    """Return levels whose downsamples follow from their sizes (finest first), so that the edges of the levels coincide.

    With ``halves``, pixels stand for exactly a power of two of level-0 pixels, so that the last may stand for fewer;
    ``cut_off`` does so for sizes that were rounded down, which leaves out the edge of the image (slides, not GDAL).
    """
    height, width = sizes_hw[0]
    levels = []
    for size_hw in sizes_hw:
        down_yx = (height / size_hw[0], width / size_hw[1])
        power = 2 ** round(math.log2(max(down_yx)))
        rounded_down = cut_off and (height // power, width // power) == size_hw
        if rounded_down or (halves and (-(-height // power), -(-width // power)) == size_hw):
            down_yx = (float(power), float(power))
        levels.append(StoredLevel((size_hw[0], size_hw[1]), down_yx))
    return tuple(levels)


def pyramid_of(sizes_hw: list[tuple[int, int]]) -> list[int]:
    """Return the indices of the stored images that are reductions of the first, itself included."""
    (height, width), kept = sizes_hw[0], [0]
    for index, (own_height, own_width) in enumerate(sizes_hw[1:], 1):
        is_smaller = own_height * own_width < math.prod(sizes_hw[kept[-1]])
        # The factors that lead to this size, rounded either way, down and across: is there one for both?
        least = max(height / (own_height + 1), width / (own_width + 1))
        most = min(height / max(own_height - 1, 1e-9), width / max(own_width - 1, 1e-9))
        if is_smaller and least <= most:
            kept.append(index)
    return kept


def clip_text(value: object) -> str:
    """Return a text from a file, bounded and on one line."""
    text = " ".join(str(value)[: 4 * _TEXT_LIMIT].split())
    return text if len(text) <= _TEXT_LIMIT else text[:_TEXT_LIMIT] + "..."


def opaque(dtype: np.dtype[Any]) -> int:
    """Return the alpha value of opaque pixels: the largest of an integer type, else 1."""
    return int(np.iinfo(dtype).max) if dtype.kind in "ui" else 1


def unpremultiplied(pixels: NDArray[Any]) -> NDArray[Any]:
    """Divide colours by alpha (the last channel), by which they were multiplied."""
    colors, alpha = pixels[..., :-1], pixels[..., -1:]
    full = opaque(pixels.dtype)
    straight = colors.astype(np.float64) * full / np.where(alpha <= 0, full, alpha.astype(np.float64))
    if pixels.dtype.kind in "ui":
        straight = np.clip(np.rint(straight), np.iinfo(pixels.dtype).min, full)
    with np.errstate(over="ignore"):
        out = np.concatenate([straight.astype(pixels.dtype), alpha], axis=2)
    out[alpha[..., 0] == 0] = 0
    return out


class SrgbTransform:
    """Conversion of 8-bit RGB from an embedded ICC profile to sRGB; safe in several threads."""

    def __init__(self, profile: bytes) -> None:
        source, intent = ImageCms.ImageCmsProfile(BytesIO(profile)), ImageCms.Intent.RELATIVE_COLORIMETRIC
        # Without LittleCMS's one-pixel cache, which threads would share.
        srgb, flags = ImageCms.createProfile("sRGB"), ImageCms.Flags.NOCACHE
        self._transform = ImageCms.buildTransform(source, srgb, "RGB", "RGB", intent, flags)

    def __call__(self, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Convert ``[height, width, 3 or 4]``; alpha is kept."""
        image = Image.fromarray(np.ascontiguousarray(pixels[..., :3]))
        colors = np.asarray(ImageCms.applyTransform(image, self._transform))
        return np.concatenate([colors, pixels[..., 3:]], axis=2)


def oriented(reader: Reader, orientation: int) -> Reader:
    """Return a reader of the image turned by an EXIF orientation; ``reader`` itself if there is nothing to turn."""
    return OrientedReader(reader, orientation) if orientation in _TURNS else reader


class OrientedReader:
    """Another reader's image, turned by an EXIF orientation of 2 to 8; closes that reader.

    Levels whose last pixels stand for less than the others would start with those after a flip, and are left out.
    """

    def __init__(self, reader: Reader, orientation: int) -> None:
        self._reader = reader
        self._transposed, self._flip_y, self._flip_x = _TURNS[orientation]
        self.thread_safe = reader.thread_safe
        info = reader.info
        full_hw = self._turned(info.levels[0].size_hw)
        turned = [StoredLevel(self._turned(each.size_hw), self._turned(each.downsample_yx)) for each in info.levels]
        levels = {index: level for index, level in enumerate(turned) if self._is_exact(level, full_hw)}
        self._stored_levels = list(levels)
        spacing = self._turned(info.spacing_m_yx) if info.spacing_m_yx else None
        tile_hw = self._turned(info.tile_hw) if info.tile_hw else None
        kept = tuple(levels.values())
        self.info = replace(info, levels=kept, spacing_m_yx=spacing, tile_hw=tile_hw, georeference=None)

    @property
    def bytes_read(self) -> int:
        """Encoded bytes fetched so far."""
        return self._reader.bytes_read

    @property
    def tiles_read(self) -> int:
        """Stored tiles decoded so far."""
        return self._reader.tiles_read

    def read(self, level: int, box_yxyx: Window) -> NDArray[Any]:
        """Read a window of the turned image; see :class:`~tnet.scenes.readers.base.Reader`."""
        y0, x0, y1, x1 = box_yxyx
        height, width = self.info.levels[level].size_hw
        if self._flip_y:
            y0, y1 = height - y1, height - y0
        if self._flip_x:
            x0, x1 = width - x1, width - x0
        stored = (x0, y0, x1, y1) if self._transposed else (y0, x0, y1, x1)
        pixels = self._reader.read(self._stored_levels[level], stored)
        if self._transposed:
            pixels = pixels.swapaxes(0, 1)
        return np.ascontiguousarray(pixels[:: -1 if self._flip_y else 1, :: -1 if self._flip_x else 1])

    def close(self) -> None:
        """Release the file."""
        self._reader.close()

    def _turned(self, pair: tuple[_T, _T]) -> tuple[_T, _T]:
        return (pair[1], pair[0]) if self._transposed else pair

    def _is_exact(self, level: StoredLevel, full_hw: tuple[int, int]) -> bool:
        flips = (self._flip_y, self._flip_x)
        axes = zip(flips, level.size_hw, level.downsample_yx, full_hw, strict=True)
        return all(not flip or abs(size * down - full) < 1e-3 for flip, size, down, full in axes)
