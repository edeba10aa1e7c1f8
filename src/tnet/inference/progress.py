"""Progress on standard error, which leaves standard output to results."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from datetime import timedelta
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from tnet.data.sample import Batch

_LINE_EVERY_S = 60.0


def is_terminal(stream: Any) -> bool:
    """Return whether a standard stream is a terminal; it is ``None`` if the shell closed it."""
    return stream is not None and stream.isatty()


class Lines:
    """Prints at most one line a minute on standard error."""

    def __init__(self) -> None:
        self._last = time.monotonic()

    def show(self, line: str) -> None:
        """Print a line, unless the last one is more recent than a minute."""
        if time.monotonic() - self._last >= _LINE_EVERY_S and sys.stderr is not None:
            self._last = time.monotonic()
            print(line, file=sys.stderr, flush=True)  # noqa: T201


class _LineProgress(Progress):
    """Progress in lines, for output that is not a terminal."""

    def __init__(self) -> None:
        super().__init__(disable=True, get_time=lambda: time.monotonic())
        self.lines = Lines()

    def update(self, task_id: Any, **fields: Any) -> None:
        super().update(task_id, **fields)
        self._show(task_id)

    def advance(self, task_id: Any, advance: float = 1) -> None:
        super().advance(task_id, advance)
        self._show(task_id)

    def _show(self, task_id: Any) -> None:
        task = self._tasks[task_id]
        if task.completed:
            rate = task.completed / max(task.elapsed or 0.0, 1e-9)
            left = timedelta(seconds=round(((task.total or 0) - task.completed) / rate))
            counts = f"{task.completed:.0f} of {task.total or 0:.0f}"
            self.lines.show(f"{task.description}: {counts}, {rate:.3g} per second, {left} left")


def progress_bar(shown: bool) -> Progress:
    """Return progress (a context manager) on standard error: a bar in a terminal, a line a minute elsewhere."""
    if shown and not is_terminal(sys.stderr):
        return _LineProgress()
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()
    times = TimeElapsedColumn(), TimeRemainingColumn()
    return Progress(*columns, *times, console=Console(file=sys.stderr), disable=not shown, redirect_stdout=False)


def track_images(batches: Iterable[Batch], images: int, description: str, shown: bool) -> Iterator[Batch]:
    """Yield the batches and show how many of all images are done."""
    with progress_bar(shown) as bar:
        task = bar.add_task(description, total=images)
        for batch in batches:
            yield batch
            bar.advance(task, len(batch.names))
