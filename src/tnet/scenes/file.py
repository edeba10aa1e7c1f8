"""An image in a file of any format and size, of which only the seen regions are read."""

from __future__ import annotations

import math
import os
import stat
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Any

from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from tnet.errors import ConfigError, SlowImageWarning
from tnet.scenes import cache
from tnet.scenes.base import BoxL0, Resize, Window, check_look
from tnet.scenes.channels import Alpha, map_channels
from tnet.scenes.guard import accessing, guarded, unreadable
from tnet.scenes.readers import open_reader
from tnet.scenes.readers.base import GeoReference, ImageInfo, Reader, ReaderOptions
from tnet.scenes.resample import LevelPixels, resample

# A level may be this much coarser than requested: sizes of levels are rounded to whole pixels, so a level at half the
# resolution is rarely at exactly half.
_TOLERANCE = 0.01

_WARN_FLAT_PX = 50_000_000  # an image that is decoded as a whole: seconds, and 150 MB
_WARN_TILED_PX = 1_000_000_000  # a tiled image's coarsest level, all of which the first glimpse reads

# Larger values are a damaged header, or would not end: a row must fit into memory, the coarsest level is read whole.
_MAX_SIDE_PX = 2**24
_MAX_COARSEST_PX = 2**36


@dataclass(frozen=True)
class SceneOptions:
    """How the values in a file become pixels.

    Attributes:
        reader: name of the reader; ``None`` for the one that suits the content.
        read: options of the reader.
        bands: stored bands to use, counted from 0; ``None`` for those that suit the model
            (:mod:`tnet.scenes.channels`).
        alpha: background of transparent pixels, ``white`` or ``black``.
        value_range: stored values that become 0 and 1; ``None`` for the full range of 8 and 16 bits. Required for other
            types.
    """

    reader: str | None = None
    read: ReaderOptions = field(default_factory=ReaderOptions)
    bands: tuple[int, ...] | None = None
    alpha: Alpha = "white"
    value_range: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        if self.bands is not None and (not self.bands or min(self.bands) < 0):
            raise ConfigError(f"bands is {self.bands}; give at least one band, counted from 0")
        if self.alpha not in ("white", "black"):
            raise ConfigError(f"alpha is {self.alpha!r}; give white or black")
        if self.value_range is not None:
            low, high = self.value_range
            if not (math.isfinite(low) and math.isfinite(high) and low < high):
                raise ConfigError(f"value_range is {self.value_range}; give two numbers, the smaller one first")


