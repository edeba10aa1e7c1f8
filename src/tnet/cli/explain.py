"""``tnet explain``: the picture of where a model looked."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

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
    recipe_of,
)
from tnet.cli.predict import IMAGES_HELP, MAX_SIDE_HELP, SMALL_HELP
from tnet.errors import DataError


def explain(
    model: Annotated[Path, typer.Argument(help="Run directory, or the folder of a saved model.")],
    images: Annotated[list[Path] | None, typer.Argument(help=IMAGES_HELP)] = None,
    samples: Annotated[
        int | None,
        typer.Option(
            min=1, help="Instead of pictures: this many of the run's own validation images, with true labels."
        ),
    ] = None,
    looks: Annotated[str | None, typer.Option(help=f"{LOOKS_HELP} [default: the model's own]")] = None,
    policy: Annotated[
        PolicyName | None, typer.Option(help="How regions are chosen. [default: the model's own, commonly topk]")
    ] = None,
    out: Annotated[
        Path, typer.Option(help="Folder for the figures and regions.json, or a .png file for a single picture.")
    ] = Path("explained"),
    device: Annotated[str, typer.Option(help=DEVICE_HELP)] = "auto",
    max_side_px: Annotated[int | None, typer.Option(min=1, help=MAX_SIDE_HELP)] = None,
    preprocess: Annotated[str | None, typer.Option(metavar="NAME", help=PREPROCESS_HELP)] = None,
    read: ReadOption = None,
    bands: BandsOption = None,
    value_range: RangeOption = None,
    geojson: Annotated[
        Path | None,
        typer.Option(help="Also write the regions as GeoJSON: a file for one picture, or a folder. QuPath reads it."),
    ] = None,
    crs: Annotated[
        Literal["auto", "pixels", "native", "wgs84"],
        typer.Option(help="Coordinates of GeoJSON: of the map where the picture lies on one, or pixels."),
    ] = "auto",
    allow_small: Annotated[bool, typer.Option("--allow-small", help=SMALL_HELP)] = False,
    skip_unreadable: Annotated[
        bool, typer.Option("--skip-unreadable", help="Go on after a picture that cannot be read, and say which.")
    ] = False,
    progress: Annotated[bool, typer.Option(help="Show a progress bar.")] = True,
) -> None:
    """Draw where the model looked, and what it made of it.

    One PNG a picture: the picture with a numbered box for each region, the probability of every place, what the
    network saw of the whole, the most probable classes, and each region magnified with its own prediction. Beside the
    figures, regions.json holds the same as data; boxes are (y0, x0, y1, x1) in the picture's own pixels.
    """
    chosen = parse_looks(looks) if looks is not None else None
    if (samples is None) == (not images):
        raise DataError(
            f"tnet explain needs either pictures or --samples, not {'neither' if samples is None else 'both'}; write "
            f"tnet explain {model} PICTURES, or tnet explain {model} --samples 4"
        )

    from tnet.explain.batch import explain_paths, explain_samples
    from tnet.inference.inputs import find_inputs
    from tnet.inference.records import Unreadable
    from tnet.models.io import load_model

    if samples is None:
        paths = find_inputs(images or [], check_exists=not skip_unreadable)
        figures = explain_paths(
            load_model(model),
            paths,
            out,
            looks=chosen,
            policy=policy.value if policy else None,
            device=pick_device(device),
            progress=progress,
            skip_unreadable=skip_unreadable,
            geojson=geojson,
            coordinates=crs,
            allow_small=allow_small,
            read=parse_read_options(model, max_side_px, preprocess, read, bands, value_range),
        )
    else:
        from tnet.data.loading import open_data

        recipe = recipe_of(model)
        if recipe is None:
            raise DataError(
                f"{model} has no recipe.yaml that says what its validation images are; name pictures instead"
            )
        net = load_model(model)
        data = open_data(recipe.data, net.config.in_channels, recipe.seed)[1]
        figures = explain_samples(
            net,
            data,
            samples,
            out,
            looks=chosen,
            policy=policy.value if policy else None,
            device=pick_device(device),
            progress=progress,
        )
    for figure in figures:
        if isinstance(figure, Unreadable):
            typer.echo(f"skipped: {figure.error}", err=True)
        else:
            typer.echo(str(figure))
