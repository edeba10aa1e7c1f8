"""Labelled images with boxes around what their label refers to."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from torch import Tensor
from typing_extensions import Unpack

from tnet.data.augment import Augment
from tnet.data.folder import ImageOptions, LabelledImages
from tnet.errors import DataError, ImageError
from tnet.scenes.base import BoxL0, Scene
from tnet.scenes.decode import image_size_hw, shrunk_size
from tnet.scenes.transform import ImageChange, TransformedScene

Boxes = Float[np.ndarray, "_ 4"]  # not a named axis: lists of them may differ in it
"""Boxes (y0, x0, y1, x1) in pixels of the stored image, upright; ends exclusive."""

_MIN_BOX_PX = 3  # boxes with a side of up to 2 px show nothing and are not trained on, as published
_PROBED_IMAGES = 200  # to find out whether there are boxes at all
_READERS = 16  # threads: reading many small files is mostly waiting
# Padding by the share of the image's side that a box covers: both sides together, as a share of the box's side.
_CONTEXT = ((0.5, 0.15), (0.4, 0.2), (0.3, 0.3), (0.2, 0.5), (0.1, 1.0), (0.0, 2.0))


class BoxFiles:
    """Boxes in one file per image, read on access.

    ``locate`` returns the file of an image, and ``read`` the boxes from that file and its image; both must pickle.
    """

    def __init__(
        self, images: Sequence[Path], locate: Callable[[Path], Path], read: Callable[[Path, Path], Boxes]
    ) -> None:
        self.images, self.locate, self.read = images, locate, read

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Boxes:
        return self._boxes_of(self.images[index])

    def __iter__(self) -> Iterator[Boxes]:
        return map(self._boxes_of, self.images)

    def take(self, indices: Sequence[int]) -> BoxFiles:
        """Return the files of some images."""
        return BoxFiles([self.images[index] for index in indices], self.locate, self.read)

    def read_all(self) -> list[Boxes]:
        """Read all boxes, several files at a time."""
        with ThreadPoolExecutor(_READERS) as pool:
            return list(pool.map(self._boxes_of, self.images))

    def _boxes_of(self, image: Path) -> Boxes:
        return self.read(self.locate(image), image)


class AnnotatedImages(LabelledImages):
    """Labelled images with boxes.

    Attributes:
        boxes: the (possibly zero) boxes of each image, or None if the dataset has no boxes.
        cover: whether random crops respect the boxes.
        crop: whether each sample is one box of an image, with ``box_context`` around it.
        box_context: see :func:`with_context`.
        class_names: readable names, by class index; defaults to ``classes``.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        targets: Int[Tensor, " samples"] | Sequence[int],
        classes: Sequence[str],
        *,
        boxes: Sequence[Boxes] | BoxFiles | None = None,
        class_names: Sequence[str] | None = None,
        **options: Unpack[ImageOptions],
    ) -> None:
        super().__init__(paths, torch.as_tensor(targets, dtype=torch.int64), classes, **options)
        self.boxes = boxes
        self.cover = self.crop = False
        self.box_context: float | None = None
        self.class_names = list(classes if class_names is None else class_names)

    def order_classes(self, names: Sequence[str]) -> None:
        """Renumber the classes and their readable names."""
        readable = dict(zip(self.classes, self.class_names, strict=True))
        super().order_classes(names)
        self.class_names = [readable[name] for name in self.classes]

    def subset(self, indices: Sequence[int], *, augment: Augment | None) -> AnnotatedImages:
        """Return some of the images with the same classes, boxes and options, and with ``augment``."""
        part = cast("AnnotatedImages", super().subset(indices, augment=augment))
        if isinstance(self.boxes, BoxFiles):
            part.boxes = self.boxes.take(indices)
        elif self.boxes is not None:
            part.boxes = [self.boxes[index] for index in indices]
        return part

    def cover_boxes(self) -> None:
        """Make random crops respect the boxes.

        Raises:
            DataError: up to 200 probed images have no boxes, or a file of boxes cannot be read.
        """
        step = max(1, math.ceil(len(self) / _PROBED_IMAGES))
        if self.boxes is None or not any(len(self.boxes[index]) for index in range(0, len(self), step)):
            remedy = "download the annotations (see: tnet data check), or set data.boxes to none"
            raise DataError(f"the {len(self)} images have no boxes to cover with crops; {remedy}")
        self.cover = True

    def cropped_to_boxes(self, box_context: float | None = None) -> AnnotatedImages:
        """Return every box as a sample with the label of its image.

        Boxes with a side of up to 2 px are left out. Split off validation images first: boxes of one image should not
        end up on both sides.

        Raises:
            DataError: no image has boxes, or a file of boxes cannot be read.
        """
        boxes_by_image = self.boxes.read_all() if isinstance(self.boxes, BoxFiles) else self.boxes or ()
        every = [(index, box) for index, boxes in enumerate(boxes_by_image) for box in boxes]
        kept = [(index, box[None]) for index, box in every if min(box[2:] - box[:2]) >= _MIN_BOX_PX]
        if not kept:
            remedy = "download the annotations, or set data.boxes to none"
            raise DataError(f"the {len(self)} images have no boxes to crop to; {remedy}")
        part = self.subset([index for index, _ in kept], augment=self.augment)
        part.boxes = [box for _, box in kept]
        part.cover, part.crop, part.box_context = False, True, box_context
        return part

    def _load(self, index: int) -> UInt8[Tensor, "channels height width"] | Scene:
        if not self.crop:
            return super()._load(index)
        options = self.reading
        whole = options
        if options.changes_images:  # the crop is downscaled and prepared, not the image
            whole = replace(options, mode="memory", max_side_px=None, max_short_side_px=None, prepare=None)
        image = whole.load(self.paths[index])
        if isinstance(image, Scene):
            return TransformedScene(image, ImageChange(crop_yxyx=self._crop_box(index, image.size_hw)))
        y0, x0, y1, x1 = self._crop_box(index, (image.shape[1], image.shape[2]))
        size_hw = shrunk_size((y1 - y0, x1 - x0), options.max_side_px, options.max_short_side_px)
        crop = image[:, y0:y1, x0:x1].contiguous()
        if size_hw != (y1 - y0, x1 - x0):
            pixels = F.interpolate(crop[None].float(), size_hw, mode="bilinear", antialias=True, align_corners=False)
            crop = pixels[0].round().clamp(0, 255).byte()
        return crop if options.prepare is None else options.prepare(crop)

    def _crop_box(self, index: int, size_hw: tuple[int, int]) -> BoxL0:
        assert self.boxes is not None
        box = self.boxes[index][0]
        y0, x0, y1, x1 = crop = with_context(box, size_hw, self.box_context)
        if y0 >= y1 or x0 >= x1:
            where = f"image {self.paths[index]}, which has {size_hw[1]} x {size_hw[0]} px"
            problem = f"the box {box.tolist()} (y0, x0, y1, x1) lies outside {where}"
            raise ImageError(f"{problem}; correct the annotation, or remove it")
        return crop

    def _boxes_to_cover(self, index: int, image: Tensor | Scene) -> Float[Tensor, "boxes 4"] | None:
        """Return the boxes in pixels of the loaded image, clipped to it; boxes completely outside are left out."""
        if not self.cover or self.boxes is None:
            return None
        if isinstance(image, Scene):
            loaded_hw = stored_hw = image.size_hw
        else:
            loaded_hw = image.shape[1], image.shape[2]
            stored_hw = image_size_hw(self.paths[index], max_pixels=self.reading.max_pixels)
        scale = np.array([loaded / stored for loaded, stored in zip(loaded_hw, stored_hw, strict=True)] * 2)
        inside = np.clip(self.boxes[index] * scale, 0, np.array([*loaded_hw, *loaded_hw]))
        return torch.from_numpy(inside[(inside[:, :2] < inside[:, 2:]).all(axis=1)])


def with_context(box_yxyx: Float[np.ndarray, "4"], size_hw: tuple[int, int], context: float | None) -> BoxL0:
    """Return a box enlarged by ``context``, as a share of its own sides, clipped to the image, in whole pixels.

    None is the rule of the published fMoW baseline, which gives small boxes more context: 0.15 for boxes of at least
    half of the image's side, then 0.2 (from 0.4), 0.3 (from 0.3), 0.5 (from 0.2), 1 (from 0.1) and 2. Width is compared
    with width and height with height, as in the paper's reference implementation; the baseline itself swaps the two.
    """
    ends: list[tuple[int, int]] = []
    for axis, size in enumerate(size_hw):
        low, high = float(box_yxyx[axis]), float(box_yxyx[axis + 2])
        side = high - low
        share = next(share for ratio, share in _CONTEXT if side / size >= ratio) if context is None else context
        buffer = int(side * share / 2)
        ends.append((max(0, math.floor(low) - buffer), min(size, math.ceil(high) + buffer)))
    (y0, y1), (x0, x1) = ends
    return y0, x0, y1, x1
