"""``tnet crossval``: a training per fold, and what they say of images that they have not seen."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tnet.cli import common
from tnet.cli.split import FOLDS_HELP


def crossval(
    recipe: Annotated[Path, typer.Argument(help="Recipe (YAML), or the name of a bundled one: see `tnet recipes`.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(help="Overrides: key=value, such as data.root=photos data.group_column=patient."),
    ] = None,
    folds: Annotated[int, typer.Option(min=2, max=1000, help=FOLDS_HELP)] = 5,
    out: Annotated[
        Path | None, typer.Option(help="Folder for all runs [default: runs/<recipe name>-crossval].")
    ] = None,
    progress: common.ProgressOption = True,
) -> None:
    """Train once per fold of the training images, and predict each image by the model that has not seen its group.

    Groups (data.group_column or data.group_pattern: patients, films, places) are never torn apart. Prints accuracy,
    AUC and calibration by fold and pooled, and writes out_of_fold.csv with the probabilities of every image. The same
    command goes on after an interruption.
    """
    from tnet.evaluation.crossval import cross_validate
    from tnet.training.recipe import load_recipe

    folder = out or Path("runs") / f"{recipe.stem}-crossval"
    table = cross_validate(load_recipe(recipe, overrides or []), folder, folds, progress=progress, say=common.say)
    common.say(f"\n{table}")
    common.say(f"written: {folder / 'crossval.md'}, out_of_fold.csv, and a run per fold", err=True)
