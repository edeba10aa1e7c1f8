"""Labelled pictures with boxes about what their label is of."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal, TypedDict

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from torch import Tensor
from typing_extensions import Unpack

from tnet.data.augment import Augment, sample_generator
from tnet.data.folder import LabelledImages
from tnet.data.sample import Sample
from tnet.errors import DataError, ImageError
from tnet.scenes.base import BoxL0, Scene
from tnet.scenes.images import image_size_hw, load_image, shrunk_size
from tnet.scenes.transform import ImageChange, TransformedScene

Boxes = Float[np.ndarray, "_ 4"]  # of any number, so that lists of them may differ in it
"""Boxes (y0, x0, y1, x1) in pixels of the stored picture, upright; ends exclusive."""

_SMALLEST_BOX_PX = 3  # a side of 2 px or less shows nothing: not trained on, as published
_LOOKED_FOR = 200  # pictures, to find out whether there are boxes at all
_READERS = 16  # threads: reading many small files is waiting
# Padding by how much of the picture's side a box has, both sides together, as a share of the box's side.
_CONTEXT = ((0.5, 0.15), (0.4, 0.2), (0.3, 0.3), (0.2, 0.5), (0.1, 1.0), (0.0, 2.0))


class ImageOptions(TypedDict, total=False):
    """Options of every data set, as for :class:`AnnotatedImages`."""

    channels: Literal[1, 3]
    max_side_px: int | None
    augment: Augment | None
    seed: int
    max_pixels: int


class BoxFiles:
    """Boxes that lie in one file a picture, and are read when they are asked for.

    Attributes:
        pictures: the pictures.
        locate: says where the file of a picture is.
        read: reads the boxes of such a file; what it takes is the file and its picture.
    """

    def __init__(
        self, pictures: Sequence[Path], locate: Callable[[Path], Path], read: Callable[[Path, Path], Boxes]
    ) -> None:
        """Keep what is given (the functions must pickle); nothing is read."""
        self.pictures = pictures
        self.locate = locate
        self.read = read

    def __len__(self) -> int:
        """Number of pictures."""
        return len(self.pictures)

    def __getitem__(self, index: int) -> Boxes:
        """The boxes of one picture, read now.

        Raises:
            DataError: the file is damaged, or missing where there must be one.
        """
        return self._of(self.pictures[index])

    def __iter__(self) -> Iterator[Boxes]:
        """The boxes of every picture, read one after another."""
        return map(self._of, self.pictures)

    def take(self, indices: Sequence[int]) -> BoxFiles:
        """Those of some pictures."""
        return BoxFiles([self.pictures[index] for index in indices], self.locate, self.read)

    def read_all(self) -> list[Boxes]:
        """All boxes, read now, several files at a time."""
        with ThreadPoolExecutor(_READERS) as pool:
            return list(pool.map(self._of, self.pictures))

    def _of(self, picture: Path) -> Boxes:
        return self.read(self.locate(picture), picture)


class AnnotatedImages(LabelledImages):
    """Pictures of which it is known where in them lies what their label is of.

    Attributes:
        boxes: those of each picture (:data:`Boxes`; a picture may have none), or None. Where they lie in files they are
            read one by one, as they are asked for.
        cover: whether the augmentation is given the boxes, so that random crops respect them.
        crop: whether each sample is the part of a picture that is its one box with ``box_context`` about it.
        box_context: see :func:`with_context`.
        class_names: what people call the classes, in the order of the indices; ``classes`` if nothing better is known.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        targets: Int[Tensor, " samples"],
        classes: Sequence[str],
        *,
        boxes: Sequence[Boxes] | BoxFiles | None = None,
        class_names: Sequence[str] | None = None,
        **options: Unpack[ImageOptions],
    ) -> None:
        """Keep the lists; no picture is opened.

        Raises:
            ConfigError: a negative seed.
        """
        super().__init__(paths, targets, classes, **options)
        self.boxes = boxes
        self.cover = False
        self.crop = False
        self.box_context: float | None = None
        self.class_names = list(classes if class_names is None else class_names)

    def order_classes(self, names: Sequence[str]) -> None:
        """As for other pictures; what people call the classes changes its order with them."""
        called = dict(zip(self.classes, self.class_names, strict=True))
        super().order_classes(names)
        self.class_names = [called[name] for name in self.classes]

    def __getitem__(self, index: int) -> Sample:
        """One picture, or one box of one, augmented; or a scene of it.

        Raises:
            ImageError: the picture cannot be read, or nothing of its box lies in it.
            DataError: a file of boxes cannot be read.
            IndexError: there is no such index.
        """
        if self.boxes is None or not (self.cover or self.crop) or not -len(self) <= index < len(self):
            return super().__getitem__(index)
        index %= len(self)
        path, boxes = self.paths[index], self.boxes[index]
        if self.reading.is_lazy(path):
            return Sample(self._scene_of(path, boxes, index), self.targets[index], str(path))
        if self.crop:
            image = load_image(path, channels=self.channels, max_pixels=self.max_pixels)
            size_hw = (int(image.shape[1]), int(image.shape[2]))
            y0, x0, y1, x1 = self._crop_of(path, boxes, size_hw)
            crop_hw = shrunk_size((y1 - y0, x1 - x0), self.max_side_px, self.max_short_side_px)
            image = _resized(image[:, y0:y1, x0:x1], crop_hw)
        else:
            image = self._load(path)
            size_hw = image_size_hw(path, max_pixels=self.max_pixels)
        if self.preprocess is not None:
            image = self.preprocess(image)
        if self.augment is not None:
            shown = self._shown(boxes, size_hw, (int(image.shape[1]), int(image.shape[2])))
            image = self.augment(image, sample_generator(self.seed, self.epoch, index), shown)
        return Sample(image.contiguous(), self.targets[index], str(path))

    def subset(self, indices: Sequence[int], *, augment: Augment | None) -> AnnotatedImages:
        """Some of the pictures, with the same classes, boxes and options, and their own augmentation."""
        part = copy.copy(self)
        part.paths = [self.paths[index] for index in indices]
        part.targets = self.targets[torch.as_tensor(indices, dtype=torch.int64)]
        if isinstance(self.boxes, BoxFiles):
            part.boxes = self.boxes.take(indices)
        elif self.boxes is not None:
            part.boxes = [self.boxes[index] for index in indices]
        part.augment = augment
        return part

    def cover_boxes(self) -> None:
        """Give the boxes to the augmentation from now on.

        Raises:
            DataError: there are none, by up to 200 pictures; or a file of boxes cannot be read.
        """
        step = max(1, math.ceil(len(self) / _LOOKED_FOR))
        if self.boxes is None or not any(len(self.boxes[index]) for index in range(0, len(self), step)):
            raise DataError(
                f"The {len(self)} pictures have no boxes that crops could cover; fetch the annotations (tnet data "
                "check says what is missing), or set "
                "data.boxes to none."
            )
        self.cover = True

    def cropped_to_boxes(self, box_context: float | None = None) -> AnnotatedImages:
        """Every box as a picture of its own, with the label of the picture that it is cut from.

        All boxes are read. Those with a side of 2 px or less are left out, and so are pictures without boxes. To set
        some pictures aside for validation, do that first: two boxes of one picture should not come to both sides.

        Args:
            box_context: see :func:`with_context`.

        Raises:
            DataError: there are no boxes, or a file of boxes cannot be read.
        """
        of_pictures = self.boxes.read_all() if isinstance(self.boxes, BoxFiles) else self.boxes or ()
        kept = [
            (index, box[None])
            for index, boxes in enumerate(of_pictures)
            for box in boxes
            if min(box[2:] - box[:2]) >= _SMALLEST_BOX_PX
        ]
        if not kept:
            raise DataError(
                f"The {len(self)} pictures have no boxes to be cut from them; fetch the annotations, or set data.boxes "
                "to none."
            )
        part = self.subset([index for index, _ in kept], augment=self.augment)
        part.boxes = [box for _, box in kept]
        part.cover, part.crop, part.box_context = False, True, box_context
        return part

    def _crop_of(self, path: Path, boxes: Boxes, size_hw: tuple[int, int]) -> BoxL0:
        y0, x0, y1, x1 = crop = with_context(boxes[0], size_hw, self.box_context)
        if y0 >= y1 or x0 >= x1:
            raise ImageError(
                f"The box {boxes[0].tolist()} (y0, x0, y1, x1) lies outside picture {path}, which has {size_hw[1]} x "
                f"{size_hw[0]} px; correct the annotation, or remove it."
            )
        return crop

    def _scene_of(self, path: Path, boxes: Boxes, index: int) -> Scene:
        scene: Scene = self.reading.open_scene(path, self.channels)
        size_hw = scene.size_hw
        if self.crop:
            scene = TransformedScene(scene, ImageChange(crop_yxyx=self._crop_of(path, boxes, size_hw)))
        if self.augment is None:
            return scene
        shown = self._shown(boxes, size_hw, size_hw)
        return self.augment.of_scene(scene, sample_generator(self.seed, self.epoch, index), shown)

    def _shown(
        self, boxes: Boxes, stored_hw: tuple[int, int], shown_hw: tuple[int, int]
    ) -> Float[Tensor, "shown 4"] | None:
        """What the augmentation is told: where boxes lie in a picture shown at another size than it is stored."""
        if not self.cover:
            return None
        scale = np.array([shown / stored for shown, stored in zip(shown_hw, stored_hw, strict=True)] * 2)
        inside = np.clip(boxes * scale, 0, np.array([*shown_hw, *shown_hw]))
        return torch.from_numpy(inside[(inside[:, :2] < inside[:, 2:]).all(axis=1)])


