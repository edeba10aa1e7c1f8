"""Functional Map of the World, fMoW-rgb: satellite images of 62 categories of places, as distributed.

    train/airport/airport_0/airport_0_0_rgb.jpg, airport_0_0_rgb.json ...      val likewise
    test/0011978/0011978_0_rgb.jpg ...                                         without categories
    test_gt/airport/airport_0/airport_0_0_rgb.json ...                         true metadata of the test images
    test_gt_mapping.json        [{"input": "test_gt/airport/airport_0", "output": "test/0011978"}, ...]

A folder such as ``airport_0`` is one place at several times, with pan-sharpened ``_rgb`` images and coarser ``_msrgb``
ones. ``bounding_boxes`` of the metadata holds boxes ``[x, y, width, height]`` with ID and category. As in the paper's
reference implementation, the boxes of an image have its own category and an ID other than -1, and are not completely
outside the image. ``false_detection`` is a category of test folders, but not a class.

A test split that was sorted into category folders with the mapping is read like ``train``.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from tnet.data import published
from tnet.data.annotated import AnnotatedImages, Boxes, BoxFiles
from tnet.data.file_lists import parse_box, read_json, resolve_within
from tnet.data.folder import ImageOptions, shorten
from tnet.data.published import PUBLISHED, PublishedDataset, is_empty, missing_files
from tnet.errors import DataError

_NAMES = """
airport airport_hangar airport_terminal amusement_park aquaculture archaeological_site barn border_checkpoint
burial_site car_dealership construction_site crop_field dam debris_or_rubble educational_institution
electric_substation factory_or_powerplant fire_station flooded_road fountain gas_station golf_course
ground_transportation_station helipad hospital interchange lake_or_pond lighthouse military_facility
multi-unit_residential nuclear_powerplant office_building oil_or_gas_facility park parking_lot_or_garage
place_of_worship police_station port prison race_track railway_bridge recreational_facility impoverished_settlement
road_bridge runway shipyard shopping_mall single-unit_residential smokestack solar_farm space_facility stadium
storage_tank surface_mine swimming_pool toll_booth tower tunnel_opening waste_disposal water_treatment_facility
wind_farm zoo
"""

CATEGORIES = tuple(_NAMES.split())
"""The classes in the (not quite alphabetical) order of the baseline and the paper's checkpoints."""

NO_CLASS = "false_detection"

_INDEX = {category: index for index, category in enumerate(CATEGORIES)}
_MAX_METADATA_BYTES = 2**22
_MAX_MAPPING_BYTES = 2**26
_MAPPING = "test_gt_mapping.json"
_TRUTH_FOLDERS = ("", "groundtruth")  # where archives of the true metadata are unpacked


class Fmow(PublishedDataset):
    """fMoW-rgb; splits ``train``, ``val`` and ``test``, all with all 62 classes, one or more boxes per image.

    Images are whole scenes; use :meth:`AnnotatedImages.cropped_to_boxes` for one sample per box.
    """

    name = "fmow"
    title = "fMoW-rgb"
    home_page = "https://github.com/fMoW/dataset"
    licence = "Functional Map of the World Challenge Public License"
    # `_rgb` images of the 62 categories, as counted by the paper's reference implementation.
    images: ClassVar[Mapping[str, int]] = {"train": 363_572, "val": 53_041, "test": 53_473}
    num_classes = len(CATEGORIES)
    marker = "train"
    subfolder = "fmow-rgb"

    def list_split(
        self, root: Path, split: str, options: ImageOptions, *, variant: Literal["rgb", "msrgb"] = "rgb"
    ) -> AnnotatedImages:
        """List the images of a split; ``variant`` selects one of the two images of each place and time."""
        folder = root / split
        if not folder.is_dir():
            problem = f"the folder {folder} of fMoW's {split} split is missing"
            raise DataError(f"{problem}; download it, or correct data.root")
        suffix = f"_{variant}.jpg"
        locate: Callable[[Path], Path] = _metadata_beside
        if split == "test" and not any((folder / category).is_dir() for category in CATEGORIES):
            labelled, locate = _mapped_images(root, suffix)
        else:
            labelled = _sorted_images(folder, suffix)
        if not labelled:
            raise DataError(f"{folder} has no images that end with {suffix}; correct data.root")
        paths, labels = [path for path, _ in labelled], [_INDEX[category] for _, category in labelled]
        boxes = BoxFiles(paths, locate, read_boxes_json)
        return AnnotatedImages(paths, labels, CATEGORIES, boxes=boxes, **options)

    def extra_findings(self, root: Path, split: str, images: AnnotatedImages) -> Sequence[str]:
        """Return missing metadata, and missing folders of test images that the mapping names."""
        assert isinstance(images.boxes, BoxFiles)
        locate = images.boxes.locate
        missing = [path for path in map(locate, images.paths) if is_empty(path)]
        findings = missing_files("metadata files", missing, root)
        if locate is not _metadata_beside:
            folders = [folder for folder in _read_mapping(root)[1] if not folder.is_dir()]
            findings += missing_files("folders of test images", folders, root)
        return findings

    def author_classes(self, root: str | os.PathLike[str]) -> Sequence[str]:
        """Return :data:`CATEGORIES`."""
        return CATEGORIES

    def write_miniature(self, root: Path) -> None:
        """Write two images, with metadata, of each of two categories per split."""
        (height, width), (y0, x0, y1, x1) = published.MINIATURE_HW, published.MINIATURE_BOX_YXYX
        for split in self.images:
            for label, category in enumerate(CATEGORIES[:2]):
                for time in range(2):
                    path = root / split / category / f"{category}_0" / f"{category}_0_{time}_rgb.jpg"
                    published.write_image(path, 2 * label + time)
                    box = {"ID": 0, "category": category, "box": [x0, y0, x1 - x0, y1 - y0]}
                    metadata = {"img_width": width, "img_height": height, "bounding_boxes": [box]}
                    path.with_suffix(".json").write_text(json.dumps(metadata))


