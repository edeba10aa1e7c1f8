"""``tnet suggest``: a recipe for somebody's own pictures, and why it is as it is."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from tnet.errors import OutputError


def suggest(
    folder: Annotated[
        Path,
        typer.Argument(
            help="Folder with train/CLASS/ and val/CLASS/, or with one folder a class; or a table (CSV, Parquet) of "
            "paths and labels."
        ),
    ],
    macs: Annotated[
        str | None,
        typer.Option(
            metavar="NUMBER",
            help="Most multiply-adds that one picture may take, such as 1.0G or 300M. [default: half of what "
            "the plain backbone takes at full resolution, if that can be had]",
        ),
    ] = None,
    backbone: Annotated[
        str, typer.Option(metavar="NAME", help="What sees a glimpse: `tnet models --backbones` lists them.")
    ] = "mobilenetv2_100",
    out: Annotated[
        Path | None, typer.Option(help="Write the recipe here (YAML), with the reasons as comments.")
    ] = None,
    path_column: Annotated[str, typer.Option(help="Of a table.")] = "path",
    label_column: Annotated[str, typer.Option(help="Of a table.")] = "label",
    label_separator: Annotated[
        str | None, typer.Option(help="Between several labels of a picture in a table, such as |.")
    ] = None,
) -> None:
    """Propose a recipe for your own pictures, and say why.

    Looks at labels and at the headers of pictures, not at pixels; weights are neither loaded nor fetched. What the
    recipe costs is compared with the plain backbone on the shrunk and on the full picture.
    """
    if out is not None and out.exists():
        raise OutputError(f"{out} exists already; give another name to --out, or remove it")

    from dataclasses import replace

    from tnet.files import write_text
    from tnet.suggest.recipe import explain, parse_macs, propose, recipe_text
    from tnet.suggest.survey import find_layout, survey

    budget = parse_macs(macs) if macs is not None else None
    data = find_layout(folder)
    data = replace(data, path_column=path_column, label_column=label_column, label_separator=label_separator)
    proposal = propose(survey(data), budget_macs=budget, backbone=backbone)
    typer.echo(explain(proposal))
    if out is None:
        typer.echo("to have it as a recipe, add --out recipe.yaml")
        return
    run = f"runs/{out.stem}"
    write_text(out, recipe_text(proposal, run))
    typer.echo(f"written: {out}   next: tnet train {shlex.quote(str(out))} --out {shlex.quote(run)}")
