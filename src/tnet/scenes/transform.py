"""A changed picture, without changing pixels that nobody looks at.

A change is a plain description. Made to a scene, every box that is looked at is mapped back to where it lies in the
picture as it is stored, so that close looks and coarse ones show the same changed picture, and a look costs what it
costs without the change.

Order of a change: crop, turned by the angle about the crop's centre; horizontal flip; vertical flip; quarter turns;
colours; and, of a picture in memory only, what :mod:`tnet.scenes.pixels` does.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

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
"""What can be changed about colours; the factors are those of torchvision's ``adjust_*`` functions."""

_NATIVE_PX = 1024  # a box of this side that sticks out of the crop is read as it is stored, so that nothing is rounded
_FINER = 2  # else pixels are taken this much finer than asked for, and averaged
_MAX_HULL_PX = 4096
_MEAN_PX = 32  # side of the view whose mean grey level contrast is changed about


@dataclass(frozen=True)
class ImageChange:
    """One change of one picture.

    Attributes:
        crop_yxyx: what is kept, in pixels of the picture; ``None`` keeps all.
        horizontal_flip: mirror left and right.
        vertical_flip: mirror top and bottom.
        quarter_turns: counterclockwise, 0 to 3; an odd number swaps height and width.
        angle_deg: turn the picture counterclockwise by this below the crop, about the crop's centre. The crop keeps its
            size; what it then shows beyond the picture's edges is the pixel at the edge.
        colours: changes of colours, in order.
        pixels: what comes after all that and needs all pixels in memory; no scene can be changed so.
    """

    crop_yxyx: BoxL0 | None = None
    horizontal_flip: bool = False
    vertical_flip: bool = False
    quarter_turns: int = 0
    angle_deg: float = 0.0
    colours: tuple[tuple[Colour, float], ...] = ()
    pixels: PixelChange | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.quarter_turns <= 3:
            raise ConfigError(f"quarter_turns is {self.quarter_turns}; give 0 to 3")
        if not math.isfinite(self.angle_deg):
            raise ConfigError(f"angle_deg is {self.angle_deg}; give a number of degrees")
        for name, factor in self.colours:
            low, high = (-0.5, 0.5) if name == "hue" else (0.0, math.inf)
            if not low <= factor <= high or factor == math.inf:
                raise ConfigError(f"{name} is changed by {factor}; give a number from {low:g} to {high:g}")

    def crop_of(self, size_hw: tuple[int, int]) -> BoxL0:
        """The crop of a picture of this size.

        Raises:
            GeometryError: it is empty, or not inside the picture.
        """
        if self.crop_yxyx is None:
            return (0, 0, *size_hw)
        y0, x0, y1, x1 = self.crop_yxyx
        if not (0 <= y0 < y1 <= size_hw[0] and 0 <= x0 < x1 <= size_hw[1]):
            raise GeometryError(f"crop {self.crop_yxyx} is empty or not inside a picture of {size_hw} pixels")
        return self.crop_yxyx

    def size_of(self, size_hw: tuple[int, int]) -> tuple[int, int]:
        """Height and width of what becomes of a picture of this size."""
        if self.pixels is not None and self.pixels.size_px is not None:
            return self.pixels.size_px, self.pixels.size_px
        y0, x0, y1, x1 = self.crop_of(size_hw)
        return (x1 - x0, y1 - y0) if self.quarter_turns % 2 else (y1 - y0, x1 - x0)


def change_image(
    image: UInt8[Tensor, "channels height width"], change: ImageChange
) -> UInt8[Tensor, "channels new_height new_width"]:
    """Change a picture in memory.

    Args:
        image: levels 0 to 255, one or three channels where colours are changed; not modified.
        change: what to do.
    """
    y0, x0, y1, x1 = change.crop_of((int(image.shape[1]), int(image.shape[2])))
    if change.angle_deg:
        rows, columns = torch.arange(y0, y1) + 0.5, torch.arange(x0, x1) + 0.5
        positions = _turned(rows, columns, ((y0 + y1) / 2, (x0 + x1) / 2), change.angle_deg)
        image = _sampled(image.float(), *positions).round().to(torch.uint8)
    else:
        image = image[..., y0:y1, x0:x1]
    image = adjust_colours(_mirrored(image, change), change.colours)
    if change.pixels is not None:
        image = change_pixels(image, change.pixels)
    # A view would send the whole picture between processes.
    return image.contiguous()


