"""Labelled images listed in a table: CSV or Parquet."""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Iterator, Sequence
from itertools import count
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import torch
from jaxtyping import Float, Int
from torch import Tensor
from typing_extensions import Unpack

from tnet.data.folder import ImageOptions, LabelledImages, check_classes, check_images_exist, shorten
from tnet.errors import DataError
from tnet.files import check_regular
from tnet.remote import check_local
from tnet.text import unmarked

_PROBLEMS: dict[type[Exception], str] = {
    FileNotFoundError: "does not exist; correct the path",
    IsADirectoryError: "is a folder; give a file",
    PermissionError: "cannot be read (permission denied); make it readable",
    UnicodeDecodeError: "is not UTF-8 text; save it as CSV in UTF-8",
}
MAX_ROWS = 10_000_000
"""Limit of the rows of a table and the lines of a list."""
_MAX_LINE = 2**20  # characters
_MAX_CHARACTERS = 2**31  # of a column
_MAX_TARGETS = 2**31
_BATCH_ROWS = 2**16
_NAME_COLUMNS = (
    "rename one, or give its name (data.path_column and data.label_column of the recipe; some commands have "
    "--path-column and --label-column)"
)
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")


class ImageTable(LabelledImages):
    """Images listed in a table, one per row: a column of paths and a column of labels.

    Labels are text or whole numbers, stripped of whitespace. Messages number rows from 1, without the header.
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
        **options: Unpack[ImageOptions],
    ) -> None:
        """Read the table, and check that every image exists; none is opened.

        Args:
            table_path: ``.csv`` (UTF-8, comma, one header line), ``.parquet`` or ``.pq``.
            path_column: name of the column of paths, absolute or relative to ``image_root``.
            label_column: name of the column of labels.
            image_root: folder of the images; defaults to the table's folder.
            classes: names, by class index; defaults to the sorted labels of the whole table (all splits). Classes
                without images are allowed.
            label_separator: separates the labels of one image, such as ``"|"``; makes the targets multi-label.
            split: use only rows with this value in ``split_column``.
            split_column: name of the column of splits, if ``split`` is given.
            options: see :class:`LabelledImages`.

        Raises:
            DataError: the table cannot be read, lacks a column or has no rows (of the split); a path or label is
                empty; a path is a URL; a label is not among ``classes``; or an image is missing.
            ConfigError: ``seed`` is negative.
        """
        check_local(table_path)
        check_local(image_root or "")
        path = Path(table_path)
        root = path.parent if image_root is None else Path(image_root)
        if not os.path.isdir(root):  # noqa: PTH112 (False instead of an error in a folder without permission)
            raise DataError(f"the image folder image_root={root} does not exist; correct the path")
        columns = [path_column, label_column, *([] if split is None else [split_column])]
        table = read_columns(path, columns, remedy=_NAME_COLUMNS)
        labels = _split_labels(path, label_column, table[label_column], label_separator)
        names = sorted({label for row in labels for label in row}) if classes is None else check_classes(classes)
        targets = _targets(path, labels, names, multilabel=label_separator is not None)
        rows = list(range(len(labels)))
        if split is not None:
            splits = [value.strip() for value in table[split_column]]
            rows = [row for row, value in enumerate(splits) if value == split]
            if not rows:
                problem = f"the table {path} has no row with {split!r} in column {split_column!r}"
                raise DataError(f"{problem}; give one of {shorten(sorted(set(splits)), 10)}")
        paths = _image_paths(path, path_column, table[path_column], rows, root)
        super().__init__(paths, targets[rows], names, **options)


def read_columns(
    path: Path, columns: Sequence[str], optional: Sequence[str] = (), remedy: str = "rename one"
) -> dict[str, list[str]]:
    """Read columns of a ``.csv``, ``.parquet`` or ``.pq`` file as text, by name; missing values are empty.

    Columns that are ``optional`` are read if the table has them; ``remedy`` is for one that the table lacks.

    Raises:
        DataError: the table is missing, unreadable, of another format, without rows, or lacks a column.
    """
    readers = {".csv": _read_csv, ".parquet": _read_parquet, ".pq": _read_parquet}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise DataError(f"the table {path} ends with {path.suffix!r}; save it as one of {', '.join(readers)}")
    try:
        if path.is_file() and path.stat().st_size == 0:
            raise DataError(f"the table {path} is empty (0 bytes); download or save it again")
        values = reader(path, columns, optional, remedy)
    except (csv.Error, pa.ArrowException, OSError, ValueError, MemoryError) as error:
        if isinstance(error, DataError):
            raise
        reason = " ".join(str(error).split())[:300]
        problem = _PROBLEMS.get(type(error), f"cannot be read ({reason}); correct it, or save it again")
        raise DataError(f"the table {path} {problem}") from error
    if not values[columns[0]]:
        raise DataError(f"the table {path} has columns, but no rows; list at least one image")
    for name, column in values.items():
        if sum(map(len, column)) > _MAX_CHARACTERS:
            problem = f"more than {_MAX_CHARACTERS:,} characters in column {name!r}"
            raise DataError(f"the table {path} has {problem}; split it into several")
    return values


def read_lines(path: Path) -> Iterator[str]:
    """Yield the lines of a UTF-8 text file of any length, with their ends, in bounded memory.

    Raises:
        DataError: a line is too long or holds a zero byte, or there are too many.
        OSError, ValueError: the file cannot be read, is not a regular file, or is not UTF-8.
    """
    check_regular(path)
    with path.open(newline="", encoding="utf-8-sig") as stream:
        for number in count(1):
            line = stream.readline(_MAX_LINE)
            if not line:
                return
            if "\0" in line:
                raise DataError(f"{path} has a zero byte in line {number}, unlike text; save it again as UTF-8")
            if len(line) == _MAX_LINE or number > MAX_ROWS:
                limits = f"at most {MAX_ROWS:,} lines of less than {_MAX_LINE:,} characters"
                raise DataError(f"{path} is too long in line {number}; it must have {limits}")
            yield line


def _read_csv(path: Path, columns: Sequence[str], optional: Sequence[str], remedy: str) -> dict[str, list[str]]:
    """Read text unchanged: a label 013 must not become 13, nor NA a missing value."""
    reader = csv.reader(read_lines(path), strict=True)
    header = list(map(unmarked, next(reader, [])))
    columns = _check_columns(path, header, columns, optional, remedy)
    values: dict[str, list[str]] = {name: [] for name in columns}
    places = [(values[name].append, header.index(name)) for name in values]
    width = len(header)
    for row in reader:
        if not row:  # empty lines are skipped
            continue
        if len(row) != width:
            problem = f"the table {path} has {len(row)} values in line {reader.line_num}, but {width} columns"
            raise DataError(f"{problem}; correct the line (quote values that contain a comma)")
        for append, place in places:
            append(unmarked(row[place]))
    return values


def _read_parquet(path: Path, columns: Sequence[str], optional: Sequence[str], remedy: str) -> dict[str, list[str]]:
    """Read batch by batch, with values that are stored once kept once: a small file can stand for a huge table."""
    check_regular(path)
    with path.open("rb") as stream:
        metadata = pyarrow.parquet.read_metadata(stream)
        columns = _check_columns(path, metadata.schema.to_arrow_schema().names, columns, optional, remedy)
        values: dict[str, list[str]] = {name: [] for name in columns}
        names = list(values)
        groups = [metadata.row_group(index) for index in range(metadata.num_row_groups)]
        chunks = [group.column(place) for group in groups for place in range(group.num_columns)]
        chunks = [chunk for chunk in chunks if chunk.path_in_schema.split(".")[0] in names]
        nbytes = sum(chunk.total_uncompressed_size for chunk in chunks)
        if metadata.num_rows > MAX_ROWS or nbytes > _MAX_CHARACTERS:
            size = f"{metadata.num_rows:,} rows and {nbytes:,} bytes in column(s) {shorten(names)}"
            limits = f"{MAX_ROWS:,} rows and {_MAX_CHARACTERS:,} bytes"
            raise DataError(f"the table {path} has {size}; it must have at most {limits}, so split it into several")
        stream.seek(0)
        texts = sorted({chunk.path_in_schema for chunk in chunks if chunk.physical_type == "BYTE_ARRAY"})
        with pyarrow.parquet.ParquetFile(stream, metadata=metadata, read_dictionary=texts) as file:
            # Without threads, which a loader's forked worker would not have.
            for batch in file.iter_batches(_BATCH_ROWS, columns=names, use_threads=False):
                for name in names:
                    values[name] += _as_text(path, name, batch.column(name))
    return values


def _check_columns(
    path: Path, header: Sequence[str], columns: Sequence[str], optional: Sequence[str], remedy: str
) -> Sequence[str]:
    """Return the columns to read, each of which is there once."""
    columns = [*columns, *(name for name in optional if name in header)]
    for name in columns:
        if header.count(name) != 1:
            problem = "has no column" if name not in header else "has more than one column"
            if len(header) == 1 and (other := re.search("[;\t|]", header[0])):
                remedy = f"save it with commas between the values, not {other[0]!r}"
            raise DataError(f"the table {path} {problem} {name!r} (columns: {shorten(header, 20)}); {remedy}")
    return columns


def _as_text(path: Path, name: str, column: pa.Array) -> list[str]:
    is_dictionary = pa.types.is_dictionary(column.type)
    dtype = column.type.value_type if is_dictionary else column.type
    tests = pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view, pa.types.is_integer, pa.types.is_null
    if not any(is_type(dtype) for is_type in tests):
        problem = f"column {name!r} of the table {path} has values of type {dtype}"
        raise DataError(f"{problem}; convert it to text or whole numbers")
    stored = column.dictionary if is_dictionary else column
    texts = ["" if value is None else str(value) for value in stored.to_pylist()]
    return ["" if at is None else texts[at] for at in column.indices.to_pylist()] if is_dictionary else texts


def _split_labels(path: Path, name: str, values: Sequence[str], separator: str | None) -> list[list[str]]:
    """Return the labels of every row; one each without a separator."""
    if separator == "":
        raise DataError(f"label_separator for the table {path} is empty; give a character such as '|', or None")
    cells = [[value] if separator is None else value.split(separator) for value in values]
    labels = [[label.strip() for label in cell] for cell in cells]
    empty = [str(row) for row, row_labels in enumerate(labels, start=1) if not all(row_labels)]
    if empty:
        problem = f"an empty label (column {name!r}) in {len(empty)} rows, first row {', '.join(empty[:3])}"
        remedy = "give each image a label (a separate class if none applies), or remove the rows"
        raise DataError(f"the table {path} has {problem}; {remedy}")
    return labels


def _targets(
    path: Path, labels: Sequence[Sequence[str]], classes: Sequence[str], *, multilabel: bool
) -> Int[Tensor, " rows"] | Float[Tensor, "rows classes"]:
    index_of = {name: index for index, name in enumerate(classes)}
    unknown = sorted({label for row in labels for label in row if label not in index_of})
    if unknown:
        problem = f"the table {path} has labels that are not among the {len(classes)} classes: {shorten(unknown, 10)}"
        raise DataError(f"{problem}; correct the labels, or add them to the list of classes")
    if multilabel and len(labels) * len(classes) > _MAX_TARGETS:
        size = f"{len(labels):,} rows and {len(classes):,} labels, more than {_MAX_TARGETS:,} targets"
        raise DataError(f"the table {path} has {size}; check the separator, or leave rare labels out")
    if not multilabel:
        return torch.tensor([index_of[label] for (label,) in labels], dtype=torch.int64)
    targets = torch.zeros(len(labels), len(classes))
    for row, row_labels in enumerate(labels):
        targets[row, [index_of[label] for label in row_labels]] = 1
    return targets


def _image_paths(path: Path, name: str, values: Sequence[str], rows: Sequence[int], root: Path) -> list[Path]:
    for problem, is_bad, remedy in (
        ("an empty path", lambda value: not value.strip(), "add the path, or remove the rows"),
        ("a URL", _URL.match, "download the images first, and list their paths"),
    ):
        bad = [f"row {row} ({value!r})" for row, value in enumerate(values, start=1) if is_bad(value)]
        if bad:
            first = ", ".join(bad[:3])
            what = f"the table {path} has {problem} (column {name!r}) in {len(bad)} rows, first {first}"
            raise DataError(f"{what}; {remedy}")
    paths = [root / values[row] for row in rows]
    remedy = f"correct the paths, which are relative to {root} (data.root in a recipe)"
    check_images_exist(paths, f"the table {path}", remedy)
    return paths
