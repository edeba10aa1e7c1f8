"""Whole-slide images through OpenSlide: Aperio, Hamamatsu, Leica, Mirax, Philips, Ventana, Zeiss, DICOM and others.

Pixels are RGB. Where a slide holds none (between scanned areas) they are of its background colour, white if it names
none. Formats made of several files are read with the files beside them, as their scanners write them.
"""

from __future__ import annotations

import math
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tnet.scenes.guard import guarded, one_line, open_file, unreadable
from tnet.scenes.readers.base import ImageInfo, ReaderOptions
from tnet.scenes.readers.common import (
    SrgbTransform,
    check_block,
    check_window,
    clip_text,
    only_series,
    ratio_levels,
)

if TYPE_CHECKING:
    from openslide import OpenSlide

_MAX_SPACING_M = 0.01  # of a slide; more is a mistake in the file
_MAX_LEVELS = 64
_DAMAGED = "fetch it again, or leave it out"


def open_openslide(path: Path, options: ReaderOptions) -> OpenSlideReader:
    """Open a whole-slide image.

    Raises:
        ImageError: it is missing, damaged, or of a format that OpenSlide does not know.
    """
    return OpenSlideReader(path, options)


class OpenSlideReader:
    """A slide; see the module. Safe in several threads.

    OpenSlide takes positions as level-0 pixels, so that a window of a level whose downsample is no integer may be off
    by up to half a level-0 pixel.

    Args:
        path: of the slide.
        options: see :class:`~tnet.scenes.readers.base.ReaderOptions`.
    """

    thread_safe = True

    def __init__(self, path: Path, options: ReaderOptions) -> None:
        self._path = path
        self._lock = threading.Lock()
        self.bytes_read = self.tiles_read = 0
        only_series(path, options)
        with open_file(path), guarded(path):
            self._slide: OpenSlide | None = self._open()
            properties = dict(self._slide.properties)
            sizes_hw = [(height, width) for width, height in self._slide.level_dimensions]
            self._downsamples = self._slide.level_downsamples
            profile = self._slide.color_profile if options.apply_icc else None
            self._to_srgb = SrgbTransform(profile.tobytes()) if profile else None
        if not 1 <= len(sizes_hw) <= _MAX_LEVELS or min(min(size) for size in sizes_hw) < 1:
            raise unreadable(path, f"its levels are {sizes_hw[:4]}", _DAMAGED)
        self._tiles_hw = [_tile_hw(properties, level) for level in range(len(sizes_hw))]
        for tile_hw in self._tiles_hw:  # OpenSlide ends the process where there is no memory for a tile
            check_block(path, tile_hw, 4, options)
        self._background = _background(properties)
        self._bytes_a_pixel = path.stat().st_size / sum(height * width for height, width in sizes_hw)
        self.info = ImageInfo(
            levels=ratio_levels(sizes_hw, cut_off=True),
            channels=3,
            dtype=np.dtype(np.uint8),
            color="rgb",
            spacing_m_yx=_spacing_m_yx(properties),
            tile_hw=self._tiles_hw[0],
            properties={name: clip_text(properties[name]) for name in list(properties)[:200]},
        )

    def read(self, level: int, box_yxyx: tuple[int, int, int, int]) -> NDArray[Any]:
        """Pixels of a window; see :class:`~tnet.scenes.readers.base.Reader`."""
        check_window(self._path, self.info, level, box_yxyx)
        y0, x0, y1, x1 = box_yxyx
        down = self._downsamples[level]
        with guarded(self._path):
            slide = self._current()
            try:
                region = slide.read_region((round(x0 * down), round(y0 * down)), level, (x1 - x0, y1 - y0))
            except Exception as error:
                # After an error OpenSlide refuses all further reads; what is sound elsewhere should stay readable.
                with self._lock:
                    if self._slide is slide:
                        self._slide = None
                raise unreadable(
                    self._path, f"window {box_yxyx} of level {level} is damaged ({one_line(error)})", _DAMAGED
                ) from error
            rgba = np.asarray(region)
        pixels = rgba[..., :3].copy()
        # Values between are seams, which OpenSlide leaves between tiles where it has to shift them.
        pixels[rgba[..., 3] < 128] = self._background
        if self._to_srgb is not None:
            pixels = self._to_srgb(pixels)
        self._count(level, box_yxyx)
        return pixels

    def close(self) -> None:
        """Release the slide."""
        with self._lock:
            slide, self._slide = self._slide, None
        if slide is not None:
            slide.close()

    def _open(self) -> OpenSlide:
        import openslide

        return openslide.OpenSlide(self._path)

    def _current(self) -> OpenSlide:
        with self._lock:
            if self._slide is None:
                self._slide = self._open()
            return self._slide

    def _count(self, level: int, box_yxyx: tuple[int, int, int, int]) -> None:
        """OpenSlide does not say what it reads: tiles touched, at the file's mean bytes a pixel."""
        tile_height, tile_width = self._tiles_hw[level]
        y0, x0, y1, x1 = box_yxyx
        tiles = ((y1 - 1) // tile_height - y0 // tile_height + 1) * ((x1 - 1) // tile_width - x0 // tile_width + 1)
        with self._lock:
            self.tiles_read += tiles
            self.bytes_read += round(tiles * tile_height * tile_width * self._bytes_a_pixel)


def _tile_hw(properties: dict[str, str], level: int) -> tuple[int, int]:
    """Size of the stored tiles; 256 where a format has none that OpenSlide tells."""
    tile_hw = tuple(properties.get(f"openslide.level[{level}].tile-{side}", "") for side in ("height", "width"))
    height, width = (int(text) if text.isdigit() and int(text) > 0 else 256 for text in tile_hw)
    return height, width


def _spacing_m_yx(properties: dict[str, str]) -> tuple[float, float] | None:
    try:
        spacing_y, spacing_x = (1e-6 * float(properties[f"openslide.mpp-{axis}"]) for axis in "yx")
    except (KeyError, ValueError):
        return None
    usable = all(math.isfinite(value) and 0 < value < _MAX_SPACING_M for value in (spacing_y, spacing_x))
    return (spacing_y, spacing_x) if usable else None


def _background(properties: dict[str, str]) -> tuple[int, int, int]:
    text = properties.get("openslide.background-color", "")
    try:
        red, green, blue = bytes.fromhex(text)
    except ValueError:
        return (255, 255, 255)
    return (red, green, blue)
