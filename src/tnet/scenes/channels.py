"""Conversion of stored values to the channels of a model, the same for every format.

==========================================  =====================================================================
stored as                                   becomes
==========================================  =====================================================================
8 bits per channel                          value / 255
16 bits, unsigned                           value / 65535, unless there is a ``value_range``
any other type                              scaled by ``value_range``, which is required
alpha                                       a share of its type's largest value (of 1 in floating point), whatever
                                            the ``value_range``; composited onto white or black
as many channels as the model takes         unchanged (alpha too, if only that makes up the number)
grey, for three channels                    the same value three times
RGB, for one channel                        luma (ITU-R BT.601: 0.299 R + 0.587 G + 0.114 B)
more than three bands, for three channels   the first three
any other number                            an error; choose with ``bands``
==========================================  =====================================================================
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from tnet.errors import ImageError
from tnet.scenes.readers.base import ImageInfo
from tnet.scenes.readers.common import opaque

Alpha = Literal["white", "black"]

_LUMA = (0.299, 0.587, 0.114)
_LUMA_FIXED = (19595, 38470, 7471)  # in 1/65536, so that 8-bit luma equals Pillow's


@dataclass(frozen=True)
class ChannelMap:
    """Conversion of one image's channels; made by :func:`map_channels`."""

    take: tuple[int, ...] | None  # stored channels, in order; None for all
    alpha: int | None  # stored channel to composite with
    background: int  # behind transparent pixels: 0 (black) or 1 (white)
    mix: Literal["none", "repeat", "luma"]  # repeat one channel three times, or luma of three
    value_range: tuple[float, float] | None  # stored values that become 0 and 1; None for 8-bit, which are unchanged
    alpha_at: int | None = None  # position of alpha among the channels, if it is one of them

    @property
    def dtype(self) -> np.dtype[Any]:
        """``uint8`` for 8-bit values, else ``float32``, in [0, 1]."""
        return np.dtype(np.uint8 if self.value_range is None else np.float32)

    def apply(self, stored: NDArray[Any], fill: Sequence[float] = (0.0,)) -> NDArray[Any]:
        """Convert ``[height, width, stored channels]`` to ``[height, width, channels]``; NaN becomes ``fill``."""
        pixels = stored if self.take is None else np.stack([stored[..., c] for c in self.take], axis=-1)
        alpha = None if self.alpha is None else stored[..., self.alpha : self.alpha + 1]
        pixels = self._bytes(pixels, alpha) if self.value_range is None else self._fractions(pixels, alpha)
        if self.mix == "repeat":
            pixels = pixels.repeat(3, axis=-1)
        if pixels.dtype == np.float32:
            missing = np.isnan(pixels)
            if missing.any():
                pixels = np.where(missing, np.asarray(fill, np.float32), pixels)
        return pixels

    def _bytes(self, pixels: NDArray[Any], alpha: NDArray[Any] | None) -> NDArray[Any]:
        if alpha is not None and alpha.min(initial=255) < 255:
            opaque = alpha.astype(np.uint32)
            blend = (pixels * opaque + 255 * self.background * (255 - opaque) + 128) << 7
            pixels = (((blend >> 8) + blend) >> 15).astype(np.uint8)  # Pillow's rounding
        if self.mix == "luma":
            mixed = sum(pixels[..., c].astype(np.uint32) * weight for c, weight in enumerate(_LUMA_FIXED))
            pixels = ((np.asarray(mixed) + 32768) >> 16).astype(np.uint8)[..., None]
        return pixels

    def _fractions(self, pixels: NDArray[Any], alpha: NDArray[Any] | None) -> NDArray[Any]:
        assert self.value_range is not None
        low, high = self.value_range
        # float32 holds integers of up to 24 bits: subtract a large offset before converting to it.
        exact: NDArray[Any] = pixels.astype(np.float32 if pixels.dtype.itemsize <= 2 else np.float64)
        shown = ((exact - low) / (high - low)).clip(0, 1).astype(np.float32)
        if self.alpha_at is not None:
            shown[..., self.alpha_at] = _share(pixels[..., self.alpha_at])
        pixels = shown
        if alpha is not None:
            share = _share(alpha)
            # What lies below transparent pixels may not be a number.
            pixels = np.where(share > 0, pixels, 0) * share + self.background * (1 - share)
        if self.mix == "luma":
            pixels = (pixels @ np.asarray(_LUMA, np.float32))[..., None]
        return pixels


def _share(alpha: NDArray[Any]) -> NDArray[np.float32]:
    return (alpha.astype(np.float64) / opaque(alpha.dtype)).clip(0, 1).astype(np.float32)


def map_channels(
    path: Path,
    info: ImageInfo,
    channels: int,
    *,
    bands: tuple[int, ...] | None = None,
    alpha: Alpha = "white",
    value_range: tuple[float, float] | None = None,
) -> ChannelMap:
    """Choose the conversion of an image to ``channels`` channels, as the table of the module says."""
    stored = tuple(range(info.channels))
    colors = stored[:-1] if info.has_alpha else stored
    taken = bands
    if bands is not None:
        if not set(bands) <= set(stored):
            raise ImageError(f"image {path} has {info.channels} bands, not bands={bands}; count from 0")
    elif channels == len(stored) != len(colors) and channels != 3:
        taken = stored  # alpha is one of the model's channels
    elif channels == 3 and len(colors) > 3:
        taken = colors[:3]
    else:
        taken = colors
    assert taken is not None
    mix: Literal["none", "repeat", "luma"] = "none"
    if len(taken) != channels:
        if (len(taken), channels) == (1, 3):
            mix = "repeat"
        elif (len(taken), channels) == (3, 1) and info.color == "rgb" and bands is None:
            mix = "luma"
        else:
            problem = f"image {path} has {len(taken)}{' chosen' if bands else ''} bands, but the model takes {channels}"
            raise ImageError(f"{problem}; choose {channels} of its {info.channels} with bands=(...) (--bands)")
    below = info.has_alpha and stored[-1] not in taken
    values = _value_range(path, info.dtype, value_range)
    take, composited = None if taken == stored else taken, stored[-1] if below else None
    alpha_at = taken.index(stored[-1]) if info.has_alpha and not below else None
    return ChannelMap(take, composited, int(alpha == "white"), mix, values, alpha_at)


def _value_range(
    path: Path, dtype: np.dtype[Any], value_range: tuple[float, float] | None
) -> tuple[float, float] | None:
    if dtype.kind not in "buif":
        raise ImageError(f"image {path} holds values of type {dtype}; only real numbers are supported")
    if value_range is not None:
        return value_range
    defaults: dict[str, tuple[float, float] | None] = {"uint8": None, "uint16": (0, 65535), "bool": (0, 1)}
    if dtype.name not in defaults:
        problem = f"image {path} holds {dtype.name} values, whose black and white are unknown"
        raise ImageError(f"{problem}; give value_range=(black, white) (--value-range)")
    return defaults[dtype.name]
