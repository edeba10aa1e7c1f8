"""Whole-slide images through OpenSlide: Aperio, Hamamatsu, Leica, Mirax, Philips, Ventana, Zeiss, DICOM and others.

Pixels are RGB; areas without pixels (between scanned areas) have the slide's background colour, white by default.
Formats of several files are read with the files beside them.
"""

from __future__ import annotations

import math
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tnet.scenes.base import Window
from tnet.scenes.guard import check_resources, guarded, one_line, open_file, unreadable
from tnet.scenes.readers import common
from tnet.scenes.readers.base import READERS, ImageInfo, ReaderEntry, ReaderOptions
from tnet.scenes.readers.content import Content
from tnet.scenes.readers.tiff_header import TIFFFILE_COMPRESSIONS

if TYPE_CHECKING:
    from openslide import OpenSlide

_MAX_SPACING_M = 0.01  # larger pixels are a mistake in the file


class OpenSlideReader:
    """A slide; safe in several threads.

    OpenSlide takes positions in level-0 pixels, so a window of a level whose downsample is not an integer may be off by
    up to half a level-0 pixel.
    """

    thread_safe = True

    def __init__(self, path: Path, options: ReaderOptions) -> None:
        self._path = path
        self._lock = threading.Lock()
        self.bytes_read = self.tiles_read = 0
        common.only_series(path, options)
        self._slide: OpenSlide | None = None
        with open_file(path), guarded(path):
            slide = self._current()
            properties = dict(slide.properties)
            sizes_hw = [(height, width) for width, height in slide.level_dimensions]
            self._downsamples = slide.level_downsamples
            profile = slide.color_profile if options.apply_icc else None
            self._to_srgb = common.SrgbTransform(profile.tobytes()) if profile else None
        if not 1 <= len(sizes_hw) <= common.MAX_LEVELS or min(min(size) for size in sizes_hw) < 1:
            raise unreadable(path, f"its levels are {sizes_hw[:4]}")
        self._tiles_hw = [_tile_hw(properties, level) for level in range(len(sizes_hw))]
        for tile_hw in self._tiles_hw:  # OpenSlide ends the process if there is not enough memory for a tile
            common.check_block(path, tile_hw, 4, options)
        self._background = _background(properties)
        self._bytes_per_pixel = path.stat().st_size / sum(height * width for height, width in sizes_hw)
        levels, spacing = common.ratio_levels(sizes_hw, cut_off=True), _spacing_m_yx(properties)
        texts = {name: common.clip_text(text) for name, text in list(properties.items())[:200]}
        uint8, tile_hw = np.dtype(np.uint8), self._tiles_hw[0]
        self.info = ImageInfo(levels, 3, uint8, "rgb", False, spacing, tile_hw=tile_hw, properties=texts)

    def read(self, level: int, box_yxyx: Window) -> NDArray[Any]:
        """Read a window; see :class:`~tnet.scenes.readers.base.Reader`."""
        common.check_window(self._path, self.info, level, box_yxyx)
        y0, x0, y1, x1 = box_yxyx
        down = self._downsamples[level]
        with guarded(self._path):
            slide = self._current()
            try:
                region = slide.read_region((round(x0 * down), round(y0 * down)), level, (x1 - x0, y1 - y0))
            except Exception as error:
                # After an error OpenSlide refuses all further reads; undamaged areas should stay readable.
                with self._lock:
                    if self._slide is slide:
                        self._slide = None
                check_resources(self._path, error)
                reason = f"window {box_yxyx} of level {level} is damaged ({one_line(error)})"
                raise unreadable(self._path, reason) from error
            rgba = np.asarray(region)
        pixels = rgba[..., :3].copy()
        # Partial alpha marks seams, which OpenSlide leaves between tiles that it has to shift.
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

    def _current(self) -> OpenSlide:
        import openslide

        with self._lock:
            if self._slide is None:
                self._slide = openslide.OpenSlide(self._path)
            return self._slide

    def _count(self, level: int, box_yxyx: Window) -> None:
        """Count the tiles of a window at the file's mean bytes per pixel: OpenSlide does not report its reads."""
        tile_height, tile_width = self._tiles_hw[level]
        y0, x0, y1, x1 = box_yxyx
        tiles = ((y1 - 1) // tile_height - y0 // tile_height + 1) * ((x1 - 1) // tile_width - x0 // tile_width + 1)
        with self._lock:
            self.tiles_read += tiles
            self.bytes_read += round(tiles * tile_height * tile_width * self._bytes_per_pixel)


def _tile_hw(properties: dict[str, str], level: int) -> tuple[int, int]:
    """Size of the stored tiles; 256 for formats whose tiles OpenSlide does not report."""
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
    try:
        red, green, blue = bytes.fromhex(properties.get("openslide.background-color", ""))
    except ValueError:
        return (255, 255, 255)
    return (red, green, blue)


def _score(content: Content) -> int:
    """Best for slides; a stand-in for tiled 8-bit RGB TIFFs."""
    if content.is_slide:
        return 10
    header = content.tiff
    if header is None or header.has_geo_keys or header.compression not in TIFFFILE_COMPRESSIONS:
        return 0
    return 2


READERS.register("openslide")(
    ReaderEntry(OpenSlideReader, _score, ("openslide",), ("openslide-python", "openslide-bin"), "wsi", has_library=True)
)
