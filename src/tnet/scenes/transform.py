"""Changes of an image (augmentation) that are applied only to the pixels that are seen.

A change is plain data. Applied to a scene, every glimpsed box is mapped back to its place in the stored image, so
coarse and fine glimpses show the same changed image, and a glimpse costs the same as without the change.

Order: crop, rotated by the angle about the crop's centre; horizontal flip; vertical flip; quarter turns; colours; and,
for images in memory only, the changes of :mod:`tnet.scenes.pixels`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor

from tnet.errors import ConfigError, GeometryError
from tnet.scenes.base import BoxL0, Resize, Scene, check_look
from tnet.scenes.memory import level_in_memory
from tnet.scenes.pixels import PixelChange, change_pixels
from tnet.scenes.resample import resample

Colour = Literal["brightness", "contrast", "saturation", "hue"]
"""Colour changes; factors are those of torchvision's ``adjust_*`` functions."""

_NATIVE_PX = 1024  # a box up to this side that sticks out of the crop is read at full resolution, without rounding
_FINER = 2  # larger ones are read this much finer than requested, and averaged
_MAX_HULL_PX = 4096
_MEAN_PX = 32  # side of the glimpse whose mean grey level contrast is changed about


@dataclass(frozen=True)
class ImageChange:
    """One change of one image."""

    crop_yxyx: BoxL0 | None = None  # in pixels of the image; None for the whole
    horizontal_flip: bool = False
    vertical_flip: bool = False
    quarter_turns: int = 0  # counterclockwise, 0 to 3
    angle_deg: float = 0.0  # counterclockwise about the crop's centre; pixels at the image's edges extend beyond them
    colours: tuple[tuple[Colour, float], ...] = ()  # in order
    pixels: PixelChange | None = None  # further changes, which need all pixels in memory; not for scenes

    def __post_init__(self) -> None:
        if not 0 <= self.quarter_turns <= 3:
            raise ConfigError(f"quarter_turns is {self.quarter_turns}; give 0 to 3")
        if not math.isfinite(self.angle_deg):
            raise ConfigError(f"angle_deg is {self.angle_deg}; give a finite number")
        for name, factor in self.colours:
            low, high = (-0.5, 0.5) if name == "hue" else (0.0, math.inf)
            if not low <= factor <= high or factor == math.inf:
                raise ConfigError(f"{name} is changed by {factor}; give {low:g} to {high:g}")

    def crop_of(self, size_hw: tuple[int, int]) -> BoxL0:
        """Return the crop of an image of this size; raises ``GeometryError`` if it is empty, or not inside."""
        if self.crop_yxyx is None:
            return (0, 0, *size_hw)
        y0, x0, y1, x1 = self.crop_yxyx
        if not (0 <= y0 < y1 <= size_hw[0] and 0 <= x0 < x1 <= size_hw[1]):
            raise GeometryError(f"crop {self.crop_yxyx} is empty or not inside; the image has {size_hw} pixels")
        return self.crop_yxyx

    def size_of(self, size_hw: tuple[int, int]) -> tuple[int, int]:
        """Return the height and width after the change of an image of this size."""
        if self.pixels is not None and self.pixels.size_px is not None:
            return self.pixels.size_px, self.pixels.size_px
        y0, x0, y1, x1 = self.crop_of(size_hw)
        return (x1 - x0, y1 - y0) if self.quarter_turns % 2 else (y1 - y0, x1 - x0)


def change_image(
    image: UInt8[Tensor, "channels height width"], change: ImageChange
) -> UInt8[Tensor, "channels new_height new_width"]:
    """Return a changed copy of an image in memory; colour changes need one or three channels."""
    y0, x0, y1, x1 = change.crop_of((int(image.shape[1]), int(image.shape[2])))
    if change.angle_deg:
        rows, columns = torch.arange(y0, y1) + 0.5, torch.arange(x0, x1) + 0.5
        positions = _rotated(rows, columns, ((y0 + y1) / 2, (x0 + x1) / 2), change.angle_deg)
        image = _sampled(image.float(), *positions).round().to(torch.uint8)
    else:
        image = image[..., y0:y1, x0:x1]
    image = adjust_colours(mirrored(image, change), change.colours)
    if change.pixels is not None:
        image = change_pixels(image, change.pixels)
    # A view would send the whole image between processes.
    return image.contiguous()


