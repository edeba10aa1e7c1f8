"""An image in a file of any kind and size, of which only what is looked at is read."""

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
from typing import Any, NoReturn

from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from tnet.errors import ConfigError, GeometryError, ImageError, SlowImageWarning
from tnet.scenes import cache
from tnet.scenes.base import BoxL0, Resize, check_look
from tnet.scenes.channels import Alpha, map_channels
from tnet.scenes.guard import guarded, unreadable
from tnet.scenes.readers.base import GeoReference, ImageInfo, Reader, ReaderOptions
from tnet.scenes.resample import LevelPixels, Window, resample

# A level that is this much coarser than asked for will do: sizes of levels are rounded to whole pixels, so that a
# level at half the resolution is rarely at exactly half.
_TOLERANCE = 0.01

_WARN_FLAT_PX = 50_000_000  # of an image that is decoded as a whole: seconds, and 150 MB
_WARN_TILED_PX = 1_000_000_000  # of a tiled image's coarsest level, which the first look reads all of

# What is larger is a damaged header, or would not end: a row has to fit into memory, the coarsest level is read whole.
_MAX_SIDE_PX = 2**24
_MAX_COARSEST_PX = 2**36


@dataclass(frozen=True)
class SceneOptions:
    """How a file is to be looked at.

    Attributes:
        reader: name of the reader to use; ``None`` for the one that suits the file's content.
        read: what the reader has to know.
        bands: stored bands to take, counted from 0; ``None`` for what suits the model (:mod:`tnet.scenes.channels`).
        alpha: what transparent pixels are laid over, ``white`` or ``black``.
        value_range: stored values that become 0 and 1; ``None`` for the whole range of 8 and 16 bits. Other types have
            no range of their own and need it.
    """

    reader: str | None = None
    read: ReaderOptions = field(default_factory=ReaderOptions)
    bands: tuple[int, ...] | None = None
    alpha: Alpha = "white"
    value_range: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        if self.bands is not None and (not self.bands or min(self.bands) < 0):
            raise ConfigError(f"bands is {self.bands}; name at least one band, counted from 0")
        if self.alpha not in ("white", "black"):
            raise ConfigError(f"alpha is {self.alpha!r}; give white or black")
        if self.value_range is not None:
            low, high = self.value_range
            if not (math.isfinite(low) and math.isfinite(high) and low < high):
                raise ConfigError(f"value_range is {self.value_range}; give two numbers, the smaller one first")


