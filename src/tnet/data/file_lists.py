"""Untrusted text files of datasets: lists, JSON, and the paths named in them.

Sizes are limited, errors name file and line, and paths that leave the dataset's folder are rejected.
"""

from __future__ import annotations

import json
import math
import os
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tnet.data.annotated import AnnotatedImages, Boxes
from tnet.data.folder import ImageOptions
from tnet.data.published import MINIATURE_BOX_YXYX, PublishedDataset, write_image
from tnet.errors import DataError
from tnet.files import check_regular

MAX_LIST_BYTES = 64 * 2**20
"""Size limit of a list in bytes; the longest published one has 4 MB."""

_MAX_COORDINATE_PX = 1e7


def read_text(path: Path, max_bytes: int = MAX_LIST_BYTES) -> str:
    """Read a UTF-8 text file, or raise a :class:`DataError` if it is missing, unreadable, too large or not UTF-8."""
    try:
        check_regular(path)
        with path.open("rb") as stream:
            content = stream.read(max_bytes + 1)
    except FileNotFoundError as error:
        raise DataError(f"{path} is missing; download it again, or correct data.root") from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"{path} cannot be read ({reason}); make it a readable file") from error
    if len(content) > max_bytes:
        raise DataError(f"{path} is larger than the limit of {max_bytes:,} bytes; download it again")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DataError(f"{path} is not UTF-8 text in line {line}; download it again") from error


def read_rows(path: Path, columns: int) -> Iterator[tuple[int, list[str]]]:
    """Yield line number (from 1) and values of each non-empty line; the last value takes the rest of the line."""
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        values = line.split(maxsplit=columns - 1)
        if not values:
            continue
        if len(values) < columns:
            problem = f"{path} has {len(values)} values in line {number} ({line[:80]!r}), but needs {columns}"
            raise DataError(f"{problem}; correct the line, or download the file again")
        yield number, [*values[:-1], values[-1].rstrip()]


def read_keyed_rows(path: Path, columns: int) -> dict[str, tuple[int, list[str]]]:
    """Return line number and remaining values of each row by its first value, which must be unique."""
    rows: dict[str, tuple[int, list[str]]] = {}
    for number, (key, *values) in read_rows(path, columns):
        if key in rows:
            raise DataError(f"{path} has {key[:80]!r} in lines {rows[key][0]} and {number}; remove one")
        rows[key] = number, values
    return rows


def read_json(path: Path, max_bytes: int) -> Any:
    """Read a JSON file, or raise a :class:`DataError`."""
    text = read_text(path, max_bytes)
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:  # syntax; a number of too many digits; brackets nested too deeply
        raise DataError(f"{path} is not JSON ({error}); download it again") from error


def parse_whole_number(text: str, path: Path, line: int) -> int:
    """Parse a whole number of up to 9 digits, or raise a :class:`DataError` that names file and line."""
    if not (text.isascii() and text.isdigit() and len(text) <= 9):
        raise DataError(f"{path} has {text[:80]!r} in line {line}, which is not a whole number; correct it")
    return int(text)


def parse_box(values: Sequence[Any], where: str) -> tuple[float, float, float, float]:
    """Convert a box ``x, y, width, height`` (numbers or text) to ``(y0, x0, y1, x1)``, in pixels, ends exclusive."""
    try:
        x, y, width, height = (math.nan if isinstance(value, bool) else float(value) for value in values)
    except (TypeError, ValueError, OverflowError):
        x = y = width = height = math.nan
    # Written so that NaN fails too.
    if not (all(abs(number) <= _MAX_COORDINATE_PX for number in (x, y, width, height)) and min(width, height) >= 0):
        raise DataError(f"{where} is {str(values)[:80]}, which is not a box; give x, y, width and height in pixels")
    return y, x, y + height, x + width


def resolve_within(folder: Path, relative: str, source: Path, line: int | None = None) -> Path:
    """Resolve a path named in the file ``source``, or raise a :class:`DataError` if it is not inside ``folder``."""
    parts = relative.split("/")
    if not relative or ".." in parts or relative.startswith("/") or any(sign in relative for sign in "\\:\0"):
        place = f" in line {line}" if line else ""
        problem = f"{source} names the path {relative[:200]!r}{place}, which is not inside the dataset's folder"
        raise DataError(f"{problem}; give a relative path, with / between folders and without '..'")
    return folder.joinpath(*(part for part in parts if part not in ("", ".")))


