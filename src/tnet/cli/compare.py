"""``tnet compare``: train several systems, measure them alike, and put them in one table."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tnet.cli.common import DEVICE_HELP, OverwriteOption, ProgressOption, pick_device, say


def compare(
    suite: Annotated[Path, typer.Argument(help="Suite (YAML): the systems to compare, one per row.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(help="Overrides of the suite: key=value, such as costs.repeats=20 'seeds=[0, 1, 2]'."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for the results. [default: runs/<suite name>]")] = None,
    only: Annotated[
        list[str] | None,
        typer.Option(metavar="ROW", help="Work on this row only; show cached results of others. Can be repeated."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Delete cached results, and train and measure again.")] = False,
    overwrite: OverwriteOption = False,
    device: Annotated[str, typer.Option(help=f"Device for accuracy: {DEVICE_HELP}")] = "auto",
    progress: ProgressOption = True,
) -> None:
    """Train and measure several systems, and compare them in one table.

    Prints locations, top-1 and top-5 accuracy, accuracy without context, FLOPs, parameters, time and peak memory of
    each row, and writes them as comparison.md, comparison.csv and plots. Results are cached: the same command resumes
    after an interruption, and repeats only rows that have changed. Exits with status 1 if a row failed.
    """
    from tnet.evaluation.comparison.run import compare as run
    from tnet.evaluation.comparison.suite import load_suite
    from tnet.training.bundled import find_recipe

    loaded = load_suite(find_recipe(suite), overrides or [])
    result = run(
        loaded,
        out or Path("runs") / suite.stem,
        only=only or [],
        force=force,
        overwrite=overwrite,
        device=pick_device(device),
        progress=progress,
        say=lambda line: say(line, err=True),
    )
    say(result.text)
    say(f"written: {', '.join(map(str, result.files))}")
    for name, reason in result.failures.items():
        say(f"error: row {name!r}: {reason}", err=True)
    if result.failures:
        raise typer.Exit(1)
