"""Random changes to training pictures: flips, turns, crops and colours; the published ones, and RandAugment.

What is drawn is a description (:class:`tnet.scenes.transform.ImageChange`), which is then made to a picture in memory
or to a scene. Each picture's change depends only on ``(seed, epoch, index)``, through :func:`sample_generator`: it is
the same for any number of loader workers and any order of loading, and a resumed run sees what an uninterrupted one
would.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Num, UInt8
from torch import Tensor

from tnet.data.transforms import LARGEST_PX
from tnet.errors import ConfigError
from tnet.scenes.base import BoxL0, Scene
from tnet.scenes.pixels import RESIZE_METHODS, PixelChange, PixelColour, RandAugmentDraw
from tnet.scenes.transform import Colour, ImageChange, TransformedScene, change_image

Boxes = Num[Tensor, "boxes 4"] | Num[np.ndarray, "boxes 4"]
"""Boxes (y0, x0, y1, x1) in pixels of a picture; ends exclusive."""

_Box = tuple[float, float, float, float]

# The orders of TensorFlow's Inception preprocessing.
_CASES: tuple[tuple[PixelColour, ...], ...] = (
    ("brightness", "saturation", "hue", "contrast"),
    ("saturation", "brightness", "contrast", "hue"),
    ("contrast", "hue", "brightness", "saturation"),
    ("hue", "saturation", "contrast", "brightness"),
    (),
)


@dataclass(frozen=True)
class AugmentConfig:
    """Which random changes are made to training pictures; nothing unless asked for.

    Those of ``resize_px``, ``colour_cases``, ``rotation_fill: black``, ``translation`` and ``rand_augment`` are made to
    pictures in memory, after all others and in this order; pictures that are read lazily are refused.

    Attributes:
        horizontal_flip: mirror left and right, half of the time.
        vertical_flip: mirror top and bottom, half of the time.
        quarter_turns: turn by 0, 90, 180 or 270 degrees, each as likely; swaps height and width half of the time
            where they differ.
        rotation: turn by an angle from -rotation to rotation degrees about the middle of the crop, drawn uniformly; 0
            to 180.
        rotation_fill: what is then shown beyond the edges: ``edge``, what lies beyond the crop, and beyond the picture
            the pixel at its edge; or ``black``, as published for birds.
        rotation_nearest: with ``rotation_fill: black`` and ``translation``, take the nearest pixel (published for
            birds) instead of interpolating.
        translation: move by up to this share of each side, drawn uniformly for each; what comes in is black; 0 to 1.
        crop_area: smallest and largest part of the picture's area that a crop keeps, above 0 and up to 1; drawn
            uniformly. (1, 1) does not crop. Crops keep the picture's resolution, so their size in pixels varies.
        crop_aspect: smallest and largest width/height of the crop, as a multiple of the picture's own width/height;
            drawn log-uniformly, as far as a crop of the drawn area has room for it. (1, 1) keeps the shape.
        crop_aspect_absolute: ``crop_aspect`` is width/height itself, drawn uniformly, and then the crop's size, as far
            as the area allows and there is room (published). Where there is none, it is tried again.
        crop_box_share: a crop must show at least this part of the area of one of the picture's boxes, 0 to 1, else it
            is tried again; a picture without boxes is its own box.
        crop_tries: after which the whole picture is kept, where crops can fail.
        resize_px: side of the square that every picture is brought to after crop, flips and turns, whatever its shape;
            ``null`` keeps its size.
        resize_methods: ``one``, bilinear, without antialiasing, as ``preprocess: reference_448`` does; or ``eight``,
            each time another of TensorFlow's 8 methods, without antialiasing (published).
        brightness: levels are multiplied by a factor from 1 - brightness to 1 + brightness; 0 to 1.
        contrast: contrast about the mean grey level is multiplied by a factor from 1 - contrast to 1 + contrast;
            0 to 1.
        saturation: likewise, for the distance of colours from grey; 0 to 1. Without effect on one channel.
        hue: hues are turned by a part of the colour circle, from -hue to hue; 0 to 0.5. Without effect on one channel.
        colour_cases: the four in one of 4 orders, or none of them, each of the 5 as likely, as TensorFlow does them
            (published): brightness is added, as a share of white; contrast is changed about each channel's mean;
            saturation is that of HSV; levels are cut off at the end. Else they come in any order, as torchvision does
            them.
        rand_augment: operations of RandAugment, one after another; 0 for none, 2 is usual.
        rand_augment_magnitude: how strong they are, 0 to 30; 9 is usual.
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
        """Hold every value against its limits.

        Raises:
            ConfigError: a value is outside its range.
        """
        smallest, largest = self.crop_area
        if not 0 < smallest <= largest <= 1:  # written so that NaN fails too
            raise ConfigError(
                f"crop_area is {self.crop_area}, but must be two parts of the area, smallest first, above 0 and at "
                "most 1, such as (0.5, 1.0)."
            )
        smallest, largest = self.crop_aspect
        if not 0 < smallest <= largest < math.inf:
            raise ConfigError(
                f"crop_aspect is {self.crop_aspect}, but must be two numbers above 0, smallest first, such as "
                "(0.75, 1.33)."
            )
        if self.crop_aspect != (1.0, 1.0) and self.crop_area == (1.0, 1.0):
            raise ConfigError(
                f"crop_aspect is {self.crop_aspect}, but crop_area (1, 1) keeps the whole picture; give crop_area "
                "room, such as (0.5, 1.0)."
            )
        limits = dict.fromkeys(("brightness", "contrast", "saturation", "translation", "crop_box_share"), 1.0)
        limits |= {"rotation": 180.0, "hue": 0.5, "rand_augment": 20, "rand_augment_magnitude": 30}
        for key, limit in limits.items():
            value = getattr(self, key)
            if not 0 <= value <= limit:
                raise ConfigError(f"{key} is {value}, but must be from 0 (off) to {limit:g}.")
        self._check_what_goes_together()

    def _check_what_goes_together(self) -> None:
        if self.crop_tries < 1:
            raise ConfigError(f"crop_tries is {self.crop_tries}, but must be at least 1.")
        if self.crop_area == (1.0, 1.0) and (self.crop_aspect_absolute or self.crop_box_share):
            raise ConfigError(
                "crop_aspect_absolute and crop_box_share are about crops, but crop_area (1, 1) keeps the whole "
                "picture; give crop_area room, such as (0.85, 1.0)."
            )
        if self.resize_px is not None and not 1 <= self.resize_px <= LARGEST_PX:
            raise ConfigError(f"resize_px is {self.resize_px}, but must be from 1 to {LARGEST_PX}, or null.")
        if self.resize_methods == "eight" and self.resize_px is None:
            raise ConfigError("resize_methods is eight, but resize_px is null, so that nothing is resized; set it.")
        if self.colour_cases and not (self.brightness or self.contrast or self.saturation or self.hue):
            raise ConfigError("colour_cases is on, but brightness, contrast, saturation and hue are 0; set them.")
        if self.rotation_fill == "black" and not self.rotation:
            raise ConfigError("rotation_fill is black, but rotation is 0; set it, or leave rotation_fill out.")
        if self.rotation_nearest and not (self.rotation_fill == "black" or self.translation):
            raise ConfigError(
                "rotation_nearest is for rotation_fill black or translation, which are off; set one, or leave it out."
            )

    @property
    def memory_only(self) -> tuple[str, ...]:
        """Keys that ask for what cannot be done to pictures that are read lazily."""
        keys = ["resize_px", "colour_cases", "translation", "rand_augment"]
        on = [key for key in keys if getattr(self, key)]
        return (*on, "rotation_fill") if self.rotation_fill == "black" else tuple(on)


