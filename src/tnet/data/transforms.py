"""Fixed preparation of whole images, by name; random augmentation is in :mod:`tnet.data.augment`."""

from __future__ import annotations

import re

import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor

from tnet.errors import ConfigError

MAX_SIDE_PX = 16_384
"""Largest side that an image is resized to, in pixels."""

_NAME = re.compile(r"reference_(\d{1,5})")


class ReferenceEval:
    """Prepares an image for evaluation as the reference implementation does.

    The whole image becomes a square of ``size_px``, ignoring its aspect: bilinear, half-pixel centres, two taps per
    axis for any reduction (no antialiasing), no crop. The reference implementation then feeds ``2 * x - 1``, with ``x``
    from 0 to 1, which the registered published models do themselves (mean and standard deviation of 0.5).
    """

    def __init__(self, size_px: int) -> None:
        if not 1 <= size_px <= MAX_SIDE_PX:
            raise ConfigError(f"the size of preprocess is {size_px}; give 1 to {MAX_SIDE_PX} pixels")
        self.size_px = size_px

    def exact(self, image: UInt8[Tensor, "channels height width"]) -> Float[Tensor, "channels size size"]:
        """Return the image in [0, 1], not rounded."""
        pixels = image[None].float() / 255
        return F.interpolate(pixels, (self.size_px, self.size_px), mode="bilinear", align_corners=False)[0]

    def __call__(self, image: UInt8[Tensor, "channels height width"]) -> UInt8[Tensor, "channels size size"]:
        """Return the image as levels 0 to 255, at most half a level from :meth:`exact`."""
        return (self.exact(image) * 255).round().byte()

    def __repr__(self) -> str:
        return f"reference_{self.size_px}"


def named_transform(name: str) -> ReferenceEval:
    """Return the preparation of that name: ``reference_448`` is :class:`ReferenceEval` to 448 pixels."""
    match = _NAME.fullmatch(name)
    if match is None:
        remedy = "give reference_ and a size in pixels, such as reference_448"
        raise ConfigError(f"preprocess {name!r} is unknown; {remedy}")
    return ReferenceEval(int(match[1]))
