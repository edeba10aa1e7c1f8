"""Comparing systems: trains or loads the rows of a suite, measures them alike, and writes tables and pictures."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tnet.errors import ConfigError, TnetError
from tnet.evaluation.compare_curves import RunCurve, plot_training
from tnet.evaluation.compare_measure import devices_here, machine
from tnet.evaluation.compare_report import (
    Line,
    comparison_notes,
    comparison_table,
    effort_table,
    lines_of,
    plot_comparison,
    write_comparison_csv,
)
from tnet.evaluation.compare_rows import NotKeptError, Work
from tnet.evaluation.compare_suite import RowConfig, Suite
from tnet.files import make_folder, write_text


@dataclass(frozen=True)
class Comparison:
    """What a comparison left.

    Attributes:
        folder: of everything.
        lines: of the table, in the order of the rows.
        text: the tables and what their numbers are, in Markdown.
        failures: for each row that failed, in one sentence why.
        missing: rows that were not asked for, and of which nothing is kept.
        files: tables and pictures.
    """

    folder: Path
    lines: list[Line]
    text: str
    failures: dict[str, str]
    missing: list[str]
    files: list[Path]


def compare(
    suite: Suite,
    folder: str | Path,
    *,
    only: Sequence[str] = (),
    force: bool = False,
    device: str = "cpu",
    progress: bool = True,
    say: Callable[[str], object] = print,
) -> Comparison:
    """Measure the rows of a suite.

    What was found before, in the same folder, is used again if nothing that it follows from has changed; runs that were
    interrupted go on. A row that fails does not end the comparison.

    Args:
        suite: what to compare.
        folder: for all results; may hold those of an earlier comparison.
        only: names of the rows to work on; all if empty. Of others, what is kept is shown.
        force: forget what is kept of the rows worked on: train and measure anew.
        device: to evaluate on.
        progress: show progress bars on standard error.
        say: takes a line about each step.

    Raises:
        ConfigError: a name in ``only`` that is no row.
        OutputError: the folder cannot be written.
        KeyboardInterrupt: Ctrl-C; a note on it says that the same command goes on.
    """
    names = [row.name for row in suite.rows]
    unknown = [name for name in only if name not in names]
    if unknown:
        raise ConfigError(f"the suite has no row {unknown[0]!r}; its rows are {', '.join(names)}")
    folder = Path(folder)
    work = Work(suite, make_folder(folder) / "cache", device, progress, say)
    lines: list[Line] = []
    curves: list[RunCurve] = []
    failures: dict[str, str] = {}
    missing: list[str] = []
    for row in suite.rows:
        chosen = not only or row.name in only
        try:
            lines += _row_lines(work, row, make=chosen, renew=force and chosen)
            curves += work.curves(row)
        except NotKeptError:
            missing.append(row.name)
        except KeyboardInterrupt as interrupt:
            interrupt.__notes__ = [f"what is done is kept in {folder}; the same command goes on"]
            raise
        except Exception as error:  # whatever it is, hours of other rows must not be lost to it
            failures[row.name] = _sentence(error)
            say(f"{row.name} failed: {failures[row.name]}")
            if not isinstance(error, TnetError | MemoryError | OSError):
                say(traceback.format_exc())
    text, files = _write(suite, folder, lines, curves, failures, missing)
    return Comparison(folder, lines, text, failures, missing, files)


def _row_lines(work: Work, row: RowConfig, make: bool, renew: bool) -> list[Line]:
    """Everything about one row."""
    entries = work.entries(row, make=make, renew=renew)
    if not row.measure:
        return []
    accuracies = [found for entry in entries if (found := work.accuracies(row, entry, make=make))]
    # What a model costs does not depend on what it has learned.
    costs = work.costs(row, entries[0], make=make)
    efforts = [entry.effort for entry in entries if entry.effort is not None]
    return lines_of(row.name, accuracies, costs, efforts, work.suite.bootstrap)


def _sentence(error: Exception) -> str:
    """What went wrong, on one line."""
    first = (str(error).splitlines() or [""])[0][:500]
    return first if isinstance(error, TnetError) else f"{type(error).__name__}: {first}".removesuffix(": ")


def _write(
    suite: Suite,
    folder: Path,
    lines: list[Line],
    curves: list[RunCurve],
    failures: dict[str, str],
    missing: list[str],
) -> tuple[str, list[Path]]:
    """Tables and pictures."""
    parts = []
    if lines:
        skipped = [name for name in suite.costs.devices if name not in devices_here(suite.costs.devices)]
        notes = comparison_notes(lines, skipped, machine())
        parts += [comparison_table(lines), notes]
        effort = effort_table(lines)
        if effort:
            parts += [f"Training effort, a seed's mean, earlier stages included:\n\n{effort}"]
    parts += [f"Failed: {name}: {reason}\n" for name, reason in failures.items()]
    if missing:
        parts.append(f"Not measured yet: {', '.join(missing)}.\n")
    text = "\n".join(parts)
    files = [folder / "comparison.md"]
    pictures: list[Path] = []
    if lines:
        write_comparison_csv(lines, folder / "comparison.csv")
        pictures = plot_comparison(lines, folder)
        if curves:
            pictures.append(folder / "training.png")
            plot_training(curves, pictures[-1])
        files += [folder / "comparison.csv", *pictures]
    shown = "\n".join(f"![{picture.stem}]({picture.name})" for picture in pictures)
    write_text(files[0], f"# {suite.title}\n\n{text}\n{shown}\n".rstrip() + "\n")
    return text, files
