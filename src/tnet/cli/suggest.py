"""``tnet suggest``: a recipe for the user's own images, with its reasons."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from tnet.cli.common import OverwriteOption, ProgressOption, say

_FOLDER_HELP = (
    "Folder with train/CLASS/ and val/CLASS/, or with one folder per class; or a table (CSV, Parquet) of paths and "
    "labels."
)
_MACS_HELP = (
    "Most multiply-adds per image, such as 1.0G or 300M. [default: half of the plain backbone's at full resolution, if "
    "possible]"
)
_PROBE_HELP = (
    "Test with that many training images, such as 700, whether looks are likely to pay: reads them with the frozen "
    "backbone, which takes minutes."
)
_GROUPS_HELP = "what belongs together, such as patients, which validation and the test for looks do not tear apart."
_WEIGHTS_HELP = "File of the backbone's weights (.safetensors, .pth), instead of timm's, which are downloaded."


def suggest(
    folder: Annotated[Path, typer.Argument(help=_FOLDER_HELP)],
    macs: Annotated[str | None, typer.Option(metavar="NUMBER", help=_MACS_HELP)] = None,
    backbone: Annotated[
        str, typer.Option(metavar="NAME", help="Backbone: see `tnet models --backbones`.")
    ] = "mobilenetv2_100",
    weights: Annotated[Path | None, typer.Option(metavar="FILE", help=_WEIGHTS_HELP)] = None,
    probe: Annotated[int, typer.Option(min=0, max=100_000, metavar="IMAGES", help=_PROBE_HELP)] = 0,
    out: Annotated[Path | None, typer.Option(help="Write the recipe (YAML) here, with reasons as comments.")] = None,
    path_column: Annotated[str, typer.Option(help="Column of a table with the paths.")] = "path",
    label_column: Annotated[str, typer.Option(help="Column of a table with the labels.")] = "label",
    label_separator: Annotated[
        str | None, typer.Option(help="Separator of several labels of an image in a table, such as |.")
    ] = None,
    group_column: Annotated[str | None, typer.Option(help=f"Column of a table with {_GROUPS_HELP}")] = None,
    group_pattern: Annotated[
        str | None, typer.Option(help=f"Where paths have {_GROUPS_HELP} GROUP_* takes what is before the first _.")
    ] = None,
    overwrite: OverwriteOption = False,
    progress: ProgressOption = True,
) -> None:
    """Propose a recipe for your own images, with the reasons.

    Reads labels and image headers, not pixels; weights are neither loaded nor downloaded, unless --probe is given. The
    cost of the recipe is compared with the plain backbone's on the downscaled and on the full image.
    """
    from dataclasses import replace

    from tnet.files import check_outputs, write_text
    from tnet.suggest.recipe import explain, parse_macs, propose, recipe_text
    from tnet.suggest.survey import find_layout, survey_images

    if out is not None:
        check_outputs([out], inputs=[] if folder.is_dir() else [folder], overwrite=overwrite)
    budget = parse_macs(macs) if macs is not None else None
    data = find_layout(folder)
    data = replace(
        data, path_column=path_column, label_column=label_column, label_separator=label_separator,
        group_column=group_column, group_pattern=group_pattern,
    )  # fmt: skip
    proposal = propose(
        survey_images(data), budget_macs=budget, backbone=backbone, weights_file=weights, probe_images=probe,
        progress=progress,
    )  # fmt: skip
    say(explain(proposal))
    if out is None:
        say("to save it as a recipe, add --out recipe.yaml")
        return
    run = f"runs/{out.stem}"
    write_text(out, recipe_text(proposal, run))
    say(f"written: {out}   next: tnet train {shlex.quote(str(out))} --out {shlex.quote(run)}")
