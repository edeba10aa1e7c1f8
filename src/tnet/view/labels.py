"""Labels that people type in the viewer, appended to a table."""

from __future__ import annotations

import os
import re
import threading
from datetime import UTC, datetime
from pathlib import Path

from tnet.data.table import read_columns
from tnet.errors import ConfigError, DataError
from tnet.files import cannot_write, check_outputs, make_folder
from tnet.text import csv_row

COLUMNS = ("path", "label", "time")
_HEAD = csv_row(COLUMNS).encode()
_MAX_LABEL = 200  # characters
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")


class Labels:
    """A table of labels with columns :data:`COLUMNS`; rows are only ever added, and the last of an image counts.

    Raises:
        OutputError: the file cannot be written.
        DataError: the file exists, and is another table.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self._lock = threading.Lock()
        self._labels: dict[str, str] = {}
        if file.suffix.lower() != ".csv":
            raise DataError(f"{file} ends with {file.suffix!r}; give a file for labels that ends with .csv")
        check_outputs([file], overwrite=True)
        make_folder(file.parent)
        content = file.read_bytes() if file.exists() else b""
        head, _, rows = content.partition(b"\n")
        if content and head.strip() != _HEAD.strip():
            raise DataError(f"{file} is not a table of labels ({','.join(COLUMNS)}); give another file for labels")
        if rows.strip():
            values = read_columns(file, list(COLUMNS))
            self._labels = dict(zip(values["path"], values["label"], strict=True))

    def get(self, path: str) -> str | None:
        """Return the label that was last typed for an image."""
        return self._labels.get(path)

    def add(self, path: str, label: str) -> None:
        """Append a row, whole or not at all; other rows are not touched, so several viewers can share a table."""
        label = label.strip()
        if not label or len(label) > _MAX_LABEL or _CONTROL.search(label):
            raise ConfigError(f"a label has 1 to {_MAX_LABEL} characters on one line; correct {label[:_MAX_LABEL]!r}")
        row = csv_row([path, label, datetime.now(UTC).isoformat(timespec="seconds")])
        with self._lock:
            try:
                with self.file.open("a+b", buffering=0) as file:
                    end = file.seek(0, os.SEEK_END)
                    file.seek(max(end - 1, 0))
                    is_inside_line = file.read(1) not in (b"", b"\n")
                    content = (b"\n" if is_inside_line else b"" if end else _HEAD) + row.encode()
                    if file.write(content) != len(content):  # a full disk
                        file.truncate(end)
                        raise OSError("no space is left for another row")
                    os.fsync(file.fileno())
            except OSError as error:
                raise cannot_write(self.file, error) from None
            self._labels[path] = label
