"""CUB-200-2011: 200 species of birds, as it is unpacked from ``CUB_200_2011.tgz``.

    images/001.Black_footed_Albatross/Black_Footed_Albatross_0046_18.jpg ...
    images.txt  image_class_labels.txt  train_test_split.txt  bounding_boxes.txt  classes.txt

Each list has a line a picture, which starts with the picture's number. Boxes are x, y, width, height. Class indices are
the numbers in ``classes.txt`` less 1. There is no official validation split: what is published is measured on ``test``.
"""

from __future__ import annotations

import os
from pathlib import Path

from typing_extensions import Unpack

from tnet.data.annotated import AnnotatedImages, ImageOptions
from tnet.data.checking import DatasetSummary, check_splits
from tnet.data.listing import ListedPictures, check_split, data_root, read_listed, refuse_missing

OFFICIAL = {"train": 5_994, "test": 5_794}
"""Pictures of each split, as published."""

CLASSES = 200


def open_cub(root: str | os.PathLike[str], split: str = "train", **options: Unpack[ImageOptions]) -> AnnotatedImages:
    """Open a split.

    Args:
        root: the folder of ``images.txt``, or the one that holds it as ``CUB_200_2011``.
        split: ``train`` or ``test``.
        options: as for :class:`AnnotatedImages`.

    Returns:
        Pictures with one box each.

    Raises:
        DataError: a list is missing or damaged, or pictures are missing.
        ConfigError: there is no such split.
    """
    check_split("cub", split, OFFICIAL)
    place = _place(root)
    images = _list(place, split, options)
    refuse_missing(images.paths, place)
    return images


def check_cub(root: str | os.PathLike[str]) -> DatasetSummary:
    """Hold what is on disk against what was published.

    Raises:
        DataError: there is no such folder.
    """
    place = _place(root)
    return check_splits("cub", "CUB-200-2011", place, lambda split: _list(place, split, {}), OFFICIAL, CLASSES)


def classes_of_cub(root: str | os.PathLike[str]) -> list[str]:
    """The classes in the order of their numbers.

    Raises:
        DataError: a list is missing or damaged.
    """
    return _classes(read_listed(_place(root)))


def _place(root: str | os.PathLike[str]) -> Path:
    return data_root(root, "images.txt", "CUB_200_2011")


def _list(place: Path, split: str, options: ImageOptions) -> AnnotatedImages:
    listed = read_listed(place)
    return listed.images(split, sorted(listed.class_names), _classes(listed), options)


def _classes(listed: ListedPictures) -> list[str]:
    return [listed.class_names[class_id] for class_id in sorted(listed.class_names)]
