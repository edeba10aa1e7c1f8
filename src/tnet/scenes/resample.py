"""Resample a box of a stored level to a glimpse, at exact positions and in bounded memory.

The area outside the image is filled first, in whole pixels, and the filter sees only the window of the box: a glimpse
does not depend on the surroundings of its box. Positions in the level are fractional.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Num
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from tnet.scenes.base import LevelBox, Resize, Window

# Smaller windows are resized in one go; larger ones have their columns resized in bands of rows first, then their rows,
# so that the extra memory of a glimpse hardly depends on the size of the image.
CHUNK_BYTES = 8 * 2**20
BAND_BYTES = 2**20

# Rows are read in whole tiles, so that none is decoded twice, at least this much at a time, unless a row of tiles is
# larger than the second limit.
_READ_BYTES = 8 * 2**20
_MAX_READ_BYTES = 64 * 2**20

_SPARSE = 8  # reduction from which plain bilinear resizing reads only the rows that it needs
_SNAP_PX = 1e-6  # rounding error of a position that is a whole number


@dataclass(frozen=True)
class LevelPixels:
    """Access to the pixels of one stored level."""

    size_hw: tuple[int, int]  # as stored
    # Size of the image in pixels of this level, rounded up: a pixel more than is stored if the level was cut down to
    # whole pixels. The last stored pixel is then repeated.
    extent_hw: tuple[int, int]
    read: Callable[[Window], NDArray[Any]]  # a window inside the stored pixels, [height, width, stored channels]
    prepare: Callable[[NDArray[Any]], NDArray[Any]]  # rows that were read to [height, width, channels] of dtype
    channels: int
    dtype: np.dtype[Any]  # uint8, or float32 in [0, 1]
    pixel_bytes: int  # as read
    tile_rows: int | None  # height of the stored tiles; None if reading is free, so that a window is read in one go


def interpolate(
    pixels: Num[Tensor, "n channels _ _"], size_hw: tuple[int, int], resize: Resize
) -> Num[Tensor, "n channels _ _"]:
    """Resize whole images; returns the same tensor if they have that size already."""
    if tuple(pixels.shape[-2:]) == size_hw:
        return pixels
    if resize == "bilinear" and pixels.dtype == torch.uint8 and pixels.shape[-2] > _SPARSE * size_hw[0]:
        # PyTorch resizes the width of every row first, though most rows are then unused.
        rows = _rows_between(pixels.shape[-2], size_hw[0]).to(pixels.device)
        narrow = pixels.new_zeros(*pixels.shape[:-1], size_hw[1])
        narrow[:, :, rows] = _interpolate(pixels[:, :, rows], (len(rows), size_hw[1]), resize)
        pixels = narrow
    return _interpolate(pixels, size_hw, resize)


def _interpolate(pixels: Tensor, size_hw: tuple[int, int], resize: Resize) -> Tensor:
    exact = pixels.float() if pixels.dtype == torch.uint8 and size_hw[1] == 1 else pixels
    resized = F.interpolate(exact, size_hw, mode="bilinear", align_corners=False, antialias=resize == "antialias")
    # PyTorch's uint8 kernels return wrong values, or an internal error, for a result one pixel wide (seen in 2.15).
    return resized if exact is pixels else resized.round().to(torch.uint8)


def _rows_between(height: int, size: int) -> Int[Tensor, " rows"]:
    """Return the rows that the result's rows lie between, and a neighbour each way as a margin for rounding."""
    centre = ((torch.arange(size, dtype=torch.float64) + 0.5) * height / size - 0.5).floor().long()
    return (centre[:, None] + torch.arange(-1, 3)).clamp(0, height - 1).unique()


