"""``tnet explain``: figures of where a model looked."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, cast

import typer

from tnet.cli import common
from tnet.cli.predict import IMAGES_HELP
from tnet.errors import DataError

if TYPE_CHECKING:
    from tnet.explain.exports import ExportFormat

ExportName = StrEnum("ExportName", ["labelstudio", "fiftyone", "cvat"])


def explain(
    model: common.ModelArgument,
    images: Annotated[list[Path] | None, typer.Argument(help=IMAGES_HELP)] = None,
    samples: Annotated[
        int | None,
        typer.Option(min=1, help="Instead of images: this many of the run's validation images, with true labels."),
    ] = None,
    looks: common.LooksOption = None,
    policy: common.PolicyOption = None,
    out: Annotated[
        Path, typer.Option(help="Folder for the figures and regions.json, or a .png file for a single image.")
    ] = Path("explained"),
    device: common.DeviceOption = "auto",
    max_side_px: common.MaxSideOption = None,
    preprocess: common.PreprocessOption = None,
    read: common.ReadOption = None,
    bands: common.BandsOption = None,
    value_range: common.RangeOption = None,
    geojson: Annotated[
        Path | None,
        typer.Option(help="Also write the regions as GeoJSON, for QuPath and GIS: a file for one image, or a folder."),
    ] = None,
    crs: Annotated[
        Literal["auto", "pixels", "native", "wgs84"],
        typer.Option(help="Coordinates of GeoJSON: auto is wgs84 for georeferenced images, else pixels."),
    ] = "auto",
    export: Annotated[
        list[ExportName] | None,
        typer.Option(
            help="Also write the regions for a program in which people annotate, beside the figures. Can be repeated."
        ),
    ] = None,
    allow_small: common.SmallOption = False,
    skip_unreadable: common.SkipOption = False,
    overwrite: common.OverwriteOption = False,
    progress: common.ProgressOption = True,
) -> None:
    """Draw where the model looked, and what it predicted.

    One PNG per image: the image with a numbered box for each region, the probability of every location, what the
    network saw of the whole image, the most probable classes, and each region magnified with its own prediction.
    regions.json holds the same as data; boxes are (y0, x0, y1, x1) in pixels of the image as stored. With --export,
    also labelstudio.json, fiftyone.json or cvat.xml.
    """
    chosen = common.parse_looks(looks) if looks is not None else None
    if (samples is None) == (not images):
        raise DataError(
            f"tnet explain needs either images or --samples, not {'neither' if samples is None else 'both'}; use "
            f"tnet explain {model} IMAGES, or tnet explain {model} --samples 4"
        )

    from tnet.explain.batch import explain_paths, explain_samples
    from tnet.inference.inputs import find_inputs
    from tnet.inference.records import Unreadable
    from tnet.models.io import load_for_inference
    from tnet.text import on_one_line

    chosen_policy = policy.value if policy else None
    recipe, name = common.recipe_of(model), model.resolve().name
    exports = cast("list[ExportFormat]", list(dict.fromkeys(item.value for item in export or [])))
    if samples is None:
        paths, data_config = find_inputs(images or [], check_exists=not skip_unreadable), common.data_of(recipe)
        figures = explain_paths(
            load_for_inference(model), paths, out, looks=chosen, policy=chosen_policy,
            device=common.pick_device(device), progress=progress, skip_unreadable=skip_unreadable, geojson=geojson,
            coordinates=crs, exports=exports, model_name=name, allow_small=allow_small, overwrite=overwrite,
            inputs=[path for path in images or [] if not path.is_dir()],
            read=common.parse_reading(data_config, read, bands, value_range, max_side_px, preprocess),
        )  # fmt: skip
    else:
        from tnet.data.loading import open_data

        if recipe is None:
            raise DataError(f"{model} has no recipe.yaml, which names its validation images; give images instead")
        net = load_for_inference(model)
        data, place = open_data(recipe.data, net.config.in_channels, recipe.seed)[1], common.pick_device(device)
        figures = explain_samples(
            net, data, samples, out, looks=chosen, policy=chosen_policy, device=place, progress=progress,
            exports=exports, model_name=name, overwrite=overwrite,
        )  # fmt: skip
    for figure in figures:
        if isinstance(figure, Unreadable):
            common.say(f"skipped: {on_one_line(figure.error)}", err=True)
        else:
            common.say(on_one_line(str(figure)))
