"""Functional Map of the World, fMoW-rgb: satellite pictures of 62 kinds of places, as it is handed out.

    train/airport/airport_0/airport_0_0_rgb.jpg, airport_0_0_rgb.json ...      val likewise
    test/0011978/0011978_0_rgb.jpg ...                                         without categories
    test_gt/airport/airport_0/airport_0_0_rgb.json ...                         the test pictures' true metadata
    test_gt_mapping.json        [{"input": "test_gt/airport/airport_0", "output": "test/0011978"}, ...]

A folder such as ``airport_0`` is one place at several times. Beside each ``_rgb`` picture (pan-sharpened) lies a
``_msrgb`` one (of the multispectral bands, coarser); one kind is opened. ``bounding_boxes`` of the metadata holds one
or more boxes ``[x, y, width, height]`` with ID and category. As in the paper's reference implementation a picture's
boxes are those of its own category, the box with ID -1 left out, and so are those wholly outside the picture.
``false_detection`` is a category of test folders, and no class.

A test split that was sorted into category folders by the mapping is read like ``train``.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from typing_extensions import Unpack

from tnet.data.annotated import AnnotatedImages, Boxes, BoxFiles, ImageOptions, class_targets
from tnet.data.checking import DatasetSummary, check_splits, is_empty, missing_sentence
from tnet.data.folder import shorten
from tnet.data.listing import box_of, check_split, data_root, read_json, within
from tnet.errors import DataError

OFFICIAL = {"train": 363_572, "val": 53_041, "test": 53_473}
"""``_rgb`` pictures of the 62 categories in each split, as the paper's reference implementation counts them."""

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
"""The classes in the order of their indices: that of the baseline and of the paper's checkpoints, not quite the
alphabet's."""

_INDEX = {category: index for index, category in enumerate(CATEGORIES)}
NO_CLASS = "false_detection"

_MAX_METADATA_BYTES = 2**22
_MAX_MAPPING_BYTES = 2**26
_MAPPING = "test_gt_mapping.json"
_TRUTH = ("", "groundtruth")  # where archives of the true metadata are unpacked


def open_fmow(
    root: str | os.PathLike[str],
    split: str = "train",
    *,
    pictures: Literal["rgb", "msrgb"] = "rgb",
    **options: Unpack[ImageOptions],
) -> AnnotatedImages:
    """Open a split; only folders are listed, metadata is read when boxes are asked for.

    Args:
        root: the folder that holds ``train``, ``val`` and ``test``, or the one that holds it as ``fmow-rgb``.
        split: ``train``, ``val`` or ``test``.
        pictures: which kind of picture.
        options: as for :class:`AnnotatedImages`.

    Returns:
        Whole pictures with their boxes, of all 62 classes, whichever there are pictures of; use
        :meth:`AnnotatedImages.cropped_to_boxes` for one sample a box.

    Raises:
        DataError: a folder is missing or holds no pictures, a category is not known, or the mapping of test pictures is
            missing or damaged.
        ConfigError: there is no such split.
    """
    check_split("fmow", split, OFFICIAL)
    place = _place(root)
    folder = place / split
    if not folder.is_dir():
        raise DataError(f"There is no folder {folder} of fMoW's {split} split; correct data.root, or fetch the split.")
    suffix = f"_{pictures}.jpg"
    hidden = split == "test" and not any((folder / category).is_dir() for category in CATEGORIES)
    found, locate = _test_pictures(place, suffix) if hidden else (_pictures(folder, suffix), _beside)
    if not found:
        raise DataError(f"No picture that ends with {suffix} was found in {folder}; correct data.root.")
    paths = [path for path, _ in found]
    return AnnotatedImages(
        paths,
        class_targets([_INDEX[category] for _, category in found]),
        CATEGORIES,
        boxes=BoxFiles(paths, locate, read_boxes_json),
        **options,
    )


def check_fmow(root: str | os.PathLike[str]) -> DatasetSummary:
    """Hold what is on disk against what was published.

    Raises:
        DataError: there is no such folder.
    """
    place = _place(root)
    return check_splits(
        "fmow", "fMoW-rgb", place, lambda split: open_fmow(place, split), OFFICIAL, len(CATEGORIES),
        lambda split, images: [*_metadata_missing(place, images), *_folders_missing(place, images)],
    )  # fmt: skip


