"""Labels that people type in the viewer, appended to a table."""

from __future__ import annotations

import re
import threading
from datetime import UTC, datetime
from pathlib import Path

from tnet.data.table import read_columns
from tnet.errors import ConfigError, DataError
from tnet.files import check_outputs, make_folder, write_text
from tnet.text import csv_row

COLUMNS = ("path", "label", "time")
_MAX_LABEL = 200  # characters
_MAX_BYTES = 2**26
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")


class Labels:
    """A table of labels with columns :data:`COLUMNS`; rows are only ever added, and the last of an image counts.

    Raises:
        OutputError: the file cannot be written.
        DataError: the file exists, and is no such table.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self._lock = threading.Lock()
        self._text = csv_row(COLUMNS)
        self._labels: dict[str, str] = {}
        if file.suffix.lower() != ".csv":
            raise DataError(f"{file} ends with {file.suffix!r}; give a file for labels that ends with .csv")
        check_outputs([file], overwrite=True)
        make_folder(file.parent)
        if file.exists() and file.stat().st_size:
            self._text = file.read_text(encoding="utf-8")
            if not self._text.startswith(csv_row(COLUMNS)):
                expected = ",".join(COLUMNS)
                raise DataError(f"{file} is not a table of labels ({expected}); give another file for --labels")
            if self._text != csv_row(COLUMNS):
                values = read_columns(file, list(COLUMNS))
                self._labels = dict(zip(values["path"], values["label"], strict=True))

    def get(self, path: str) -> str | None:
        """Return the label that was last typed for an image."""
        return self._labels.get(path)

    def add(self, path: str, label: str) -> None:
        """Append a row; the file is replaced as a whole, so that it is never half a row."""
        label = label.strip()
        if not label or len(label) > _MAX_LABEL or _CONTROL.search(label):
            raise ConfigError(f"a label has 1 to {_MAX_LABEL} characters on one line, not {len(label)}; shorten it")
        with self._lock:
            row = csv_row([path, label, datetime.now(UTC).isoformat(timespec="seconds")])
            if len(self._text) + len(row) > _MAX_BYTES:
                raise ConfigError(f"{self.file} has grown to {_MAX_BYTES // 2**20} MB; start again with another file")
            write_text(self.file, self._text + row)
            self._text += row
            self._labels[path] = label
