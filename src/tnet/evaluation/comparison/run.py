"""``compare``: train or load the rows of a suite, measure them alike, and write tables and plots."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tnet.errors import ConfigError, TnetError
from tnet.evaluation.comparison import report
from tnet.evaluation.comparison.report import Line
from tnet.evaluation.comparison.suite import RowConfig, Suite
from tnet.evaluation.comparison.work import NotCachedError, Work
from tnet.evaluation.plots import RunCurve, plot_training
from tnet.evaluation.resources import devices_here, machine
from tnet.files import check_new_folder, make_folder, write_text
from tnet.text import markdown


@dataclass(frozen=True)
class Comparison:
    """Result of a comparison."""

    folder: Path
    lines: list[Line]  # in the order of the rows
    text: str  # tables and notes, in Markdown
    failures: dict[str, str]  # reason per failed row
    missing: list[str]  # rows that were neither requested nor cached
    files: list[Path]  # tables and plots


def compare(
    suite: Suite,
    folder: str | Path,
    *,
    only: Sequence[str] = (),
    force: bool = False,
    overwrite: bool = False,
    device: str = "cpu",
    progress: bool = True,
    say: Callable[[str], object] = print,
) -> Comparison:
    """Measure the rows of a suite.

    Results in the same folder are reused if nothing they depend on has changed; interrupted runs are resumed. A row
    that fails does not end the comparison.

    Args:
        suite: what to compare.
        folder: output folder; new, empty or of an earlier comparison, unless ``overwrite``.
        only: names of the rows to work on; all if empty. Cached results of other rows are shown.
        force: delete cached results of these rows and compute them again.
        overwrite: write into another folder, replacing files of the same names.
        device: device to evaluate on.
        progress: show progress bars on standard error.
        say: called with a line about each step.

    Raises:
        ConfigError: ``only`` names a row that does not exist.
        OutputError: the folder cannot be written.
        KeyboardInterrupt: Ctrl-C, with a note that the same command resumes.
    """
    names = [row.name for row in suite.rows]
    unknown = [name for name in only if name not in names]
    if unknown:
        raise ConfigError(f"the suite has no row {unknown[0]!r}; its rows are {', '.join(names)}")
    folder = Path(folder)
    check_new_folder(folder, overwrite=overwrite or (folder / "cache").is_dir())
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
        except NotCachedError:
            missing.append(row.name)
        except KeyboardInterrupt as interrupt:
            interrupt.__notes__ = [f"results so far are in {folder}; the same command resumes"]
            raise
        except Exception as error:  # hours of other rows must not be lost to any error
            known = isinstance(error, TnetError)
            first = (str(error).splitlines() or [""])[0][:500]
            failures[row.name] = first if known else f"{type(error).__name__}: {first}".removesuffix(": ")
            say(f"{row.name} failed: {failures[row.name]}")
            if not (known or isinstance(error, MemoryError | OSError)):
                say(traceback.format_exc())
    text, files = _write(suite, folder, lines, curves, failures, missing)
    return Comparison(folder, lines, text, failures, missing, files)


def _row_lines(work: Work, row: RowConfig, make: bool, renew: bool) -> list[Line]:
    entries = work.entries(row, make=make, renew=renew)
    if not row.measure:
        return []
    accuracies = [rows for entry in entries if (rows := work.accuracies(row, entry, make=make))]
    # The cost of a model does not depend on its weights.
    costs = work.costs(row, entries[0], make=make)
    efforts = [entry.effort for entry in entries if entry.effort is not None]
    return report.lines_of(row.name, accuracies, costs, efforts, work.suite.bootstrap)


def _write(
    suite: Suite, folder: Path, lines: list[Line], curves: list[RunCurve], failures: dict[str, str], missing: list[str]
) -> tuple[str, list[Path]]:
    """Write the page, the CSV and the plots; return the page's text without plots, and the files."""
    parts = []
    if lines:
        skipped = [name for name in suite.costs.devices if name not in devices_here(suite.costs.devices)]
        parts += [report.comparison_table(lines), report.comparison_notes(lines, skipped, machine())]
        if effort := report.effort_table(lines):
            parts += [f"Training effort per seed (mean), including earlier stages:\n\n{effort}"]
    parts += [f"Failed: {markdown(name)}: {markdown(reason)}\n" for name, reason in failures.items()]
    if missing:
        parts.append(f"Not measured yet: {', '.join(map(markdown, missing))}.\n")
    text = "\n".join(parts)
    files = [folder / "comparison.md"]
    plots: list[Path] = []
    if lines:
        report.write_comparison_csv(lines, folder / "comparison.csv")
        plots = report.plot_comparison(lines, folder)
        if curves:
            plots.append(folder / "training.png")
            plot_training(curves, plots[-1])
        files += [folder / "comparison.csv", *plots]
    shown = "\n".join(f"![{plot.stem}]({plot.name})" for plot in plots)
    write_text(files[0], f"# {markdown(suite.title)}\n\n{text}\n{shown}\n".rstrip() + "\n")
    return text, files
