"""``tnet predict``: labels, probabilities and regions for pictures."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tnet.cli.common import (
    DEVICE_HELP,
    LOOKS_HELP,
    PREPROCESS_HELP,
    BandsOption,
    PolicyName,
    RangeOption,
    ReadOption,
    parse_looks,
    parse_read_options,
    pick_device,
)

if TYPE_CHECKING:
    from tnet.inference.records import Prediction

IMAGES_HELP = (
    "Pictures, folders of pictures (and folders inside them), or manifests: a table (.csv, .parquet) with a column "
    "'path', or a .txt file with one path a line; relative paths start from the manifest's folder."
)
_OUT_HELP = (
    "Table to write, there whole or not at all. .csv: columns path, label, probability, top5 and regions (both JSON), "
    "error. .jsonl: one JSON object a picture. [default: a line a picture on standard output]"
)
MAX_SIDE_HELP = (
    "Shrink larger pictures on reading to this many pixels on the longer side. Boxes are still those of the picture as "
    "it is stored. [default: as the run's recipe shrinks them]"
)
SMALL_HELP = "Take pictures below the model's base resolution too; they are enlarged."


def predict(
    model: Annotated[Path, typer.Argument(help="Run directory, or the folder of a saved model.")],
    images: Annotated[list[Path], typer.Argument(help=IMAGES_HELP)],
    looks: Annotated[str | None, typer.Option(help=f"{LOOKS_HELP} [default: the model's own]")] = None,
    policy: Annotated[
        PolicyName | None, typer.Option(help="How regions are chosen. [default: the model's own, commonly topk]")
    ] = None,
    out: Annotated[Path | None, typer.Option(help=_OUT_HELP)] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Pictures looked at together, at most.")] = 8,
    workers: Annotated[int, typer.Option(min=0, help="Processes that read pictures.")] = 0,
    device: Annotated[str, typer.Option(help=DEVICE_HELP)] = "auto",
    max_side_px: Annotated[int | None, typer.Option(min=1, help=MAX_SIDE_HELP)] = None,
    preprocess: Annotated[str | None, typer.Option(metavar="NAME", help=PREPROCESS_HELP)] = None,
    read: ReadOption = None,
    bands: BandsOption = None,
    value_range: RangeOption = None,
    allow_small: Annotated[bool, typer.Option("--allow-small", help=SMALL_HELP)] = False,
    skip_unreadable: Annotated[
        bool, typer.Option("--skip-unreadable", help="Go on after a picture that cannot be read, and say which.")
    ] = False,
    progress: Annotated[bool, typer.Option(help="Show a progress bar.")] = True,
) -> None:
    """Classify pictures, and say where the model looked.

    Boxes are (y0, x0, y1, x1) in the picture's own pixels, upright, y1 and x1 exclusive; they may reach past the edge
    by a few pixels. Regions are numbered by the probability of their location: 1 is the most probable, 2.1 the most
    probable one inside region 2.
    """
    chosen = parse_looks(looks) if looks is not None else None

    from tnet.inference.inputs import find_inputs
    from tnet.inference.predictor import iter_predictions
    from tnet.inference.records import Unreadable
    from tnet.inference.write import check_output, prediction_line, write_predictions
    from tnet.models.io import load_model

    if out is not None:
        check_output(out)
    paths = find_inputs(images, check_exists=not skip_unreadable)
    found = iter_predictions(
        load_model(model),
        paths,
        looks=chosen,
        policy=policy.value if policy else None,
        batch_size=batch_size,
        workers=workers,
        device=pick_device(device),
        # Lines that appear on a terminal are progress enough.
        progress=progress and (out is not None or not sys.stdout.isatty()),
        skip_unreadable=skip_unreadable,
        allow_small=allow_small,
        read=parse_read_options(model, max_side_px, preprocess, read, bands, value_range),
    )
    skipped = 0

    def told() -> Iterator[Prediction | Unreadable]:
        nonlocal skipped
        for item in found:
            if isinstance(item, Unreadable):
                skipped += 1
                typer.echo(f"skipped: {item.error}", err=True)
            yield item

    if out is None:
        for item in told():
            if not isinstance(item, Unreadable):
                typer.echo(prediction_line(item))
    else:
        count = write_predictions(told(), out)
        typer.echo(f"written: {out} ({count} picture(s), {skipped} skipped)", err=True)
