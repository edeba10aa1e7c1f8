"""Random changes to training pictures: flips, turns, crops and colours.

What is drawn is a description (:class:`tnet.scenes.transform.ImageChange`), which is then made to a picture in memory
or to a scene. Each picture's change depends only on ``(seed, epoch, index)``, through :func:`sample_generator`: it is
the same for any number of loader workers and any order of loading, and a resumed run sees what an uninterrupted one
would.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from tnet.errors import ConfigError
from tnet.scenes.base import BoxL0, Scene
from tnet.scenes.transform import Colour, ImageChange, TransformedScene, change_image


@dataclass(frozen=True)
class AugmentConfig:
    """Which random changes are made to training pictures; nothing unless asked for.

    Attributes:
        horizontal_flip: mirror left and right, half of the time.
        vertical_flip: mirror top and bottom, half of the time.
        quarter_turns: turn by 0, 90, 180 or 270 degrees, each as likely; swaps height and width half of the time
            where they differ.
        rotation: turn by an angle from -rotation to rotation degrees about the middle of the crop, drawn uniformly; 0
            to 180. What is then shown beyond the picture's edges is the pixel at the edge.
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
    rotation: float = 0.0
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
        limits = {"rotation": 180.0, "brightness": 1.0, "contrast": 1.0, "saturation": 1.0, "hue": 0.5}
        for key, limit in limits.items():
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
        """Change one picture: crop and rotation, flips, quarter turn, then colours in random order.

        Args:
            image: levels 0 to 255, one or three channels; not modified.
            generator: where random numbers come from, see :func:`sample_generator`.

        Returns:
            The changed picture; of another size where crops or quarter turns are on.
        """
        return change_image(image, self.draw((int(image.shape[1]), int(image.shape[2])), generator))

    def of_scene(self, scene: Scene, generator: torch.Generator) -> TransformedScene:
        """The same change, made to a scene: what is looked at is changed, and nothing else is read.

        Args:
            scene: of which the size is asked.
            generator: where random numbers come from; one in the same state gives the same change as for a picture.
        """
        return TransformedScene(scene, self.draw(scene.size_hw, generator))

    def draw(self, size_hw: tuple[int, int], generator: torch.Generator) -> ImageChange:
        """Draw the change of one picture.

        Args:
            size_hw: height and width, pixels.
            generator: where random numbers come from, see :func:`sample_generator`.
        """
        config = self.config
        # The order of the draws is part of what a seed means.
        return ImageChange(
            crop_yxyx=self._crop(size_hw, generator),
            horizontal_flip=config.horizontal_flip and bool(_integer(2, generator)),
            vertical_flip=config.vertical_flip and bool(_integer(2, generator)),
            quarter_turns=_integer(4, generator) if config.quarter_turns else 0,
            angle_deg=_uniform(-config.rotation, config.rotation, generator) if config.rotation else 0.0,
            colours=self._colours(generator),
        )

    def __repr__(self) -> str:
        """As it is made."""
        return f"Augment({self.config!r})"

    def _crop(self, size_hw: tuple[int, int], generator: torch.Generator) -> BoxL0 | None:
        if self.config.crop_area == (1.0, 1.0):
            return None
        height, width = size_hw
        area = _uniform(*self.config.crop_area, generator)
        # A crop of this area fits only if its aspect, relative to the picture's, is within area .. 1 / area.
        low, high = (min(max(aspect, area), 1 / area) for aspect in self.config.crop_aspect)
        aspect = math.exp(_uniform(math.log(low), math.log(high), generator))
        crop_height = min(height, max(1, round(height * math.sqrt(area / aspect))))
        crop_width = min(width, max(1, round(width * math.sqrt(area * aspect))))
        top = _integer(height - crop_height + 1, generator)
        left = _integer(width - crop_width + 1, generator)
        return top, left, top + crop_height, left + crop_width

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


def _uniform(low: float, high: float, generator: torch.Generator) -> float:
    return low + (high - low) * float(torch.rand((), generator=generator, dtype=torch.float64))


def _integer(count: int, generator: torch.Generator) -> int:
    """One of 0 .. count - 1."""
    return int(torch.randint(count, (), generator=generator))
