"""ImageNet ILSVRC 2012, as its archives unpack, or as distributed by Kaggle.

    train/n01440764/n01440764_10026.JPEG ...
    val/n01440764/ILSVRC2012_val_00000293.JPEG ...     by synset, or all in one folder with the devkit beside:
    val/ILSVRC2012_val_00000001.JPEG ...
    ILSVRC2012_devkit_t12/data/meta.mat, ILSVRC2012_validation_ground_truth.txt
    Annotation/n01440764/n01440764_10040.xml ...       boxes of less than half of train; for val in val/

Kaggle uses the folders ``ILSVRC/Data/CLS-LOC`` and ``ILSVRC/Annotations/CLS-LOC``, and ``LOC_val_solution.csv`` beside
``ILSVRC`` instead of the devkit. The archive of training boxes (``ILSVRC2012_bbox_train_v2.tar.gz``) unpacks to folders
of synsets, and belongs in ``Annotation`` or ``bounding_boxes``.

The classes are the sorted synsets (``n01440764``), as in all published models with 1000 classes. If ``train`` has only
some of them, as in a subset of ImageNet, validation images of others are left out.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import ClassVar
from xml.etree import ElementTree

import numpy as np

from tnet.data import published
from tnet.data.annotated import AnnotatedImages, Boxes, BoxFiles
from tnet.data.file_lists import parse_whole_number, read_rows, read_text
from tnet.data.folder import ImageOptions
from tnet.data.imagenet_devkit import read_synsets
from tnet.data.published import PUBLISHED, PublishedDataset, missing_files
from tnet.errors import DataError
from tnet.scenes.decode import image_size_hw
from tnet.scenes.find import is_image_path

_WNID = re.compile(r"n\d{8}")
_VAL_NAME = re.compile(r"ILSVRC2012_val_(\d{8})\.jpe?g", re.IGNORECASE)
_IMAGES = ("", "ILSVRC/Data/CLS-LOC", "Data/CLS-LOC")
_ANNOTATIONS = ("ILSVRC/Annotations/CLS-LOC", "Annotations/CLS-LOC", "Annotation", "Annotations", "bounding_boxes")
_KAGGLE = "Data/CLS-LOC"
_DEVKIT = ("ILSVRC2012_devkit_t12/data", "devkit/data", "data", "")
_TRUTH = "ILSVRC2012_validation_ground_truth.txt"
_MAX_XML_BYTES = 2**20


class ImageNet(PublishedDataset):
    """ImageNet ILSVRC 2012; splits ``train`` and ``val``, with boxes if they exist.

    The root may also be Kaggle's ``ILSVRC``, its parent, or its ``Data/CLS-LOC``.
    """

    name = "imagenet"
    title = "ImageNet ILSVRC 2012"
    home_page = "https://image-net.org"
    licence = "non-commercial research and education"
    images: ClassVar[Mapping[str, int]] = {"train": 1_281_167, "val": 50_000}
    num_classes = 1000
    marker = "train"

    def find_root(self, root: str | os.PathLike[str]) -> Path:
        """Return the folder that everything else is searched in."""
        folder = super().find_root(root)
        return folder.absolute().parents[1] if folder.absolute().match(f"*/{_KAGGLE}") else folder

    def list_split(self, root: Path, split: str, options: ImageOptions) -> AnnotatedImages:
        """List the images of a split."""
        labelled = _images_by_synset(_image_folder(root, "train")) if split == "train" else _validation_images(root)
        classes = _classes(root)
        index_of = {wnid: index for index, wnid in enumerate(classes)}
        images = [(path, index_of[wnid]) for path, wnid in labelled if wnid in index_of]
        if not images:
            remedy = "list what is missing with: tnet data check imagenet"
            raise DataError(f"{root} has no images of ImageNet's {split} split; {remedy}")
        paths, labels = [path for path, _ in images], [label for _, label in images]
        readable = _class_names(root)
        names, boxes = [readable.get(wnid, wnid) for wnid in classes], _boxes(root, split, paths)
        return AnnotatedImages(paths, labels, classes, boxes=boxes, class_names=names, **options)

    def extra_findings(self, root: Path, split: str, images: AnnotatedImages) -> Sequence[str]:
        """Return missing boxes of the training images, and which of the numbered validation images are missing."""
        if split == "val":
            existing = {path.stem.lower() for path, _ in _validation_images(root)}
            names = [f"ILSVRC2012_val_{number:08}" for number in range(1, self.images["val"] + 1)]
            missing = [root / f"{name}.JPEG" for name in names if name.lower() not in existing]
            return missing_files("numbered images", missing, root)
        if images.boxes is not None:
            return []
        remedy = f"unpack ILSVRC2012_bbox_train_v2.tar.gz into {root / 'Annotation'}"
        return [f"boxes are missing, which recipes/published need (data.boxes: cover); {remedy}"]

    def author_classes(self, root: str | os.PathLike[str]) -> Sequence[str]:
        """Return the synsets, sorted."""
        return _classes(self.find_root(root))

    def write_miniature(self, root: Path) -> None:
        """Write two training images and one validation image, each with a box, for each of two synsets."""
        (height, width), (y0, x0, y1, x1) = published.MINIATURE_HW, published.MINIATURE_BOX_YXYX
        for number in range(6):
            wnid = f"n0144{number // 3:04}"
            split, name = ("train", f"{wnid}_{number}") if number % 3 < 2 else ("val", f"ILSVRC2012_val_{number:08}")
            published.write_image(root / split / wnid / f"{name}.JPEG", number)
            annotation = root / "Annotation" / (wnid if split == "train" else "val") / f"{name}.xml"
            annotation.parent.mkdir(parents=True, exist_ok=True)
            annotation.write_text(
                f"<annotation><size><width>{width}</width><height>{height}</height></size><object><name>{wnid}</name>"
                f"<bndbox><xmin>{x0}</xmin><ymin>{y0}</ymin><xmax>{x1}</xmax><ymax>{y1}</ymax></bndbox></object>"
                "</annotation>"
            )


IMAGENET = PUBLISHED.register(ImageNet.name)(ImageNet())


def read_boxes_xml(path: Path, image: Path) -> Boxes:
    """Return the boxes of an annotation file in pixels of its image; none if the file is missing.

    Boxes are scaled from the image size in the annotation, which can differ from the distributed image's. Objects named
    after another synset are left out.

    Raises:
        DataError: the file is damaged, too large, or has a DOCTYPE, with which a parser could expand or fetch entities.
        ImageError: the image cannot be read.
    """
    if not path.exists():
        return np.zeros((0, 4))
    text = read_text(path, _MAX_XML_BYTES)
    if "<!DOCTYPE" in text:  # the only place that can declare entities
        raise DataError(f"the annotation {path} has a DOCTYPE, which is not supported; remove it")
    try:
        tree = ElementTree.fromstring(text)
        annotated = [_number(tree, f"size/{name}") for name in ("height", "width")]
        own = path.name.partition("_")[0]
        items = [item for item in tree.iter("object") if not _is_other_synset(item.findtext("name", ""), own)]
        sides = [f"bndbox/{name}" for name in ("ymin", "xmin", "ymax", "xmax")]
        boxes = [[_number(item, side) for side in sides] for item in items]
    except (ElementTree.ParseError, ValueError) as error:
        raise DataError(f"the annotation {path} cannot be read ({error}); download it again") from error
    if not boxes or min(annotated) <= 0:
        return np.zeros((0, 4))
    height, width = image_size_hw(image)
    corners = np.array(boxes).reshape(-1, 2, 2)  # some have their ends swapped
    scaled = np.concatenate([corners.min(1), corners.max(1)], axis=1)
    scaled *= np.array([height / annotated[0], width / annotated[1]] * 2)
    return np.clip(scaled, 0, np.array([height, width] * 2))


def _number(item: ElementTree.Element, name: str) -> float:
    text = (item.findtext(name) or "").strip()
    if not re.fullmatch(r"-?\d{1,7}(\.\d{1,9})?", text):
        raise ValueError(f"{name} is {text[:40]!r}, not a number")
    return float(text)


def _is_other_synset(name: str, own: str) -> bool:
    """Return whether an object is of another synset; some have a breed's name, and are of the image's class."""
    return bool(_WNID.fullmatch(name)) and bool(_WNID.fullmatch(own)) and name != own


def _list_file(root: Path, name: str) -> Path | None:
    """Find a list of the devkit, or one that Kaggle puts beside ``ILSVRC``, which may be the root."""
    folders = [root / base for base in _DEVKIT]
    folders += [root.absolute().parent] if (root / _KAGGLE).is_dir() else []
    return next((folder / name for folder in folders if (folder / name).is_file()), None)


def _image_folder(root: Path, split: str) -> Path:
    for base in _IMAGES:
        if (root / base / split).is_dir():
            return root / base / split
    problem = f"the folder {root / split} of ImageNet's images is missing"
    raise DataError(f"{problem}; correct data.root, or unpack the archive there")


def _synset_folders(folder: Path) -> list[str]:
    return sorted(entry.name for entry in os.scandir(folder) if _WNID.fullmatch(entry.name) and entry.is_dir())


def _images_by_synset(folder: Path) -> Iterator[tuple[Path, str]]:
    for wnid in _synset_folders(folder):
        names = sorted(entry.name for entry in os.scandir(folder / wnid) if is_image_path(entry.name))
        yield from ((folder / wnid / name, wnid) for name in names if not name.startswith("."))


def _validation_images(root: Path) -> Iterator[tuple[Path, str]]:
    folder = _image_folder(root, "val")
    if _synset_folders(folder):
        yield from _images_by_synset(folder)
        return
    matches = [match for match in map(_VAL_NAME.fullmatch, sorted(os.listdir(folder))) if match]  # noqa: PTH208
    truth = _validation_labels(root) if matches else {}
    for match in matches:
        wnid = truth.get(int(match[1]))
        if wnid is None:
            raise DataError(f"the ground truth in {root} has no label for {folder / match[0]}; download it again")
        yield folder / match[0], wnid


def _validation_labels(root: Path) -> dict[int, str]:
    """Return the synset of each validation image by its number, from 1."""
    truth, meta, solution = (_list_file(root, name) for name in (_TRUTH, "meta.mat", "LOC_val_solution.csv"))
    labels = {}
    if truth is not None and meta is not None:
        wnids = {number: wnid for number, (wnid, _) in read_synsets(meta).items()}
        for image, (line, (value,)) in enumerate(read_rows(truth, 1), start=1):
            number = parse_whole_number(value, truth, line)
            if number not in wnids:
                raise DataError(f"{truth} has class {number} in line {line}, which {meta} lacks; download them again")
            labels[image] = wnids[number]
    elif solution is not None:
        for line, (text,) in read_rows(solution, 1):
            match = re.match(r"ILSVRC2012_val_(\d{8}),(n\d{8}) ", text)
            if match:
                labels[int(match[1])] = match[2]
            elif line > 1:
                raise DataError(f"{solution} has {text[:80]!r} in line {line} instead of image and synset; correct it")
    else:
        raise DataError(
            f"the validation images in {root} are in one folder and have no labels; unpack the devkit (meta.mat and "
            f"{_TRUTH}) into {root / _DEVKIT[0]}, put Kaggle's LOC_val_solution.csv into {root}, or sort them into "
            "folders by synset"
        )
    return labels


def _classes(root: Path) -> list[str]:
    """Return the sorted synsets: the training folders, else the lists, else the validation folders."""
    try:
        wnids = _synset_folders(_image_folder(root, "train"))
    except DataError:
        wnids = sorted(_class_names(root)) or _synset_folders(_image_folder(root, "val"))
    if not wnids:
        raise DataError(f"{root} has no folders of synsets (such as n01440764); correct data.root")
    return wnids


def _class_names(root: Path) -> dict[str, str]:
    """Return readable names by synset; empty if no list has them."""
    mapping, meta = _list_file(root, "LOC_synset_mapping.txt"), _list_file(root, "meta.mat")
    if mapping is not None:
        return {wnid: words for _, (wnid, words) in read_rows(mapping, 2)}
    return dict(read_synsets(meta).values()) if meta is not None else {}


def _boxes(root: Path, split: str, paths: list[Path]) -> BoxFiles | None:
    base = next((root / name for name in _ANNOTATIONS if (root / name).is_dir()), None)
    if base is None:
        return None
    folder = base / split if split == "val" or (base / split).is_dir() else base
    return BoxFiles(paths, partial(_annotation_path, folder, split == "train"), read_boxes_xml)


def _annotation_path(folder: Path, by_synset: bool, image: Path) -> Path:
    return (folder / image.parent.name if by_synset else folder) / f"{image.stem}.xml"
