"""Changes that need all pixels in memory: resizing, published colour changes, shift, rotation, RandAugment.

They follow those of :class:`tnet.scenes.transform.ImageChange`, in this order. Values are rounded once, before
RandAugment.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from tnet.errors import ConfigError

ResizeMethod = Literal["bilinear", "nearest", "area", "bicubic", "mitchell", "gaussian", "lanczos3", "lanczos5"]
"""TensorFlow's 8 methods, without antialiasing: except for ``area``, downscaling uses no more taps than upscaling."""

RESIZE_METHODS: tuple[ResizeMethod, ...] = get_args(ResizeMethod)

PixelColour = Literal["brightness", "contrast", "saturation", "hue"]
"""Colour changes as in TensorFlow: ``brightness`` is added, ``contrast`` multiplies the distance from each channel's
mean, ``saturation`` multiplies HSV's saturation, ``hue`` rotates it by a fraction of the circle."""

_RADIUS_PX = {"bilinear": 1.0, "bicubic": 2.0, "mitchell": 2.0, "gaussian": 1.5, "lanczos3": 3.0, "lanczos5": 5.0}


class RandAugmentDraw(NamedTuple):
    """One draw of RandAugment."""

    operations: int  # in sequence
    magnitude: int  # 0 to 30
    seed: int  # decides which operations, and in which direction


@dataclass(frozen=True)
class PixelChange:
    """One change of pixels in memory; exposed areas are black."""

    size_px: int | None = None  # resize to a square of this side, whatever the shape
    method: ResizeMethod = "bilinear"
    colours: tuple[tuple[PixelColour, float], ...] = ()  # in order; clipped after the last and after each change of hue
    angle_deg: float = 0.0  # counterclockwise about the centre, after the shift; the size is kept
    shift_yx: tuple[float, float] = (0.0, 0.0)  # down and right, by a fraction of the sides
    nearest: bool = False  # shift and rotation use the nearest pixel instead of interpolating
    rand_augment: RandAugmentDraw | None = None


def change_pixels(
    image: UInt8[Tensor, "channels height width"], change: PixelChange
) -> UInt8[Tensor, "channels new_height new_width"]:
    """Return a changed copy of an image with values 0 to 255; colour changes need one or three channels."""
    if (change.colours or change.rand_augment) and image.shape[0] not in (1, 3):
        raise ConfigError(f"colour changes need an image of 1 or 3 channels, not {image.shape[0]}")
    if replace(change, shift_yx=(0.0, 0.0), rand_augment=None) == PixelChange(nearest=True):
        levels = _shifted(image, change)  # by whole pixels, which needs no floating point
    else:
        pixels = image.float() / 255
        if change.size_px is not None:
            pixels = resize_by(pixels, (change.size_px, change.size_px), change.method)
        pixels = _rotated(_shifted(_coloured(pixels, change.colours).clamp(0, 1), change), change)
        levels = (pixels * 255).round().to(torch.uint8)
    return levels if change.rand_augment is None else _rand_augmented(levels, change.rand_augment)


def resize_by(
    pixels: Float[Tensor, "channels height width"], size_hw: tuple[int, int], method: ResizeMethod
) -> Float[Tensor, "channels new_height new_width"]:
    """Resize without antialiasing: the filter has the same width for downscaling as for upscaling.

    Pixel centres are at halves; taps outside the image are dropped and the other weights renormalised. ``area``
    averages what an output pixel covers. Filters with negative lobes can exceed the range of the input.
    """
    for axis, size in ((1, size_hw[0]), (2, size_hw[1])):
        index, weight = _taps(pixels.shape[axis], size, method)
        shape = (1, -1, 1) if axis == 1 else (1, 1, -1)
        total = pixels.new_zeros([size if axis == dim else length for dim, length in enumerate(pixels.shape)])
        for tap in range(index.shape[1]):  # in sequence: all at once would take that many times the memory
            total += pixels.index_select(axis, index[:, tap]) * weight[:, tap].view(shape)
        pixels = total
    return pixels


