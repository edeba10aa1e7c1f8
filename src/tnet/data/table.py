"""Labelled pictures listed in a table: CSV or Parquet."""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import pyarrow as pa
import pyarrow.parquet
import torch
from jaxtyping import Float, Int
from torch import Tensor

from tnet.data.augment import Augment
from tnet.data.folder import LabelledImages, check_classes, shorten
from tnet.errors import DataError
from tnet.scenes.images import DEFAULT_MAX_PIXELS, image_exists

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")


class ImageTable(LabelledImages):
    """Pictures listed in a table, one a row: a column of paths and a column of labels.

    Labels are text or whole numbers; space around them is dropped. Rows are numbered from 1 in messages, the header
    not counted.

    Attributes:
        table_path: the table.
    """

    def __init__(
        self,
        table_path: str | os.PathLike[str],
        *,
        path_column: str = "path",
        label_column: str = "label",
        image_root: str | os.PathLike[str] | None = None,
        classes: Sequence[str] | None = None,
        label_separator: str | None = None,
        split: str | None = None,
        split_column: str = "split",
        channels: Literal[1, 3] = 3,
        max_side_px: int | None = None,
        augment: Augment | None = None,
        seed: int = 0,
        max_pixels: int = DEFAULT_MAX_PIXELS,
    ) -> None:
        """Read the table, and check that every picture is there; none is opened.

        Args:
            table_path: ``.csv`` (UTF-8, comma, one header line), ``.parquet`` or ``.pq``.
            path_column: name of the column of paths. They are relative to ``image_root``, or absolute.
            label_column: name of the column of labels.
            image_root: the table's folder if not given.
            classes: names in the order of the class indices; the sorted labels of the whole table (all splits) if
                not given. Classes without pictures are allowed.
            label_separator: what is between the labels of one picture, such as ``"|"``. If given, targets are
                multi-label.
            split: take only rows that have this in ``split_column``.
            split_column: looked at only if ``split`` is given.
            channels: 3 for RGB, 1 for grey levels.
            max_side_px: shrink pictures so that the longer side has at most this many pixels.
            augment: random changes.
            seed: of the augmentation, at least 0.
            max_pixels: largest width x height that is decoded.

        Raises:
            DataError: the table cannot be read, lacks a column or has no rows (of the split); a path or label is
                empty; a path is a URL; a label is not among ``classes``; or a picture is missing.
            ConfigError: ``seed`` is negative.
        """
        self.table_path = Path(table_path)
        root = self.table_path.parent if image_root is None else Path(image_root)
        if not os.path.isdir(root):  # noqa: PTH112 (as below)
            raise DataError(f"The folder of pictures image_root={root} does not exist; correct the path.")
        columns = [path_column, label_column, *([] if split is None else [split_column])]
        table = read_columns(self.table_path, columns)
        labels = _split_labels(self.table_path, label_column, table[label_column], label_separator)
        names = sorted({label for row in labels for label in row}) if classes is None else check_classes(classes)
        targets = _targets(self.table_path, labels, names, multilabel=label_separator is not None)
        rows = list(range(len(labels)))
        if split is not None:
            rows = _rows_of_split(self.table_path, split_column, table[split_column], split)
        super().__init__(
            _picture_paths(self.table_path, path_column, table[path_column], rows, root),
            targets[rows],
            names,
            channels=channels,
            max_side_px=max_side_px,
            augment=augment,
            seed=seed,
            max_pixels=max_pixels,
        )


def read_columns(path: Path, columns: Sequence[str]) -> dict[str, list[str]]:
    """Columns of text by name, one entry a row; an absent value is empty.

    Args:
        path: of a ``.csv``, ``.parquet`` or ``.pq`` file.
        columns: names of those wanted.

    Raises:
        DataError: the table is missing, unreadable, of another kind, without rows, or lacks a column.
    """
    readers = {".csv": _read_csv, ".parquet": _read_parquet, ".pq": _read_parquet}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise DataError(
            f"The table {path} ends with '{path.suffix}', but tables are read by their ending: {', '.join(readers)}; "
            "save it as one of those."
        )
    try:
        if path.is_file() and path.stat().st_size == 0:
            raise DataError(f"The table {path} is empty (0 bytes); fetch or save it again.")
        values = reader(path, columns)
    except FileNotFoundError as error:
        raise DataError(f"The table {path} does not exist; correct the path.") from error
    except IsADirectoryError as error:
        raise DataError(f"The table {path} is a folder; name a file.") from error
    except PermissionError as error:
        raise DataError(f"The table {path} may not be read; make it readable for this user.") from error
    except UnicodeDecodeError as error:
        raise DataError(f"The table {path} is not UTF-8 text; save it as CSV in UTF-8.") from error
    except (csv.Error, pa.ArrowException, OSError) as error:
        reason = " ".join(str(error).split())[:300]
        raise DataError(f"The table {path} cannot be read ({reason}); correct it, or save it again.") from error
    if not values[columns[0]]:
        raise DataError(f"The table {path} has columns, but no rows; list at least one picture.")
    return values