class Augment:
    """Makes the random changes that a configuration asks for.

    Attributes:
        config: which changes, and how strong.
    """

    def __init__(self, config: AugmentConfig) -> None:
        """Keep the configuration, which has been checked when it was made."""
        self.config = config

    def __call__(
        self,
        image: UInt8[Tensor, "channels height width"],
        generator: torch.Generator,
        boxes: Boxes | None = None,
    ) -> UInt8[Tensor, "channels new_height new_width"]:
        """Change one picture: crop and rotation, flips, quarter turn, colours; then what needs all pixels.

        Args:
            image: levels 0 to 255, one or three channels; not modified.
            generator: where random numbers come from, see :func:`sample_generator`.
            boxes: as for :meth:`draw`.

        Returns:
            The changed picture; of another size where crops or quarter turns are on, or ``resize_px``.
        """
        return change_image(image, self.draw((int(image.shape[1]), int(image.shape[2])), generator, boxes))

    def of_scene(self, scene: Scene, generator: torch.Generator, boxes: Boxes | None = None) -> TransformedScene:
        """The same change, made to a scene: what is looked at is changed, and nothing else is read.

        Args:
            scene: of which the size is asked.
            generator: where random numbers come from; one in the same state gives the same change as for a picture.
            boxes: as for :meth:`draw`.

        Raises:
            ConfigError: a change that needs all pixels in memory.
        """
        return TransformedScene(scene, self.draw(scene.size_hw, generator, boxes))

    def draw(self, size_hw: tuple[int, int], generator: torch.Generator, boxes: Boxes | None = None) -> ImageChange:
        """Draw the change of one picture.

        Args:
            size_hw: height and width, pixels.
            generator: where random numbers come from, see :func:`sample_generator`.
            boxes: what the picture is about, of which crops show enough: ``(y0, x0, y1, x1)`` in its pixels, ends
                exclusive. The whole picture if ``None`` or empty.
        """
        config = self.config
        # The order of the draws is part of what a seed means; what came later comes last.
        return ImageChange(
            crop_yxyx=self._crop(size_hw, generator, _boxes_of(size_hw, boxes)),
            horizontal_flip=config.horizontal_flip and bool(_integer(2, generator)),
            vertical_flip=config.vertical_flip and bool(_integer(2, generator)),
            quarter_turns=_integer(4, generator) if config.quarter_turns else 0,
            angle_deg=self._angle(generator) if config.rotation_fill == "edge" else 0.0,
            colours=() if config.colour_cases else self._colours(generator),
            pixels=self._pixels(generator) if config.memory_only else None,
        )

    def __repr__(self) -> str:
        """As it is made."""
        return f"Augment({self.config!r})"

    def _angle(self, generator: torch.Generator) -> float:
        limit = self.config.rotation
        return _uniform(-limit, limit, generator) if limit else 0.0

    def _crop(self, size_hw: tuple[int, int], generator: torch.Generator, boxes: list[_Box]) -> BoxL0 | None:
        if self.config.crop_area == (1.0, 1.0):
            return None
        draw = self._crop_by_aspect if self.config.crop_aspect_absolute else self._crop_by_shape
        for _ in range(self.config.crop_tries):
            crop = draw(size_hw, generator)
            if crop is not None and _shows(crop, boxes, self.config.crop_box_share):
                return crop
        return None

    def _crop_by_shape(self, size_hw: tuple[int, int], generator: torch.Generator) -> BoxL0:
        """A crop whose aspect is a multiple of the picture's own; there is always one."""
        height, width = size_hw
        area = _uniform(*self.config.crop_area, generator)
        # A crop of this area fits only if its aspect, relative to the picture's, is within area .. 1 / area.
        low, high = (min(max(aspect, area), 1 / area) for aspect in self.config.crop_aspect)
        aspect = math.exp(_uniform(math.log(low), math.log(high), generator))
        crop_height = min(height, max(1, round(height * math.sqrt(area / aspect))))
        crop_width = min(width, max(1, round(width * math.sqrt(area * aspect))))
        return _placed(size_hw, (crop_height, crop_width), generator)

    def _crop_by_aspect(self, size_hw: tuple[int, int], generator: torch.Generator) -> BoxL0 | None:
        """A crop of an aspect, as TensorFlow draws it: the height uniformly from what area and picture leave."""
        height, width = size_hw
        smallest, largest = (share * height * width for share in self.config.crop_area)
        aspect = _uniform(*self.config.crop_aspect, generator)
        most = min(round(math.sqrt(largest / aspect)), height, math.floor((width + 0.5) / aspect))
        least = min(round(math.sqrt(smallest / aspect)), most)
        crop_height = least + _integer(most - least + 1, generator)
        crop_width = min(round(crop_height * aspect), width)
        if crop_height < 1 or crop_width < 1 or not smallest <= crop_height * crop_width <= largest:
            return None
        return _placed(size_hw, (crop_height, crop_width), generator)

    def _pixels(self, generator: torch.Generator) -> PixelChange:
        """What needs all pixels in memory."""
        config = self.config
        method = RESIZE_METHODS[_integer(len(RESIZE_METHODS), generator) if config.resize_methods == "eight" else 0]
        colours = self._colour_case(generator) if config.colour_cases else ()
        angle = self._angle(generator) if config.rotation_fill == "black" else 0.0
        down, right = (_uniform(-1, 1, generator) * config.translation if config.translation else 0.0 for _ in "yx")
        drawn = None
        if config.rand_augment:
            drawn = RandAugmentDraw(config.rand_augment, config.rand_augment_magnitude, _integer(2**31, generator))
        return PixelChange(config.resize_px, method, colours, angle, (down, right), config.rotation_nearest, drawn)

    def _colour_case(self, generator: torch.Generator) -> tuple[tuple[PixelColour, float], ...]:
        drawn: list[tuple[PixelColour, float]] = []
        for name in _CASES[_integer(len(_CASES), generator)]:
            spread = getattr(self.config, name)
            neutral = 1.0 if name in ("contrast", "saturation") else 0.0
            if spread:
                drawn.append((name, _uniform(neutral - spread, neutral + spread, generator)))
        return tuple(drawn)

    def _colours(self, generator: torch.Generator) -> tuple[tuple[Colour, float], ...]:
        config = self.config
        changes: list[tuple[Colour, float, float]] = [
            ("brightness", 1.0, config.brightness),
            ("contrast", 1.0, config.contrast),
            ("saturation", 1.0, config.saturation),
            ("hue", 0.0, config.hue),
        ]
        changes = [change for change in changes if change[2] > 0]
        if not changes:
            return ()
        drawn: list[tuple[Colour, float]] = []
        for index in torch.randperm(len(changes), generator=generator).tolist():
            name, neutral, spread = changes[index]
            drawn.append((name, _uniform(neutral - spread, neutral + spread, generator)))
        return tuple(drawn)


