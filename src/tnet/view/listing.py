"""The images below a folder, with what is known of them, filtered and page by page."""

from __future__ import annotations

import os
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, TypeVar

from tnet.data.table import read_columns
from tnet.errors import DataError
from tnet.inference.read import read_predictions
from tnet.scenes.find import list_images
from tnet.view.safety import is_utf8

Filter = Literal["all", "wrong", "unsure"]
Value = TypeVar("Value")

UNSURE_BELOW = 0.6
"""Probability of the predicted class below which an answer is unsure."""
_REFRESH_SECONDS = 10


@dataclass(frozen=True)
class Entry:
    """One image."""

    path: str  # POSIX, relative to the root
    label: str | None = None  # true class, several joined by |
    predicted: str | None = None
    probability: float | None = None

    @property
    def is_wrong(self) -> bool:
        """Whether the prediction is known to be wrong."""
        if self.label is None or self.predicted is None:
            return False
        return set(self.label.split("|")) != set(self.predicted.split("|"))


class Listing:
    """The images below a root; found again when they are asked for after some seconds.

    Args:
        root: folder, resolved.
        predictions: file as ``tnet predict`` writes it (``.csv``, ``.jsonl``); its paths are relative to the root, the
            file's folder or the working directory, or absolute.
        truth: table with columns ``path`` and ``label``, or a folder whose subfolders are named after classes.

    Raises:
        DataError: a table or the root cannot be read, or a table names none of the images.
    """

    def __init__(self, root: Path, predictions: Path | None = None, truth: Path | None = None) -> None:
        self.root = root
        self._lock = threading.Lock()
        self._predicted: dict[str, tuple[str, float]] = {}
        self._labels: dict[str, str] = {}
        self._class_root = truth.resolve() if truth is not None and truth.is_dir() else None
        self._entries = self._find()
        self._found_s = time.monotonic()
        names = {entry.path for entry in self._entries}
        if predictions is not None:
            answers, _ = read_predictions(predictions)
            rows = [(answer.path, (answer.label, answer.probability)) for answer in answers]
            self._predicted = _by_image(predictions, rows, root, names)
        if truth is not None and self._class_root is None:
            columns = read_columns(truth, ["path", "label"])
            self._labels = _by_image(truth, list(zip(columns["path"], columns["label"], strict=True)), root, names)
        self._entries = list(map(self._described, self._entries))

    def entry(self, path: str) -> Entry:
        """Return what is known of an image."""
        return self._described(Entry(path))

    def query(
        self,
        search: str = "",
        kind: Filter = "all",
        label: str | None = None,
        predicted: str | None = None,
    ) -> list[Entry]:
        """Return the images whose name contains a text, in natural order; unsure ones by their probability."""
        self._refresh()
        wanted = search.casefold()
        conditions: list[Callable[[Entry], bool]] = [lambda entry: wanted in entry.path.casefold()]
        if kind == "wrong":
            conditions.append(lambda entry: entry.is_wrong)
        if kind == "unsure":
            conditions.append(lambda entry: entry.probability is not None and entry.probability < UNSURE_BELOW)
        if label is not None:
            conditions.append(lambda entry: entry.label is not None and label in entry.label.split("|"))
        if predicted is not None:
            conditions.append(lambda entry: entry.predicted is not None and predicted in entry.predicted.split("|"))
        entries = [entry for entry in self._entries if all(holds(entry) for holds in conditions)]
        return sorted(entries, key=lambda entry: entry.probability or 0.0) if kind == "unsure" else entries

    def _refresh(self) -> None:
        with self._lock:
            if time.monotonic() - self._found_s < _REFRESH_SECONDS:
                return
            self._entries = list(map(self._described, self._find()))
            self._found_s = time.monotonic()

    def _find(self) -> list[Entry]:
        images, _ = list_images(self.root, is_given=True)
        inside: dict[Path, bool] = {}
        names: list[str] = []
        for image in images:
            folder = image.parent
            if folder not in inside:
                inside[folder] = folder.resolve().is_relative_to(self.root)
            is_inside = inside[folder] and (not image.is_symlink() or image.resolve().is_relative_to(self.root))
            if is_inside and is_utf8(name := image.relative_to(self.root).as_posix()):
                names.append(name)
        return [Entry(name) for name in sorted(names, key=natural_order)]

    def _described(self, entry: Entry) -> Entry:
        label = self._labels.get(entry.path)
        if self._class_root is not None:
            file = self.root / entry.path
            parts = file.relative_to(self._class_root).parts if file.is_relative_to(self._class_root) else ()
            label = parts[0] if len(parts) > 1 else None
        predicted, probability = self._predicted.get(entry.path, ("", None))
        return replace(entry, label=label, predicted=predicted or None, probability=probability)


def natural_order(name: str) -> list[tuple[int, str]]:
    """Return the key by which ``image2`` comes before ``image10``, and case does not matter."""
    parts = re.split(r"([0-9]+)", name.casefold())  # text and numbers in turns
    return [(int(part), part) if index % 2 else (0, part) for index, part in enumerate(parts)]


def _by_image(table: Path, rows: list[tuple[str, Value]], root: Path, names: set[str]) -> dict[str, Value]:
    """Return the values of the rows of a table, each with its path, by image."""
    found: dict[str, Value] = {}
    places = [Path(os.path.abspath(place)) for place in (root, table.parent, Path())]  # noqa: PTH100 (keeps links)
    for path, value in rows:
        if "\0" in path:  # which no file has
            continue
        for place in places:
            name = _below(place / path, root)
            if name in names:
                found[name] = value
                break
    if not found:
        problem = f"none of the {len(rows)} paths in {table} is an image below {root} (first: {rows[0][0]!r})"
        raise DataError(f"{problem}; give the table of these images")
    return found


def _below(file: Path, root: Path) -> str:
    """Return the name of a file below the root; empty if it is elsewhere."""
    plain = Path(os.path.normpath(file))
    if plain.is_relative_to(root):
        return plain.relative_to(root).as_posix()
    with_links = Path(os.path.realpath(file))
    return with_links.relative_to(root).as_posix() if with_links.is_relative_to(root) else ""
