"""``tnet data``: published datasets on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tnet.cli.common import OverwriteOption, say

data = typer.Typer(name="data", no_args_is_help=True, help="Manage the published datasets that recipes train on.")


@data.command()
def check(
    name: Annotated[str, typer.Argument(help="Name of the dataset, as in data.kind of a recipe: imagenet, fmow, ...")],
    root: Annotated[Path, typer.Argument(help="Folder it was unpacked to, as in data.root of a recipe.")],
    json_path: Annotated[Path | None, typer.Option("--json", metavar="PATH", help="Also write a JSON file.")] = None,
    overwrite: OverwriteOption = False,
) -> None:
    """Count the images of a dataset on disk, and list what is missing or differs from what was published.

    Images are not opened. Exits with status 1 if anything is missing or differs.
    """
    import json

    from tnet.data.published import PUBLISHED
    from tnet.files import check_outputs, write_text

    if json_path is not None:  # a file in the dataset is part of it
        check_outputs([json_path], inputs=[root] if json_path.exists() else [], overwrite=overwrite)
    summary = PUBLISHED[name].check(root)
    say(summary.text())
    if json_path is not None:
        write_text(json_path, json.dumps(summary.as_dict(), indent=2) + "\n")
    if not summary.ok:
        raise typer.Exit(1)