@dataclass(frozen=True)
class ListedImages:
    """The lists of CUB-200-2011 and NABirds, with one entry per image in the order of ``images.txt``."""

    paths: list[Path]
    class_ids: list[int]  # as in the files
    in_training: list[bool]  # else in the test split
    boxes_yxyx: list[tuple[float, float, float, float]]
    class_names: dict[int, str]  # by id; includes classes without images


class ListedDataset(PublishedDataset):
    """A dataset whose images, labels, splits and boxes are in the text files of CUB-200-2011."""

    marker = "images.txt"
    lists_images = True

    @abstractmethod
    def classes(self, lists: ListedImages) -> dict[int, str]:
        """Return the class names by id, in the order of the class indices."""

    def list_split(self, root: Path, split: str, options: ImageOptions) -> AnnotatedImages:
        """List the images of a split; each has one box."""
        lists = read_image_lists(root)
        rows = [row for row, training in enumerate(lists.in_training) if training == (split == "train")]
        if not rows:
            raise DataError(f"{root / 'train_test_split.txt'} has no image of the {split} split; download it again")
        classes = self.classes(lists)
        index_of = {class_id: index for index, class_id in enumerate(classes)}
        paths, labels = [lists.paths[row] for row in rows], [index_of[lists.class_ids[row]] for row in rows]
        boxes: list[Boxes] = [np.array([lists.boxes_yxyx[row]], dtype=np.float64) for row in rows]
        return AnnotatedImages(paths, labels, list(classes.values()), boxes=boxes, **options)

    def author_classes(self, root: str | os.PathLike[str]) -> Sequence[str]:
        """Return the class names in the order of their ids."""
        return list(self.classes(read_image_lists(self.find_root(root))).values())

    def write_miniature(self, root: Path) -> None:
        """Write the lists, and three images per class, the last of which is for testing."""
        y0, x0, y1, x1 = MINIATURE_BOX_YXYX
        rows: dict[str, list[object]] = {"images": [], "image_class_labels": [], "train_test_split": []}
        rows["bounding_boxes"] = [f"{x0} {y0} {x1 - x0} {y1 - y0}"] * 6
        for number in range(6):
            label, file = 1 + number // 3, f"{number // 3 + 1:04}/{number}.jpg"
            write_image(root / "images" / file, number)
            for column, value in zip(rows.values(), (file, label, int(number % 3 < 2)), strict=False):
                column.append(value)
        for name, column in rows.items():
            (root / f"{name}.txt").write_text("".join(f"{n} {value}\n" for n, value in enumerate(column)))
        (root / "classes.txt").write_text("1 first\n2 second\n")


def read_image_lists(root: Path) -> ListedImages:
    """Read the lists of images, labels, splits, boxes and classes, or raise a :class:`DataError` naming the line."""
    files = ("images", "classes", "image_class_labels", "train_test_split", "bounding_boxes")
    images_path, names_path, labels_path, split_path, boxes_path = (root / f"{file}.txt" for file in files)
    images = read_keyed_rows(images_path, 2)
    if not images:
        raise DataError(f"{images_path} lists no images; download it again")
    names = read_keyed_rows(names_path, 2)
    class_names = {parse_whole_number(key, names_path, line): name for key, (line, (name,)) in names.items()}
    class_ids = []
    for line, (value,) in _rows_by_image(images, labels_path, 2):
        class_ids.append(parse_whole_number(value, labels_path, line))
        if class_ids[-1] not in class_names:
            raise DataError(f"{labels_path} has class {value} in line {line}, which {names_path} lacks; correct it")
    in_training = []
    for line, (value,) in _rows_by_image(images, split_path, 2):
        if value not in ("0", "1"):
            raise DataError(f"{split_path} has {value[:80]!r} in line {line}; it must be 1 or 0")
        in_training.append(value == "1")
    paths = [resolve_within(root / "images", name, images_path, line) for line, (name,) in images.values()]
    box_rows = _rows_by_image(images, boxes_path, 5)
    boxes = [parse_box(" ".join(values).split(), f"line {line} of {boxes_path}") for line, values in box_rows]
    return ListedImages(paths, class_ids, in_training, boxes, class_names)


def _rows_by_image(images: Mapping[str, Any], path: Path, columns: int) -> Iterator[tuple[int, list[str]]]:
    rows = read_keyed_rows(path, columns)
    for key in images:
        if key not in rows:
            raise DataError(f"{path} has no line for image {key[:80]!r} of images.txt; download it again")
        yield rows[key]
