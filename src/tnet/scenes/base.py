"""The one thing a traversal needs of images: that they can be looked at."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from tnet.geometry import Regions


@runtime_checkable
class Scene(Protocol):
    """A batch of images that can be looked at, wherever their pixels are.

    ``is_normalized`` says whether the pixels are already what the backbone expects; if not they are in [0, 1].
    """

    is_normalized: bool

    @property
    def sizes_hw(self) -> list[tuple[int, int]]:
        """Height and width of each image, level-0 pixels."""
        ...

    @property
    def device(self) -> torch.device:
        """Where glimpses are made."""
        ...

    def glimpse(self, regions: Regions, size_px: int) -> Float[Tensor, "regions channels size size"]:
        """Pixels of each region, resized to ``size_px`` squared."""
        ...
