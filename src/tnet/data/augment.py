"""Random augmentation of training images: flips, rotations, crops and colours; RandAugment; the published presets.

A change is drawn as a :class:`tnet.scenes.transform.ImageChange`, and then applied to an image in memory or a scene. It
depends only on ``(seed, epoch, index)``, through :func:`sample_generator`: the number of workers and the order of
loading change nothing, and a resumed run repeats the uninterrupted one.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from jaxtyping import Num, UInt8
from torch import Tensor

from tnet.config import check_least, check_most
from tnet.data.transforms import MAX_SIDE_PX
from tnet.errors import ConfigError
from tnet.scenes.base import BoxL0, Scene
from tnet.scenes.pixels import RESIZE_METHODS, PixelChange, PixelColour, RandAugmentDraw
from tnet.scenes.transform import Colour, ImageChange, TransformedScene, change_image

Boxes = Num[Tensor, "boxes 4"] | Num[np.ndarray, "boxes 4"]
"""Boxes (y0, x0, y1, x1) in pixels of an image; ends exclusive."""

# The orders of TensorFlow's Inception preprocessing.
_COLOUR_CASES: tuple[tuple[PixelColour, ...], ...] = (
    ("brightness", "saturation", "hue", "contrast"), ("saturation", "brightness", "contrast", "hue"),
    ("contrast", "hue", "brightness", "saturation"), ("hue", "saturation", "contrast", "brightness"), (),
)  # fmt: skip


@dataclass(frozen=True)
class AugmentConfig:
    """Random augmentation of training images; off by default. :data:`PRESETS` has the published combinations.

    ``resize_px``, ``colour_cases``, ``rotation_fill: black``, ``translation`` and ``rand_augment`` need decoded images,
    and are applied after all others, in this order; lazily read images are rejected.

    Attributes:
        horizontal_flip: mirror left and right with probability 0.5.
        vertical_flip: mirror top and bottom with probability 0.5.
        quarter_turns: rotate by 0, 90, 180 or 270 degrees with equal probability; swaps height and width half of the
            time.
        rotation: rotate about the centre of the crop by an angle drawn uniformly from -rotation to rotation degrees; 0
            to 180.
        crop_area: smallest and largest share of the image's area that a crop keeps, above 0 and up to 1; drawn
            uniformly. (1, 1) does not crop. Crops keep the image's resolution, so their size in pixels varies.
        crop_aspect: smallest and largest width/height of the crop, as a multiple of the image's own width/height; drawn
            log-uniformly, within what fits a crop of the drawn area. (1, 1) keeps the aspect.
        brightness: levels are multiplied by a factor from 1 - brightness to 1 + brightness; 0 to 1.
        contrast: contrast about the mean grey level is multiplied by a factor from 1 - contrast to 1 + contrast;
            0 to 1.
        saturation: the same for the distance of colours from grey; 0 to 1. No effect on one channel.
        hue: hues are shifted by a share of the colour circle from -hue to hue; 0 to 0.5. No effect on one channel.
        crop_aspect_absolute: ``crop_aspect`` is width/height itself, drawn uniformly, and then the size of the crop,
            within area and image (published). If nothing fits, another crop is drawn.
        crop_box_share: a crop must show at least this share of the area of one of the image's boxes, 0 to 1, else
            another is drawn; an image without boxes counts as its own box.
        crop_tries: number of crops drawn before the whole image is kept.
        resize_px: side of the square that every image is resized to after crop, flips and rotation, ignoring its
            aspect; ``null`` keeps its size.
        resize_methods: ``one``, bilinear without antialiasing, as ``preprocess: reference_448``; or ``eight``, a random
            one of TensorFlow's 8 methods without antialiasing (published).
        colour_cases: apply the four colour changes in one of 4 orders, or none of them, with equal probability, as
            TensorFlow does (published): brightness is added, as a share of white; contrast is changed about the mean of
            each channel; saturation is that of HSV; levels are clipped at the end. Otherwise the order is random and
            the formulas are torchvision's.
        rotation_fill: what rotation shows beyond the crop: ``edge``, the image around it, and beyond the image its edge
            pixels; or ``black`` (published for birds).
        rotation_nearest: with ``rotation_fill: black`` and ``translation``, take the nearest pixel instead of
            interpolating (published for birds).
        translation: shift by up to this share of each side, drawn uniformly for each, filled with black; 0 to 1.
        rand_augment: number of RandAugment operations, applied one after another; 0 for none, usually 2.
        rand_augment_magnitude: their strength, 0 to 30; usually 9.
    """

    horizontal_flip: bool = False
    vertical_flip: bool = False
    quarter_turns: bool = False
    rotation: float = 0.0
    crop_area: tuple[float, float] = (1.0, 1.0)
    crop_aspect: tuple[float, float] = (1.0, 1.0)
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0
    crop_aspect_absolute: bool = False
    crop_box_share: float = 0.0
    crop_tries: int = 50
    resize_px: int | None = None
    resize_methods: Literal["one", "eight"] = "one"
    colour_cases: bool = False
    rotation_fill: Literal["edge", "black"] = "edge"
    rotation_nearest: bool = False
    translation: float = 0.0
    rand_augment: int = 0
    rand_augment_magnitude: int = 9

    def __post_init__(self) -> None:
        for key, limit, remedy in (
            ("crop_area", 1.0, "give two shares of the area above 0 and up to 1, the smaller first: (0.5, 1.0)"),
            ("crop_aspect", sys.float_info.max, "give two numbers above 0, the smaller first: (0.75, 1.33)"),
        ):
            smallest, largest = getattr(self, key)
            if not 0 < smallest <= largest <= limit:  # written so that NaN fails too
                raise ConfigError(f"{key} is {getattr(self, key)}; {remedy}")
        limits = dict.fromkeys(("brightness", "contrast", "saturation", "translation", "crop_box_share"), 1.0)
        limits |= {"rotation": 180.0, "hue": 0.5, "rand_augment": 20, "rand_augment_magnitude": 30}
        for key, limit in limits.items():
            if not 0 <= getattr(self, key) <= limit:
                raise ConfigError(f"{key} is {getattr(self, key)}; give a number from 0 (off) to {limit:g}")
        check_most(self, "", {"crop_tries": 10**4})
        check_least(self, "", {"crop_tries": 1})
        if self.resize_px is not None and not 1 <= self.resize_px <= MAX_SIDE_PX:
            raise ConfigError(f"resize_px is {self.resize_px}; give 1 to {MAX_SIDE_PX}, or null to keep the size")
        self._check_combinations()

    def _check_combinations(self) -> None:
        """Reject options that have no effect because the option they modify is off."""
        crops = self.crop_area != (1.0, 1.0)
        colours = bool(self.brightness or self.contrast or self.saturation or self.hue)
        crop_remedy = "set crop_area to less than the whole image, such as (0.85, 1.0)"
        for key, is_set, has_effect, remedy in (
            ("crop_aspect", self.crop_aspect != (1.0, 1.0), crops, crop_remedy),
            ("crop_aspect_absolute", self.crop_aspect_absolute, crops, crop_remedy),
            ("crop_box_share", self.crop_box_share, crops, crop_remedy),
            ("resize_methods", self.resize_methods == "eight", self.resize_px, "set resize_px"),
            ("colour_cases", self.colour_cases, colours, "set brightness, contrast, saturation or hue"),
            ("rotation_fill", self.rotation_fill == "black", self.rotation, "set rotation"),
            ("rotation_nearest", self.rotation_nearest, self.rotation_fill == "black" or self.translation,
             "set rotation_fill to black, or translation"),
        ):  # fmt: skip
            if is_set and not has_effect:
                raise ConfigError(f"{key} is {getattr(self, key)}, which has no effect; {remedy}, or leave it out")

    @property
    def memory_only(self) -> tuple[str, ...]:
        """Keys in use that need decoded images."""
        keys = ["resize_px", "colour_cases", "translation", "rand_augment"]
        on = [key for key in keys if getattr(self, key)]
        return (*on, "rotation_fill") if self.rotation_fill == "black" else tuple(on)


_PUBLISHED = AugmentConfig(
    horizontal_flip=True, crop_area=(0.85, 1.0), crop_aspect=(0.5, 2.0), crop_aspect_absolute=True, crop_box_share=0.1,
    resize_px=224, resize_methods="eight",
)  # fmt: skip

PRESETS: Mapping[str, AugmentConfig] = {
    "tnet": replace(_PUBLISHED, colour_cases=True, brightness=0.12549, contrast=0.5, saturation=0.5, hue=0.2),
    "tnet_birds": replace(_PUBLISHED, rotation=20.0, rotation_fill="black", rotation_nearest=True, translation=0.1),
}
"""The augmentation published with TNet for ImageNet and fMoW, and for CUB-200-2011 and NABirds, at 224 px; for other
sizes replace ``resize_px``. Brightness is 32 of 255 levels."""


class Augment:
    """Applies the random augmentation of a configuration."""

    def __init__(self, config: AugmentConfig) -> None:
        self.config = config

    def __call__(
        self,
        image: UInt8[Tensor, "channels height width"] | Scene,
        generator: torch.Generator,
        boxes: Boxes | None = None,
    ) -> UInt8[Tensor, "channels new_height new_width"] | TransformedScene:
        """Augment one image (levels 0 to 255, 1 or 3 channels) or scene, without modifying or reading the original.

        The same generator state (see :func:`sample_generator`) gives the same change for both. Crops show ``boxes`` as
        ``crop_box_share`` requires; ``None`` or no boxes stand for the whole image.

        Raises:
            ConfigError: ``image`` is a scene, but a change needs a decoded image.
        """
        if isinstance(image, Scene):
            return TransformedScene(image, self.draw(image.size_hw, generator, boxes))
        return change_image(image, self.draw((image.shape[1], image.shape[2]), generator, boxes))

    def draw(self, size_hw: tuple[int, int], generator: torch.Generator, boxes: Boxes | None = None) -> ImageChange:
        """Draw the change of one image; arguments: see :meth:`__call__`."""
        config = self.config
        # The order of the draws is part of what a seed means; new ones go last.
        return ImageChange(
            crop_yxyx=self._crop(size_hw, generator, boxes),
            horizontal_flip=config.horizontal_flip and bool(_integer(2, generator)),
            vertical_flip=config.vertical_flip and bool(_integer(2, generator)),
            quarter_turns=_integer(4, generator) if config.quarter_turns else 0,
            angle_deg=self._angle(generator) if config.rotation_fill == "edge" else 0.0,
            colours=() if config.colour_cases else self._colours(generator),
            pixels=self._pixels(generator) if config.memory_only else None,
        )

    def __repr__(self) -> str:
        return f"Augment({self.config!r})"

    def _angle(self, generator: torch.Generator) -> float:
        limit = self.config.rotation
        return _uniform(-limit, limit, generator) if limit else 0.0

    def _crop(self, size_hw: tuple[int, int], generator: torch.Generator, boxes: Boxes | None) -> BoxL0 | None:
        if self.config.crop_area == (1.0, 1.0):
            return None
        to_show = [(0.0, 0.0, *size_hw)] if boxes is None or len(boxes) == 0 else boxes.tolist()
        draw = self._crop_by_absolute_aspect if self.config.crop_aspect_absolute else self._crop_by_relative_aspect
        for _ in range(self.config.crop_tries):
            crop = draw(size_hw, generator)
            if crop is not None and _shows_box(crop, to_show, self.config.crop_box_share):
                return crop
        return None

    def _crop_by_relative_aspect(self, size_hw: tuple[int, int], generator: torch.Generator) -> BoxL0:
        """Draw a crop whose aspect is a multiple of the image's own; there always is one."""
        height, width = size_hw
        area = _uniform(*self.config.crop_area, generator)
        # A crop of this area fits only if its aspect, relative to the image's, is within area .. 1 / area.
        low, high = (min(max(aspect, area), 1 / area) for aspect in self.config.crop_aspect)
        aspect = math.exp(_uniform(math.log(low), math.log(high), generator))
        crop_height = min(height, max(1, round(height * math.sqrt(area / aspect))))
        crop_width = min(width, max(1, round(width * math.sqrt(area * aspect))))
        return _place(size_hw, (crop_height, crop_width), generator)

    def _crop_by_absolute_aspect(self, size_hw: tuple[int, int], generator: torch.Generator) -> BoxL0 | None:
        """Draw a crop as TensorFlow does: aspect first, then the height uniformly from what area and image allow."""
        height, width = size_hw
        smallest, largest = (share * height * width for share in self.config.crop_area)
        aspect = _uniform(*self.config.crop_aspect, generator)
        most = min(round(math.sqrt(largest / aspect)), height, math.floor((width + 0.5) / aspect))
        least = min(round(math.sqrt(smallest / aspect)), most)
        crop_height = least + _integer(most - least + 1, generator)
        crop_width = min(round(crop_height * aspect), width)
        if crop_height < 1 or crop_width < 1 or not smallest <= crop_height * crop_width <= largest:
            return None
        return _place(size_hw, (crop_height, crop_width), generator)

    def _pixels(self, generator: torch.Generator) -> PixelChange:
        config = self.config
        method = RESIZE_METHODS[_integer(len(RESIZE_METHODS), generator) if config.resize_methods == "eight" else 0]
        colours = self._colour_case(generator) if config.colour_cases else ()
        angle = self._angle(generator) if config.rotation_fill == "black" else 0.0
        down, right = (_uniform(-1, 1, generator) * config.translation if config.translation else 0.0 for _ in "yx")
        count, magnitude = config.rand_augment, config.rand_augment_magnitude
        draw = RandAugmentDraw(count, magnitude, _integer(2**31, generator)) if count else None
        return PixelChange(config.resize_px, method, colours, angle, (down, right), config.rotation_nearest, draw)

    def _colour_case(self, generator: torch.Generator) -> tuple[tuple[PixelColour, float], ...]:
        """Draw one of the published orders, and the strength of each change."""
        names = _COLOUR_CASES[_integer(len(_COLOUR_CASES), generator)]
        spreads = ((name, float(name in ("contrast", "saturation")), getattr(self.config, name)) for name in names)
        return tuple((name, _uniform(mid - spread, mid + spread, generator)) for name, mid, spread in spreads if spread)

    def _colours(self, generator: torch.Generator) -> tuple[tuple[Colour, float], ...]:
        """Draw a random order, and the strength of each change."""
        names: tuple[Colour, ...] = ("brightness", "contrast", "saturation", "hue")
        spreads = [(name, float(name != "hue"), spread) for name in names if (spread := getattr(self.config, name)) > 0]
        if not spreads:
            return ()
        order = (spreads[index] for index in torch.randperm(len(spreads), generator=generator).tolist())
        return tuple((name, _uniform(mid - spread, mid + spread, generator)) for name, mid, spread in order)