class FileScene:
    """One image in a file.

    The file is opened when it is first asked about or looked at, in each process anew: a scene pickles as its path and
    options. Open files are kept in a pool of the process (:mod:`tnet.scenes.cache`) and closed when others need their
    place. Pictures that can only be decoded as a whole are kept decoded, within a budget.

    The level that is read is the coarsest whose resolution is at or above what is asked for, in both directions (1%
    below is let pass). What lies outside the image is ``fill``. Channels: see :mod:`tnet.scenes.channels`.

    Args:
        path: a file, or the folder of a format that is one.
        options: how it is looked at.

    Raises:
        ImageError: by everything that needs the file: it is missing, damaged, of an unknown kind, was replaced since
            it was first opened, or cannot be made into what is asked for. The message names the path.
    """

    def __init__(self, path: str | os.PathLike[str], options: SceneOptions | None = None) -> None:
        self.path = Path(path)
        self.options = options or SceneOptions()
        self.name = str(path)
        self._info: ImageInfo | None = None
        self._key: cache.FileKey | None = None
        self._stats: cache.FileStats | None = None  # held, so that it lasts while the file is closed

    def __reduce__(self) -> tuple[type[FileScene], tuple[Path, SceneOptions]]:
        return type(self), (self.path, self.options)

    def __repr__(self) -> str:
        return f"FileScene({self.name!r})"

    @property
    def info(self) -> ImageInfo:
        """What the file says of itself."""
        if self._info is None:
            key = self._file_key()
            with self._reader(key) as reader:
                info = reader.info
            self._refuse_absurd(info)
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
        """Where the image lies on a map; ``None`` if unknown."""
        return self.info.georeference

    @property
    def properties(self) -> dict[str, str]:
        """What else the file says, for people."""
        return self.info.properties

    @property
    def stats(self) -> cache.FileStats:
        """What this process has read of the file so far, through this scene or another."""
        _ = self.info
        assert self._key is not None
        self._stats = cache.readers.stats(self._key)
        return self._stats

    def close(self) -> None:
        """Close the file and forget its pixels; it is opened again when it is looked at again."""
        if self._key is not None:
            cache.readers.close(self._key)
            cache.decoded.drop(self._key)
        self._info = self._key = None

    def size_px_at(self, box_l0_yxyx: BoxL0, spacing_m: float) -> int:
        """Side of a glimpse that shows a box at a physical resolution.

        Args:
            box_l0_yxyx: what to look at; its longer side counts.
            spacing_m: metres a pixel of the glimpse (0.5 um is 5e-7).

        Raises:
            ImageError: the file does not say how large its pixels are.
        """
        y0, x0, y1, x1 = box_l0_yxyx
        spacing_y, spacing_x = self._known_spacing(spacing_m)
        return max(1, round(max((y1 - y0) * spacing_y, (x1 - x0) * spacing_x) / spacing_m))

    def box_hw_at(self, size_px: int, spacing_m: float) -> tuple[int, int]:
        """Height and width, in level-0 pixels, of a box that a glimpse shows at a physical resolution.

        Args:
            size_px: side of the glimpse.
            spacing_m: metres a pixel of the glimpse.

        Raises:
            ImageError: the file does not say how large its pixels are.
        """
        spacing_y, spacing_x = self._known_spacing(spacing_m)
        return max(1, round(size_px * spacing_m / spacing_y)), max(1, round(size_px * spacing_m / spacing_x))

    def level_for(self, box_l0_yxyx: BoxL0, size_px: int) -> int:
        """Index of the stored level that a glimpse is made from."""
        y0, x0, y1, x1 = box_l0_yxyx
        levels = self.info.levels
        full_hw = levels[0].size_hw
        for index in range(len(levels) - 1, 0, -1):
            level = levels[index]
            is_reduction = all(  # a thumbnail of another shape is not
                abs(stored * down - full) <= 2 * down + 0.01 * full
                for stored, down, full in zip(level.size_hw, level.downsample_yx, full_hw, strict=True)
            )
            down_y, down_x = level.downsample_yx
            wanted_px = size_px * (1 - _TOLERANCE)
            if is_reduction and (y1 - y0) / down_y >= wanted_px and (x1 - x0) / down_x >= wanted_px:
                return index
        return 0

    def glimpse(
        self, box_l0_yxyx: BoxL0, size_px: int, *, channels: int, resize: Resize, fill: Sequence[float]
    ) -> Float[Tensor, "channels size size"]:
        """Pixels of one box.

        Args:
            box_l0_yxyx: ``(y0, x0, y1, x1)`` in level-0 pixels; may reach past the image.
            size_px: side of the result.
            channels: of the result; see :mod:`tnet.scenes.channels` for how they come about.
            resize: the filter.
            fill: value outside the image, in [0, 1]: one, or one a channel.

        Returns:
            ``float32`` in [0, 1].

        Raises:
            GeometryError: an empty box or size.
        """
        y0, x0, y1, x1 = box_l0_yxyx
        check_look(box_l0_yxyx, size_px)
        index = self.level_for(box_l0_yxyx, size_px)
        info, options = self.info, self.options
        mapping = map_channels(
            self.path, info, channels, bands=options.bands, alpha=options.alpha, value_range=options.value_range
        )
        key = self._unchanged_key()
        tile_rows = _tile_rows(info)
        level = info.levels[index]
        down_y, down_x = level.downsample_yx
        height, width = info.levels[0].size_hw
        pixels = LevelPixels(
            size_hw=level.size_hw,
            extent_hw=(
                max(level.size_hw[0], math.ceil(height / down_y - 1e-6)),
                max(level.size_hw[1], math.ceil(width / down_x - 1e-6)),
            ),
            read=partial(self._read if tile_rows else self._cut, key, index),
            prepare=partial(mapping.apply, fill=fill),
            channels=channels,
            dtype=mapping.dtype,
            pixel_bytes=info.channels * info.dtype.itemsize,
            tile_rows=tile_rows,
        )
        box = (y0 / down_y, x0 / down_x, y1 / down_y, x1 / down_x)
        return resample(pixels, box, size_px, resize=resize, fill=fill)

    def _read(self, key: cache.FileKey, level: int, window: Window) -> NDArray[Any]:
        with self._reader(key) as reader:
            pixels = reader.read(level, window)
        y0, x0, y1, x1 = window
        expected = (y1 - y0, x1 - x0, self.info.channels)
        if pixels.shape != expected or pixels.dtype != self.info.dtype:
            self._refuse(f"level {level} gives pixels {pixels.shape} of {pixels.dtype} instead of {expected}")
        return pixels

    def _cut(self, key: cache.FileKey, level: int, window: Window) -> NDArray[Any]:
        """A window of a level that can only be decoded as a whole."""
        height, width = self.info.levels[level].size_hw
        nbytes = height * width * self.info.channels * self.info.dtype.itemsize
        whole = cache.decoded.get((key, level), nbytes, partial(self._read, key, level, (0, 0, height, width)))
        return whole[window[0] : window[2], window[1] : window[3]]

    @contextmanager
    def _reader(self, key: cache.FileKey) -> Iterator[Reader]:
        """A reader out of the pool; whatever goes wrong with it becomes an error that names the file."""
        self._stats = cache.readers.stats(key)
        with guarded(self.path), cache.readers.lend(key, self._open) as reader:
            yield reader

    def _open(self) -> Reader:
        from tnet.scenes.readers import open_reader

        return open_reader(self.path, self.options.read, self.options.reader)

    def _file_key(self) -> cache.FileKey:
        try:
            status = self.path.stat()
        except FileNotFoundError:
            self._refuse("there is no such file", "correct the path, or restore it")
        except (OSError, ValueError) as error:
            self._refuse(f"it cannot be reached ({error})", "correct the path")
        # A folder changes whenever something is put into it, the file of a picture only if it is written again.
        stamp: tuple[int, ...] = (status.st_dev, status.st_ino)
        if not stat.S_ISDIR(status.st_mode):
            stamp += (status.st_size, status.st_mtime_ns)
        return cache.FileKey(str(self.path.absolute()), self.options.reader, self.options.read, stamp)

    def _unchanged_key(self) -> cache.FileKey:
        key = self._file_key()
        if key != self._key:
            self._refuse("it was replaced or written to after it was first opened", "make a new scene of it")
        return key

    def _refuse(self, reason: str, remedy: str = "fetch or save it again, or leave it out") -> NoReturn:
        raise unreadable(self.path, reason, remedy)

    def _known_spacing(self, spacing_m: float) -> tuple[float, float]:
        if not spacing_m > 0:
            raise GeometryError(f"spacing_m is {spacing_m}; give metres a pixel, above 0 (0.5 um is 5e-7)")
        if self.spacing_m_yx is None:
            raise ImageError(
                f"The image {self.path} does not say how large its pixels are, so that it cannot be looked at at "
                f"{spacing_m:g} m a pixel; ask for a size in pixels."
            )
        return self.spacing_m_yx

    def _refuse_absurd(self, info: ImageInfo) -> None:
        (height, width), coarsest = info.levels[0].size_hw, info.levels[-1].size_hw
        if max(height, width) > _MAX_SIDE_PX:
            self._refuse(f"it is said to have {height:,} x {width:,} pixels, over the limit of {_MAX_SIDE_PX:,} a side")
        if math.prod(coarsest) > _MAX_COARSEST_PX:
            self._refuse(
                f"it has {height:,} x {width:,} pixels, and no smaller version with up to {_MAX_COARSEST_PX:,}",
                f"make one with: tnet pyramid {self.path} OUT.tif",
            )

    def _warn_if_slow(self, info: ImageInfo) -> None:
        first, coarsest = info.levels[0].size_hw, info.levels[-1].size_hw
        flat = _tile_rows(info) is None and math.prod(first) > _WARN_FLAT_PX
        if not flat and math.prod(coarsest) <= _WARN_TILED_PX:
            return
        what = "can only be decoded as a whole" if flat else "has no smaller versions of itself stored with it"
        warnings.warn(
            f"{self.path} has {first[0]:,} x {first[1]:,} pixels and {what}, which makes looks at it expensive; "
            f"`tnet pyramid {self.path} OUT.tif` writes a copy that is quick to look at.",
            SlowImageWarning,
            stacklevel=3,
        )


