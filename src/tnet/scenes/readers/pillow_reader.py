"""Images that are decoded as a whole, by Pillow: JPEG, PNG, WebP, BMP, GIF, AVIF, JPEG 2000, flat TIFF.

Palette, CMYK, YCbCr and HSV become RGB, a transparent colour becomes alpha, and of 16-bit colour only the high byte is
returned (Pillow offers no more); 16- and 32-bit grey are unchanged. ``series`` chooses the frame or page. A JPEG can be
decoded at 1/2, 1/4 and 1/8; these are offered as stored levels, whose last pixels may stand for fewer level-0 pixels.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms, ImageFile, JpegImagePlugin

from tnet.scenes.base import Window
from tnet.scenes.decode import decode, is_16_bit_grey, orientation_of, pillow_limit, read_header
from tnet.scenes.guard import guarded, open_file, unreadable
from tnet.scenes.readers.base import READERS, Color, ImageInfo, Reader, ReaderEntry, ReaderOptions, StoredLevel
from tnet.scenes.readers.common import INVERSE_ORIENTATION, SrgbTransform, check_window, clip_text, oriented
from tnet.scenes.readers.content import Content
from tnet.scenes.readers.tiff_header import read_tiff_header

_FLAT_PX = 1 << 24  # a flat TIFF of more pixels is better read by rows than as a whole


class _Form(NamedTuple):
    mode: str  # to convert to; empty for none
    dtype: np.dtype[Any]
    color: Color
    has_alpha: bool

    @property
    def channels(self) -> int:
        return (3 if self.color == "rgb" else 1) + self.has_alpha


def open_pillow(path: Path, options: ReaderOptions) -> Reader:
    """Open an image that is decoded as a whole."""
    reader = PillowReader(path, options)
    orientation = reader.orientation
    if reader.is_turned:  # by Pillow itself
        orientation = 1 if options.apply_orientation else INVERSE_ORIENTATION.get(orientation, orientation)
    elif not options.apply_orientation:
        orientation = 1
    return oriented(reader, orientation)


class PillowReader:
    """An image as it is stored; safe in several threads.

    A window costs decoding the whole level, which is kept until another level is read. A level that is read as a whole
    is returned and not kept.
    """

    thread_safe = True

    def __init__(self, path: Path, options: ReaderOptions) -> None:
        self._path, self._options = path, options
        self._lock = threading.Lock()
        self._kept: tuple[int, NDArray[Any]] | None = None
        self.bytes_read = self.tiles_read = 0
        with self._opened() as image:
            self._size_px = image.size
            self._form = _form(image)
            can_draft = isinstance(image, JpegImagePlugin.JpegImageFile) and len(image.tile) == 1
            self._factors = [n for n in (1, 2, 4, 8) if min(image.size) >= n] if can_draft else [1]
            self.orientation = orientation_of(image)
            self.is_turned = image.format == "TIFF"  # Pillow turns it upright by itself
            properties = {"format": str(image.format), "mode": image.mode}
            properties |= {"dpi": clip_text(image.info["dpi"])} if "dpi" in image.info else {}
        spacing = read_tiff_header(path).spacing_m_yx if self.is_turned else None
        if spacing and self.orientation >= 5:
            spacing = (spacing[1], spacing[0])
        (width, height), form = self._size_px, self._form
        levels = tuple(StoredLevel((-(-height // n), -(-width // n)), (float(n), float(n))) for n in self._factors)
        described = (levels, form.channels, form.dtype, form.color, form.has_alpha)
        self.info = ImageInfo(*described, spacing, properties=properties)

    def read(self, level: int, box_yxyx: Window) -> NDArray[Any]:
        """Read a window; see :class:`~tnet.scenes.readers.base.Reader`."""
        check_window(self._path, self.info, level, box_yxyx)
        y0, x0, y1, x1 = box_yxyx
        is_whole = box_yxyx == (0, 0, *self.info.levels[level].size_hw)
        with self._lock:
            if self._kept is None or self._kept[0] != level:
                self._kept = None  # before the next is decoded, so that there are never two
                pixels = self._decode(level)
                if is_whole:
                    return pixels
                self._kept = (level, pixels)
            return self._kept[1][y0:y1, x0:x1].copy()

    def close(self) -> None:
        """Release the decoded image; no file is open between reads."""
        with self._lock:
            self._kept = None

    @contextmanager
    def _opened(self) -> Iterator[ImageFile.ImageFile]:
        series, max_pixels = self._options.series, self._options.max_pixels
        with open_file(self._path) as stream, guarded(self._path):
            image = read_header(stream, self._path, max_pixels)
            try:
                if series:
                    image.seek(series)
            except EOFError as error:
                raise unreadable(self._path, f"it has no image series={series}", "give one, counted from 0") from error
            if image.width * image.height > max_pixels:
                reason = f"its image {series} has {image.width:,} x {image.height:,} pixels, over the limit "
                raise unreadable(self._path, f"{reason}max_pixels={max_pixels:,}", "raise max_pixels")
            yield image

    def _decode(self, level: int) -> NDArray[Any]:
        factor = self._factors[level]
        width, height = self._size_px
        with self._opened() as image:
            if image.size != self._size_px or _form(image) != self._form:
                raise unreadable(self._path, "it has changed since it was opened", "open it again")
            if factor > 1:
                image.draft(None, (width // factor, height // factor))
            with pillow_limit(image.width * image.height):
                decode(image)
            pixels = self._pixels(image)
            self.bytes_read += os.fstat(image.fp.fileno()).st_size if image.fp else self._path.stat().st_size
            self.tiles_read += 1
        expected = (*self.info.levels[level].size_hw, self.info.channels)
        if pixels.shape != expected or pixels.dtype != self.info.dtype:
            raise unreadable(self._path, f"its header says {expected}, but it holds {pixels.shape} {pixels.dtype}")
        return pixels

    def _pixels(self, image: ImageFile.ImageFile) -> NDArray[Any]:
        form = self._form
        profile = image.info.get("icc_profile") if self._options.apply_icc else None
        converted: Image.Image = image
        if profile and image.mode == "CMYK":
            source, srgb = ImageCms.ImageCmsProfile(BytesIO(profile)), ImageCms.createProfile("sRGB")
            in_rgb = ImageCms.profileToProfile(image, source, srgb, outputMode="RGB")
            assert in_rgb is not None  # None only for in-place conversion
            converted, profile = in_rgb, None
        if form.mode and converted.mode != form.mode:
            converted = converted.convert(form.mode)
        pixels = np.asarray(converted).astype(form.dtype, copy=False)
        pixels = pixels[..., None] if pixels.ndim == 2 else pixels
        if form.has_alpha and pixels.shape[2] == 1:  # 16-bit grey with a transparent value
            alpha = np.where(pixels == image.info["transparency"], 0, 65535).astype(np.uint16)
            pixels = np.concatenate([pixels, alpha], axis=2)
        return SrgbTransform(profile)(pixels) if profile and form.color == "rgb" else pixels


def _form(image: ImageFile.ImageFile) -> _Form:
    mode, transparency = image.mode, image.has_transparency_data
    if is_16_bit_grey(image):
        return _Form("", np.dtype(np.uint16), "grey", isinstance(image.info.get("transparency"), int))
    if mode in ("I", "F"):
        return _Form("", np.dtype(np.int32 if mode == "I" else np.float32), "grey", False)
    if mode in ("1", "L", "LA", "La"):
        return _Form("LA" if transparency else "L", np.dtype(np.uint8), "grey", transparency)
    return _Form("RGBA" if transparency else "RGB", np.dtype(np.uint8), "rgb", transparency)


def _score(content: Content) -> int:
    """Best for what nobody else reads, and for small flat TIFFs and those in CMYK, CIELAB or YCbCr; else a stand-in."""
    if content.is_folder or content.is_slide:
        return 0
    header = content.tiff
    if header is None:
        return 1 if content.is_jp2 else 0 if content.is_vrt else 8
    if not header.has_geo_keys:
        if header.photometric in (5, 8) or (header.photometric == 6 and header.compression not in (6, 7)):
            return 8
        if header.pixels <= _FLAT_PX and not (header.is_tiled or header.is_pyramidal):
            return 8
    return int(header.count == 1 and not header.is_pyramidal)


READERS.register("pillow")(ReaderEntry(open_pillow, _score, modules=("PIL",), packages=("pillow",)))
