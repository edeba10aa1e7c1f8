"""Everything that decides how a file becomes an image: decoded into memory, or a scene that is read on demand."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, cast

from jaxtyping import UInt8
from torch import Tensor
from torch.utils.data import get_worker_info

from tnet.config import check_least
from tnet.errors import ConfigError, ImageError
from tnet.scenes.base import Scene
from tnet.scenes.decode import DEFAULT_MAX_PIXELS, check_limits, image_size_hw, load_image
from tnet.scenes.file import FileScene, SceneOptions
from tnet.scenes.overview import OverviewScene
from tnet.scenes.readers import is_plain_image

ReadMode = Literal["memory", "lazy", "auto"]
"""``memory``: decode the whole image; ``lazy``: read only the regions that are seen; ``auto``: lazily if large."""

LAZY_ABOVE_PX = 2**24  # 4096 x 4096

Prepare = Callable[[UInt8[Tensor, "channels height width"]], UInt8[Tensor, "channels new_height new_width"]]
"""A fixed transform of decoded images; must pickle."""


@dataclass(frozen=True)
class ReadOptions:
    """How the images of a dataset are read."""

    # "auto" decodes every image if images are downscaled or prepared, reads every image lazily if `scene` is not the
    # default, and else large images and those that Pillow does not read correctly (slides, OME, georeferenced, bands).
    mode: ReadMode = "memory"
    lazy_above_px: int = LAZY_ABOVE_PX
    overview_px: int = 0  # side of the copy that serves coarse glimpses of lazily read images; 0 for none
    overview_folder: Path | None = None  # where copies are kept between runs
    scene: SceneOptions = field(default_factory=SceneOptions)  # for lazily read files: bands, range of values, reader
    channels: int = 3  # 1 or 3 for decoded images; any number for overviews
    max_side_px: int | None = None  # downscale decoded images to this longer side
    max_short_side_px: int | None = None  # likewise for the shorter side
    max_pixels: int = DEFAULT_MAX_PIXELS  # largest image that is decoded
    prepare: Prepare | None = None  # after downscaling

    def __post_init__(self) -> None:
        check_least(self, "", {"lazy_above_px": 0, "overview_px": 0})
        check_limits(self.max_side_px, self.max_short_side_px, self.max_pixels)
        has_scene_options = self.scene != SceneOptions()
        if self.mode == "memory" and has_scene_options:
            raise ConfigError("bands, value_range and other scene options need lazy reading; set data.read or --read")
        if self.changes_images and (self.mode == "lazy" or has_scene_options):
            changes = "data.max_side_px (--max-side-px), data.max_short_side_px and data.preprocess (--preprocess)"
            lazily = "images that are read lazily (--read lazy, --bands, --value-range)"
            raise ConfigError(f"{lazily} are neither downscaled nor prepared; leave those options out, or {changes}")

    @property
    def changes_images(self) -> bool:
        """Whether images are downscaled or prepared, and therefore decoded."""
        return not (self.max_side_px is None and self.max_short_side_px is None and self.prepare is None)

    def is_lazy(self, path: str | os.PathLike[str]) -> bool:
        """Return whether this image is read lazily; with ``auto`` its header is read to decide."""
        if self.mode != "auto" or self.changes_images:
            return self.mode == "lazy"
        if self.scene != SceneOptions():
            return True
        try:
            if not is_plain_image(Path(path)):
                return True
            height, width = image_size_hw(path)
        except ImageError:  # another reader may support it, or explain better what is wrong with it
            return True
        return height * width > self.lazy_above_px

    def load(self, path: str | os.PathLike[str]) -> UInt8[Tensor, "channels height width"] | Scene:
        """Decode an image, downscaled and prepared, or make a scene of it.

        In a data loader's worker the overview of a scene is computed at once, so that reading overlaps with training.
        """
        if not self.is_lazy(path):
            return self._decode(path)
        scene = FileScene(path, self.scene)
        if not self.overview_px:
            return scene
        with_overview = OverviewScene(scene, self.overview_px, self.channels, self.overview_folder)
        if get_worker_info() is not None:
            with_overview.warm()
        return with_overview

    def size_hw(self, path: str | os.PathLike[str]) -> tuple[int, int]:
        """Read the height and width of an image from its header: upright, before downscaling and preparation."""
        if self.is_lazy(path):
            return FileScene(path, self.scene).size_hw
        return image_size_hw(path, max_pixels=self.max_pixels)

    def _decode(self, path: str | os.PathLike[str]) -> UInt8[Tensor, "channels height width"]:
        if self.channels not in (1, 3):
            raise ConfigError(f"images are decoded with 1 or 3 channels, not {self.channels}; read them lazily")
        limits = {"max_side_px": self.max_side_px, "max_short_side_px": self.max_short_side_px}
        image = load_image(path, channels=cast(Literal[1, 3], self.channels), max_pixels=self.max_pixels, **limits)
        return image if self.prepare is None else self.prepare(image)
