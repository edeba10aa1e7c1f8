"""Deep zoom: tiles and thumbnails of images of any size and format, read as they are asked for."""

from __future__ import annotations

import hashlib
import io
import math
import os
import threading
from collections import OrderedDict
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from tnet.scenes.base import BoxL0, Scene
from tnet.scenes.file import FileScene, SceneOptions
from tnet.scenes.guard import accessing
from tnet.scenes.overview import OverviewScene
from tnet.scenes.readers.base import GeoReference, ImageInfo
from tnet.scenes.resample import interpolate
from tnet.view.errors import NotFoundError

TILE_PX = 256
_THUMB_PX = 160
_QUALITY = 85
_MICROSCOPIC_M = 1e-3  # pixels below this are given in micrometres
_MAX_SCENES = 64  # descriptions of images; their files and overviews are pooled apart
_OVERVIEW_PX = 1024  # of images whose coarsest stored level is more than twice as large, so that each coarse tile
# does not read them whole

Stamp = tuple[int, ...]
"""What changes if a file is written again."""


def stamp_of(file: Path) -> Stamp:
    """Return the stamp of a file; raise ImageError if it is gone."""
    with accessing(file):
        status = file.stat()
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def max_level(size_hw: tuple[int, int]) -> int:
    """Return the deep zoom level of full resolution: each below has half the size, and level 0 is one pixel."""
    return (max(size_hw) - 1).bit_length()


