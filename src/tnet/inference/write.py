"""Predictions as CSV, JSON lines, or one readable line per image."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import IO

from tnet.errors import OutputError
from tnet.files import atomic_path
from tnet.inference.records import Prediction, Unreadable

CSV_COLUMNS = ("path", "label", "probability", "top5", "regions", "error")
"""Columns of a table of predictions; ``top5`` and ``regions`` hold JSON, ``error`` is set for a skipped image."""


def write_predictions(predictions: Iterable[Prediction | Unreadable], path: str | Path) -> int:
    """Write predictions as they come, one row or line per image; the file is complete or does not exist.

    ``.csv``: columns :data:`CSV_COLUMNS`. ``.jsonl``: one object per line with the attributes of
    :class:`~tnet.inference.records.Prediction`, or ``path`` and ``error`` for a skipped image.

    Args:
        predictions: consumed one by one.
        path: file whose suffix selects the format.

    Returns:
        Number of images written, including skipped ones.

    Raises:
        OutputError: the suffix is unsupported or the file cannot be written; raised before the first prediction.
    """
    path = Path(path)
    check_output(path)
    write = _write_csv if path.suffix.lower() == ".csv" else _write_json_lines
    with atomic_path(path) as temporary, _open(temporary) as file:
        return write(predictions, file)


def _open(path: Path) -> IO[str]:
    # Names that are not UTF-8 hold lone surrogates, which become \\udcXX, their escape in JSON.
    return path.open("w", encoding="utf-8", errors="backslashreplace", newline="")


def check_output(path: str | Path) -> None:
    """Check the name of a file of predictions, before any work.

    Raises:
        OutputError: it is a folder, or its suffix is unsupported.
    """
    path = Path(path)
    if path.is_dir():
        raise OutputError(f"{path} is a folder; give a file in it, such as {path / 'predictions.csv'}")
    if path.suffix.lower() not in (".csv", ".jsonl"):
        raise OutputError(f"{path} has suffix {path.suffix!r}; use .csv or .jsonl")


def _write_csv(predictions: Iterable[Prediction | Unreadable], file: IO[str]) -> int:
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(CSV_COLUMNS)
    count = 0
    for item in predictions:
        if isinstance(item, Unreadable):
            writer.writerow([item.path, "", "", "", "", item.error])
        else:
            regions = [asdict(region) for region in item.regions]
            writer.writerow([item.path, item.label, item.probability, _json(item.top5), _json(regions), ""])
        count += 1
    return count


def _write_json_lines(predictions: Iterable[Prediction | Unreadable], file: IO[str]) -> int:
    count = 0
    for item in predictions:
        file.write(_json(asdict(item)) + "\n")
        count += 1
    return count


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


def prediction_line(prediction: Prediction) -> str:
    """Return path, label, probability, runners-up and boxes as one line."""
    others = ", ".join(f"{label} {p:.1%}" for label, p in prediction.top5 if label not in prediction.labels)
    boxes = "  ".join(f"{r.number}:({', '.join(map(str, r.box_l0_yxyx))})" for r in prediction.regions)
    line = f"{prediction.path}\t{prediction.label or '(none above 50%)'}\t{prediction.probability:.1%}\t[{others}]"
    line += f"\tlooked at {boxes}" if boxes else ""
    return line.encode("utf-8", "backslashreplace").decode("utf-8")
