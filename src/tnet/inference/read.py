"""Predictions from the files that :mod:`tnet.inference.write` writes."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from tnet.data.table import read_columns, read_lines
from tnet.errors import DataError


class Answer(NamedTuple):
    """One line of a file of predictions."""

    path: str
    label: str
    probability: float
    regions: str  # JSON; empty if the file has none


def read_predictions(path: Path) -> tuple[list[Answer], int]:
    """Return the predictions of a ``.csv`` or ``.jsonl`` file, and the number of images that were skipped.

    Raises:
        DataError: the file cannot be read, lacks a column, has no predictions, or a probability that is none.
    """
    answers: list[Answer] = []
    skipped = 0
    for number, line in enumerate(_csv(path) if path.suffix.lower() == ".csv" else _jsonl(path), 1):
        if line["error"]:
            skipped += 1
            continue
        try:
            probability = float(line["probability"])
        except (TypeError, ValueError):
            probability = math.nan
        if not 0 <= probability <= 1:
            shown = str(line["probability"])[:40]
            raise DataError(f"{path} has probability {shown!r} in prediction {number}; it must be from 0 to 1")
        answers.append(Answer(str(line["path"]), str(line["label"]), probability, line["regions"]))
    if not answers:
        raise DataError(f"{path} has no predictions; give the file that `tnet predict --out` wrote")
    return answers, skipped


def _csv(path: Path) -> Iterator[dict[str, Any]]:
    columns = read_columns(path, ["path", "label", "probability"], optional=["regions", "error"])
    count = len(columns["path"])
    columns = {"regions": [""] * count, "error": [""] * count} | columns
    for values in zip(*columns.values(), strict=True):
        yield dict(zip(columns, values, strict=True))


def _jsonl(path: Path) -> Iterator[dict[str, Any]]:
    try:
        for number, line in enumerate(read_lines(path), 1):
            if not line.strip():
                continue
            record = json.loads(line)
            if not isinstance(record, dict) or not (
                {"path", "error"} <= set(record) or {"path", "label"} <= set(record)
            ):
                raise DataError(f"{path} has no path and label in line {number}; give a file that `tnet predict` wrote")
            regions = json.dumps(record.get("regions", []))
            yield {"probability": None, "label": "", "error": ""} | record | {"regions": regions}
    except (OSError, ValueError, RecursionError) as error:
        if isinstance(error, DataError):
            raise
        reason = getattr(error, "strerror", None) or "not JSON lines in UTF-8"
        raise DataError(f"{path} cannot be read ({reason}); give a file that `tnet predict --out` wrote") from None
