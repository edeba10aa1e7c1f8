"""One image in memory as a scene."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8
from numpy.typing import NDArray
from torch import Tensor

from tnet.errors import GeometryError
from tnet.scenes.base import BoxL0, Resize, Window, check_look
from tnet.scenes.resample import LevelPixels, resample


class MemoryScene:
    """A scene for an image in memory (values 0 to 255); can be mixed with scenes read from files.

    Its glimpses equal those of :class:`tnet.scenes.TensorBatch` bit for bit.
    """

    def __init__(self, image: UInt8[Tensor, "channels height width"], name: str = "") -> None:
        if image.numel() == 0:
            raise GeometryError(f"image {name} has no pixels; its shape is {list(image.shape)}")
        self.image = image
        self.name = name

    def __repr__(self) -> str:
        return f"MemoryScene({list(self.image.shape)}, {self.name!r})"

    @property
    def size_hw(self) -> tuple[int, int]:
        """Height and width, pixels."""
        return int(self.image.shape[1]), int(self.image.shape[2])

    @property
    def levels(self) -> tuple[tuple[int, int], ...]:
        """Its own size alone."""
        return (self.size_hw,)

    def glimpse(
        self, box_l0_yxyx: BoxL0, size_px: int, *, channels: int, resize: Resize, fill: Sequence[float]
    ) -> Float[Tensor, "channels size size"]:
        """Return the pixels of one box; see :meth:`tnet.scenes.Scene.glimpse`."""
        y0, x0, y1, x1 = box_l0_yxyx
        check_look(box_l0_yxyx, size_px)
        if channels != self.image.shape[0]:
            raise GeometryError(f"image {self.name} has {self.image.shape[0]} channels, not {channels}")
        level = level_in_memory(self.image.permute(1, 2, 0).numpy())
        return resample(level, (y0, x0, y1, x1), size_px, resize=resize, fill=fill)


def level_in_memory(pixels: NDArray[Any]) -> LevelPixels:
    """Wrap an array ``[height, width, channels]`` (``uint8``, or ``float32`` in [0, 1]) for :func:`resample`."""
    height, width, channels = pixels.shape

    def read(window: Window) -> NDArray[Any]:
        return pixels[window[0] : window[2], window[1] : window[3]]

    size_hw, pixel_bytes = (height, width), channels * pixels.itemsize
    return LevelPixels(size_hw, size_hw, read, np.asarray, channels, pixels.dtype, pixel_bytes, tile_rows=None)
