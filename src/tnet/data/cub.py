"""CUB-200-2011: 200 species of birds, as unpacked from ``CUB_200_2011.tgz``.

    images/001.Black_footed_Albatross/Black_Footed_Albatross_0046_18.jpg ...
    images.txt  image_class_labels.txt  train_test_split.txt  bounding_boxes.txt  classes.txt

Each list has one line per image, starting with the image's number. Boxes are x, y, width, height. Class indices are the
numbers in ``classes.txt`` minus 1. It has no official validation split: published results are measured on ``test``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from tnet.data.file_lists import ListedDataset, ListedImages
from tnet.data.published import PUBLISHED


class Cub(ListedDataset):
    """CUB-200-2011; splits ``train`` and ``test``, one box per image."""

    name = "cub"
    title = "CUB-200-2011"
    home_page = "https://www.vision.caltech.edu/datasets/cub_200_2011"
    licence = "non-commercial research and education"
    images: ClassVar[Mapping[str, int]] = {"train": 5_994, "test": 5_794}
    num_classes = 200
    subfolder = "CUB_200_2011"

    def classes(self, lists: ListedImages) -> dict[int, str]:
        """Return all classes of ``classes.txt``, sorted by id."""
        return dict(sorted(lists.class_names.items()))


CUB = PUBLISHED.register(Cub.name)(Cub())
