"""NABirds: 555 kinds of North American birds, as it is unpacked from ``nabirds.tar.gz``.

    images/0817/0000139e21dc4d0cbfe14cae3c85c829.jpg ...
    images.txt  image_class_labels.txt  train_test_split.txt  bounding_boxes.txt  classes.txt  hierarchy.txt  sizes.txt

``classes.txt`` names the 1011 nodes of a tree, ``hierarchy.txt`` has each node's parent; pictures belong to 555 of
them, which are the classes, in the order of their numbers. The paper's reference implementation numbers them as they
first come in ``images.txt`` (:func:`numbered_by_the_reference`). There is no official validation split: what is
published is measured on ``test``.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from typing_extensions import Unpack

from tnet.data.annotated import AnnotatedImages, ImageOptions
from tnet.data.checking import DatasetSummary, check_splits
from tnet.data.folder import shorten
from tnet.data.listing import check_split, data_root, read_listed, read_rows, read_table, refuse_missing, whole_number
from tnet.errors import DataError

OFFICIAL = {"train": 23_929, "test": 24_633}
"""Pictures of each split, as published."""

CLASSES = 555


def open_nabirds(
    root: str | os.PathLike[str], split: str = "train", **options: Unpack[ImageOptions]
) -> AnnotatedImages:
    """Open a split.

    Args:
        root: the folder of ``images.txt``, or the one that holds it as ``nabirds``.
        split: ``train`` or ``test``; both have the classes of either.
        options: as for :class:`AnnotatedImages`.

    Returns:
        Pictures with one box each.

    Raises:
        DataError: a list is missing or damaged, or pictures are missing.
        ConfigError: there is no such split.
    """
    check_split("nabirds", split, OFFICIAL)
    place = _place(root)
    images = _list(place, split, options)
    refuse_missing(images.paths, place)
    return images


def check_nabirds(root: str | os.PathLike[str]) -> DatasetSummary:
    """Hold what is on disk against what was published, and the lists against each other.

    Raises:
        DataError: there is no such folder.
    """
    place = _place(root)
    return check_splits(
        "nabirds", "NABirds", place, lambda split: _list(place, split, {}), OFFICIAL, CLASSES,
        lambda split, images: _tree_findings(place) if split == "train" else (),  # once
    )  # fmt: skip


def numbered_by_the_reference(root: str | os.PathLike[str]) -> list[str]:
    """The classes as the paper's reference implementation numbers them: as they first come in ``images.txt``.

    Raises:
        DataError: a list is missing or damaged.
    """
    listed = read_listed(_place(root))
    return _distinct(list(dict.fromkeys(listed.class_ids)), listed.class_names)


def read_parents(path: Path) -> dict[int, int]:
    """The parent of each node of ``hierarchy.txt`` but the root.

    Raises:
        DataError: the file is missing or damaged.
    """
    return {
        whole_number(child, path, line): whole_number(parent, path, line)
        for line, (child, parent) in read_rows(path, 2)
    }


def _place(root: str | os.PathLike[str]) -> Path:
    return data_root(root, "images.txt", "nabirds")


def _list(place: Path, split: str, options: ImageOptions) -> AnnotatedImages:
    listed = read_listed(place)
    class_ids = sorted(set(listed.class_ids))
    return listed.images(split, class_ids, _distinct(class_ids, listed.class_names), options)


def _distinct(class_ids: Sequence[int], names: Mapping[int, str]) -> list[str]:
    """Names of the classes, with the number where two have the same."""
    counts = Counter(names[class_id] for class_id in class_ids)
    return [
        names[class_id] if counts[names[class_id]] == 1 else f"{names[class_id]} ({class_id})" for class_id in class_ids
    ]


def _has_root(class_id: int, parents: Mapping[int, int], names: Mapping[int, str]) -> bool:
    """Whether parents lead from a class to a node that has none, by nodes that have names."""
    node, seen = class_id, {class_id}
    while node in parents and parents[node] not in seen:
        node = parents[node]
        seen.add(node)
    return class_id in parents and node not in parents and seen <= names.keys()


def _tree_findings(place: Path) -> list[str]:
    """What is wrong with the tree and the list of sizes."""
    listed = read_listed(place)
    path = place / "hierarchy.txt"
    parents = read_parents(path)
    class_ids = sorted(set(listed.class_ids))
    lost = [str(class_id) for class_id in class_ids if not _has_root(class_id, parents, listed.class_names)]
    sentence = f"The file {path} leads from {len(lost)} classes to no root by nodes of classes.txt: {shorten(lost)}."
    findings = [sentence] if lost else []
    sizes = place / "sizes.txt"
    try:
        listed_sizes = len(read_table(sizes, 3))
    except DataError as error:
        return [*findings, str(error)]
    if listed_sizes != len(listed.paths):
        findings.append(f"The file {sizes} lists {listed_sizes:,} pictures, but images.txt {len(listed.paths):,}.")
    return findings
