"""Protocols of images whose regions can be glimpsed, one or a batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

# Before Python 3.12, `isinstance` with a protocol of `typing` reads every property, and so opens files.
from typing_extensions import Protocol, runtime_checkable

from tnet.errors import GeometryError
from tnet.geometry import Regions

Resize = Literal["antialias", "bilinear"]
"""How a region is resized: ``antialias`` (triangle filter as wide as the reduction; as Pillow does) or ``bilinear``
(the reference implementation: half-pixel centres, two taps, whatever the reduction)."""

# All are (y0, x0, y1, x1), ends exclusive.
BoxL0 = tuple[int, int, int, int]  # in level-0 pixels; may reach past the image's edge
Window = tuple[int, int, int, int]  # in a stored level's own pixels
LevelBox = tuple[float, float, float, float]  # likewise, at fractions of pixels


def check_look(box_yxyx: BoxL0, size_px: int) -> None:
    """Raise ``GeometryError`` if a glimpse has an empty box or size."""
    y0, x0, y1, x1 = box_yxyx
    if y1 <= y0 or x1 <= x0 or size_px < 1:
        raise GeometryError(f"box {box_yxyx} at {size_px} px is empty; give at least 1 pixel in each direction")


@runtime_checkable
class Scene(Protocol):
    """One image that can be glimpsed: in a file, in memory, or as a change of another scene."""

    name: str

    @property
    def size_hw(self) -> tuple[int, int]:
        """Height and width, level-0 pixels."""

    @property
    def levels(self) -> tuple[tuple[int, int], ...]:
        """Height and width of each stored resolution, finest first; one entry without a pyramid."""

    def glimpse(
        self, box_l0_yxyx: BoxL0, size_px: int, *, channels: int, resize: Resize, fill: Sequence[float]
    ) -> Float[Tensor, "channels size size"]:
        """Return the pixels of one box as ``float32`` in [0, 1].

        Args:
            box_l0_yxyx: the box; may reach past the image.
            size_px: side of the result.
            channels: number of channels of the result.
            resize: the filter.
            fill: value outside the image, in [0, 1]: one, or one per channel.
        """


@runtime_checkable
class SceneBatch(Protocol):
    """A batch of images that can be glimpsed."""

    is_normalized: bool  # as the backbone expects; otherwise pixels are in [0, 1]

    @property
    def sizes_hw(self) -> list[tuple[int, int]]:
        """Height and width of each image, level-0 pixels."""

    @property
    def device(self) -> torch.device:
        """Device of the glimpses."""

    def glimpse(self, regions: Regions, size_px: int) -> Float[Tensor, "regions channels size size"]:
        """Return the pixels of each region, resized to ``size_px`` squared."""