def _taps(
    size: int, new_size: int, method: ResizeMethod
) -> tuple[Int[Tensor, "{new_size} taps"], Float[Tensor, "{new_size} taps"]]:
    """Return, for each new pixel of an axis, the old ones that contribute to it and their weights."""
    scale = size / new_size
    new = torch.arange(new_size, dtype=torch.float64)[:, None]
    if method == "nearest":
        return ((new + 0.5) * scale).floor().long().clamp(max=size - 1), torch.ones(new_size, 1)
    if method == "area":
        start, end = new * scale, (new + 1) * scale
        index = start.floor().long() + torch.arange(math.ceil(scale) + 1)
        weight = (torch.minimum(index + 1, end) - torch.maximum(index, start)).clamp(min=0)
    else:
        radius = _RADIUS_PX[method]
        centre = (new + 0.5) * scale
        index = (centre - radius - 0.5).ceil().long() + torch.arange(math.ceil(2 * radius) + 1)
        weight = _filter((index + 0.5 - centre).abs(), method)
    weight = torch.where((index >= 0) & (index < size), weight, 0)
    return index.clamp(0, size - 1), (weight / weight.sum(dim=1, keepdim=True)).float()


def _filter(distance: Tensor, method: ResizeMethod) -> Tensor:
    """Return the weight of a pixel by its distance in pixels."""
    radius = _RADIUS_PX[method]
    if method == "bilinear":
        weight = 1 - distance
    elif method == "gaussian":
        weight = torch.exp(-0.5 * (distance * 3 / radius).square())
    elif method in ("lanczos3", "lanczos5"):
        weight = torch.sinc(distance) * torch.sinc(distance / radius)
    else:  # the cubics of Mitchell and Netravali by B and C
        b, c = (0.0, 0.5) if method == "bicubic" else (1 / 3, 1 / 3)
        near = ((12 - 9 * b - 6 * c) * distance + (-18 + 12 * b + 6 * c)) * distance.square() + (6 - 2 * b)
        far = ((-b - 6 * c) * distance + (6 * b + 30 * c)) * distance - (12 * b + 48 * c)
        far = far * distance + (8 * b + 24 * c)
        weight = torch.where(distance < 1, near, far) / 6
    return torch.where(distance < radius, weight, 0)


def _coloured(pixels: Tensor, colours: tuple[tuple[PixelColour, float], ...]) -> Tensor:
    """Change colours; the result can exceed [0, 1]."""
    from torchvision.transforms.v2 import functional

    for name, amount in colours:
        if name == "brightness":
            pixels = pixels + amount
        elif name == "contrast":
            mean = pixels.mean(dim=(1, 2), keepdim=True)
            pixels = mean + (pixels - mean) * amount
        elif pixels.shape[0] == 1:
            continue
        elif name == "saturation":
            # In HSV, saturation is the spread of the channels over the largest, and cannot be above 1.
            largest, smallest = pixels.amax(0, keepdim=True), pixels.amin(0, keepdim=True)
            spread = largest - smallest
            limit = torch.where(spread > 0, largest.clamp(min=0) / spread.clamp(min=1e-12), 1.0)
            pixels = largest - (largest - pixels) * limit.clamp(max=amount)
        else:
            pixels = functional.adjust_hue(pixels.clamp(0, 1), amount)
    return pixels


def _shifted(pixels: Tensor, change: PixelChange) -> Tensor:
    """Shift before the rotation (as published), so that what leaves the image does not come back with it."""
    for axis, share in zip((1, 2), change.shift_yx, strict=True):
        shift_px = share * pixels.shape[axis]
        whole_px = round(shift_px) if change.nearest else math.floor(shift_px)
        part = 0.0 if change.nearest else shift_px - whole_px
        moved = _moved(pixels, axis, whole_px)
        pixels = moved + part * (_moved(pixels, axis, whole_px + 1) - moved) if part else moved
    return pixels


def _moved(pixels: Tensor, axis: int, shift_px: int) -> Tensor:
    """Move by whole pixels, with black behind."""
    sides = (shift_px, -shift_px) if axis == 2 else (0, 0, shift_px, -shift_px)
    return F.pad(pixels, sides) if shift_px else pixels


def _rotated(pixels: Tensor, change: PixelChange) -> Tensor:
    """Rotate, with black around."""
    from torchvision.transforms.v2 import InterpolationMode, functional

    if not change.angle_deg:
        return pixels
    interpolation = InterpolationMode.NEAREST if change.nearest else InterpolationMode.BILINEAR
    # torchvision rotates clockwise
    return functional.affine(pixels, -change.angle_deg, [0.0, 0.0], 1.0, [0.0, 0.0], interpolation, fill=[0.0])


def _rand_augmented(levels: Tensor, draw: RandAugmentDraw) -> Tensor:
    """Apply torchvision's RandAugment, which draws from PyTorch's global generator, with that seeded and restored."""
    from torchvision.transforms.v2 import RandAugment

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(draw.seed)
        changed: Tensor = RandAugment(draw.operations, draw.magnitude)(levels)
    return changed