def adjust_colours(
    pixels: Tensor, colours: Sequence[tuple[Colour, float]], contrast_mean: float | None = None
) -> Tensor:
    """Change colours, one after another.

    Args:
        pixels: ``[channels, height, width]``, 1 or 3 channels: ``uint8``, or floating point in [0, 1].
        colours: names and factors.
        contrast_mean: grey level in [0, 1] about which contrast is changed; that of ``pixels`` if ``None``.

    Raises:
        ConfigError: neither one channel nor three.
    """
    if not colours:
        return pixels
    if pixels.shape[0] not in (1, 3):
        raise ConfigError(f"colours of an image of {pixels.shape[0]} channels cannot be changed; it needs 1 or 3")
    from torchvision.transforms.v2 import functional

    adjust: dict[Colour, Any] = {
        "brightness": functional.adjust_brightness,
        "contrast": functional.adjust_contrast,
        "saturation": functional.adjust_saturation,
        "hue": functional.adjust_hue,
    }
    for name, factor in colours:
        if name == "contrast" and contrast_mean is not None:
            pixels = (pixels * factor + contrast_mean * (1 - factor)).clamp(0, 1)
        else:
            pixels = adjust[name](pixels, factor)
    return pixels


class _Inside(NamedTuple):
    """Pixels of the part of a box that lies in the crop.

    Attributes:
        pixels: ``[channels, height, width]`` in [0, 1].
        box_yxyx: in the frame of the crop.
        scale_yx: pixels of the picture for each of these.
    """

    pixels: Tensor
    box_yxyx: BoxL0
    scale_yx: tuple[float, float]


