"""Pictures that are decoded as a whole: JPEG, PNG, WebP, BMP, GIF, AVIF, JPEG 2000, flat TIFF.

Decoded by Pillow, and only the formats that :mod:`tnet.scenes.decode` allows. What becomes of the stored colours:

======================================  ==============================================================
stored as                               handed out as
======================================  ==============================================================
8-bit grey, RGB, with or without alpha  as it is
1 bit                                   grey, 0 and 255
palette, CMYK, YCbCr, HSV               RGB
transparent colour                      alpha
16-bit grey                             ``uint16``
16-bit colour                           its high byte (Pillow knows no more)
32-bit integer, floating point          grey, ``int32`` or ``float32``
animation, several pages                the one that ``series`` names
======================================  ==============================================================

Of a JPEG the decoder can make 1/2, 1/4 and 1/8 directly; these are offered as stored levels. Their sizes are rounded
up, so that their last pixels may stand for less than the others.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile, JpegImagePlugin

from tnet.scenes.decode import is_16_bit_grey, orientation_of, pillow_limit, read_header
from tnet.scenes.guard import guarded, open_file, unreadable
from tnet.scenes.readers.base import Color, ImageInfo, Reader, ReaderOptions, StoredLevel
from tnet.scenes.readers.common import (
    INVERSE_ORIENTATION,
    SrgbTransform,
    check_window,
    clip_text,
    oriented,
)

_RESOLUTION_KEYS = ("dpi",)


class _Form(NamedTuple):
    """What a picture of one Pillow mode is handed out as."""

    mode: str  # to convert to; empty for none
    dtype: np.dtype[Any]
    color: Color
    has_alpha: bool

    @property
    def channels(self) -> int:
        return (3 if self.color == "rgb" else 1) + self.has_alpha


def open_pillow(path: Path, options: ReaderOptions) -> Reader:
    """Open a picture that is decoded as a whole.

    Args:
        path: of the file.
        options: ``max_pixels`` is held against the header.

    Raises:
        ImageError: it is missing, empty, damaged, too large or of an unknown kind.
    """
    reader = PillowReader(path, options)
    orientation = reader.orientation
    if reader.is_turned:  # by Pillow itself
        orientation = 1 if options.apply_orientation else INVERSE_ORIENTATION.get(orientation, orientation)
    elif not options.apply_orientation:
        orientation = 1
    return oriented(reader, orientation)


class PillowReader:
    """A picture as it is stored; see the module.

    A window of it costs decoding the whole, which is kept until another level is asked for. A level that is asked for
    as a whole is handed over and not kept. Safe in several threads.

    Args:
        path: of the file.
        options: see :class:`~tnet.scenes.readers.base.ReaderOptions`.

    Attributes:
        orientation: EXIF orientation, 1 to 8.
        is_turned: Pillow turns this format upright by itself.
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
            self._factors = _draft_factors(image)
            self.orientation = orientation_of(image)
            self.is_turned = image.format == "TIFF"
            properties = {"format": str(image.format), "mode": image.mode}
            properties |= {name: clip_text(image.info[name]) for name in _RESOLUTION_KEYS if name in image.info}
        width, height = self._size_px
        self.info = ImageInfo(
            levels=tuple(
                StoredLevel((-(-height // factor), -(-width // factor)), (float(factor), float(factor)))
                for factor in self._factors
            ),
            channels=self._form.channels,
            dtype=self._form.dtype,
            color=self._form.color,
            has_alpha=self._form.has_alpha,
            properties=properties,
        )

    def read(self, level: int, box_yxyx: tuple[int, int, int, int]) -> NDArray[Any]:
        """Pixels of a window; see :class:`~tnet.scenes.readers.base.Reader`."""
        check_window(self._path, self.info, level, box_yxyx)
        y0, x0, y1, x1 = box_yxyx
        is_whole = box_yxyx == (0, 0, *self.info.levels[level].size_hw)
        with self._lock:
            if self._kept is None or self._kept[0] != level:
                self._kept = None  # before the next is made, so that there are never two
                pixels = self._decode(level)
                if is_whole:
                    return pixels
                self._kept = (level, pixels)
            return self._kept[1][y0:y1, x0:x1].copy()

    def close(self) -> None:
        """Forget the decoded picture; no file is open between reads."""
        with self._lock:
            self._kept = None

    @contextmanager
    def _opened(self) -> Iterator[ImageFile.ImageFile]:
        series, max_pixels = self._options.series, self._options.max_pixels
        with open_file(self._path) as stream, guarded(self._path):
            image = read_header(stream, self._path, max_pixels)
            if series:
                self._seek(image, series)
            yield image

    def _seek(self, image: ImageFile.ImageFile, series: int) -> None:
        try:
            image.seek(series)
        except EOFError as error:
            raise unreadable(
                self._path, f"series {series} was asked for, but it holds fewer images", "name one, counted from 0"
            ) from error
        if image.width * image.height > self._options.max_pixels:
            raise unreadable(
                self._path,
                f"image {series} of it has {image.width:,} x {image.height:,} pixels, over the limit "
                f"max_pixels={self._options.max_pixels:,}",
                "raise max_pixels if there is memory for it",
            )

    def _decode(self, level: int) -> NDArray[Any]:
        factor = self._factors[level]
        width, height = self._size_px
        with self._opened() as image:
            if image.size != self._size_px or _form(image) != self._form:
                raise unreadable(self._path, "it has changed since it was opened", "open it again")
            if factor > 1:
                image.draft(None, (width // factor, height // factor))
            with pillow_limit(image.width * image.height):
                image.load()
            pixels = self._pixels(image)
            self.bytes_read += os.fstat(image.fp.fileno()).st_size if image.fp else self._path.stat().st_size
            self.tiles_read += 1
        expected = (*self.info.levels[level].size_hw, self.info.channels)
        if pixels.shape != expected or pixels.dtype != self.info.dtype:
            raise unreadable(
                self._path, f"its header says {expected}, but it holds {pixels.shape} {pixels.dtype}", "save it again"
            )
        return pixels

    def _pixels(self, image: ImageFile.ImageFile) -> NDArray[Any]:
        form = self._form
        profile = image.info.get("icc_profile") if self._options.apply_icc else None
        picture: Image.Image = image
        if profile and image.mode == "CMYK":
            picture = _cmyk_to_srgb(image, profile)
            profile = None
        if form.mode and picture.mode != form.mode:
            picture = picture.convert(form.mode)
        pixels = np.asarray(picture)
        if pixels.ndim == 2:
            pixels = pixels[..., None]
        if pixels.dtype != form.dtype:
            pixels = pixels.astype(form.dtype)
        if form.has_alpha and pixels.shape[2] == 1:  # a transparent level of 16-bit grey
            alpha = np.where(pixels == image.info["transparency"], 0, 65535).astype(np.uint16)
            pixels = np.concatenate([pixels, alpha], axis=2)
        if profile and form.color == "rgb":  # levels of grey have no colours to correct
            pixels = SrgbTransform(profile)(pixels)
        return pixels


def _form(image: ImageFile.ImageFile) -> _Form:
    mode, transparency = image.mode, image.has_transparency_data
    uint8 = np.dtype(np.uint8)
    if is_16_bit_grey(image):
        return _Form("", np.dtype(np.uint16), "grey", isinstance(image.info.get("transparency"), int))
    if mode == "I":
        return _Form("", np.dtype(np.int32), "grey", False)
    if mode == "F":
        return _Form("", np.dtype(np.float32), "grey", False)
    if mode in ("1", "L", "LA", "La"):
        return _Form("LA" if transparency else "L", uint8, "grey", transparency)
    return _Form("RGBA" if transparency else "RGB", uint8, "rgb", transparency)


def _draft_factors(image: ImageFile.ImageFile) -> tuple[int, ...]:
    if not isinstance(image, JpegImagePlugin.JpegImageFile) or len(image.tile) != 1:
        return (1,)
    return tuple(factor for factor in (1, 2, 4, 8) if min(image.size) >= factor)


def _cmyk_to_srgb(image: Image.Image, profile: bytes) -> Image.Image:
    from io import BytesIO

    from PIL import ImageCms

    converted = ImageCms.profileToProfile(
        image, ImageCms.ImageCmsProfile(BytesIO(profile)), ImageCms.createProfile("sRGB"), outputMode="RGB"
    )
    assert converted is not None  # only in place is there nothing to return
    return converted
