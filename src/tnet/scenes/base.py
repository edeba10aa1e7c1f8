"""What a traversal needs of images: that they can be looked at."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

# Before Python 3.12, `isinstance` with a protocol of `typing` asks for the value of every property, and so opens files.
from typing_extensions import Protocol, runtime_checkable

from tnet.errors import GeometryError
from tnet.geometry import Regions

Resize = Literal["antialias", "bilinear"]
"""How pixels of a region become a glimpse: ``antialias`` (triangle filter as wide as the reduction; what Pillow does)
or ``bilinear`` (the reference implementation: half-pixel centres, two taps, whatever the reduction)."""

BoxL0 = tuple[int, int, int, int]
"""``(y0, x0, y1, x1)`` in level-0 pixels, ends exclusive; may reach past the image's edge."""


def check_look(box_yxyx: BoxL0, size_px: int) -> None:
    """Refuse a look that shows nothing.

    Raises:
        GeometryError: an empty box or size.
    """
    y0, x0, y1, x1 = box_yxyx
    if y1 <= y0 or x1 <= x0 or size_px < 1:
        raise GeometryError(f"box {box_yxyx} at {size_px} px shows nothing; give at least a pixel each way")


@runtime_checkable
class Scene(Protocol):
    """One image that can be looked at, wherever its pixels are: in a file, or as another scene shows them, changed."""

    name: str

    @property
    def size_hw(self) -> tuple[int, int]:
        """Height and width, level-0 pixels."""
        ...

    @property
    def levels(self) -> tuple[tuple[int, int], ...]:
        """Height and width of each stored resolution, finest first; one entry where there is no pyramid."""
        ...

    def glimpse(
        self, box_l0_yxyx: BoxL0, size_px: int, *, channels: int, resize: Resize, fill: Sequence[float]
    ) -> Float[Tensor, "channels size size"]:
        """Pixels of one box, in [0, 1], resized to ``size_px`` squared.

        ``fill``, one value or one a channel, is what lies outside the image.
        """
        ...


@runtime_checkable
class SceneBatch(Protocol):
    """A batch of images that can be looked at: what a model asks for the pixels of regions.

    ``is_normalized`` says whether the pixels are already what the backbone expects; if not they are in [0, 1].
    """

    is_normalized: bool

    @property
    def sizes_hw(self) -> list[tuple[int, int]]:
        """Height and width of each image, level-0 pixels."""
        ...

    @property
    def device(self) -> torch.device:
        """Where glimpses are handed out."""
        ...

    def glimpse(self, regions: Regions, size_px: int) -> Float[Tensor, "regions channels size size"]:
        """Pixels of each region, resized to ``size_px`` squared."""
        ...
