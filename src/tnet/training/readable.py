"""The record of images that training leaves out, since they cannot be read."""

from __future__ import annotations

import csv
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback

from tnet.data.folder import shorten
from tnet.data.sample import Batch
from tnet.errors import DataError, UnreadableWarning
from tnet.files import write_text
from tnet.text import csv_row, unmarked

UNREADABLE_NAME = "unreadable.csv"
_COLUMNS = ("path", "error")


class RecordUnreadable(Callback):
    """Lists images that are left out in a table, warns of new ones after each epoch, and stops at too many."""

    def __init__(self, path: Path, most: int) -> None:
        self.path, self.most = path, most
        self.found: dict[str, str] = {}  # error by path
        with suppress(OSError, ValueError, KeyError), path.open(newline="", encoding="utf-8") as file:
            self.found = {unmarked(row["path"]): unmarked(row["error"]) for row in csv.DictReader(file)}
        self.listed = set(self.found)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Batch, *_: Any, **__: Any
    ) -> None:
        """Collect the images.

        Raises:
            DataError: there are too many.
        """
        for path, error in batch.unreadable:
            self.found.setdefault(path, error)
        self._check()

    on_validation_batch_end = on_train_batch_end

    def _check(self) -> None:
        if len(self.found) > self.most:
            problem = f"{len(self.found)} images cannot be read, more than data.unreadable_cap allows ({self.most})"
            remedy = "repair or remove them, or raise data.unreadable_cap"
            raise DataError(f"{problem}: {shorten(sorted(self.found))}; {remedy}")

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the table, with the images of all processes."""
        if trainer.world_size > 1:
            parts: list[Any] = [None] * trainer.world_size
            torch.distributed.all_gather_object(parts, self.found)
            self.found = {path: error for part in parts for path, error in part.items()}
            self._check()
        new = sorted(self.found.keys() - self.listed)
        if new and trainer.is_global_zero:
            rows = [csv_row(_COLUMNS), *(csv_row(item) for item in sorted(self.found.items()))]
            write_text(self.path, "".join(rows))
            text = f"{len(new)} image(s) cannot be read and are left out: {shorten(new)}; all are in {self.path}"
            warnings.warn(text, UnreadableWarning, stacklevel=2)
        self.listed |= set(new)
