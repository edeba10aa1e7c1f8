"""How much there is to see where an average shows nothing: local contrast, beside the coarse view of a scene."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from tnet.errors import GeometryError
from tnet.scenes.base import BoxL0, Resize, Scene

OVERVIEW_PX = 1024

_BLOCK_PX = 1024  # side of what is read at once while a scene is gone through; a multiple of common tiles
_LEAST_REDUCTION = 2.0
_LUMA = (0.299, 0.587, 0.114)  # BT.601


@dataclass(frozen=True)
class ContrastOverview:
    """The darkest and the brightest luma in each cell of an image.

    Both are kept rather than their difference, so that the contrast of a union of cells is exact too.

    Attributes:
        size_hw: of the image.
        cell_px: side of a cell, level-0 pixels; those at the far edges hold what there is of them.
        darkest: ``[rows, columns]``, in [0, 1].
        brightest: likewise.
    """

    size_hw: tuple[int, int]
    cell_px: int
    darkest: NDArray[np.float32]
    brightest: NDArray[np.float32]

    def contrast(self, box_l0_yxyx: BoxL0, size_px: int) -> Float[Tensor, "size size"]:
        """Largest minus smallest luma in the area of each pixel of a glimpse.

        The area is widened to whole cells: a faint speck is never missed, but may show in the pixel next to its own.
        0 where the area lies outside the image.

        Args:
            box_l0_yxyx: of the glimpse, level-0 pixels.
            size_px: side of the glimpse.
        """
        y0, x0, y1, x1 = box_l0_yxyx
        rows = _spans(y0, y1, size_px, self.cell_px, self.size_hw[0])
        columns = _spans(x0, x1, size_px, self.cell_px, self.size_hw[1])
        brightest = _reduced(np.maximum, _reduced(np.maximum, self.brightest, rows, 0), columns, 1)
        darkest = _reduced(np.minimum, _reduced(np.minimum, self.darkest, rows, 0), columns, 1)
        inside = (rows[:, 0] < rows[:, 1])[:, None] & (columns[:, 0] < columns[:, 1])
        return torch.from_numpy(np.where(inside, brightest - darkest, np.float32(0)))


def contrast_overview(scene: Scene, channels: int, overview_px: int = OVERVIEW_PX) -> ContrastOverview:
    """Go once through all pixels of a scene at full resolution and note the range of luma in each cell.

    Luma is BT.601 of three channels, the mean of any other number. Memory does not depend on the scene's size, but
    time does: every pixel is read.

    Args:
        scene: any; its pixels in [0, 1].
        channels: asked of the scene.
        overview_px: cells along the longer side, at most.

    Raises:
        GeometryError: no cells.
        ImageError: the scene cannot be read.
    """
    if overview_px < 1:
        raise GeometryError(f"an overview of {overview_px} cells shows nothing; give at least 1")
    height, width = scene.size_hw
    cell = -(-max(height, width) // overview_px)
    shape = (-(-height // cell), -(-width // cell))
    darkest, brightest = np.ones(shape, np.float32), np.zeros(shape, np.float32)
    for y, x, luma in _blocks(scene, channels, max(_BLOCK_PX // cell, 1) * cell):
        starts_y, starts_x = (np.arange(0, side, cell) for side in luma.shape)
        place = slice(y // cell, y // cell + len(starts_y)), slice(x // cell, x // cell + len(starts_x))
        darkest[place] = np.minimum.reduceat(np.minimum.reduceat(luma, starts_y, 0), starts_x, 1)
        brightest[place] = np.maximum.reduceat(np.maximum.reduceat(luma, starts_y, 0), starts_x, 1)
    return ContrastOverview(scene.size_hw, cell, darkest, brightest)


class ContrastScene:
    """A scene with one more channel in coarse glimpses: the local contrast that the average hides.

    Asked for ``n`` channels it asks the scene for ``n - 1``, and appends for a glimpse that is reduced by 2 or more the
    range of luma (largest minus smallest, in [0, 1]) in the area of each of its pixels, and zeros for a finer glimpse,
    which shows the pixels themselves; zeros outside the image too, whatever ``fill`` says.

    The overview is made when it is first needed, which reads the whole scene once, and is kept; it pickles with the
    scene (at most 8 MB for 1024 cells a side), so that making it before workers start (:meth:`prepare`) makes it once.
    It holds for the scene as it is: where a transform changes from epoch to epoch, wrap the scene below the transform.

    Args:
        scene: what is looked at.
        overview_px: cells along the longer side, at most. A glimpse reduced by less than ``longer side / overview_px``
            shows the contrast of whole cells, coarser than its own pixels.
    """

    def __init__(self, scene: Scene, overview_px: int = OVERVIEW_PX) -> None:
        self.scene = scene
        self.name = scene.name
        self.overview_px = overview_px
        self._overview: ContrastOverview | None = None
        self._lock = threading.Lock()

    @property
    def size_hw(self) -> tuple[int, int]:
        """Height and width, level-0 pixels."""
        return self.scene.size_hw

    @property
    def levels(self) -> tuple[tuple[int, int], ...]:
        """Height and width of each stored resolution, finest first."""
        return self.scene.levels

    def prepare(self, channels: int) -> ContrastOverview:
        """The overview, made now if it is not there.

        Args:
            channels: of the scene, without the one that is appended.
        """
        with self._lock:
            if self._overview is None:
                self._overview = contrast_overview(self.scene, channels, self.overview_px)
            return self._overview

    def glimpse(
        self, box_l0_yxyx: BoxL0, size_px: int, *, channels: int, resize: Resize, fill: Sequence[float]
    ) -> Float[Tensor, "channels size size"]:
        """Pixels of one box, the last channel their contrast; ``fill`` is for the other channels (extra values unused).

        Raises:
            GeometryError: fewer than 2 channels.
        """
        if channels < 2:
            raise GeometryError(
                f"a scene with contrast gives at least 2 channels, not {channels}; set in_channels to one more than "
                "the scene's own"
            )
        fill = fill[: channels - 1] if len(fill) > 1 else fill
        pixels = self.scene.glimpse(box_l0_yxyx, size_px, channels=channels - 1, resize=resize, fill=fill)
        y0, x0, y1, x1 = box_l0_yxyx
        if max(y1 - y0, x1 - x0) / size_px >= _LEAST_REDUCTION:
            contrast = self.prepare(channels - 1).contrast(box_l0_yxyx, size_px)
        else:
            contrast = torch.zeros(size_px, size_px)
        return torch.cat([pixels, contrast[None].to(pixels)])

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "_lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._lock = threading.Lock()


def _blocks(scene: Scene, channels: int, side_px: int) -> Iterator[tuple[int, int, NDArray[np.float32]]]:
    """Luma at full resolution, block by block: where it starts, and ``[height, width]`` of what lies inside."""
    height, width = scene.size_hw
    weights = np.array(_LUMA if channels == 3 else [1 / channels] * channels, np.float32)
    for y in range(0, height, side_px):
        for x in range(0, width, side_px):
            box = (y, x, y + side_px, x + side_px)
            pixels = scene.glimpse(box, side_px, channels=channels, resize="bilinear", fill=(0.0,))
            inside = pixels[:, : height - y, : width - x].float().numpy()
            yield y, x, np.tensordot(weights, inside, 1)


def _spans(start: int, stop: int, size_px: int, cell_px: int, image_px: int) -> NDArray[np.int64]:
    """First and last (exclusive) cell that each pixel of a glimpse touches along one axis; empty outside the image."""
    # Edges in level-0 pixels times size_px, so that all of this is exact.
    edges = start * size_px + np.arange(size_px + 1, dtype=np.int64) * (stop - start)
    edges = edges.clip(0, image_px * size_px)
    spans = np.stack([edges[:-1] // (cell_px * size_px), -(-edges[1:] // (cell_px * size_px))], axis=1)
    spans[edges[:-1] == edges[1:]] = 0
    return spans


def _reduced(reduce: np.ufunc, values: NDArray[np.float32], spans: NDArray[np.int64], axis: int) -> NDArray[np.float32]:
    """Apply ``reduce`` to each span along an axis; what an empty span gets means nothing."""
    # reduceat takes pairs of start and stop; a stop at the very end must still be an index, hence the last line twice.
    padded = np.concatenate([values, values.take([-1], axis)], axis)
    return reduce.reduceat(padded, spans.reshape(-1), axis).take(np.arange(0, spans.size, 2), axis)