class TransformedScene:
    """A scene as a change shows it.

    Without an angle and colours, a look at a box inside the crop is the same look at the source, mirrored and turned,
    bit for bit. Against changing all pixels first and looking then (:func:`change_image`):

    - crop and flips: the same, bit for bit, if the source has no coarser level that is used; at boxes that stick out of
      the crop, for those of up to 1024 px or 2 px a pixel; beyond that, the pixel next to the crop's edge differs;
    - odd quarter turns: 8-bit levels differ by up to 1 of 255, since columns are reduced before rows, and rounded;
    - an angle: pixels are taken twice as fine as asked for, where the image has them, and averaged. Up to 3 levels
      where the picture is smooth at that scale; more at the crop's edge;
    - colours are changed after pixels are reduced, and not rounded: up to 1 level a change, more where levels are cut
      off at black or white. Contrast is changed about one grey level, the mean of the changed scene seen as a whole at
      32 px, in all looks. What lies outside (``fill``) keeps its colour.

    It pickles as its source and change.

    Args:
        scene: the source.
        change: made to it.

    Raises:
        ConfigError: a change that needs all pixels in memory.
    """

    def __init__(self, scene: Scene, change: ImageChange) -> None:
        if change.pixels is not None:
            raise ConfigError(
                f"{scene.name} is read lazily, but the augmentation (resize_px, colour_cases, rotation_fill black, "
                "translation or rand_augment) needs all pixels in memory; turn that off, or set data.read to memory"
            )
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
        """Height and width after the change, pixels of the source's level 0."""
        return self.change.size_of(self.scene.size_hw)

    @property
    def levels(self) -> tuple[tuple[int, int], ...]:
        """What the change leaves of each stored resolution, finest first."""
        full_hw, (height, width) = self.scene.size_hw, self.size_hw
        if self.change.quarter_turns % 2:
            full_hw = full_hw[::-1]
        sizes = [size[::-1] if self.change.quarter_turns % 2 else size for size in self.scene.levels]
        return tuple(
            (max(1, round(level[0] * height / full_hw[0])), max(1, round(level[1] * width / full_hw[1])))
            for level in sizes
        )

    def glimpse(
        self, box_l0_yxyx: BoxL0, size_px: int, *, channels: int, resize: Resize, fill: Sequence[float]
    ) -> Float[Tensor, "channels size size"]:
        """Pixels of one box of the changed scene; as for :meth:`tnet.scenes.Scene.glimpse`.

        Raises:
            GeometryError: an empty box or size, or a crop that is not inside the scene.
            ConfigError: colours are to be changed of something else than 1 or 3 channels.
        """
        colours = self.change.colours
        mean = self._contrast_mean(channels, resize) if "contrast" in dict(colours) else None
        return self._look(box_l0_yxyx, size_px, channels, resize, fill, colours, mean)

    def _look(
        self,
        box_yxyx: BoxL0,
        size_px: int,
        channels: int,
        resize: Resize,
        fill: Sequence[float],
        colours: Sequence[tuple[Colour, float]],
        mean: float | None,
    ) -> Tensor:
        """A glimpse with some of the changes of colours."""
        check_look(box_yxyx, size_px)
        top, left, bottom, right = self.change.crop_of(self.scene.size_hw)
        y0, x0, y1, x1 = box = _unmirrored(box_yxyx, (bottom - top, right - left), self.change)
        inside = (max(y0, 0), max(x0, 0), min(y1, bottom - top), min(x1, right - left))
        if inside[0] >= inside[2] or inside[1] >= inside[3]:
            return torch.tensor(fill, dtype=torch.float32).expand(channels)[:, None, None].repeat(1, size_px, size_px)
        if inside == box and not self.change.angle_deg:
            in_source = (y0 + top, x0 + left, y1 + top, x1 + left)
            pixels = self.scene.glimpse(in_source, size_px, channels=channels, resize=resize, fill=fill)
            return adjust_colours(_mirrored(pixels, self.change), colours, mean).contiguous()
        scale_yx = ((y1 - y0) / size_px, (x1 - x0) / size_px)
        found = self._inside(inside, scale_yx, channels, resize)
        found = found._replace(pixels=adjust_colours(found.pixels, colours, mean))
        return _mirrored(_laid_out(found, box, size_px, resize, fill), self.change).contiguous()

    def _inside(self, box_yxyx: BoxL0, scale_yx: tuple[float, float], channels: int, resize: Resize) -> _Inside:
        """Pixels of a box in the crop, finer than asked for by ``scale_yx``, source pixels for each of the look's."""
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
        ys, xs = _turned(rows, columns, ((top + bottom) / 2, (left + right) / 2), self.change.angle_deg)
        upright = math.cos(math.radians(self.change.angle_deg)) ** 2
        along_y = 1 / (upright / finer_y + (1 - upright) / finer_x)
        along_x = 1 / (upright / finer_x + (1 - upright) / finer_y)
        hull = _hull(ys, xs, self.scene.size_hw, math.ceil(max(along_y, along_x)) + 1)
        pixels, (step_y, step_x) = self._read(hull, along_y, along_x, channels, resize)
        return _Inside(_sampled(pixels, (ys - hull[0]) / step_y, (xs - hull[1]) / step_x), box_yxyx, scale_yx)

    def _read(
        self, box_yxyx: BoxL0, step_y: float, step_x: float, channels: int, resize: Resize
    ) -> tuple[Tensor, tuple[float, float]]:
        """Pixels of a box inside the source, at least as fine as the steps, and their true steps, source pixels."""
        y0, x0, y1, x1 = box_yxyx
        height, width = y1 - y0, x1 - x0
        if step_y == step_x == 1 and max(height, width) <= _MAX_HULL_PX:
            side = max(height, width)  # what is asked for is square, and at its own size stays as it is
            square = (y0, x0, y0 + side, x0 + side)
            pixels = self.scene.glimpse(square, side, channels=channels, resize=resize, fill=(0.0,))
            return pixels[:, :height, :width], (1.0, 1.0)
        side = min(_MAX_HULL_PX, math.ceil(max(height / step_y, width / step_x)))
        pixels = self.scene.glimpse(box_yxyx, side, channels=channels, resize=resize, fill=(0.0,))
        return pixels, (height / side, width / side)

    def _contrast_mean(self, channels: int, resize: Resize) -> float:
        """Mean grey level of the whole, with those changes of colours that come before contrast."""
        if channels not in self._means:
            names = [name for name, _ in self.change.colours]
            before = self.change.colours[: names.index("contrast")]
            whole = self._look((0, 0, *self.size_hw), _MEAN_PX, channels, resize, (0.0,), before, None)
            self._means[channels] = float(_grey(whole).mean())
        return self._means[channels]


