"""Whether pictures are decoded into memory or read only where they are looked at."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from torch.utils.data import get_worker_info

from tnet.errors import ConfigError, ImageError
from tnet.scenes.file import FileScene, SceneOptions
from tnet.scenes.images import image_size_hw
from tnet.scenes.overview import OverviewScene
from tnet.scenes.readers import is_plain_picture

ReadMode = Literal["memory", "lazy", "auto"]
"""``memory``: decode the whole picture; ``lazy``: read what is looked at; ``auto``: lazily what is large."""

LAZY_ABOVE_PX = 2**24
"""Pixels (width x height) above which ``auto`` reads lazily: 4096 x 4096."""


@dataclass(frozen=True)
class Reading:
    """How the pictures of a data set are read.

    Attributes:
        mode: see :data:`ReadMode`. ``auto`` also reads lazily what Pillow does not read rightly (slides, OME-Zarr,
            OME-TIFF, georeferenced and many-banded files), and everything if ``scene`` asks for something.
        lazy_above_px: pixels above which ``auto`` reads lazily.
        overview_px: side of the copy of each lazily read picture from which coarse looks are served; 0 for none. See
            :mod:`tnet.scenes.overview`.
        overview_folder: where copies are kept between runs; ``None`` for nowhere.
        scene: how lazily read files are looked at: bands, range of values, reader.
        channels: of lazily read pictures, where that is not what the data set is asked for.
    """

    mode: ReadMode = "memory"
    lazy_above_px: int = LAZY_ABOVE_PX
    overview_px: int = 0
    overview_folder: Path | None = None
    scene: SceneOptions = field(default_factory=SceneOptions)
    channels: int | None = None

    def __post_init__(self) -> None:
        for name in ("lazy_above_px", "overview_px"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} is {getattr(self, name)}; give 0 or more")
        if self.mode == "memory" and self.scene != SceneOptions():
            raise ConfigError(
                "bands, value_range and the other options of a scene are for files that are read lazily, but they are "
                "to be read into memory; read them lazily (data.read: lazy, --read lazy)"
            )

    def is_lazy(self, path: str | os.PathLike[str]) -> bool:
        """Whether this picture is read lazily; ``auto`` reads its header for that."""
        if self.mode != "auto":
            return self.mode == "lazy"
        if self.scene != SceneOptions():
            return True
        try:
            if not is_plain_picture(Path(path)):
                return True
            height, width = image_size_hw(path)
        except ImageError:  # another reader may know it, or say better what is wrong with it
            return True
        return height * width > self.lazy_above_px

    def open_scene(self, path: str | os.PathLike[str], channels: int) -> FileScene | OverviewScene:
        """A picture to be read lazily.

        In a loader's worker its overview is made at once, so that reading goes on while something else is computed;
        elsewhere when it is first looked at.
        """
        scene = FileScene(path, self.scene)
        if not self.overview_px:
            return scene
        with_overview = OverviewScene(scene, self.overview_px, self.channels or channels, self.overview_folder)
        if get_worker_info() is not None:
            with_overview.warm()
        return with_overview

    def size_hw(self, path: str | os.PathLike[str]) -> tuple[int, int]:
        """Height and width of a picture, upright; only its header is read.

        Raises:
            ImageError: it cannot be read.
        """
        return FileScene(path, self.scene).size_hw if self.is_lazy(path) else image_size_hw(path)
