"""One image in memory as a scene."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from numpy.typing import NDArray
from torch import Tensor

from tnet.errors import GeometryError
from tnet.scenes.base import BoxL0, Resize, Scene, Window, check_look
from tnet.scenes.resample import LevelPixels, resample


class MemoryScene:
    """A scene for an image in memory (values 0 to 255); can be mixed with scenes read from files.

    Its glimpses equal those of :class:`tnet.scenes.TensorBatch` bit for bit.
    """

    def __init__(self, image: UInt8[Tensor, "channels height width"], name: str = "") -> None:
        if image.numel() == 0:
            raise GeometryError(f"image {name} has no pixels; its shape is {list(image.shape)}")
        self.image = image
        self.name = name

    def __repr__(self) -> str:
        return f"MemoryScene({list(self.image.shape)}, {self.name!r})"

    @property
    def size_hw(self) -> tuple[int, int]:
        """Height and width, pixels."""
        return int(self.image.shape[1]), int(self.image.shape[2])

    @property
    def levels(self) -> tuple[tuple[int, int], ...]:
        """Its own size alone."""
        return (self.size_hw,)

    def glimpse(
        self, box_l0_yxyx: BoxL0, size_px: int, *, channels: int, resize: Resize, fill: Sequence[float]
    ) -> Float[Tensor, "channels size size"]:
        """Return the pixels of one box; see :meth:`tnet.scenes.Scene.glimpse`."""
        y0, x0, y1, x1 = box_l0_yxyx
        check_look(box_l0_yxyx, size_px)
        if channels != self.image.shape[0]:
            raise GeometryError(f"image {self.name} has {self.image.shape[0]} channels, not {channels}")
        level = level_in_memory(self.image.permute(1, 2, 0).numpy())
        return resample(level, (y0, x0, y1, x1), size_px, resize=resize, fill=fill)


def one_or_more(images: Any) -> Any:
    """Return a batch or a sequence of images unchanged, and a list of a single image."""
    ndim = getattr(images, "ndim", None)
    is_one = isinstance(images, str) or not isinstance(images, Iterable) if ndim is None else ndim != 4
    return [images] if is_one else images


def as_image(given: Any, channels: int) -> Tensor | Scene:
    """Return an image in any of the usual forms as a scene or a tensor ``[channels, height, width]``.

    A ``uint8`` array is ``[height, width]`` or ``[height, width, channels]``, as Pillow and OpenCV make it, or else
    ``[channels, height, width]``.
    """
    if isinstance(given, (Tensor, Scene)):
        shape = tuple(given.shape) if isinstance(given, Tensor) else ()
        if len(shape) == 3 and shape[0] != channels and shape[2] < shape[0] and shape[2] in (1, 3, 4, channels):
            problem = f"an image has shape {list(shape)}, which seems to be [height, width, channels]"
            raise GeometryError(f"{problem}; give [channels, height, width], as images.movedim(-1, -3) does")
        return given
    if isinstance(given, (str, os.PathLike)):
        from tnet.scenes.file import open_scene  # here, so that models import no reader

        return open_scene(given)
    if hasattr(given, "getbands"):  # of Pillow
        from tnet.scenes.decode import tensor_of

        return tensor_of(given, channels)
    if isinstance(given, np.ndarray) and given.dtype == np.uint8 and given.ndim in (2, 3):
        pixels = given[..., None] if given.ndim == 2 else given
        if pixels.shape[2] not in (1, channels) and pixels.shape[0] in (1, channels):
            pixels = pixels.transpose(1, 2, 0)
        image = torch.tensor(np.ascontiguousarray(pixels.transpose(2, 0, 1)))
        return image.expand(channels, -1, -1) if len(image) == 1 else image
    form = f"array of {given.dtype} {list(given.shape)}" if isinstance(given, np.ndarray) else type(given).__name__
    forms = "a path, a Pillow image, a uint8 array [height, width, channels], a tensor [channels, height, width]"
    raise GeometryError(f"an image is given as {form}; give {forms} or a scene")


def level_in_memory(pixels: NDArray[Any]) -> LevelPixels:
    """Wrap an array ``[height, width, channels]`` (``uint8``, or ``float32`` in [0, 1]) for :func:`resample`."""
    height, width, channels = pixels.shape

    def read(window: Window) -> NDArray[Any]:
        return pixels[window[0] : window[2], window[1] : window[3]]

    size_hw, pixel_bytes = (height, width), channels * pixels.itemsize
    return LevelPixels(size_hw, size_hw, read, np.asarray, channels, pixels.dtype, pixel_bytes, tile_rows=None)
