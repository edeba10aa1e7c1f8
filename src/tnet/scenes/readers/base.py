"""The one interface between a scene in a file and the library that reads the file."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

Color = Literal["grey", "rgb", "bands"]
"""What the channels are: one grey, three colours, or bands of any number and meaning."""


@dataclass(frozen=True)
class StoredLevel:
    """One stored resolution.

    Attributes:
        size_hw: height and width, its own pixels.
        downsample_yx: level-0 pixels for each of its pixels, down and across; (1, 1) for level 0.
    """

    size_hw: tuple[int, int]
    downsample_yx: tuple[float, float] = (1.0, 1.0)


@dataclass(frozen=True)
class GeoReference:
    """Where on Earth (or on a map) an image lies.

    Attributes:
        transform: ``(a, b, c, d, e, f)``: map x = a * column + b * row + c, map y = d * column + e * row + f, for
            level-0 pixel edges.
        crs: of the map coordinates, as WKT or ``EPSG:n``; empty if unknown.
    """

    transform: tuple[float, float, float, float, float, float]
    crs: str = ""


@dataclass(frozen=True)
class ReaderOptions:
    """What a reader has to know; a part of the options of a scene.

    Attributes:
        max_pixels: largest picture (width x height) that is decoded as a whole, for formats that cannot be read in
            windows.
        series: which image of a file that holds several (pages of different pictures, OME series, HDF groups).
        apply_orientation: turn the picture upright by its EXIF orientation.
        apply_icc: convert colours to sRGB by the embedded profile.
        remote: allow files that refer to data elsewhere (a VRT's sources, URLs).
    """

    max_pixels: int = 2**28
    series: int = 0
    apply_orientation: bool = True
    apply_icc: bool = False
    remote: bool = False


@dataclass(frozen=True)
class ImageInfo:
    """What is known of an open image without reading pixels.

    Attributes:
        levels: stored resolutions, finest first; at least one.
        channels: values of a pixel, alpha included.
        dtype: of the stored values.
        color: what the channels (without alpha) are.
        has_alpha: the last channel says how opaque a pixel is (same type and range as the others).
        spacing_m_yx: physical height and width of a level-0 pixel, metres (0.5 um is 5e-7); ``None`` if unknown.
        georeference: where it lies; ``None`` if unknown.
        tile_hw: size of the stored tiles of level 0; ``None`` where any window costs reading the whole.
        properties: what else the file says, for people.
    """

    levels: tuple[StoredLevel, ...]
    channels: int
    dtype: np.dtype[Any]
    color: Color
    has_alpha: bool = False
    spacing_m_yx: tuple[float, float] | None = None
    georeference: GeoReference | None = None
    tile_hw: tuple[int, int] | None = None
    properties: dict[str, str] = field(default_factory=dict)


@runtime_checkable
class Reader(Protocol):
    """One open file.

    Made in the process that uses it; never pickled. Readers with ``thread_safe`` set may be read from several threads
    at once, the others are used by one thread at a time.

    Attributes:
        info: what the file says of itself.
        thread_safe: whether ``read`` may run in several threads at once.
        bytes_read: encoded bytes fetched from the file so far (an estimate where the library does not say).
        tiles_read: stored tiles decoded so far (1 for a picture decoded as a whole).
    """

    info: ImageInfo
    thread_safe: bool
    bytes_read: int
    tiles_read: int

    def read(self, level: int, box_yxyx: tuple[int, int, int, int]) -> NDArray[Any]:
        """Pixels of a window.

        Args:
            level: index into ``info.levels``.
            box_yxyx: ``(y0, x0, y1, x1)`` in that level's own pixels, inside the level, ends exclusive.

        Returns:
            ``[height, width, channels]`` of ``info.dtype``, as stored (no scaling, no alpha applied).

        Raises:
            ImageError: the pixels cannot be read: damaged, missing, or the file has gone.
        """
        ...

    def close(self) -> None:
        """Release the file."""
        ...