def adjust_colours(
    pixels: Tensor, colours: Sequence[tuple[Colour, float]], contrast_mean: float | None = None
) -> Tensor:
    """Change colours in sequence, contrast about a mean grey level in [0, 1] (default: the mean of ``pixels``)."""
    if not colours:
        return pixels
    if pixels.shape[0] not in (1, 3):
        raise ConfigError(f"colour changes need an image of 1 or 3 channels, not {pixels.shape[0]}")
    from torchvision.transforms.v2 import functional

    for name, factor in colours:
        if name == "contrast" and contrast_mean is not None:
            pixels = (pixels * factor + contrast_mean * (1 - factor)).clamp(0, 1)
        else:
            pixels = getattr(functional, f"adjust_{name}")(pixels, factor)
    return pixels


class _Inside(NamedTuple):
    pixels: Tensor  # the part of a box that lies in the crop, [channels, height, width] in [0, 1]
    box_yxyx: BoxL0  # in the frame of the crop
    scale_yx: tuple[float, float]  # source pixels per pixel


class TransformedScene:
    """A changed scene; pickles as its source and change.

    Without an angle and colours, a glimpse inside the crop equals the glimpse of the source, flipped and rotated, bit
    for bit. Compared with changing all pixels first (:func:`change_image`):

    - crop and flips: equal bit for bit if no coarser level of the source is used; boxes that stick out of the crop are
      equal up to 1024 px or 2 px per pixel, beyond which the pixel next to the crop's edge differs;
    - odd quarter turns: 8-bit values differ by up to 1 of 255, since columns are reduced before rows, and rounded;
    - an angle: pixels are read twice as fine as requested, if the image has them, and averaged: up to 3 levels where
      the image is smooth at that scale, more at the crop's edge;
    - colours are changed after pixels are reduced, without rounding: up to 1 level per change, more where values are
      clipped. Contrast is changed about the mean grey level of the whole changed scene at 32 px. The area outside
      (``fill``) keeps its colour.
    """

    def __init__(self, scene: Scene, change: ImageChange) -> None:
        if change.pixels is not None:
            changes = "resize_px, colour_cases, rotation_fill: black, translation and rand_augment"
            problem = f"{scene.name} is read lazily, but {changes} need all pixels in memory"
            raise ConfigError(f"{problem}; turn them off, or set data.read to memory")
        self.scene = scene
        self.change = change
        self.name = scene.name
        self._means: dict[int, float] = {}  # by number of channels

    def __reduce__(self) -> tuple[type[TransformedScene], tuple[Scene, ImageChange]]:
        return type(self), (self.scene, self.change)

    def __repr__(self) -> str:
        return f"TransformedScene({self.scene!r}, {self.change!r})"

    @property
    def size_hw(self) -> tuple[int, int]:
        """Height and width after the change, level-0 pixels of the source."""
        return self.change.size_of(self.scene.size_hw)

    @property
    def levels(self) -> tuple[tuple[int, int], ...]:
        """Height and width of each stored resolution after the change, finest first."""
        step = -1 if self.change.quarter_turns % 2 else 1
        full_hw, (height, width) = self.scene.size_hw[::step], self.size_hw
        sizes = [size[::step] for size in self.scene.levels]
        return tuple((max(1, round(h * height / full_hw[0])), max(1, round(w * width / full_hw[1]))) for h, w in sizes)

    def glimpse(
        self, box_l0_yxyx: BoxL0, size_px: int, *, channels: int, resize: Resize, fill: Sequence[float]
    ) -> Float[Tensor, "channels size size"]:
        """Return the pixels of one box of the changed scene; see :meth:`tnet.scenes.Scene.glimpse`."""
        colours = self.change.colours
        mean = self._contrast_mean(channels, resize) if "contrast" in dict(colours) else None
        return self._look(box_l0_yxyx, size_px, channels, resize, fill, colours, mean)

    def _look(
        self, box_yxyx: BoxL0, size_px: int, channels: int, resize: Resize, fill: Sequence[float],
        colours: Sequence[tuple[Colour, float]], mean: float | None,
    ) -> Tensor:  # fmt: skip
        check_look(box_yxyx, size_px)
        top, left, bottom, right = self.change.crop_of(self.scene.size_hw)
        y0, x0, y1, x1 = box = _unmirrored(box_yxyx, (bottom - top, right - left), self.change)
        inside = (max(y0, 0), max(x0, 0), min(y1, bottom - top), min(x1, right - left))
        if inside[0] >= inside[2] or inside[1] >= inside[3]:
            return torch.tensor(fill, dtype=torch.float32).expand(channels)[:, None, None].repeat(1, size_px, size_px)
        if inside == box and not self.change.angle_deg:
            in_source = (y0 + top, x0 + left, y1 + top, x1 + left)
            pixels = self.scene.glimpse(in_source, size_px, channels=channels, resize=resize, fill=fill)
            return adjust_colours(mirrored(pixels, self.change), colours, mean).contiguous()
        scale_yx = ((y1 - y0) / size_px, (x1 - x0) / size_px)
        part = self._inside(inside, scale_yx, channels, resize)
        part = part._replace(pixels=adjust_colours(part.pixels, colours, mean))
        return mirrored(_laid_out(part, box, size_px, resize, fill), self.change).contiguous()

    def _inside(self, box_yxyx: BoxL0, scale_yx: tuple[float, float], channels: int, resize: Resize) -> _Inside:
        """Read a box in the crop, finer than ``scale_yx`` (source pixels per pixel)."""
        top, left, bottom, right = self.change.crop_of(self.scene.size_hw)
        y0, x0, y1, x1 = box_yxyx
        finer_y, finer_x = (max(1.0, scale / _FINER) for scale in scale_yx)
        if not self.change.angle_deg:
            if max(y1 - y0, x1 - x0) <= _NATIVE_PX:
                finer_y = finer_x = 1.0
            in_source = (y0 + top, x0 + left, y1 + top, x1 + left)
            pixels, scale_yx = self._read(in_source, finer_y, finer_x, channels, resize)
            return _Inside(pixels, box_yxyx, scale_yx)
        height, width = math.ceil((y1 - y0) / finer_y), math.ceil((x1 - x0) / finer_x)
        scale_yx = ((y1 - y0) / height, (x1 - x0) / width)
        rows = y0 + top + (torch.arange(height, dtype=torch.float64) + 0.5) * scale_yx[0]
        columns = x0 + left + (torch.arange(width, dtype=torch.float64) + 0.5) * scale_yx[1]
        ys, xs = _rotated(rows, columns, ((top + bottom) / 2, (left + right) / 2), self.change.angle_deg)
        upright = math.cos(math.radians(self.change.angle_deg)) ** 2
        along_y = 1 / (upright / finer_y + (1 - upright) / finer_x)
        along_x = 1 / (upright / finer_x + (1 - upright) / finer_y)
        hull = _hull(ys, xs, self.scene.size_hw, math.ceil(max(along_y, along_x)) + 1)
        pixels, (step_y, step_x) = self._read(hull, along_y, along_x, channels, resize)
        return _Inside(_sampled(pixels, (ys - hull[0]) / step_y, (xs - hull[1]) / step_x), box_yxyx, scale_yx)

    def _read(
        self, box_yxyx: BoxL0, step_y: float, step_x: float, channels: int, resize: Resize
    ) -> tuple[Tensor, tuple[float, float]]:
        """Read a box inside the source at least as fine as the steps; returns the true steps, source pixels, too."""
        y0, x0, y1, x1 = box_yxyx
        height, width = y1 - y0, x1 - x0
        if step_y == step_x == 1 and max(height, width) <= _MAX_HULL_PX:
            side = max(height, width)  # a square at its own size is not resampled
            square = (y0, x0, y0 + side, x0 + side)
            pixels = self.scene.glimpse(square, side, channels=channels, resize=resize, fill=(0.0,))
            return pixels[:, :height, :width], (1.0, 1.0)
        side = min(_MAX_HULL_PX, math.ceil(max(height / step_y, width / step_x)))
        pixels = self.scene.glimpse(box_yxyx, side, channels=channels, resize=resize, fill=(0.0,))
        return pixels, (height / side, width / side)

    def _contrast_mean(self, channels: int, resize: Resize) -> float:
        """Return the mean grey level of the whole, with the colour changes that come before contrast."""
        from torchvision.transforms.v2 import functional

        if channels not in self._means:
            names = [name for name, _ in self.change.colours]
            before = self.change.colours[: names.index("contrast")]
            whole = self._look((0, 0, *self.size_hw), _MEAN_PX, channels, resize, (0.0,), before, None)
            grey = functional.rgb_to_grayscale(whole) if channels == 3 else whole
            self._means[channels] = float(grey.mean())
        return self._means[channels]