def level_size(size_hw: tuple[int, int], level: int) -> tuple[int, int]:
    """Return height and width of a deep zoom level, pixels."""
    scale = 1 << (max_level(size_hw) - level)
    return -(-size_hw[0] // scale), -(-size_hw[1] // scale)


class Tiles:
    """Tiles, thumbnails and descriptions of images; holds a few open scenes.

    ``options`` are those of the model's images: its range of values, and its bands, of which up to three are shown.
    """

    def __init__(self, options: SceneOptions) -> None:
        self.options = options
        self._scenes: OrderedDict[tuple[str, Stamp], _Shown] = OrderedDict()
        self._lock = threading.Lock()

    def _open(self, file: Path) -> _Shown:
        """Return the scene of an image as it is now, as red, green and blue, or grey."""
        key = (str(file), stamp_of(file))
        with self._lock:
            if key in self._scenes and self._scenes[key].file.info.is_current:
                self._scenes.move_to_end(key)
                return self._scenes[key]
        scene = FileScene(file, self.options)
        scene = FileScene(file, replace(self.options, bands=_shown_bands(scene.info, self.options.bands)))
        is_coarse = max(scene.levels[-1]) <= 2 * _OVERVIEW_PX
        shown = _Shown(scene, scene if is_coarse else OverviewScene(scene, _OVERVIEW_PX, 3))
        with self._lock:
            self._scenes[key] = shown
            while len(self._scenes) > _MAX_SCENES:
                self._scenes.popitem(last=False)
        return shown

    def describe(self, file: Path) -> dict[str, Any]:
        """Return size, levels, spacing and position of an image."""
        scene = self._open(file).file
        height, width = scene.size_hw
        return {
            "width": width,
            "height": height,
            "tile_px": TILE_PX,
            "max_level": max_level(scene.size_hw),
            "spacing": _spacing(scene.spacing_m_yx, scene.georeference),
            "geo": _geo(scene.georeference),
            "format": _format(scene.info, file),
        }

    def tile(self, file: Path, level: int, col: int, row: int) -> bytes:
        """Return one tile as JPEG.

        Raises:
            NotFoundError: the image has no such tile.
            ImageError: the image cannot be read.
        """
        shown = self._open(file)
        size_hw = shown.file.size_hw
        if not 0 <= level <= max_level(size_hw):
            raise NotFoundError(f"level {level} is not one of the levels 0 to {max_level(size_hw)} of the image")
        level_hw = level_size(size_hw, level)
        rows, cols = (-(-side // TILE_PX) for side in level_hw)
        if not (0 <= row < rows and 0 <= col < cols):
            raise NotFoundError(f"level {level} has {rows} rows and {cols} columns of tiles, not row {row}, {col}")
        scale = 1 << (max_level(size_hw) - level)
        axes = zip((row, col), level_hw, size_hw, strict=True)
        y, x = (_Span.of(index, level_px, full_px, scale) for index, level_px, full_px in axes)
        pixels = _fitted(_glimpse(shown.pixels, (y.start, x.start, y.stop, x.stop), TILE_PX), y.pixels, x.pixels)
        return _jpeg(pixels[:, y.skip : y.skip + y.kept, x.skip : x.skip + x.kept])

    def thumb(self, file: Path) -> bytes:
        """Return the whole image, with a longer side of up to 160 pixels, as JPEG."""
        shown = self._open(file)
        size_hw = shown.file.size_hw
        shrink = max(1.0, max(size_hw) / _THUMB_PX)
        height, width = (max(1, round(side / shrink)) for side in size_hw)
        return _jpeg(_fitted(_glimpse(shown.pixels, (0, 0, *size_hw), _THUMB_PX), height, width))


class _Shown(NamedTuple):
    """An open image."""

    file: FileScene
    pixels: Scene  # the same, perhaps with an overview


def entity_tag(file: Path, *what: object) -> str:
    """Return the tag of something made of a file, which changes with the file."""
    return '"' + hashlib.sha256(repr((os.fspath(file), stamp_of(file), what)).encode()).hexdigest()[:32] + '"'


class _Span(NamedTuple):
    """What is read for a tile along one axis, and which part of it is the tile."""

    start: int  # level-0 pixels
    stop: int
    pixels: int  # of the level
    skip: int
    kept: int

    @classmethod
    def of(cls, index: int, level_px: int, full_px: int, scale: int) -> _Span:
        """Return the span of a tile; the last of several begins earlier, so that all are glimpses of one scale."""
        first, kept = index * TILE_PX, min(TILE_PX, level_px - index * TILE_PX)
        if scale == 1:  # past the edge, and cut off: the image's own pixels
            return cls(first, first + TILE_PX, TILE_PX, 0, kept)
        if level_px < TILE_PX:
            return cls(0, full_px, level_px, 0, level_px)
        start = min(first, level_px - TILE_PX)
        return cls(start * scale, min((start + TILE_PX) * scale, full_px), TILE_PX, first - start, kept)


def _glimpse(scene: Scene, box_l0_yxyx: BoxL0, size_px: int) -> UInt8[Tensor, "3 {size_px} {size_px}"]:
    pixels = scene.glimpse(box_l0_yxyx, size_px, channels=3, resize="antialias", fill=(1.0,))
    return torch.from_numpy(np.rint(pixels.numpy() * 255).astype(np.uint8))  # for so few, PyTorch's threads cost more


def _fitted(pixels: UInt8[Tensor, "3 _ _"], height: int, width: int) -> UInt8[Tensor, "3 {height} {width}"]:
    """Resize a square glimpse to the shape of what it shows."""
    return interpolate(pixels[None], (height, width), "antialias")[0]


def _jpeg(pixels: UInt8[Tensor, "3 _ _"]) -> bytes:
    return encoded(pixels, "JPEG", quality=_QUALITY)


def encoded(pixels: UInt8[Tensor, "channels _ _"], form: str, **options: Any) -> bytes:
    """Return pixels as an image file: of one or two channels the first, else the first three."""
    array = pixels.cpu()[:1] if pixels.shape[0] < 3 else pixels.cpu()[:3]
    file = io.BytesIO()
    rows = array[0] if len(array) == 1 else array.permute(1, 2, 0).contiguous()
    Image.fromarray(rows.numpy()).save(file, form, **options)
    return file.getvalue()


def _shown_bands(info: ImageInfo, chosen: tuple[int, ...] | None) -> tuple[int, ...] | None:
    """Return the bands that are shown of an image; ``None`` for what three channels get by default."""
    count = info.channels - info.has_alpha if chosen is None else len(chosen)
    if chosen is None and count != 2:
        return None
    bands = tuple(range(count)) if chosen is None else chosen
    return bands[:3] if count >= 3 else bands[:1]


def _spacing(spacing_m_yx: tuple[float, float] | None, place: GeoReference | None) -> dict[str, Any] | None:
    """Return height and width of a pixel in a unit that suits them."""
    if spacing_m_yx is not None:
        unit, size = ("um", 1e-6) if max(spacing_m_yx) < _MICROSCOPIC_M else ("m", 1.0)
        return {"y": spacing_m_yx[0] / size, "x": spacing_m_yx[1] / size, "unit": unit}
    if place is not None and place.crs and _is_in_degrees(place.crs):
        a, b, _, d, e, _ = place.transform
        return {"y": math.hypot(b, e), "x": math.hypot(a, d), "unit": "deg"}
    return None


def _is_in_degrees(crs: str) -> bool:
    if find_spec("rasterio") is None:
        return False
    from rasterio.crs import CRS
    from rasterio.errors import CRSError

    try:
        return bool(CRS.from_string(crs).is_geographic)
    except CRSError:
        return False


def _geo(place: GeoReference | None) -> dict[str, Any] | None:
    return None if place is None else {"crs": place.crs, "transform": list(place.transform)}


def _format(info: ImageInfo, file: Path) -> str:
    return info.properties.get("format") or info.properties.get("driver") or file.suffix.lstrip(".").upper()
