"""``tnet report``: a page about a run, or about predictions."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tnet.cli import common
from tnet.cli.evaluate import RECIPE_HELP, Split, boxes_of, open_labelled
from tnet.errors import ConfigError, DataError

_SOURCE_HELP = "Run directory, folder of a saved model, or predictions that `tnet predict --out` wrote (.csv, .jsonl)."
_DATA_HELP = (
    "Labelled images: a folder with one folder per class, or a table of paths and labels; with --recipe the data.root "
    "of the recipe. [default: the data of the run's recipe]"
)
_OUT_HELP = "HTML file. [default: RUN/report.html, or beside the predictions]"
_MOST_HELP = "Evaluate only this many images, spread evenly over the data. [default: all]"
_BOXES_HELP = "Table of boxes around what decides, as in `tnet evaluate --boxes`: does it look there?"
_OTHERS_HELP = (
    "Another run to compare with on the same images, such as a plain network of the same cost. Can be repeated."
)


def report(
    source: Annotated[Path, typer.Argument(help=_SOURCE_HELP)],
    data: Annotated[Path | None, typer.Option(help=_DATA_HELP)] = None,
    looks: common.LooksListOption = None,
    compare: Annotated[list[Path] | None, typer.Option(metavar="RUN", help=_OTHERS_HELP)] = None,
    boxes: Annotated[Path | None, typer.Option(help=_BOXES_HELP)] = None,
    recipe: Annotated[Path | None, typer.Option(help=RECIPE_HELP)] = None,
    split: Annotated[Split, typer.Option(help="Split of the recipe's data, if --data is omitted.")] = "val",
    max_images: Annotated[int | None, typer.Option(min=1, metavar="N", help=_MOST_HELP)] = None,
    out: Annotated[Path | None, typer.Option(help=_OUT_HELP)] = None,
    batch_size: common.BatchSizeOption = 16,
    workers: common.WorkersOption = 0,
    device: common.DeviceOption = "auto",
    seed: Annotated[int, typer.Option(min=0, max=2**63 - 1, help="Seed of the random places.")] = 0,
    overwrite: common.OverwriteOption = False,
    progress: common.ProgressOption = True,
) -> None:
    """Write a page about a run that needs no background to read: one HTML file with all figures and images inside.

    Measures the run on labelled images: accuracy and cost against looks, learned against random places, where it looks,
    images that are right, wrong and unsure, classes, calibration, training. For predictions it shows how the answers
    and their probabilities are distributed, and the unsure ones.
    """
    chosen = common.parse_looks_list(looks or [])

    from tnet.files import check_outputs

    if source.suffix.lower() in (".csv", ".jsonl") and not source.is_dir():
        from tnet.report.predictions import write_predictions_report

        if data is not None or recipe is not None or chosen or compare or boxes is not None:
            raise ConfigError(
                f"{source} holds predictions, for which --data, --recipe, --looks, --compare and --boxes have no "
                "meaning; omit them, or give the run that made them"
            )
        path = out or source.with_suffix(".html")
        check_outputs([path], inputs=[source], overwrite=overwrite)
        count = write_predictions_report(source, path, progress=progress)
        common.say(f"written: {path} ({count:,} predictions)")
        return

    from tnet.data.folder import LabelledImages
    from tnet.data.loading import evenly
    from tnet.models.io import load_model, recipe_path
    from tnet.report.run import write_report
    from tnet.training.curves import read_run
    from tnet.training.recipe import load_recipe

    path, at = out or source / "report.html", recipe_path(source)
    model = load_model(source)
    if at is None and data is None and recipe is None:
        raise DataError(
            f"{source} has no recipe.yaml that names labelled images; give a folder of class folders, or a table, "
            "with --data"
        )
    others = [(other.resolve().name, load_model(other)) for other in compare or []]
    images, where = open_labelled(model.config, source, data, recipe, split)
    marked = None
    if boxes is not None:
        found = list(boxes_of(boxes, images, model).by_image.items())
        count = min(len(found), max_images or len(found))
        marked = images, dict(found[index * len(found) // count] for index in range(count))
    inputs = [
        *(given for given in (data, boxes) if given is not None),
        *(images.paths if isinstance(images, LabelledImages) else []),
    ]
    check_outputs([path], inputs=inputs, overwrite=overwrite)
    if max_images is not None and max_images < len(images):
        where = f"{where} ({max_images:,} of {len(images):,}, evenly spread)"
        images = evenly(images, max_images)
    row = write_report(
        model, images, path, name=source.resolve().name, source=where, recipe=load_recipe(at) if at else None,
        metrics=read_run(at.parent) if at else [], looks=chosen, others=others, marked=marked,
        batch_size=batch_size, workers=workers, device=common.pick_device(device), seed=seed, progress=progress,
    )  # fmt: skip
    common.say(f"written: {path} ({100 * row.accuracy:.1f} % of {row.images:,} images right)")
