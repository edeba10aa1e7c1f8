"""Boxes around what decides, from a table; for measuring where a model looks, never for training."""

from __future__ import annotations

import math
import os
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from tnet.data.folder import shorten
from tnet.data.table import read_columns
from tnet.errors import DataError

_LAYOUTS = (
    ("y0", "x0", "y1", "x1"),
    ("y1", "x1", "y2", "x2"),
    ("ymin", "xmin", "ymax", "xmax"),
    ("y", "x", "h", "w"),
    ("y", "x", "height", "width"),
)
_SIZES = ("y", "x")  # the first names of layouts of a corner and a size


class ImageBoxes(NamedTuple):
    """Boxes of the images of a dataset.

    Attributes:
        by_image: boxes ``(y0, x0, y1, x1)`` by the index of the image, for images that have any; in pixels of the image
            as stored, upright, ends exclusive.
        unmatched: number of rows of the table about other images, such as those of another split.
    """

    by_image: dict[int, Float[Tensor, "_ 4"]]
    unmatched: int


def read_boxes(table_path: str | os.PathLike[str], images: Sequence[Path], *, path_column: str = "path") -> ImageBoxes:
    """Read the boxes of images from a CSV or Parquet table with one box per row.

    Columns are the path and ``y0, x0, y1, x1``; or ``x1, y1, x2, y2``; ``xmin, ymin, xmax, ymax``; ``x, y, w, h``; or
    ``x, y, width, height``. Others are ignored. A row whose four values are empty says that its image has no box. A row
    belongs to the image whose path ends with the row's.

    Raises:
        DataError: the table cannot be read, lacks columns or has those of several layouts; a value is not a finite
            number, a box is empty or its path fits several images; or no row is about any of the images.
    """
    table = Path(table_path)
    columns = read_columns(table, [path_column], sorted({name for layout in _LAYOUTS for name in layout}))
    paths, layout = columns.pop(path_column), _layout(table, columns)
    sides, is_size = [columns[name] for name in layout], layout[:2] == _SIZES
    image_of = _match(table, paths, images)
    found: dict[int, list[list[float]]] = {}
    unmatched = 0
    for row, (path, cells) in enumerate(zip(paths, zip(*sides, strict=True), strict=True), start=1):
        if not any(cell.strip() for cell in cells):
            continue
        box = _box(table, row, cells, is_size)
        if (image := image_of[path]) is None:
            unmatched += 1
        else:
            found.setdefault(image, []).append(box)
    if not found:
        problem = f"no box of the table {table} is of one of the {len(images)} images, such as {images[0]}"
        remedy = f"column {path_column!r} must hold the ends of their paths, not {shorten(paths[:1])}"
        raise DataError(f"{problem}; {remedy}")
    return ImageBoxes({image: torch.tensor(boxes) for image, boxes in sorted(found.items())}, unmatched)


def _layout(table: Path, found: Collection[str]) -> tuple[str, ...]:
    """Return the columns of the corners, or of a corner and the size: down, across, down, across."""
    layouts = [layout for layout in _LAYOUTS if set(layout) <= set(found)]
    if len(layouts) == 1:
        return layouts[0]
    problem = (
        f"has {'boxes in several ways' if layouts else 'no boxes'} ({', '.join(found) or 'none of their columns'})"
    )
    remedy = "give one of y0,x0,y1,x1; x1,y1,x2,y2; xmin,ymin,xmax,ymax; x,y,w,h; x,y,width,height"
    raise DataError(f"the table {table} {problem}; {remedy}")


def _box(table: Path, row: int, cells: Sequence[str], is_size: bool) -> list[float]:
    try:
        y0, x0, y1, x1 = map(float, cells)
    except ValueError:
        y0 = x0 = y1 = x1 = math.nan
    if is_size:
        y1, x1 = y0 + y1, x0 + x1
    if not all(map(math.isfinite, (y0, x0, y1, x1))):
        problem = f"the table {table} has a box in row {row} that is not four finite numbers ({', '.join(cells)[:80]})"
        raise DataError(f"{problem}; correct it, or leave all four values empty for an image without a box")
    if not (y0 < y1 and x0 < x1):
        problem = f"the table {table} has an empty box in row {row} (y {y0:g} to {y1:g}, x {x0:g} to {x1:g})"
        raise DataError(f"{problem}; correct it, or remove the row")
    return [y0, x0, y1, x1]


def _match(table: Path, given: Sequence[str], images: Sequence[Path]) -> dict[str, int | None]:
    """Return the index of the image whose path ends with each given path; ``None`` without one."""
    wanted = {path: Path(os.path.normpath(path)).parts for path in given}
    whole = [Path(os.path.abspath(image)).parts for image in images]  # noqa: PTH100 (links have the names they are given)
    matched: dict[str, int | None] = dict.fromkeys(given)
    for length in {len(parts) for parts in wanted.values()}:
        ends: dict[tuple[str, ...], list[int]] = {}
        for index, parts in enumerate(whole):
            ends.setdefault(parts[-length:], []).append(index)
        for path, parts in wanted.items():
            fitting = ends.get(parts, []) if len(parts) == length else []
            if len(fitting) > 1:
                problem = f"path {path!r} of the table {table} fits {len(fitting)} images"
                raise DataError(f"{problem}, such as {images[fitting[0]]} and {images[fitting[1]]}; give longer paths")
            if fitting:
                matched[path] = fitting[0]
    return matched