def _tile_rows(info: ImageInfo) -> int | None:
    """Height of the stored tiles; ``None`` where any window costs decoding the whole, one tile included."""
    if info.tile_hw is None:
        return None
    is_one_tile = all(tile >= side for tile, side in zip(info.tile_hw, info.levels[0].size_hw, strict=True))
    return None if is_one_tile else info.tile_hw[0]


def open_scene(path: str | os.PathLike[str], **options: Any) -> FileScene:
    """Open an image of any kind and size, to be looked at.

    Example:
        >>> scene = tnet.open_scene("slide.svs")
        >>> scene.size_hw, scene.spacing_m_yx
        >>> output = model(scene)

    Args:
        path: a file, or the folder of a format that is one.
        options: attributes of :class:`SceneOptions` and :class:`tnet.scenes.readers.base.ReaderOptions`, by name.

    Raises:
        ImageError: the file is missing, damaged, of an unknown kind, or of one whose reader is not installed.
        ConfigError: an option that does not exist or cannot be.
    """
    of_scene = {option.name for option in fields(SceneOptions)}
    of_reader = {option.name for option in fields(ReaderOptions)}
    unknown = sorted(options.keys() - of_scene - of_reader)
    if unknown:
        known = ", ".join(sorted(of_scene | of_reader))
        raise ConfigError(f"option {unknown[0]} of {path} does not exist; there are {known}")
    reading = {name: value for name, value in options.items() if name in of_reader}
    chosen = {name: value for name, value in options.items() if name in of_scene}
    if reading:
        chosen["read"] = ReaderOptions(**{**vars(chosen.get("read", ReaderOptions())), **reading})
    scene = FileScene(path, SceneOptions(**chosen))
    _ = scene.info  # what is wrong with it should be known now
    return scene
