"""Progress on standard error, which leaves standard output to other programs."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from tnet.data.sample import Batch

_LINE_EVERY_S = 10.0


def progress_bar(shown: bool) -> Progress:
    """A bar on standard error.

    Args:
        shown: whether to draw it at all.

    Returns:
        A context manager; see Rich's ``Progress``.
    """
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    return Progress(*columns, console=Console(file=sys.stderr), disable=not shown, redirect_stdout=False)


def track_images(batches: Iterable[Batch], images: int, what: str, shown: bool) -> Iterator[Batch]:
    """Pass batches on and show how many of their images are done: a bar in a terminal, elsewhere a line now and then.

    Args:
        batches: batches of labelled images.
        images: number of images in all.
        what: what is being done, for the display.
        shown: whether to show anything.
    """
    if shown and not sys.stderr.isatty():
        done, last = 0, time.monotonic()
        for batch in batches:
            yield batch
            done += len(batch.names)
            if time.monotonic() - last > _LINE_EVERY_S:
                last = time.monotonic()
                print(f"{what}: {done} of {images} images", file=sys.stderr)  # noqa: T201
        return
    with progress_bar(shown) as bar:
        task = bar.add_task(what, total=images)
        for batch in batches:
            yield batch
            bar.advance(task, len(batch.names))