def _read_csv(path: Path, columns: Sequence[str]) -> dict[str, list[str]]:
    """Text as it stands: a label 013 must not become 13, nor NA a missing value."""
    values: dict[str, list[str]] = {name: [] for name in columns}
    with path.open(newline="", encoding="utf-8-sig") as stream:
        reader = csv.reader(stream, strict=True)
        header = next(reader, [])
        _check_columns(path, header, columns)
        places = [(values[name], header.index(name)) for name in values]
        for row in reader:
            if row and len(row) != len(header):
                raise DataError(
                    f"The table {path} has {len(row)} values in line {reader.line_num}, but {len(header)} columns; "
                    "correct the line (a value with a comma in it must be quoted)."
                )
            for column, place in places if row else ():  # an empty line is no row
                column.append(row[place])
    return values


def _read_parquet(path: Path, columns: Sequence[str]) -> dict[str, list[str]]:
    with path.open("rb") as stream, pyarrow.parquet.ParquetFile(stream) as file:
        _check_columns(path, file.schema_arrow.names, columns)
        # Without threads, which a loader's forked worker would not have.
        table = file.read(columns=list(dict.fromkeys(columns)), use_threads=False)
    return {name: _as_text(path, name, table[name]) for name in columns}


def _check_columns(path: Path, there: Sequence[str], columns: Sequence[str]) -> None:
    for name in columns:
        if there.count(name) != 1:
            state = "has no column" if name not in there else "has more than one column"
            remedy = "rename one, or say which to take (--path-column, --label-column; data.path_column in a recipe)"
            if len(there) == 1 and (other := re.search("[;\t|]", there[0])):
                remedy = f"save it with commas between the values, not {other[0]!r}"
            raise DataError(f"The table {path} {state} '{name}' (columns: {shorten(there, 20)}); {remedy}.")


def _as_text(path: Path, name: str, column: pa.ChunkedArray) -> list[str]:
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    is_text = pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
    if not (is_text or pa.types.is_integer(kind) or pa.types.is_null(kind)):
        raise DataError(
            f"Column '{name}' of the table {path} holds values of type {column.type}, but must hold text or whole "
            "numbers; convert it."
        )
    return ["" if value is None else str(value) for value in column.to_pylist()]


def _refuse_rows(path: Path, values: Sequence[str], bad: Callable[[str], bool], problem: str, remedy: str) -> None:
    rows = [row for row, value in enumerate(values, start=1) if bad(value)]
    if rows:
        first = ", ".join(f"row {row} ('{values[row - 1]}')" for row in rows[:3])
        raise DataError(f"The table {path} has {problem} in {len(rows)} rows, first {first}; {remedy}.")


def _split_labels(path: Path, name: str, values: Sequence[str], separator: str | None) -> list[list[str]]:
    """The labels of every row; one each where there is no separator."""
    if separator == "":
        raise DataError(f"label_separator for the table {path} is empty; give a character such as '|', or None.")
    cells = [[value] if separator is None else value.split(separator) for value in values]
    labels = [[label.strip() for label in cell] for cell in cells]
    empty = [str(row) for row, row_labels in enumerate(labels, start=1) if not all(row_labels)]
    if empty:
        raise DataError(
            f"The table {path} has an empty label (column '{name}') in {len(empty)} rows, first row "
            f"{', '.join(empty[:3])}; give each picture a label (a class of its own where none applies), or remove "
            "the rows."
        )
    return labels


def _targets(
    path: Path, labels: Sequence[Sequence[str]], classes: Sequence[str], *, multilabel: bool
) -> Int[Tensor, " rows"] | Float[Tensor, "rows classes"]:
    index_of = {name: index for index, name in enumerate(classes)}
    unknown = sorted({label for row in labels for label in row if label not in index_of})
    if unknown:
        raise DataError(
            f"The table {path} has labels that are not among the {len(classes)} classes: {shorten(unknown, 10)}; "
            "correct the labels, or add them to the list of classes."
        )
    if not multilabel:
        return torch.tensor([index_of[label] for (label,) in labels], dtype=torch.int64)
    targets = torch.zeros(len(labels), len(classes))
    for row, row_labels in enumerate(labels):
        targets[row, [index_of[label] for label in row_labels]] = 1
    return targets


def _rows_of_split(path: Path, name: str, values: Sequence[str], split: str) -> list[int]:
    rows = [row for row, value in enumerate(values) if value.strip() == split]
    if not rows:
        there = sorted({value.strip() for value in values})
        raise DataError(
            f"The table {path} has no row with '{split}' in column '{name}' (values: {shorten(there, 10)}); name one "
            "of those."
        )
    return rows


def _picture_paths(path: Path, name: str, values: Sequence[str], rows: Sequence[int], root: Path) -> list[Path]:
    _refuse_rows(
        path,
        values,
        lambda value: not value.strip(),
        f"an empty path (column '{name}')",
        "name the picture, or remove the rows",
    )
    _refuse_rows(
        path,
        values,
        lambda value: bool(_URL.match(value)),
        f"a URL (column '{name}')",
        "fetch the pictures first, and list them by their paths",
    )
    paths = [root / values[row] for row in rows]
    missing = [str(picture) for picture in paths if not image_exists(picture)]
    if missing:
        raise DataError(
            f"The table {path} lists {len(missing)} pictures (of {len(paths)}) that are missing: {shorten(missing)}; "
            f"restore them, or correct the paths, which start from {root} (in a recipe data.root)."
        )
    return paths
