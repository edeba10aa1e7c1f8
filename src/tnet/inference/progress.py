"""Progress on standard error, which leaves standard output to results."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from tnet.data.sample import Batch

_LINE_EVERY_S = 10.0


def progress_bar(shown: bool) -> Progress:
    """Return a progress bar (a context manager) on standard error."""
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()
    times = TimeElapsedColumn(), TimeRemainingColumn()
    return Progress(*columns, *times, console=Console(file=sys.stderr), disable=not shown, redirect_stdout=False)


def track_images(batches: Iterable[Batch], images: int, description: str, shown: bool) -> Iterator[Batch]:
    """Yield the batches and show how many of all images are done: a bar in a terminal, a line every 10 s elsewhere."""
    if shown and not sys.stderr.isatty():
        done, last = 0, time.monotonic()
        for batch in batches:
            yield batch
            done += len(batch.names)
            if time.monotonic() - last > _LINE_EVERY_S:
                last = time.monotonic()
                print(f"{description}: {done} of {images} images", file=sys.stderr)  # noqa: T201
        return
    with progress_bar(shown) as bar:
        task = bar.add_task(description, total=images)
        for batch in batches:
            yield batch
            bar.advance(task, len(batch.names))