def mirrored(pixels: Tensor, change: ImageChange) -> Tensor:
    """Flip the last two axes of pixels, or of a map, as the change does, then rotate them by quarter turns."""
    axes = [axis for axis, flip in ((-1, change.horizontal_flip), (-2, change.vertical_flip)) if flip]
    pixels = pixels.flip(axes) if axes else pixels
    return torch.rot90(pixels, change.quarter_turns, dims=(-2, -1))


def _unmirrored(box_yxyx: BoxL0, crop_hw: tuple[int, int], change: ImageChange) -> BoxL0:
    """Return the place in the crop of a box of the changed image."""
    y0, x0, y1, x1 = box_yxyx
    height, width = crop_hw[::-1] if change.quarter_turns % 2 else crop_hw
    for _ in range(change.quarter_turns):
        y0, x0, y1, x1 = x0, height - y1, x1, height - y0
        height, width = width, height
    if change.vertical_flip:
        y0, y1 = height - y1, height - y0
    if change.horizontal_flip:
        x0, x1 = width - x1, width - x0
    return y0, x0, y1, x1


def _rotated(rows: Tensor, columns: Tensor, centre_yx: tuple[float, float], angle_deg: float) -> tuple[Tensor, Tensor]:
    """Return where the points of a grid come from in an image rotated counterclockwise about a centre."""
    cosine, sine = math.cos(math.radians(angle_deg)), math.sin(math.radians(angle_deg))
    y = (rows.double() - centre_yx[0])[:, None]
    x = (columns.double() - centre_yx[1])[None, :]
    return centre_yx[0] + x * sine + y * cosine, centre_yx[1] + x * cosine - y * sine