class FileScene:
    """One image in a file.

    The file is opened at its first use in each process: a scene pickles as its path and options. Open files and images
    that can only be decoded as a whole are kept in pools per process (:mod:`tnet.scenes.cache`). A glimpse reads the
    coarsest level whose resolution is at or above the requested one in both directions (within 1%).

    Args:
        path: a file, or the folder of an OME-Zarr.
        options: how stored values become pixels; see also :mod:`tnet.scenes.channels`.

    Raises:
        ImageError: on first use: the file is missing, damaged, unsupported, was replaced since it was first opened, or
            cannot be converted as requested.
    """

    def __init__(self, path: str | os.PathLike[str], options: SceneOptions | None = None) -> None:
        self.path = Path(path)
        self.options = options or SceneOptions()
        self.name = str(path)
        self._info: ImageInfo | None = None
        self._key: cache.FileKey | None = None

    def __reduce__(self) -> tuple[type[FileScene], tuple[Path, SceneOptions]]:
        return type(self), (self.path, self.options)

    def __repr__(self) -> str:
        return f"FileScene({self.name!r})"

    @property
    def info(self) -> ImageInfo:
        """Description of the image; opens the file."""
        if self._info is None:
            key = self._file_key()
            with self._reader(key) as reader:
                info = reader.info
            if not info.is_current:  # another scene opened the folder before it was written again
                cache.readers.close(key)
                cache.decoded.drop(key)
                with self._reader(key) as reader:
                    info = reader.info
            self._check_size(info)
            self._key, self._info = key, info
            self._warn_if_slow(info)
        return self._info

    @property
    def size_hw(self) -> tuple[int, int]:
        """Height and width, level-0 pixels."""
        return self.info.levels[0].size_hw

    @property
    def levels(self) -> tuple[tuple[int, int], ...]:
        """Height and width of each stored resolution, finest first."""
        return tuple(level.size_hw for level in self.info.levels)

    @property
    def spacing_m_yx(self) -> tuple[float, float] | None:
        """Physical height and width of a level-0 pixel in metres; ``None`` if unknown."""
        return self.info.spacing_m_yx

    @property
    def georeference(self) -> GeoReference | None:
        """Position on a map; ``None`` if unknown."""
        return self.info.georeference

    @property
    def stats(self) -> cache.FileStats:
        """What this process has read of the file since it was opened, through any scene."""
        return cache.readers.stats(self._key or self._file_key())

    def close(self) -> None:
        """Close the file and drop its pixels; it is reopened at the next use."""
        if self._key is not None:
            cache.readers.close(self._key)
            cache.decoded.drop(self._key)
        self._info = self._key = None

    def level_for(self, box_l0_yxyx: BoxL0, size_px: int) -> int:
        """Return the index of the stored level that a glimpse is made from."""
        y0, x0, y1, x1 = box_l0_yxyx
        levels = self.info.levels
        full_hw = levels[0].size_hw
        wanted_px = size_px * (1 - _TOLERANCE)
        for index in range(len(levels) - 1, 0, -1):
            down_y, down_x = levels[index].downsample_yx
            axes = zip(levels[index].size_hw, (down_y, down_x), full_hw, strict=True)
            # A thumbnail of another shape is not a reduction.
            is_reduction = all(abs(stored * down - full) <= 2 * down + 0.01 * full for stored, down, full in axes)
            if is_reduction and (y1 - y0) / down_y >= wanted_px and (x1 - x0) / down_x >= wanted_px:
                return index
        return 0

    def glimpse(
        self, box_l0_yxyx: BoxL0, size_px: int, *, channels: int, resize: Resize, fill: Sequence[float]
    ) -> Float[Tensor, "channels size size"]:
        """Return the pixels of one box; see :meth:`tnet.scenes.Scene.glimpse`."""
        y0, x0, y1, x1 = box_l0_yxyx
        check_look(box_l0_yxyx, size_px)
        index = self.level_for(box_l0_yxyx, size_px)
        info, options = self.info, self.options
        mapping = map_channels(
            self.path, info, channels, bands=options.bands, alpha=options.alpha, value_range=options.value_range
        )
        key = self._file_key()
        if key != self._key or not info.is_current:
            raise unreadable(self.path, "it was replaced or modified after it was first opened", "make a new scene")
        level, (height, width) = info.levels[index], info.levels[0].size_hw
        (high, wide), (down_y, down_x) = level.size_hw, level.downsample_yx
        extent_hw = max(high, math.ceil(height / down_y - 1e-6)), max(wide, math.ceil(width / down_x - 1e-6))
        pixel_bytes, tile_rows = info.channels * info.dtype.itemsize, _tile_rows(info)
        read = partial(self._read if tile_rows else self._crop, key, index)
        prepare = partial(mapping.apply, fill=fill)
        pixels = LevelPixels(level.size_hw, extent_hw, read, prepare, channels, mapping.dtype, pixel_bytes, tile_rows)
        box = (y0 / down_y, x0 / down_x, y1 / down_y, x1 / down_x)
        return resample(pixels, box, size_px, resize=resize, fill=fill)

    def _read(self, key: cache.FileKey, level: int, window: Window) -> NDArray[Any]:
        with self._reader(key) as reader:
            pixels = reader.read(level, window)
        y0, x0, y1, x1 = window
        expected = (y1 - y0, x1 - x0, self.info.channels)
        if pixels.shape != expected or pixels.dtype != self.info.dtype:
            reason = f"level {level} has pixels {pixels.shape} of {pixels.dtype} instead of {expected}"
            raise unreadable(self.path, reason)
        return pixels

    def _crop(self, key: cache.FileKey, level: int, window: Window) -> NDArray[Any]:
        """Crop a window from a level that can only be decoded as a whole."""
        height, width = self.info.levels[level].size_hw
        nbytes = height * width * self.info.channels * self.info.dtype.itemsize
        whole = cache.decoded.get((key, level), nbytes, partial(self._read, key, level, (0, 0, height, width)))
        return whole[window[0] : window[2], window[1] : window[3]]

    @contextmanager
    def _reader(self, key: cache.FileKey) -> Iterator[Reader]:
        opener = partial(open_reader, self.path, self.options.read, self.options.reader)
        with guarded(self.path), cache.readers.lend(key, opener) as reader:
            yield reader

    def _file_key(self) -> cache.FileKey:
        with accessing(self.path):
            status = self.path.stat()
        # A folder changes whenever something is added to it, an image file only if it is written again.
        stamp: tuple[int, ...] = (status.st_dev, status.st_ino)
        if not stat.S_ISDIR(status.st_mode):
            stamp += (status.st_size, status.st_mtime_ns)
        return cache.FileKey(str(self.path.absolute()), self.options.reader, self.options.read, stamp)

    def _check_size(self, info: ImageInfo) -> None:
        (height, width), coarsest = info.levels[0].size_hw, info.levels[-1].size_hw
        if max(height, width) > _MAX_SIDE_PX:
            reason = f"it claims {height:,} x {width:,} pixels, over the limit of {_MAX_SIDE_PX:,} per side"
            raise unreadable(self.path, reason)
        if math.prod(coarsest) > _MAX_COARSEST_PX:
            reason = f"it has {height:,} x {width:,} pixels, and no smaller version with up to {_MAX_COARSEST_PX:,}"
            raise unreadable(self.path, reason, f"write one with: tnet pyramid {self.path} OUT.tif")

    def _warn_if_slow(self, info: ImageInfo) -> None:
        (height, width), coarsest = info.levels[0].size_hw, info.levels[-1].size_hw
        is_flat = _tile_rows(info) is None and height * width > _WARN_FLAT_PX
        if not is_flat and math.prod(coarsest) <= _WARN_TILED_PX:
            return
        reason = "can only be decoded as a whole" if is_flat else "has no smaller versions stored with it"
        problem = f"{self.path} has {height:,} x {width:,} pixels and {reason}, which makes glimpses slow"
        remedy = f"`tnet pyramid {self.path} OUT.tif` writes a copy that is fast to read"
        warnings.warn(f"{problem}; {remedy}", SlowImageWarning, stacklevel=3)