def read_boxes_json(path: Path, picture: Path) -> Boxes:
    """The boxes of a metadata file that are of the category after which its folder's folder is named.

    Raises:
        DataError: the file is missing, damaged or too large.
    """
    metadata = read_json(path, _MAX_METADATA_BYTES)
    boxes = metadata.get("bounding_boxes") if isinstance(metadata, dict) else None
    boxes = [boxes] if isinstance(boxes, dict) else boxes
    if not isinstance(boxes, list) or not all(isinstance(box, dict) for box in boxes):
        raise DataError(f"The metadata {path} has no bounding_boxes; fetch it again.")
    category = path.parent.parent.name
    kept = [box for box in boxes if box.get("category") == category and box.get("ID") != -1]
    found = np.array([_box(box, path) for box in kept], dtype=np.float64).reshape(-1, 4)
    size_hw = metadata.get("img_height"), metadata.get("img_width")
    ends = [min(size, 10**9) if isinstance(size, int) and size > 0 else math.inf for size in size_hw]
    return found[(found[:, :2] < np.array(ends)).all(axis=1) & (found[:, 2:] > 0).all(axis=1)]


def _box(box: dict[str, Any], path: Path) -> tuple[float, float, float, float]:
    values = box.get("box")
    return box_of(values if isinstance(values, list) else [values], f"A box of the metadata {path}")


def _place(root: str | os.PathLike[str]) -> Path:
    return data_root(root, "train", "fmow-rgb")


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    return sorted(
        (entry for entry in os.scandir(folder) if not entry.name.startswith(".")), key=lambda entry: entry.name
    )


def _pictures(folder: Path, suffix: str) -> list[tuple[Path, str]]:
    """Pictures and their categories."""
    categories = [entry.name for entry in _entries(folder) if entry.is_dir() and entry.name != NO_CLASS]
    _check_categories(categories, folder)
    found = []
    for category in categories:
        for place in _entries(folder / category):
            if place.is_dir():
                found += [(path, category) for path in _files(Path(place.path), suffix)]
    return found


def _beside(picture: Path) -> Path:
    return picture.with_suffix(".json")


def _files(folder: Path, suffix: str) -> list[Path]:
    return [Path(entry.path) for entry in _entries(folder) if entry.name.endswith(suffix)]


def _check_categories(names: Sequence[str], source: Path) -> None:
    unknown = sorted({name for name in names if name not in CATEGORIES})
    if unknown:
        raise DataError(f"{source} names categories that fMoW does not have: {shorten(unknown)}; correct data.root.")


def _test_pictures(place: Path, suffix: str) -> tuple[list[tuple[Path, str]], Callable[[Path], Path]]:
    """Pictures and their categories, and where the true metadata of each is, by the mapping of folders."""
    source, true_folder = _mapping(place)
    there = [pictures for pictures in true_folder if pictures.is_dir()]
    if not there:
        raise DataError(
            f"None of the {len(true_folder)} folders that the mapping {source} names is there; fetch the split."
        )
    found = [(path, true_folder[pictures].parent.name) for pictures in there for path in _files(pictures, suffix)]
    return found, partial(_truth_of, true_folder)


def _mapping(place: Path) -> tuple[Path, dict[Path, Path]]:
    """The file, and the folder of true metadata of each folder of test pictures that is of a class."""
    base = next((place / name for name in _TRUTH if (place / name / _MAPPING).is_file()), place)
    source = base / _MAPPING
    mapping = read_json(source, _MAX_MAPPING_BYTES)
    if not isinstance(mapping, list):
        raise DataError(f"The mapping {source} is no list; fetch it again.")
    pairs = [_pair(entry, place, base, source) for entry in mapping]
    true_folder = {pictures: truth for truth, pictures in pairs if truth.parent.name != NO_CLASS}
    _check_categories([truth.parent.name for truth in true_folder.values()], source)
    return source, true_folder


def _truth_of(true_folder: dict[Path, Path], picture: Path) -> Path:
    """Test pictures are named after their folder, and their metadata after its own."""
    truth = true_folder[picture.parent]
    return truth / (truth.name + picture.stem.removeprefix(picture.parent.name) + ".json")


def _pair(entry: Any, place: Path, base: Path, source: Path) -> tuple[Path, Path]:
    """The folder of true metadata, and that of pictures."""
    names: list[Any] = [entry.get(key) for key in ("input", "output")] if isinstance(entry, dict) else []
    if not names or not all(isinstance(name, str) and name.count("/") >= 1 for name in names):
        raise DataError(
            f"The mapping {source} has an entry {str(entry)[:120]} without input and output; fetch it again."
        )
    return within(base, names[0], source), within(place, names[1], source)


def _metadata_missing(place: Path, images: AnnotatedImages) -> list[str]:
    locate = images.boxes.locate if isinstance(images.boxes, BoxFiles) else _beside
    missing = [path for path in map(locate, images.paths) if is_empty(path)]
    return [missing_sentence("files of metadata", missing, place)] if missing else []


def _folders_missing(place: Path, images: AnnotatedImages) -> list[str]:
    """Folders of test pictures that the mapping names."""
    if not isinstance(images.boxes, BoxFiles) or images.boxes.locate is _beside:
        return []  # sorted into categories, without a mapping
    _, true_folder = _mapping(place)
    missing = [pictures for pictures in true_folder if not pictures.is_dir()]
    return [missing_sentence("folders of test pictures", missing, place)] if missing else []