def resample(
    level: LevelPixels, box_yxyx: LevelBox, size_px: int, *, resize: Resize, fill: Sequence[float]
) -> Float[Tensor, "channels size size"]:
    """Resample a box, in fractional pixels of a level, to a glimpse ``size_px`` squared: ``float32`` in [0, 1].

    If the box lies on whole ``uint8`` pixels, the result equals that of :class:`tnet.scenes.TensorBatch` for the same
    pixels bit for bit; in all other cases nothing is rounded. ``fill`` (outside) is one value or one per channel.
    """
    y0, x0, y1, x1 = box = tuple(_snap(position) for position in box_yxyx)
    top, left, bottom, right = window = (math.floor(y0), math.floor(x0), math.ceil(y1), math.ceil(x1))
    fill_values = np.broadcast_to(np.asarray(fill, dtype=np.float32), level.channels)
    if level.dtype == np.uint8:
        fill_values = (fill_values * 255).round().astype(np.uint8)
    dtype = level.dtype if box == window else np.dtype(np.float32)
    height, width = bottom - top, right - left
    row_bytes = width * level.channels * dtype.itemsize
    if height * row_bytes <= CHUNK_BYTES:
        ((_, pixels),) = _pieces(level, window, fill_values, height, height)
        pixels = pixels.astype(dtype, copy=False)
    else:
        pixels = np.empty((height, size_px, level.channels), dtype)
        rows_to_read, rows_to_resize = _rows_to_read(level, width), max(1, BAND_BYTES // row_bytes)
        for row, band in _pieces(level, window, fill_values, rows_to_read, rows_to_resize):
            rows = band.shape[0]
            across = (0, x0 - left, rows, x1 - left)
            pixels[row : row + rows] = _resized(band.astype(dtype, copy=False), across, (rows, size_px), resize)
        x0, x1, left = 0, size_px, 0
    glimpse = _resized(pixels, (y0 - top, x0 - left, y1 - top, x1 - left), (size_px, size_px), resize)
    result = _tensor(glimpse).permute(2, 0, 1).contiguous().float()
    return result / 255 if level.dtype == np.uint8 else result


def _snap(position: float) -> float:
    nearest = round(position)
    return float(nearest) if abs(position - nearest) < _SNAP_PX else position


def _pieces(
    level: LevelPixels, window: Window, fill_values: NDArray[Any], rows_to_read: int, rows: int
) -> Iterator[tuple[int, NDArray[Any]]]:
    """Yield bands of at most ``rows`` rows of a window, filled outside the image, each with its first row."""
    top, left, bottom, right = window
    x0, x1 = _clip(left, right, level.extent_hw[1])
    start = top
    while start < bottom:
        # Reads are aligned to rows of tiles, counted from the first of the level.
        stop = bottom if rows_to_read >= bottom - top else min(bottom, (start // rows_to_read + 1) * rows_to_read)
        y0, y1 = _clip(start, stop, level.extent_hw[0])
        stored = _read(level, (y0, x0, y1, x1)) if y1 > y0 and x1 > x0 else None
        for first in range(start, stop, rows):
            last = min(first + rows, stop)
            band = stored[max(first - y0, 0) : max(last - y0, 0)] if stored is not None else None
            inside_yx = (max(y0 - first, 0), x0 - left)
            yield first - top, _filled(level, band, (last - first, right - left), inside_yx, fill_values)
        start = stop


def _rows_to_read(level: LevelPixels, width: int) -> int:
    row_bytes = width * level.pixel_bytes
    if level.tile_rows is None:
        return sys.maxsize
    rows = level.tile_rows * max(1, _READ_BYTES // (row_bytes * level.tile_rows))
    return rows if rows * row_bytes <= _MAX_READ_BYTES else max(1, _MAX_READ_BYTES // row_bytes)


def _clip(start: int, stop: int, extent: int) -> tuple[int, int]:
    return min(max(start, 0), extent), min(max(stop, 0), extent)


def _read(level: LevelPixels, window: Window) -> NDArray[Any]:
    """Read a window inside the image, of which the last row and column may not be stored."""
    (height, width), (y0, x0, y1, x1) = level.size_hw, window
    first_y, first_x = min(y0, height - 1), min(x0, width - 1)
    pixels = level.read((first_y, first_x, max(min(y1, height), first_y + 1), max(min(x1, width), first_x + 1)))
    missing = (y1 - y0 - pixels.shape[0], x1 - x0 - pixels.shape[1])
    return np.pad(pixels, ((0, missing[0]), (0, missing[1]), (0, 0)), mode="edge") if any(missing) else pixels


def _filled(
    level: LevelPixels, rows: NDArray[Any] | None, size_hw: tuple[int, int], at_yx: tuple[int, int], fill: NDArray[Any]
) -> NDArray[Any]:
    """Prepare rows for resizing, with ``fill`` around them."""
    pixels = level.prepare(rows) if rows is not None and rows.size else None
    if pixels is not None and pixels.shape[:2] == size_hw:
        return pixels
    filled = np.empty((*size_hw, level.channels), level.dtype)
    filled[:] = fill
    if pixels is not None:
        (y, x), (height, width) = at_yx, pixels.shape[:2]
        filled[y : y + height, x : x + width] = pixels
    return filled


def _resized(pixels: NDArray[Any], box_yxyx: LevelBox, size_hw: tuple[int, int], resize: Resize) -> NDArray[Any]:
    """Resize a box of an array: the whole array in its own type, any other box of a ``float32`` array."""
    if box_yxyx == (0, 0, *pixels.shape[:2]):
        whole = _tensor(pixels).permute(2, 0, 1)[None]
        return interpolate(whole, size_hw, resize)[0].permute(1, 2, 0).numpy()
    if resize == "antialias":
        y0, x0, y1, x1 = box_yxyx
        planes = [Image.fromarray(np.ascontiguousarray(pixels[..., c])) for c in range(pixels.shape[2])]
        size, box = size_hw[::-1], (x0, y0, x1, y1)
        resized = [np.asarray(plane.resize(size, Image.Resampling.BILINEAR, box=box)) for plane in planes]
        return np.stack(resized, axis=-1)
    for axis, size_px in enumerate(size_hw):
        pixels = _two_taps(pixels, axis, box_yxyx[axis], box_yxyx[axis + 2], size_px)
    return pixels


def _two_taps(pixels: NDArray[Any], axis: int, start: float, stop: float, size_px: int) -> NDArray[Any]:
    """Interpolate linearly along one axis, at the centres of the result's pixels."""
    last = pixels.shape[axis] - 1
    centres = start + (np.arange(size_px) + 0.5) * ((stop - start) / size_px)
    position = (centres - 0.5).clip(0, last)
    low = np.floor(position).astype(np.intp)
    weight = (position - low).astype(np.float32).reshape([-1 if other == axis else 1 for other in range(pixels.ndim)])
    near, far = pixels.take(low, axis), pixels.take(np.minimum(low + 1, last), axis)
    return near + (far - near) * weight


def _tensor(pixels: NDArray[Any]) -> Tensor:
    return torch.from_numpy(pixels if pixels.flags.writeable else pixels.copy())