def _hull(ys: Tensor, xs: Tensor, size_hw: tuple[int, int], margin_px: int) -> BoxL0:
    """Return the bounding box of points, with a margin, clipped to the image; at least the nearest pixel."""
    spans = []
    for places, size in ((ys, size_hw[0]), (xs, size_hw[1])):
        low = min(max(math.floor(float(places.min())) - margin_px, 0), size - 1)
        spans.append((low, max(low + 1, min(math.ceil(float(places.max())) + margin_px, size))))
    (y0, y1), (x0, x1) = spans
    return y0, x0, y1, x1


def _sampled(pixels: Tensor, ys: Tensor, xs: Tensor) -> Tensor:
    """Interpolate linearly at points counted from the edge of the first pixel; the border pixel extends beyond it."""
    height, width = pixels.shape[-2:]
    grid = torch.stack([xs / width, ys / height], dim=-1).float() * 2 - 1
    return F.grid_sample(pixels[None], grid[None], mode="bilinear", padding_mode="border", align_corners=False)[0]


def _laid_out(inside: _Inside, box_yxyx: BoxL0, size_px: int, resize: Resize, fill: Sequence[float]) -> Tensor:
    """Resample pixels to a glimpse of a box, with ``fill`` around them."""
    levels = (inside.pixels * 255).round()
    # 8-bit pixels are kept as such, so that the result equals that of an image in memory bit for bit.
    is_bytes = torch.equal(levels / 255, inside.pixels)
    pixels = levels.to(torch.uint8) if is_bytes else inside.pixels
    (y, x), (step_y, step_x) = inside.box_yxyx[:2], inside.scale_yx
    y0, x0, y1, x1 = box_yxyx
    box = ((y0 - y) / step_y, (x0 - x) / step_x, (y1 - y) / step_y, (x1 - x) / step_x)
    level = level_in_memory(pixels.permute(1, 2, 0).contiguous().numpy())
    return resample(level, box, size_px, resize=resize, fill=fill)
