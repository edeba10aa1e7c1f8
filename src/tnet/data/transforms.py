"""Preparation of whole pictures by name; nothing random (that is in :mod:`tnet.data.augment`)."""

from __future__ import annotations

import re

import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor

from tnet.errors import ConfigError

_NAME = re.compile(r"reference_(\d{1,5})")
LARGEST_PX = 16_384
"""Largest side that a picture is resized to, pixels."""


class ReferenceEval:
    """How the reference implementation prepares a picture for evaluation.

    The whole picture, whatever its shape, becomes a square: bilinear, half-pixel centres, two taps an axis whatever the
    reduction (no antialiasing), no crop. What it then gives its network is ``2 * x - 1``, with ``x`` from 0 to 1: the
    registered published models do that themselves (mean and standard deviation of 0.5).

    Attributes:
        size_px: side of the square.
    """

    def __init__(self, size_px: int) -> None:
        """Keep the size.

        Raises:
            ConfigError: a size below 1 or above 16,384.
        """
        if not 1 <= size_px <= LARGEST_PX:
            raise ConfigError(f"preprocess size {size_px} is out of range; give 1 to {LARGEST_PX} pixels")
        self.size_px = size_px

    def exact(self, image: UInt8[Tensor, "channels height width"]) -> Float[Tensor, "channels size size"]:
        """The picture in [0, 1], not rounded."""
        pixels = image[None].float() / 255
        return F.interpolate(pixels, (self.size_px, self.size_px), mode="bilinear", align_corners=False)[0]

    def __call__(self, image: UInt8[Tensor, "channels height width"]) -> UInt8[Tensor, "channels size size"]:
        """The picture as levels 0 to 255, at most half a level from :meth:`exact`."""
        return (self.exact(image) * 255).round().byte()

    def __repr__(self) -> str:
        """Its name."""
        return f"reference_{self.size_px}"


def named_transform(name: str) -> ReferenceEval:
    """The preparation of that name: ``reference_448`` is :class:`ReferenceEval` to 448 pixels.

    Raises:
        ConfigError: no such name.
    """
    match = _NAME.fullmatch(name)
    if match is None:
        raise ConfigError(f"preprocess {name!r} is not known; give reference_ and a size in pixels: reference_448")
    return ReferenceEval(int(match[1]))
