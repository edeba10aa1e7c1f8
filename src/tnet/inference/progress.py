"""A progress bar that leaves standard output alone."""

from __future__ import annotations

import sys

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


def progress_bar(shown: bool) -> Progress:
    """A bar on standard error, so that standard output can be read by another program.

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