def sample_generator(seed: int, epoch: int, index: int) -> torch.Generator:
    """Return a CPU generator for one sample in one epoch, the same in every process; all numbers are at least 0."""
    # SeedSequence gives neighbouring numbers unrelated streams; PyTorch's CPU generator uses only 32 bits of a seed.
    (seed32,) = np.random.SeedSequence((seed, epoch, index)).generate_state(1)
    return torch.Generator().manual_seed(int(seed32))


def _shows_box(crop: BoxL0, boxes: Sequence[Sequence[float]], share: float) -> bool:
    """Return whether a crop shows at least this share of the area of one of the boxes."""
    if not share:
        return True
    for y0, x0, y1, x1 in boxes:
        area = (y1 - y0) * (x1 - x0)
        height, width = min(y1, crop[2]) - max(y0, crop[0]), min(x1, crop[3]) - max(x0, crop[1])
        if area > 0 and min(height, width) > 0 and height * width >= share * area:
            return True
    return False


def _place(size_hw: tuple[int, int], crop_hw: tuple[int, int], generator: torch.Generator) -> BoxL0:
    (height, width), (crop_height, crop_width) = size_hw, crop_hw
    top = _integer(height - crop_height + 1, generator)
    left = _integer(width - crop_width + 1, generator)
    return top, left, top + crop_height, left + crop_width


def _uniform(low: float, high: float, generator: torch.Generator) -> float:
    return low + (high - low) * float(torch.rand((), generator=generator, dtype=torch.float64))


def _integer(count: int, generator: torch.Generator) -> int:
    """Draw one of 0 .. count - 1."""
    return int(torch.randint(count, (), generator=generator))
