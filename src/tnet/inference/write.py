"""Writing predictions: CSV, JSON lines, and one readable line a picture."""

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
"""Columns of a table of predictions; ``top5`` and ``regions`` hold JSON, ``error`` why a picture was skipped."""


def write_predictions(predictions: Iterable[Prediction | Unreadable], path: str | Path) -> int:
    """Write predictions as they come, one row or line a picture, in a file that is there whole or not at all.

    ``.csv``: columns :data:`CSV_COLUMNS`. ``.jsonl``: one object a line with the attributes of
    :class:`~tnet.inference.records.Prediction`, or ``path`` and ``error`` for a skipped picture.

    Args:
        predictions: consumed one by one.
        path: chooses the format by its ending.

    Returns:
        Pictures written, skipped ones included.

    Raises:
        OutputError: another ending, or no place that can be written; before the first prediction is asked for.
    """
    path = Path(path)
    check_output(path)
    write = _write_csv if path.suffix.lower() == ".csv" else _write_json_lines
    with atomic_path(path) as temporary, _open(temporary) as file:
        return write(predictions, file)


def _open(path: Path) -> IO[str]:
    # A name that is not UTF-8 comes as lone surrogates, which this writes as \\udcXX: in JSON that is their escape.
    return path.open("w", encoding="utf-8", errors="backslashreplace", newline="")


def check_output(path: str | Path) -> None:
    """Refuse a file of predictions that could not be written, before any work.

    Raises:
        OutputError: a folder, or an ending that is not known.
    """
    path = Path(path)
    if path.is_dir():
        raise OutputError(f"{path} is a folder; name a file in it, such as {path / 'predictions.csv'}")
    if path.suffix.lower() not in (".csv", ".jsonl"):
        raise OutputError(f"{path} ends with {path.suffix!r}, but predictions are written as .csv or .jsonl; use one")


def _write_csv(predictions: Iterable[Prediction | Unreadable], file: IO[str]) -> int:
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(CSV_COLUMNS)
    count = 0
    for found in predictions:
        if isinstance(found, Unreadable):
            writer.writerow([found.path, "", "", "", "", found.error])
        else:
            regions = [asdict(region) for region in found.regions]
            writer.writerow([found.path, found.label, found.probability, _json(found.top5), _json(regions), ""])
        count += 1
    return count


def _write_json_lines(predictions: Iterable[Prediction | Unreadable], file: IO[str]) -> int:
    count = 0
    for found in predictions:
        file.write(_json(asdict(found)) + "\n")
        count += 1
    return count


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


def prediction_line(prediction: Prediction) -> str:
    """Path, label, probability, runners-up and boxes on one line."""
    others = ", ".join(f"{label} {p:.1%}" for label, p in prediction.top5 if label not in prediction.labels)
    boxes = "  ".join(f"{r.number}:({', '.join(map(str, r.box_l0_yxyx))})" for r in prediction.regions)
    line = f"{prediction.path}\t{prediction.label or '(none above 50%)'}\t{prediction.probability:.1%}\t[{others}]"
    line += f"\tlooked at {boxes}" if boxes else ""
    return line.encode("utf-8", "backslashreplace").decode("utf-8")