def sample_generator(seed: int, epoch: int, index: int) -> torch.Generator:
    """Random numbers that belong to one sample of one epoch.

    Args:
        seed: of the run, at least 0.
        epoch: counted from 0.
        index: of the sample in its data set, counted from 0.

    Returns:
        A new CPU generator, the same for the same three numbers in every process.
    """
    # SeedSequence mixes the three: neighbouring seeds, epochs and indices give unrelated streams.
    # One 32-bit word is all that PyTorch's CPU generator takes of a seed.
    (word,) = np.random.SeedSequence((seed, epoch, index)).generate_state(1)
    return torch.Generator().manual_seed(int(word))


def _boxes_of(size_hw: tuple[int, int], boxes: Boxes | None) -> list[_Box]:
    if boxes is None or len(boxes) == 0:
        return [(0.0, 0.0, *size_hw)]
    return [(y0, x0, y1, x1) for y0, x0, y1, x1 in boxes.tolist()]


def _shows(crop: BoxL0, boxes: list[_Box], share: float) -> bool:
    """Whether a crop has at least this part of the area of one of the boxes."""
    if not share:
        return True
    for y0, x0, y1, x1 in boxes:
        area = (y1 - y0) * (x1 - x0)
        height, width = min(y1, crop[2]) - max(y0, crop[0]), min(x1, crop[3]) - max(x0, crop[1])
        if area > 0 and min(height, width) > 0 and height * width >= share * area:
            return True
    return False


def _placed(size_hw: tuple[int, int], crop_hw: tuple[int, int], generator: torch.Generator) -> BoxL0:
    """A crop of this size anywhere in the picture."""
    (height, width), (crop_height, crop_width) = size_hw, crop_hw
    top = _integer(height - crop_height + 1, generator)
    left = _integer(width - crop_width + 1, generator)
    return top, left, top + crop_height, left + crop_width


def _uniform(low: float, high: float, generator: torch.Generator) -> float:
    return low + (high - low) * float(torch.rand((), generator=generator, dtype=torch.float64))


def _integer(count: int, generator: torch.Generator) -> int:
    """One of 0 .. count - 1."""
    return int(torch.randint(count, (), generator=generator))
