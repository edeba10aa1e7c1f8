"""ImageNet ILSVRC 2012, as its archives unpack, or as Kaggle hands it out.

    train/n01440764/n01440764_10026.JPEG ...
    val/n01440764/ILSVRC2012_val_00000293.JPEG ...     by synset, or all in one folder with the devkit beside:
    val/ILSVRC2012_val_00000001.JPEG ...
    ILSVRC2012_devkit_t12/data/meta.mat, ILSVRC2012_validation_ground_truth.txt
    Annotation/n01440764/n01440764_10040.xml ...       boxes of less than half of train; those of val in val/

Kaggle's has them in ``ILSVRC/Data/CLS-LOC`` and ``ILSVRC/Annotations/CLS-LOC``, and ``LOC_val_solution.csv`` beside
``ILSVRC`` instead of the devkit. The archive of training boxes (``ILSVRC2012_bbox_train_v2.tar.gz``) unpacks to folders
of synsets, and belongs in ``Annotation`` or ``bounding_boxes``.

The classes are the synsets (``n01440764``), sorted: that is the order of all published models of 1000 classes. They are
the folders in ``train`` if there is one, so that a part of ImageNet is a data set too; validation pictures of other
synsets are then left out.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
from typing_extensions import Unpack

from tnet.data.annotated import AnnotatedImages, Boxes, BoxFiles, ImageOptions, class_targets
from tnet.data.checking import DatasetSummary, check_splits, missing_sentence
from tnet.data.listing import check_split, data_root, read_rows, read_text, whole_number
from tnet.data.matfile import read_synsets
from tnet.errors import DataError
from tnet.scenes.images import image_size_hw, is_image_path

OFFICIAL = {"train": 1_281_167, "val": 50_000}
"""Pictures of each split, as published."""

CLASSES = 1000

_WNID = re.compile(r"n\d{8}")
_VAL_NAME = re.compile(r"ILSVRC2012_val_(\d{8})\.jpe?g", re.IGNORECASE)
_IMAGES = ("", "ILSVRC/Data/CLS-LOC", "Data/CLS-LOC")
_ANNOTATIONS = ("ILSVRC/Annotations/CLS-LOC", "Annotations/CLS-LOC", "Annotation", "Annotations", "bounding_boxes")
_KAGGLE = "Data/CLS-LOC"
_DEVKIT = ("ILSVRC2012_devkit_t12/data", "devkit/data", "data", "")
_TRUTH = "ILSVRC2012_validation_ground_truth.txt"
_MAX_XML_BYTES = 2**20


def open_imagenet(
    root: str | os.PathLike[str], split: str = "train", **options: Unpack[ImageOptions]
) -> AnnotatedImages:
    """Open a split.

    Args:
        root: the folder that holds ``train`` and ``val``; or that holds Kaggle's ``ILSVRC``, or this, or its
            ``Data/CLS-LOC``.
        split: ``train`` or ``val``.
        options: as for :class:`AnnotatedImages`.

    Returns:
        Pictures with those boxes that there are; XML files of boxes are read one by one, when they are needed.

    Raises:
        DataError: a folder is missing or empty, or it cannot be told what the validation pictures show.
        ConfigError: there is no such split.
    """
    check_split("imagenet", split, OFFICIAL)
    place = _place(root)
    found = _by_synset(_folder(place, "train")) if split == "train" else _validation(place)
    classes = _classes(place)
    index_of = {wnid: index for index, wnid in enumerate(classes)}
    pictures = [(path, wnid) for path, wnid in found if wnid in index_of]
    if not pictures:
        raise DataError(
            f"No picture of ImageNet's {split} split was found in {place}; see what is missing with tnet data check."
        )
    paths = [path for path, _ in pictures]
    names = _class_names(place)
    return AnnotatedImages(
        paths,
        class_targets([index_of[wnid] for _, wnid in pictures]),
        classes,
        boxes=_boxes(place, split, paths),
        class_names=[names.get(wnid, wnid) for wnid in classes],
        **options,
    )


def classes_of_imagenet(root: str | os.PathLike[str]) -> list[str]:
    """The synsets, sorted.

    Raises:
        DataError: none was found.
    """
    return _classes(_place(root))


def check_imagenet(root: str | os.PathLike[str]) -> DatasetSummary:
    """Hold what is on disk against what was published.

    Raises:
        DataError: there is no such folder.
    """
    place = _place(root)
    return check_splits(
        "imagenet", "ImageNet ILSVRC 2012", place, lambda split: open_imagenet(place, split), OFFICIAL, CLASSES,
        lambda split, images: _numbers_missing(place) if split == "val" else _boxes_missing(place, images),
    )  # fmt: skip


def read_boxes_xml(path: Path, picture: Path) -> Boxes:
    """The boxes of an annotation file in pixels of its picture; none if there is no such file.

    An annotation gives the size of the picture that was annotated, which is not always the one that was handed out:
    boxes are scaled, as is usual. Objects named after another synset are left out.

    Raises:
        DataError: the file is damaged, too large, or has a DOCTYPE, which could make a parser expand or fetch things.
        ImageError: the picture cannot be read.
    """
    if not path.exists():
        return np.zeros((0, 4))
    text = read_text(path, _MAX_XML_BYTES)
    if "<!DOCTYPE" in text:  # entities are declared in it, and nowhere else
        raise DataError(f"The annotation {path} has a DOCTYPE, which is not read; remove it.")
    try:
        tree = ElementTree.fromstring(text)
        annotated = [_number(tree, f"size/{name}") for name in ("height", "width")]
        own = path.name.partition("_")[0]
        boxes = [
            [_number(item, f"bndbox/{name}") for name in ("ymin", "xmin", "ymax", "xmax")]
            for item in tree.iter("object")
            if not _of_another(item.findtext("name", ""), own)
        ]
    except (ElementTree.ParseError, ValueError) as error:
        raise DataError(f"The annotation {path} cannot be read ({error}); fetch it again.") from error
    if not boxes or min(annotated) <= 0:
        return np.zeros((0, 4))
    height, width = image_size_hw(picture)
    corners = np.array(boxes).reshape(-1, 2, 2)  # some have their ends exchanged
    scaled = np.concatenate([corners.min(1), corners.max(1)], axis=1)
    scaled *= np.array([height / annotated[0], width / annotated[1]] * 2)
    return np.clip(scaled, 0, np.array([height, width] * 2))


def _number(item: ElementTree.Element, name: str) -> float:
    text = (item.findtext(name) or "").strip()
    if not re.fullmatch(r"-?\d{1,7}(\.\d{1,9})?", text):
        raise ValueError(f"{name} is '{text[:40]}', no number")
    return float(text)


def _of_another(name: str, own: str) -> bool:
    """Some annotations have a dog's name instead of the synset; those are of the picture's class."""
    return bool(_WNID.fullmatch(name)) and bool(_WNID.fullmatch(own)) and name != own


def _place(root: str | os.PathLike[str]) -> Path:
    """The folder in which all else is looked for."""
    place = data_root(root, "train")
    return place.absolute().parents[1] if place.absolute().match(f"*/{_KAGGLE}") else place


def _list_of_kaggle(place: Path, name: str) -> Path | None:
    """A list that Kaggle puts beside ``ILSVRC``, which may be the place."""
    places = [place, place.absolute().parent] if (place / _KAGGLE).is_dir() else [place]
    return next((folder / name for folder in places if (folder / name).is_file()), None)


def _folder(place: Path, split: str) -> Path:
    for base in _IMAGES:
        if (place / base / split).is_dir():
            return place / base / split
    raise DataError(
        f"There is no folder {place / split} of ImageNet's pictures; correct data.root, or unpack the archive there."
    )


def _synset_folders(folder: Path) -> list[str]:
    return sorted(entry.name for entry in os.scandir(folder) if _WNID.fullmatch(entry.name) and entry.is_dir())


def _by_synset(folder: Path) -> Iterator[tuple[Path, str]]:
    for wnid in _synset_folders(folder):
        inside = folder / wnid
        names = sorted(entry.name for entry in os.scandir(inside) if is_image_path(entry.name))
        yield from ((inside / name, wnid) for name in names if not name.startswith("."))


def _validation(place: Path) -> Iterator[tuple[Path, str]]:
    folder = _folder(place, "val")
    if _synset_folders(folder):
        yield from _by_synset(folder)
        return
    names = sorted(entry.name for entry in os.scandir(folder) if _VAL_NAME.fullmatch(entry.name))
    truth = _truth(place) if names else {}
    for name in names:
        wnid = truth.get(int(name[len("ILSVRC2012_val_") :].partition(".")[0]))
        if wnid is None:
            raise DataError(f"The ground truth in {place} does not say what {folder / name} shows; fetch it again.")
        yield folder / name, wnid


def _devkit_file(place: Path, name: str) -> Path | None:
    return next((place / base / name for base in _DEVKIT if (place / base / name).is_file()), None)


def _truth(place: Path) -> dict[int, str]:
    """The synset of each validation picture by its number, from 1."""
    truth, meta = _devkit_file(place, _TRUTH), _devkit_file(place, "meta.mat")
    solution = _list_of_kaggle(place, "LOC_val_solution.csv")
    if truth is not None and meta is not None:
        wnids = {number: wnid for number, (wnid, _) in read_synsets(meta).items()}
        found = {}
        for picture, (line, (value,)) in enumerate(read_rows(truth, 1), start=1):
            number = whole_number(value, truth, line)
            if number not in wnids:
                raise DataError(f"The file {truth} has class {number} in line {line}, which {meta} lacks.")
            found[picture] = wnids[number]
        return found
    if solution is not None:
        found = {}
        for line, (text,) in read_rows(solution, 1):
            match = re.match(r"ILSVRC2012_val_(\d{8}),(n\d{8}) ", text)
            if match:
                found[int(match[1])] = match[2]
            elif line > 1:
                raise DataError(
                    f"The file {solution} has '{text[:80]}' in line {line}, which names no picture and synset."
                )
        return found
    raise DataError(
        f"The validation pictures in {place} are in one folder, and nothing says what they show; unpack the devkit "
        f"(meta.mat and {_TRUTH}) into {place / _DEVKIT[0]}, put Kaggle's LOC_val_solution.csv into {place}, or sort "
        "them into folders by synset."
    )


def _classes(place: Path) -> list[str]:
    """The synsets, sorted: of the training folders, else of lists that come along, else of validation folders."""
    try:
        wnids = _synset_folders(_folder(place, "train"))
    except DataError:
        wnids = sorted(_class_names(place)) or _synset_folders(_folder(place, "val"))
    if not wnids:
        raise DataError(f"No folder of a synset (such as n01440764) was found in {place}; correct data.root.")
    return wnids


def _class_names(place: Path) -> dict[str, str]:
    """What the synsets are called, by synset; empty where nothing says it."""
    mapping, meta = _list_of_kaggle(place, "LOC_synset_mapping.txt"), _devkit_file(place, "meta.mat")
    if mapping is not None:
        return {wnid: words for _, (wnid, words) in read_rows(mapping, 2)}
    return dict(read_synsets(meta).values()) if meta is not None else {}


def _boxes(place: Path, split: str, paths: list[Path]) -> BoxFiles | None:
    base = next((place / name for name in _ANNOTATIONS if (place / name).is_dir()), None)
    if base is None:
        return None
    folder = base / split if split == "val" or (base / split).is_dir() else base
    return BoxFiles(paths, partial(_annotation_of, folder, split == "train"), read_boxes_xml)


def _annotation_of(folder: Path, by_synset: bool, picture: Path) -> Path:
    return (folder / picture.parent.name if by_synset else folder) / f"{picture.stem}.xml"


def _boxes_missing(place: Path, images: AnnotatedImages) -> list[str]:
    if images.boxes is not None:
        return []
    return [
        "there are no boxes, which crops are to respect by the recipes of recipes/published (data.boxes: cover); "
        f"unpack ILSVRC2012_bbox_train_v2.tar.gz into {place / 'Annotation'}."
    ]


def _numbers_missing(place: Path) -> list[str]:
    """Validation pictures are numbered, so that it can be said which are missing."""
    there = {path.stem.lower() for path, _ in _validation(place)}
    names = [f"ILSVRC2012_val_{number:08}" for number in range(1, OFFICIAL["val"] + 1)]
    missing = [place / f"{name}.JPEG" for name in names if name.lower() not in there]
    return [missing_sentence("numbered pictures", missing, place)] if missing else []
