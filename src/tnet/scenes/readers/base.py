"""The interface between a scene in a file and the library that reads the file, and the registry of readers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from tnet.registry import Registry
from tnet.scenes.base import Window

if TYPE_CHECKING:
    from tnet.scenes.readers.content import Content

Color = Literal["grey", "rgb", "bands"]
"""Meaning of the channels: one grey, three colours, or any number of bands."""


@dataclass(frozen=True)
class StoredLevel:
    """One stored resolution."""

    size_hw: tuple[int, int]  # in its own pixels
    downsample_yx: tuple[float, float] = (1.0, 1.0)  # level-0 pixels per pixel, down and across


@dataclass(frozen=True)
class GeoReference:
    """Position of an image on a map."""

    # (a, b, c, d, e, f): map x = a * column + b * row + c, map y = d * column + e * row + f, for level-0 pixel edges
    transform: tuple[float, float, float, float, float, float]
    crs: str = ""  # coordinate reference system, as WKT or EPSG:n; empty if unknown


@dataclass(frozen=True)
class ReaderOptions:
    """Options of readers.

    Attributes:
        max_pixels: largest image (width x height) that is decoded as a whole, for formats without tiles.
        series: index of the image in a file with several (pages of different images, OME series).
        apply_orientation: turn the image upright by its EXIF orientation.
        apply_icc: convert colours to sRGB by the embedded profile.
        remote: allow files that refer to data elsewhere (sources of a VRT, URLs).
    """

    max_pixels: int = 2**28
    series: int = 0
    apply_orientation: bool = True
    apply_icc: bool = False
    remote: bool = False


def stamp_of(file: Path) -> tuple[int, int, int]:
    """Return what changes if a file is written again; zeros for a missing one."""
    try:
        status = file.stat()
    except OSError:
        return 0, 0, 0
    return status.st_ino, status.st_size, status.st_mtime_ns


@dataclass(frozen=True)
class ImageInfo:
    """Description of an open image, without its pixels."""

    levels: tuple[StoredLevel, ...]  # finest first; at least one
    channels: int  # alpha included
    dtype: np.dtype[Any]  # type of the stored values
    color: Color  # meaning of the channels other than alpha
    has_alpha: bool = False  # whether the last channel is opacity (same type and range as the others)
    spacing_m_yx: tuple[float, float] | None = None  # height and width of a level-0 pixel in metres (0.5 um is 5e-7)
    georeference: GeoReference | None = None
    tile_hw: tuple[int, int] | None = None  # tile size of level 0; None if any window costs decoding the whole image
    properties: dict[str, str] = field(default_factory=dict)  # further metadata, for people
    # For an image that is a folder: the files that describe it, each with inode, size and modification time
    described_by: tuple[tuple[Path, tuple[int, int, int]], ...] = ()

    @property
    def is_current(self) -> bool:
        """Whether the files that describe the image are those that were read; true for an image in one file."""
        return all(stamp_of(file) == stamp for file, stamp in self.described_by)


@runtime_checkable
class Reader(Protocol):
    """One open file, used in the process that opened it; never pickled."""

    info: ImageInfo
    thread_safe: bool  # whether `read` may run in several threads at once

    @property
    def bytes_read(self) -> int:
        """Encoded bytes fetched so far (an estimate if the library does not report it)."""

    @property
    def tiles_read(self) -> int:
        """Stored tiles decoded so far (1 for an image decoded as a whole)."""

    def read(self, level: int, box_yxyx: Window) -> NDArray[Any]:
        """Read the pixels of a window inside a level of ``info.levels``.

        Returns:
            ``[height, width, channels]`` of ``info.dtype``, as stored (no scaling, alpha not applied).

        Raises:
            ImageError: the pixels are damaged or missing, or the file is gone.
        """

    def close(self) -> None:
        """Release the file."""


@dataclass(frozen=True, eq=False)
class ReaderEntry:
    """One reader in the registry."""

    open: Callable[[Path, ReaderOptions], Reader]  # raises ImageError if it cannot
    score: Callable[[Content], int]  # how well it suits some content, 0 for not at all; the best installed one is used
    modules: tuple[str, ...]  # modules that it imports
    packages: tuple[str, ...]  # distributions that provide them
    extra: str = ""  # extra of tnet that installs them; empty if they are always installed
    has_library: bool = False  # whether importing fails if a shared library is missing, so that only an import shows it
    write_sample: Callable[[Path, NDArray[np.uint8]], None] | None = None  # for tnet doctor, if it does not read TIFF

    @property
    def has_modules(self) -> bool:
        """Whether its modules are present, whether or not they work."""
        return all(find_spec(module) is not None for module in self.modules)

    @cached_property
    def is_installed(self) -> bool:
        """Whether its modules can be imported."""
        try:
            for module in self.modules if self.has_library and self.has_modules else ():
                import_module(module)
        except (ImportError, OSError):
            return False
        return self.has_modules


READERS: Registry[ReaderEntry] = Registry("reader")
