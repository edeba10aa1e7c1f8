"""NABirds: 555 categories of North American birds, as unpacked from ``nabirds.tar.gz``.

    images/0817/0000139e21dc4d0cbfe14cae3c85c829.jpg ...
    images.txt  image_class_labels.txt  train_test_split.txt  bounding_boxes.txt  classes.txt  hierarchy.txt  sizes.txt

``classes.txt`` names the 1011 nodes of a tree, and ``hierarchy.txt`` has the parent of each node. The classes are the
555 nodes with images, sorted by id; the paper's reference implementation sorts them by their first image
(:meth:`NABirds.author_classes`). There is no official validation split: published results are measured on ``test``.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import ClassVar

from tnet.data import file_lists
from tnet.data.annotated import AnnotatedImages
from tnet.data.file_lists import ListedDataset, ListedImages, read_image_lists
from tnet.data.folder import shorten
from tnet.data.published import PUBLISHED
from tnet.errors import DataError


class NABirds(ListedDataset):
    """NABirds; splits ``train`` and ``test``, one box per image. Both splits have the classes of either."""

    name = "nabirds"
    title = "NABirds"
    home_page = "https://dl.allaboutbirds.org/nabirds"
    licence = "non-commercial research"
    images: ClassVar[Mapping[str, int]] = {"train": 23_929, "test": 24_633}
    num_classes = 555
    subfolder = "nabirds"

    def classes(self, lists: ListedImages) -> dict[int, str]:
        """Return the classes that have images, sorted by id."""
        return _unique_names(sorted(set(lists.class_ids)), lists.class_names)

    def author_classes(self, root: str | os.PathLike[str]) -> Sequence[str]:
        """Return the class names in the order of their first image in ``images.txt``."""
        lists = read_image_lists(self.find_root(root))
        return list(_unique_names(dict.fromkeys(lists.class_ids), lists.class_names).values())

    def extra_findings(self, root: Path, split: str, images: AnnotatedImages) -> Sequence[str]:
        """Return errors in the tree and the list of sizes; once, with the training split."""
        if split != "train":
            return ()
        lists = read_image_lists(root)
        path, sizes = root / "hierarchy.txt", root / "sizes.txt"
        parents = read_parents(path)
        ids = sorted(set(lists.class_ids))
        lost = [str(class_id) for class_id in ids if not _reaches_root(class_id, parents, lists.class_names)]
        findings = [f"{path} does not connect {len(lost)} classes to the root: {shorten(lost)}"] if lost else []
        try:
            listed_sizes = len(file_lists.read_keyed_rows(sizes, 3))
        except DataError as error:
            return [*findings, str(error)]
        if listed_sizes != len(lists.paths):
            findings.append(f"{sizes} lists {listed_sizes:,} images, but images.txt {len(lists.paths):,}")
        return findings


def read_parents(path: Path) -> dict[int, int]:
    """Return the parent of each node of ``hierarchy.txt`` except the root."""
    rows, parse = file_lists.read_rows(path, 2), file_lists.parse_whole_number
    return {parse(child, path, line): parse(parent, path, line) for line, (child, parent) in rows}


def _unique_names(class_ids: Iterable[int], names: Mapping[int, str]) -> dict[int, str]:
    """Return class names by id, with the id appended to names that several classes share."""
    counts = Counter(names[class_id] for class_id in class_ids)
    shared = {name for name, count in counts.items() if count > 1}
    return {key: f"{names[key]} ({key})" if names[key] in shared else names[key] for key in class_ids}


def _reaches_root(class_id: int, parents: Mapping[int, int], names: Mapping[int, str]) -> bool:
    """Return whether the parents lead from a class, through named nodes, to a node without a parent."""
    node, seen = class_id, {class_id}
    while node in parents and parents[node] not in seen:
        node = parents[node]
        seen.add(node)
    return class_id in parents and node not in parents and seen <= names.keys()


NABIRDS = PUBLISHED.register(NABirds.name)(NABirds())
