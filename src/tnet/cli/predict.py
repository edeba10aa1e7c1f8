"""``tnet predict``: labels, probabilities and regions for images."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tnet.cli import common

if TYPE_CHECKING:
    from tnet.inference.records import Prediction

IMAGES_HELP = (
    "Images, folders of images (searched recursively), or manifests: a table (.csv, .parquet) with a column 'path', or "
    "a .txt file with one path per line; relative paths start from the manifest's folder."
)
_OUT_HELP = (
    "Table to write. .csv: columns path, label, probability, top5 and regions (both JSON), error. .jsonl: one JSON "
    "object per image. [default: one line per image on standard output]"
)


def predict(
    model: common.ModelArgument,
    images: Annotated[list[Path], typer.Argument(help=IMAGES_HELP)],
    looks: common.LooksOption = None,
    policy: common.PolicyOption = None,
    out: Annotated[Path | None, typer.Option(help=_OUT_HELP)] = None,
    batch_size: common.BatchSizeOption = 8,
    workers: common.WorkersOption = 0,
    device: common.DeviceOption = "auto",
    max_side_px: common.MaxSideOption = None,
    preprocess: common.PreprocessOption = None,
    read: common.ReadOption = None,
    bands: common.BandsOption = None,
    value_range: common.RangeOption = None,
    allow_small: common.SmallOption = False,
    skip_unreadable: common.SkipOption = False,
    progress: common.ProgressOption = True,
) -> None:
    """Classify images, and show where the model looked.

    Boxes are (y0, x0, y1, x1) in pixels of the image as stored, upright, end exclusive; they may reach past the edge by
    a few pixels. Regions are numbered by the probability of their location: 1 is the most probable, 2.1 the most
    probable one inside region 2.
    """
    chosen = common.parse_looks(looks) if looks is not None else None

    from tnet.inference.inputs import find_inputs
    from tnet.inference.predictor import iter_predictions
    from tnet.inference.records import Unreadable
    from tnet.inference.write import check_output, prediction_line, write_predictions
    from tnet.models.io import load_model
    from tnet.text import on_one_line

    if out is not None:
        check_output(out)
    paths = find_inputs(images, check_exists=not skip_unreadable)
    data = common.data_of(common.recipe_of(model))
    # Lines that appear on a terminal are progress enough.
    progress = progress and (out is not None or not sys.stdout.isatty())
    predictions = iter_predictions(
        load_model(model), paths, looks=chosen, policy=policy.value if policy else None, batch_size=batch_size,
        workers=workers, device=common.pick_device(device), progress=progress, skip_unreadable=skip_unreadable,
        allow_small=allow_small, read=common.parse_reading(data, read, bands, value_range, max_side_px, preprocess),
    )  # fmt: skip
    skipped = 0

    def report_skipped() -> Iterator[Prediction | Unreadable]:
        nonlocal skipped
        for item in predictions:
            if isinstance(item, Unreadable):
                skipped += 1
                common.say(f"skipped: {on_one_line(item.error)}", err=True)
            yield item

    if out is None:
        for item in report_skipped():
            if not isinstance(item, Unreadable):
                common.say(prediction_line(item))
    else:
        count = write_predictions(report_skipped(), out)
        common.say(f"written: {out} ({count} images, {skipped} skipped)", err=True)
