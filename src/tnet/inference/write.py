"""Predictions as CSV, JSON lines, or one readable line per image."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tnet.errors import OutputError
from tnet.files import atomic_path, check_outputs
from tnet.inference.records import Prediction, Unreadable
from tnet.text import csv_row, on_one_line

FILE_SUFFIXES = (".csv", ".jsonl")
CSV_COLUMNS = ("path", "label", "probability", "top5", "regions", "error")
"""Columns of a table of predictions; ``top5`` and ``regions`` hold JSON, ``error`` is set for a skipped image."""


def write_predictions(
    predictions: Iterable[Prediction | Unreadable],
    path: str | Path,
    *,
    inputs: Iterable[str | os.PathLike[str]] = (),
    overwrite: bool = False,
) -> int:
    """Write predictions as they come, and return their number; the file is complete or does not exist.

    ``.csv``: one row per image with columns :data:`CSV_COLUMNS`. ``.jsonl``: one object per line with the attributes of
    :class:`~tnet.inference.records.Prediction`, or ``path`` and ``error`` for a skipped image.

    Raises:
        OutputError: the suffix is unsupported, the file exists (unless ``overwrite``), is one of the ``inputs`` or
            cannot be written; raised before the first prediction.
    """
    path = Path(path)
    check_output(path, inputs=inputs, overwrite=overwrite)
    # Names that are not UTF-8 hold lone surrogates, which become \\udcXX, their escape in JSON.
    count, is_csv = 0, path.suffix.lower() == ".csv"
    with atomic_path(path) as part, part.open("w", encoding="utf-8", errors="backslashreplace", newline="") as file:
        if is_csv:
            file.write(csv_row(CSV_COLUMNS))
        for item in predictions:
            count += 1
            if not is_csv:
                file.write(_json(asdict(item)) + "\n")
            else:
                row = row_of(item)
                file.write(csv_row(row[name] for name in CSV_COLUMNS))
    return count


def row_of(item: Prediction | Unreadable) -> dict[str, Any]:
    """Return a row of a table with columns :data:`CSV_COLUMNS` and ``error_kind``; ``None`` where there is no value."""
    row: dict[str, Any] = dict.fromkeys((*CSV_COLUMNS, "error_kind"))
    if isinstance(item, Unreadable):
        return row | {"path": _utf8(item.path), "error": _utf8(item.error), "error_kind": item.kind}
    return row | {
        "path": _utf8(item.path),
        "label": _utf8(item.label),
        "probability": item.probability,
        "top5": _utf8(_json(item.top5)),
        "regions": _utf8(_json([asdict(region) for region in item.regions])),
    }


def _utf8(text: str) -> str:
    """Replace the lone surrogates of names that are not UTF-8 by their escapes."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def check_output(path: str | Path, *, inputs: Iterable[str | os.PathLike[str]] = (), overwrite: bool = False) -> None:
    """Check a file of predictions before any work."""
    if Path(path).suffix.lower() not in FILE_SUFFIXES:
        raise OutputError(f"{path} has suffix {Path(path).suffix!r}; use .csv or .jsonl, or a folder without a suffix")
    check_outputs([path], inputs=inputs, overwrite=overwrite)


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


def prediction_line(prediction: Prediction) -> str:
    """Return path, label, probability, runners-up and boxes as one line."""
    path, label = on_one_line(prediction.path), on_one_line(prediction.label) or "(none above 50%)"
    others = ", ".join(f"{on_one_line(name)} {p:.1%}" for name, p in prediction.top5 if name not in prediction.labels)
    boxes = "  ".join(f"{r.number}:({', '.join(map(str, r.box_l0_yxyx))})" for r in prediction.regions)
    return f"{path}\t{label}\t{prediction.probability:.1%}\t[{others}]" + (f"\tlooked at {boxes}" if boxes else "")