def with_context(box_yxyx: Float[np.ndarray, "4"], size_hw: tuple[int, int], context: float | None) -> BoxL0:
    """A box with some of what is about it, as far as the picture reaches.

    Args:
        box_yxyx: in pixels of the picture.
        size_hw: height and width of the picture.
        context: how much wider and higher the box becomes, half of it on each side, as a share of its own width and
            height. None is the rule that the fMoW baseline published, by which small boxes get more of it: 0.15 where
            the box has half of the picture's side or more, then 0.2 (from 0.4), 0.3 (from 0.3), 0.5 (from 0.2), 1 (from
            0.1) and 2. Width is held against width and height against height, as the paper's reference implementation
            does; the baseline itself exchanges the two.
    """
    ends: list[tuple[int, int]] = []
    for axis, size in enumerate(size_hw):
        low, high = float(box_yxyx[axis]), float(box_yxyx[axis + 2])
        side = high - low
        share = context
        if share is None:
            share = next(share for from_ratio, share in _CONTEXT if side / size >= from_ratio)
        buffer = int(side * share / 2)
        ends.append((max(0, math.floor(low) - buffer), min(size, math.ceil(high) + buffer)))
    (y0, y1), (x0, x1) = ends
    return y0, x0, y1, x1


def class_targets(indices: Sequence[int]) -> Int[Tensor, " samples"]:
    """Class indices as a tensor."""
    return torch.tensor(indices, dtype=torch.int64)


def _resized(
    image: UInt8[Tensor, "channels height width"], size_hw: tuple[int, int]
) -> UInt8[Tensor, "channels new_height new_width"]:
    """Antialiased, to another height and width."""
    if size_hw == tuple(image.shape[1:]):
        return image
    pixels = F.interpolate(image[None].float(), size_hw, mode="bilinear", antialias=True, align_corners=False)
    return pixels[0].round().clamp(0, 255).byte()
