"""Text files that come with data sets, read within bounds: lists, JSON, and paths named in them.

They come from outside. Each is held against a limit of bytes before it is read, errors name the file and the line, and
a path that would leave the data set's folder is refused.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tnet.data.annotated import AnnotatedImages, Boxes, ImageOptions, class_targets
from tnet.data.folder import shorten
from tnet.errors import ConfigError, DataError
from tnet.scenes.images import image_exists

MAX_LIST_BYTES = 64 * 2**20
"""Largest list that is read; the longest of those known has 4 MB."""

_LARGEST_COORDINATE = 1e7
_SPLITS = "train_test_split.txt"


def read_text(path: Path, max_bytes: int = MAX_LIST_BYTES) -> str:
    """A text file (UTF-8).

    Raises:
        DataError: it is missing, a folder, too large, no text, or may not be read.
    """
    try:
        with path.open("rb") as stream:
            content = stream.read(max_bytes + 1)
    except FileNotFoundError as error:
        raise DataError(f"The file {path} is missing; fetch it again, or correct the data set's folder.") from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"The file {path} cannot be read ({reason}); make it a readable file.") from error
    if len(content) > max_bytes:
        raise DataError(
            f"The file {path} is larger than {max_bytes:,} bytes, the limit for such files; fetch it again."
        )
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DataError(f"The file {path} is not UTF-8 text in line {line}; fetch it again.") from error


def read_rows(path: Path, columns: int, *, max_bytes: int = MAX_LIST_BYTES) -> Iterator[tuple[int, list[str]]]:
    """Lines of values with space between, the last of which takes the rest of the line; empty lines are skipped.

    Yields:
        The number of the line, from 1, and its values.

    Raises:
        DataError: as for :func:`read_text`, or a line has fewer values.
    """
    for number, line in enumerate(read_text(path, max_bytes).splitlines(), start=1):
        values = line.split(maxsplit=columns - 1)
        if not values:
            continue
        if len(values) < columns:
            raise DataError(
                f"The file {path} has {len(values)} values in line {number} ('{line[:80]}'), but needs {columns}; "
                "correct the line, or fetch the file again."
            )
        yield number, [*values[:-1], values[-1].rstrip()]


def read_table(path: Path, columns: int) -> dict[str, tuple[int, list[str]]]:
    """Rows by their first value: the number of the line, and the other values.

    Raises:
        DataError: as for :func:`read_rows`, or a first value comes twice.
    """
    table: dict[str, tuple[int, list[str]]] = {}
    for number, (key, *values) in read_rows(path, columns):
        if key in table:
            raise DataError(f"The file {path} has '{key[:80]}' in lines {table[key][0]} and {number}; remove one.")
        table[key] = number, values
    return table


def read_json(path: Path, max_bytes: int) -> Any:
    """What a JSON file holds.

    Raises:
        DataError: as for :func:`read_text`, or it is no JSON.
    """
    text = read_text(path, max_bytes)
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(f"The file {path} is no JSON (line {error.lineno}: {error.msg}); fetch it again.") from error
    except (ValueError, RecursionError) as error:  # a number of too many digits; brackets nested too deeply
        raise DataError(f"The file {path} is no JSON that can be read ({error}); fetch it again.") from error


def whole_number(text: str, path: Path, line: int) -> int:
    """A number from 0 in a list.

    Raises:
        DataError: it is none, or has more than 9 digits.
    """
    if not (text.isascii() and text.isdigit() and len(text) <= 9):
        raise DataError(f"The file {path} has '{text[:80]}' in line {line} where a whole number belongs; correct it.")
    return int(text)


def box_of(values: Sequence[Any], where: str) -> tuple[float, float, float, float]:
    """The box (y0, x0, y1, x1) of ``x, y, width, height``; pixels, ends exclusive.

    Args:
        values: numbers, or text.
        where: they stand, for the message.

    Raises:
        DataError: they are no box.
    """
    try:
        x, y, width, height = (math.nan if isinstance(value, bool) else float(value) for value in values)
    except (TypeError, ValueError, OverflowError):
        x = y = width = height = math.nan
    # Written so that NaN fails too.
    if not (all(abs(number) <= _LARGEST_COORDINATE for number in (x, y, width, height)) and min(width, height) >= 0):
        raise DataError(f"{where} is no box ({str(values)[:80]}); it needs x, y, width and height in pixels.")
    return y, x, y + height, x + width


def within(folder: Path, relative: str, source: Path, line: int | None = None) -> Path:
    """A path that a file names, relative to a folder.

    Raises:
        DataError: it is absolute, or leads out of the folder.
    """
    parts = relative.split("/")
    if not relative or ".." in parts or relative.startswith("/") or any(sign in relative for sign in "\\:\0"):
        place = f" in line {line}" if line else ""
        raise DataError(
            f"The file {source} names the path '{relative[:200]}'{place}, which is not inside the data set's folder; "
            "correct it: paths are relative, with / between folders and without '..'."
        )
    return folder.joinpath(*(part for part in parts if part not in ("", ".")))


def data_root(root: str | os.PathLike[str], marker: str, *inside: str) -> Path:
    """The folder that holds a data set: the one named, or one of those inside it that archives unpack to.

    Args:
        root: as the user gives it.
        marker: a file or folder by which it is told.
        inside: names of folders in ``root`` to look in as well.

    Raises:
        DataError: there is no such folder.
    """
    root = Path(root)
    if not root.is_dir():
        raise DataError(f"The folder of the data set {root} does not exist; correct the path (data.root).")
    return next((place for place in (root, *(root / name for name in inside)) if (place / marker).exists()), root)


def check_split(name: str, split: str, official: Mapping[str, int]) -> None:
    """Refuse a split that a data set does not have.

    Raises:
        ConfigError: it names those there are.
    """
    if split not in official:
        raise ConfigError(
            f"The data set {name} has no split {split!r}; name one of {', '.join(official)} in data.train and data.val,"
            " or set data.val to null to set training pictures aside."
        )


def refuse_missing(paths: Sequence[Path], root: Path) -> None:
    """Refuse a data set of which pictures are missing.

    Raises:
        DataError: it names the first of them.
    """
    missing = [str(path) for path in paths if not image_exists(path)]
    if missing:
        raise DataError(
            f"The data set in {root} lists {len(missing)} pictures (of {len(paths)}) that are missing: "
            f"{shorten(missing)}; restore them, or see what else is missing with tnet data check."
        )


@dataclass(frozen=True)
class ListedPictures:
    """What CUB-200-2011 and NABirds say about their pictures, in the order of ``images.txt``.

    Attributes:
        root: the folder of the lists.
        paths: of the pictures.
        class_ids: one a picture, as in the files.
        in_training: whether a picture is for training, or for testing.
        boxes_yxyx: one a picture.
        class_names: by id; also of classes without pictures.
    """

    root: Path
    paths: list[Path]
    class_ids: list[int]
    in_training: list[bool]
    boxes_yxyx: list[tuple[float, float, float, float]]
    class_names: dict[int, str]

    def images(
        self, split: str, class_ids: Sequence[int], names: Sequence[str], options: ImageOptions
    ) -> AnnotatedImages:
        """The pictures of a split; none is looked for.

        Args:
            split: ``train`` or ``test``.
            class_ids: in the order of the class indices.
            names: of these classes.
            options: of the data set.

        Raises:
            DataError: the split has no picture.
        """
        rows = [row for row, training in enumerate(self.in_training) if training == (split == "train")]
        if not rows:
            raise DataError(f"The file {self.root / _SPLITS} has no picture of the {split} split; fetch it again.")
        index_of = {class_id: index for index, class_id in enumerate(class_ids)}
        boxes: list[Boxes] = [np.array([self.boxes_yxyx[row]], dtype=np.float64) for row in rows]
        return AnnotatedImages(
            [self.paths[row] for row in rows],
            class_targets([index_of[self.class_ids[row]] for row in rows]),
            names,
            boxes=boxes,
            **options,
        )


def read_listed(root: Path) -> ListedPictures:
    """Read the lists of pictures, labels, splits, boxes and classes.

    Raises:
        DataError: a file is missing or has a line that makes no sense, names a path outside, or lacks a picture.
    """
    images_path = root / "images.txt"
    images = read_table(images_path, 2)
    if not images:
        raise DataError(f"The file {images_path} lists no picture; fetch it again.")
    names_path = root / "classes.txt"
    class_names = {
        whole_number(key, names_path, line): name for key, (line, (name,)) in read_table(names_path, 2).items()
    }
    paths = [within(root / "images", name, images_path, line) for line, (name,) in images.values()]
    labels_path, split_path, boxes_path = (
        root / name for name in ("image_class_labels.txt", _SPLITS, "bounding_boxes.txt")
    )
    class_ids = []
    for line, (value,) in _rows_of(images, labels_path, 2):
        class_ids.append(whole_number(value, labels_path, line))
        if class_ids[-1] not in class_names:
            raise DataError(f"The file {labels_path} has class {value} in line {line}, which {names_path} lacks.")
    in_training = []
    for line, (value,) in _rows_of(images, split_path, 2):
        if value not in ("0", "1"):
            raise DataError(f"The file {split_path} has '{value[:80]}' in line {line}; it must be 1 or 0.")
        in_training.append(value == "1")
    boxes = [
        box_of(" ".join(values).split(), f"Line {line} of {boxes_path}")
        for line, values in _rows_of(images, boxes_path, 5)
    ]
    return ListedPictures(root, paths, class_ids, in_training, boxes, class_names)


def _rows_of(images: dict[str, Any], path: Path, columns: int) -> Iterator[tuple[int, list[str]]]:
    """The rows of a file in the order of the pictures."""
    table = read_table(path, columns)
    for key in images:
        if key not in table:
            raise DataError(f"The file {path} has no line for picture {key[:80]} of images.txt; fetch it again.")
        yield table[key]
