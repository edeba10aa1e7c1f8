"""``tnet data``: published data sets on this machine."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

data = typer.Typer(name="data", no_args_is_help=True, help="Look after the published data sets that recipes train on.")


class DatasetName(StrEnum):
    """The published data sets; an Enum, because Typer takes no list of a Literal."""

    imagenet = "imagenet"
    fmow = "fmow"
    cub = "cub"
    nabirds = "nabirds"


@data.command()
def check(
    name: Annotated[DatasetName, typer.Argument(help="Which data set.")],
    root: Annotated[Path, typer.Argument(help="Its folder, as it was unpacked; what data.root of a recipe names.")],
    json_path: Annotated[
        Path | None, typer.Option("--json", metavar="PATH", help="Write what was found to this file, too.")
    ] = None,
) -> None:
    """Say what a data set on disk consists of, and what is missing or differs from what was published.

    Pictures are looked for and counted, not opened. Ends with status 1 if anything is missing or differs.
    """
    import json

    from tnet.data.known import known_dataset
    from tnet.files import write_text

    summary = known_dataset(name.value).check(root)
    typer.echo(summary.text())
    if json_path is not None:
        write_text(json_path, json.dumps(summary.as_dict(), indent=2) + "\n")
    if not summary.ok:
        raise typer.Exit(1)