FMOW = PUBLISHED.register(Fmow.name)(Fmow())


def read_boxes_json(path: Path, image: Path) -> Boxes:
    """Return the boxes of a metadata file that have the category in its path."""
    metadata = read_json(path, _MAX_METADATA_BYTES)
    boxes = metadata.get("bounding_boxes") if isinstance(metadata, dict) else None
    boxes = [boxes] if isinstance(boxes, dict) else boxes
    if not isinstance(boxes, list) or not all(isinstance(box, dict) for box in boxes):
        raise DataError(f"the metadata {path} has no bounding_boxes; download it again")
    category = path.parent.parent.name
    values = [box.get("box") for box in boxes if box.get("category") == category and box.get("ID") != -1]
    rows = [parse_box(box if isinstance(box, list) else [box], f"a box of the metadata {path}") for box in values]
    corners = np.array(rows, dtype=np.float64).reshape(-1, 4)
    size_hw = metadata.get("img_height"), metadata.get("img_width")
    ends = [min(size, 10**9) if isinstance(size, int) and size > 0 else math.inf for size in size_hw]
    return corners[(corners[:, :2] < np.array(ends)).all(axis=1) & (corners[:, 2:] > 0).all(axis=1)]


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    entries = (entry for entry in os.scandir(folder) if not entry.name.startswith("."))
    return sorted(entries, key=lambda entry: entry.name)


def _files(folder: Path, suffix: str) -> list[Path]:
    return [Path(entry.path) for entry in _entries(folder) if entry.name.endswith(suffix)]


def _sorted_images(folder: Path, suffix: str) -> list[tuple[Path, str]]:
    """Return images and their categories from a folder of category folders."""
    categories = [entry.name for entry in _entries(folder) if entry.is_dir() and entry.name != NO_CLASS]
    _check_categories(categories, folder)
    places = [(place.path, name) for name in categories for place in _entries(folder / name) if place.is_dir()]
    return [(path, name) for place, name in places for path in _files(Path(place), suffix)]


def _metadata_beside(image: Path) -> Path:
    return image.with_suffix(".json")


def _check_categories(names: Sequence[str], source: Path) -> None:
    unknown = sorted(set(names) - set(CATEGORIES))
    if unknown:
        raise DataError(f"{source} names categories that fMoW does not have: {shorten(unknown)}; correct data.root")


def _mapped_images(root: Path, suffix: str) -> tuple[list[tuple[Path, str]], Callable[[Path], Path]]:
    """Return test images and their categories, and where the true metadata of each is, by the mapping of folders."""
    source, truth_of = _read_mapping(root)
    folders = [folder for folder in truth_of if folder.is_dir()]
    if not folders:
        raise DataError(f"none of the {len(truth_of)} folders in the mapping {source} exists; download the split")
    labelled = [(path, truth_of[folder].parent.name) for folder in folders for path in _files(folder, suffix)]
    return labelled, partial(_true_metadata, truth_of)


def _read_mapping(root: Path) -> tuple[Path, dict[Path, Path]]:
    """Return the mapping file, and the folder of true metadata by the folder of test images, of all classes."""
    base = next((root / name for name in _TRUTH_FOLDERS if (root / name / _MAPPING).is_file()), root)
    source = base / _MAPPING
    mapping = read_json(source, _MAX_MAPPING_BYTES)
    if not isinstance(mapping, list):
        raise DataError(f"the mapping {source} is not a list; download it again")
    truth_of: dict[Path, Path] = {}
    for entry in mapping:
        names: list[Any] = [entry.get(key) for key in ("input", "output")] if isinstance(entry, dict) else []
        if not names or not all(isinstance(name, str) and "/" in name for name in names):
            problem = f"the mapping {source} has an entry {str(entry)[:120]} without input and output"
            raise DataError(f"{problem}; download it again")
        truth = resolve_within(base, names[0], source)
        folder = resolve_within(root, names[1], source)
        if truth.parent.name != NO_CLASS:
            truth_of[folder] = truth
    _check_categories([truth.parent.name for truth in truth_of.values()], source)
    return source, truth_of


def _true_metadata(truth_of: dict[Path, Path], image: Path) -> Path:
    """Return the metadata of a test image; images are named after their folder, metadata after its own."""
    truth = truth_of[image.parent]
    return truth / (truth.name + image.stem.removeprefix(image.parent.name) + ".json")