def _grey(pixels: Tensor) -> Tensor:
    from torchvision.transforms.v2 import functional

    return functional.rgb_to_grayscale(pixels) if pixels.shape[0] == 3 else pixels


def _mirrored(pixels: Tensor, change: ImageChange) -> Tensor:
    """Flipped and turned by quarters."""
    axes = [axis for axis, flip in ((-1, change.horizontal_flip), (-2, change.vertical_flip)) if flip]
    pixels = pixels.flip(axes) if axes else pixels
    return torch.rot90(pixels, change.quarter_turns, dims=(-2, -1))


def _unmirrored(box_yxyx: BoxL0, crop_hw: tuple[int, int], change: ImageChange) -> BoxL0:
    """Where a box of the changed picture lies in the crop."""
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


def _turned(rows: Tensor, columns: Tensor, centre_yx: tuple[float, float], angle_deg: float) -> tuple[Tensor, Tensor]:
    """Where in a picture that is turned counterclockwise about a point the places of a grid come from."""
    cosine, sine = math.cos(math.radians(angle_deg)), math.sin(math.radians(angle_deg))
    y = (rows.double() - centre_yx[0])[:, None]
    x = (columns.double() - centre_yx[1])[None, :]
    return centre_yx[0] + x * sine + y * cosine, centre_yx[1] + x * cosine - y * sine


def _hull(ys: Tensor, xs: Tensor, size_hw: tuple[int, int], margin_px: int) -> BoxL0:
    """The box of all places, with a margin, as far as it lies in the picture; at least the pixel nearest to it."""
    spans = []
    for places, size in ((ys, size_hw[0]), (xs, size_hw[1])):
        low = min(max(math.floor(float(places.min())) - margin_px, 0), size - 1)
        spans.append((low, max(low + 1, min(math.ceil(float(places.max())) + margin_px, size))))
    (y0, y1), (x0, x1) = spans
    return y0, x0, y1, x1


def _sampled(pixels: Tensor, ys: Tensor, xs: Tensor) -> Tensor:
    """Linear interpolation at places counted from the edge of the first pixel; past the edges, the pixel there."""
    height, width = pixels.shape[-2:]
    grid = torch.stack([xs / width, ys / height], dim=-1).float() * 2 - 1
    return F.grid_sample(pixels[None], grid[None], mode="bilinear", padding_mode="border", align_corners=False)[0]


def _laid_out(found: _Inside, box_yxyx: BoxL0, size_px: int, resize: Resize, fill: Sequence[float]) -> Tensor:
    """Reduce what was found to a look at a box, with ``fill`` around it."""
    levels = (found.pixels * 255).round()
    # Pixels of 8 bits stay so, that the result be what it is for a picture in memory, bit for bit.
    is_bytes = torch.equal(levels / 255, found.pixels)
    pixels = levels.to(torch.uint8) if is_bytes else found.pixels
    (y, x), (step_y, step_x) = found.box_yxyx[:2], found.scale_yx
    y0, x0, y1, x1 = box_yxyx
    box = ((y0 - y) / step_y, (x0 - x) / step_x, (y1 - y) / step_y, (x1 - x) / step_x)
    level = level_in_memory(pixels.permute(1, 2, 0).contiguous().numpy())
    return resample(level, box, size_px, resize=resize, fill=fill)
