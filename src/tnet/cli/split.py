"""``tnet split``: folds of labelled images, by patient, film or place."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tnet.cli import common

FOLDS_HELP = "Number of folds."
GROUP_COLUMN_HELP = "Column of the table with what folds must not tear apart, such as the patient of an image."
GROUP_PATTERN_HELP = (
    "The same from the path: 'GROUP_*' takes what stands before the first _ of a file's name, 'GROUP/*' its folder."
)


def split(
    data: Annotated[Path, typer.Argument(help="Folder of class folders, or a table (.csv, .parquet).")],
    out: Annotated[Path, typer.Option(help="Folder for the tables; must be new or empty.")],
    folds: Annotated[int, typer.Option(min=2, max=1000, help=FOLDS_HELP)] = 5,
    group_column: Annotated[str | None, typer.Option(help=GROUP_COLUMN_HELP)] = None,
    group_pattern: Annotated[str | None, typer.Option(help=GROUP_PATTERN_HELP)] = None,
    path_column: Annotated[str, typer.Option(help="Column of the paths.")] = "path",
    label_column: Annotated[str, typer.Option(help="Column of the labels.")] = "label",
    label_separator: Annotated[str | None, typer.Option(help="Separates several labels of an image.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Another number gives other folds.")] = 0,
    overwrite: common.OverwriteOption = False,
) -> None:
    """Divide labelled images into folds: whole groups, and about the same share of each class in every fold.

    Writes folds.csv (path, label, group, fold) and, per fold, fold-N/train.csv and fold-N/test.csv, which recipes read
    with data.kind=table data.train=OUT/fold-0/train.csv data.val=null data.group_column=group. `tnet crossval` makes
    folds itself.
    """
    from collections import Counter

    from tnet.data.config import DataConfig
    from tnet.data.folds import write_folds
    from tnet.data.loading import open_labelled
    from tnet.files import check_new_folder

    is_table = bool(data.suffix) and not data.is_dir()
    config = DataConfig(
        kind="table" if is_table else "folder", root=str(data.parent if is_table else data),
        train=data.name if is_table else "", path_column=path_column, label_column=label_column,
        label_separator=label_separator, group_column=group_column, group_pattern=group_pattern,
    )  # fmt: skip
    images = open_labelled(config)
    check_new_folder(out, overwrite=overwrite)
    numbers = write_folds(images, out, folds, seed, label_separator or "|")
    for fold, count in sorted(Counter(numbers.tolist()).items()):
        groups = (
            f" of {len({g for g, n in zip(images.groups, numbers, strict=True) if n == fold})} groups"
            if images.groups
            else ""
        )
        common.say(f"fold {fold}: {count} images{groups}")
    common.say(f"written: {out / 'folds.csv'}, and train.csv and test.csv of each fold", err=True)
