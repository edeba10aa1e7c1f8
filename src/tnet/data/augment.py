"""Random changes to training pictures: flips, quarter turns, crops and colours.

Each picture's change depends only on ``(seed, epoch, index)``, through :func:`sample_generator`: it is the same for
any number of loader workers and any order of loading, and a resumed run sees what an uninterrupted one would.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor
from torchvision.transforms.v2 import functional

from tnet.errors import ConfigError


@dataclass(frozen=True)
class AugmentConfig:
    """Which random changes are made to training pictures; nothing unless asked for.

    Attributes:
        horizontal_flip: mirror left and right, half of the time.
        vertical_flip: mirror top and bottom, half of the time.
        quarter_turns: turn by 0, 90, 180 or 270 degrees, each as likely; swaps height and width half of the time
            where they differ.
        crop_area: smallest and largest part of the picture's area that a crop keeps, above 0 and up to 1; drawn
            uniformly. (1, 1) does not crop. Crops keep the picture's resolution, so their size in pixels varies.
        crop_aspect: smallest and largest width/height of the crop, as a multiple of the picture's own width/height;
            drawn log-uniformly, as far as a crop of the drawn area has room for it. (1, 1) keeps the shape.
        brightness: levels are multiplied by a factor from 1 - brightness to 1 + brightness; 0 to 1.
        contrast: contrast about the mean grey level is multiplied by a factor from 1 - contrast to 1 + contrast;
            0 to 1.
        saturation: likewise, for the distance of colours from grey; 0 to 1. Without effect on one channel.
        hue: hues are turned by a part of the colour circle, from -hue to hue; 0 to 0.5. Without effect on one channel.
    """

    horizontal_flip: bool = False
    vertical_flip: bool = False
    quarter_turns: bool = False
    crop_area: tuple[float, float] = (1.0, 1.0)
    crop_aspect: tuple[float, float] = (1.0, 1.0)
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0

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
        for key, limit in (("brightness", 1.0), ("contrast", 1.0), ("saturation", 1.0), ("hue", 0.5)):
            value = getattr(self, key)
            if not 0 <= value <= limit:
                raise ConfigError(f"{key} is {value}, but must be from 0 (off) to {limit:g}.")


class Augment:
    """Makes the random changes that a configuration asks for.

    Attributes:
        config: which changes, and how strong.
    """

    def __init__(self, config: AugmentConfig) -> None:
        """Keep the configuration, which has been checked when it was made."""
        self.config = config

    def __call__(
        self, image: UInt8[Tensor, "channels height width"], generator: torch.Generator
    ) -> UInt8[Tensor, "channels new_height new_width"]:
        """Change one picture: crop, flips, quarter turn, then colours in random order.

        Args:
            image: levels 0 to 255, one or three channels; not modified.
            generator: where random numbers come from, see :func:`sample_generator`.

        Returns:
            The changed picture; of another size where crops or quarter turns are on.
        """
        image = self._crop(image, generator)
        if self.config.horizontal_flip and _integer(2, generator):
            image = functional.horizontal_flip(image)
        if self.config.vertical_flip and _integer(2, generator):
            image = functional.vertical_flip(image)
        if self.config.quarter_turns:
            image = torch.rot90(image, _integer(4, generator), dims=(-2, -1))
        return self._colour(image, generator).contiguous()  # a view would send the whole picture between processes

    def __repr__(self) -> str:
        """As it is made."""
        return f"Augment({self.config!r})"

    def _crop(self, image: Tensor, generator: torch.Generator) -> Tensor:
        if self.config.crop_area == (1.0, 1.0):
            return image
        height, width = image.shape[-2:]
        area = _uniform(*self.config.crop_area, generator)
        # A crop of this area fits only if its aspect, relative to the picture's, is within area .. 1 / area.
        low, high = (min(max(aspect, area), 1 / area) for aspect in self.config.crop_aspect)
        aspect = math.exp(_uniform(math.log(low), math.log(high), generator))
        crop_height = min(height, max(1, round(height * math.sqrt(area / aspect))))
        crop_width = min(width, max(1, round(width * math.sqrt(area * aspect))))
        top = _integer(height - crop_height + 1, generator)
        left = _integer(width - crop_width + 1, generator)
        return image[..., top : top + crop_height, left : left + crop_width]

    def _colour(self, image: Tensor, generator: torch.Generator) -> Tensor:
        config = self.config
        changes: list[tuple[Callable[[Tensor, float], Tensor], float, float]] = [
            (functional.adjust_brightness, 1.0, config.brightness),
            (functional.adjust_contrast, 1.0, config.contrast),
            (functional.adjust_saturation, 1.0, config.saturation),
            (functional.adjust_hue, 0.0, config.hue),
        ]
        changes = [change for change in changes if change[2] > 0]
        if not changes:
            return image
        for index in torch.randperm(len(changes), generator=generator).tolist():
            adjust, neutral, spread = changes[index]
            image = adjust(image, _uniform(neutral - spread, neutral + spread, generator))
        return image


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


def _uniform(low: float, high: float, generator: torch.Generator) -> float:
    return low + (high - low) * float(torch.rand((), generator=generator, dtype=torch.float64))


def _integer(count: int, generator: torch.Generator) -> int:
    """One of 0 .. count - 1."""
    return int(torch.randint(count, (), generator=generator))