def _tile_rows(info: ImageInfo) -> int | None:
    """Return the height of the stored tiles; ``None`` if any window costs decoding the whole, even as a single tile."""
    if info.tile_hw is None:
        return None
    is_one_tile = all(tile >= side for tile, side in zip(info.tile_hw, info.levels[0].size_hw, strict=True))
    return None if is_one_tile else info.tile_hw[0]


def open_scene(path: str | os.PathLike[str], **options: Any) -> FileScene:
    """Open an image of any format and size as a scene.

    Example:
        >>> scene = tnet.open_scene("slide.svs")
        >>> output = model(scene)

    Args:
        path: a file, or the folder of an OME-Zarr.
        options: attributes of :class:`SceneOptions` and :class:`tnet.scenes.readers.base.ReaderOptions`, by name.

    Raises:
        ImageError: the file is missing, damaged, in an unsupported format, or its reader is not installed.
        ConfigError: an unknown or invalid option.
    """
    scene_names, reader_names = ({option.name for option in fields(kind)} for kind in (SceneOptions, ReaderOptions))
    unknown = sorted(options.keys() - scene_names - reader_names)
    if unknown:
        raise ConfigError(f"unknown option {unknown[0]}; give some of {', '.join(sorted(scene_names | reader_names))}")
    read = {name: value for name, value in options.items() if name in reader_names}
    chosen = {name: value for name, value in options.items() if name in scene_names}
    if read:
        chosen["read"] = ReaderOptions(**{**vars(chosen.get("read", ReaderOptions())), **read})
    scene = FileScene(path, SceneOptions(**chosen))
    _ = scene.info  # fail now if it cannot be opened
    return scene
