"""``tnet evaluate``: accuracy and cost against the number of looks."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from tnet.cli import common
from tnet.errors import ConfigError, DataError

if TYPE_CHECKING:
    from collections.abc import Callable

    from tnet.data.boxes import ImageBoxes
    from tnet.data.config import DataConfig
    from tnet.data.loading import LabelledData
    from tnet.evaluation.evaluator import LooksRow
    from tnet.evaluation.gradcam import GradCam
    from tnet.models.base import Model, ModelConfig
    from tnet.models.tnet import TNet
    from tnet.training.recipe import Recipe

Split = Literal["val", "test"]
_TITLE = "# Accuracy against looks"
_FRONTIER_HELP = "Also measure accuracy against mean cost, of best-first search and of stopping if it is calibrated."
_POLICY_HELP = (
    "How regions are chosen: by the locator (topk, sample) or a control (random, centre); Saccader also has "
    "ordered_logits, sobel_mean and sobel_var. Can be repeated. [default: the model's own, commonly topk]"
)
_BOXES_HELP = (
    "Also measure where it looks: a table (CSV, Parquet) of boxes around what decides, with the columns path and "
    "y0,x0,y1,x1 (or x1,y1,x2,y2; xmin,ymin,xmax,ymax; x,y,w,h), in pixels of the image as stored."
)
_CURVES_HELP = "With --boxes: number of images whose looks are covered, and whose other parts are blurred; 0 for none."
_GRADCAM_HELP = "With --boxes: run of a plain network (model.levels=1), whose Grad-CAM is compared with the looks."
DATA_HELP = (
    "Labelled images: a folder with one folder per class, or a table (CSV, Parquet) of paths and labels; with --recipe "
    "the data.root of the recipe. [default: the data of the run's recipe]"
)
RECIPE_HELP = (
    "Recipe whose data section names the images and how to read them, such as a published dataset's "
    "(published/cub_tnet_b0) for a model from elsewhere. [default: the run's]"
)


def evaluate(
    run: common.ModelArgument,
    data: Annotated[Path | None, typer.Argument(help=DATA_HELP)] = None,
    looks: common.LooksListOption = None,
    policy: Annotated[
        list[common.PolicyName] | None, typer.Option(metavar="[topk|sample|random|centre|...]", help=_POLICY_HELP)
    ] = None,
    frontier: Annotated[bool, typer.Option("--frontier", help=_FRONTIER_HELP)] = False,
    boxes: Annotated[Path | None, typer.Option(help=_BOXES_HELP)] = None,
    curve_images: Annotated[int, typer.Option(min=0, max=10**6, help=_CURVES_HELP)] = 200,
    gradcam: Annotated[Path | None, typer.Option(metavar="PLAIN_RUN", help=_GRADCAM_HELP)] = None,
    recipe: Annotated[Path | None, typer.Option(help=RECIPE_HELP)] = None,
    split: Annotated[Split, typer.Option(help="Split of the recipe's data, if DATA is omitted.")] = "val",
    out: Annotated[Path | None, typer.Option(help="Folder for the results. [default: RUN/evaluation]")] = None,
    batch_size: common.BatchSizeOption = 16,
    workers: common.WorkersOption = 0,
    device: common.DeviceOption = "auto",
    precision: common.PrecisionOption = "fp32",
    seed: Annotated[int, typer.Option(min=0, max=2**63 - 1, help="Seed of the random and sample policies.")] = 0,
    path_column: Annotated[
        str | None, typer.Option(help="Table column of paths. [default: the recipe's, or path]")
    ] = None,
    label_column: Annotated[
        str | None, typer.Option(help="Table column of labels. [default: the recipe's, or label]")
    ] = None,
    label_separator: Annotated[
        str | None, typer.Option(help="Separator of several labels in a table cell. [default: the recipe's, or |]")
    ] = None,
    preprocess: common.PreprocessOption = None,
    read: common.ReadOption = None,
    bands: common.BandsOption = None,
    value_range: common.RangeOption = None,
    overwrite: common.OverwriteOption = False,
    progress: common.ProgressOption = True,
) -> None:
    """Measure accuracy against the number of looks.

    Prints a table of accuracy, multiply-adds, parameters and time per image for each number of looks, and writes it as
    evaluation.md, evaluation.csv and evaluation.png, replacing those of an earlier evaluation. With --frontier, also
    frontier.csv and frontier.png; with --boxes, attention.csv, attention.json and attention.png.
    """
    chosen = common.parse_looks_list(looks or [])
    if gradcam is not None and boxes is None:
        raise ConfigError(f"--gradcam {gradcam} compares where it looks, which --boxes measures; give a table of boxes")

    from dataclasses import replace

    from tnet.data.folder import shorten
    from tnet.evaluation.evaluator import evaluate as measure
    from tnet.evaluation.plots import plot_looks
    from tnet.evaluation.report import looks_notes, looks_table, write_rows_csv
    from tnet.files import write_text
    from tnet.models.io import load_model
    from tnet.text import markdown

    def as_asked(config: DataConfig) -> DataConfig:
        config = replace(
            config,
            path_column=path_column or config.path_column,
            label_column=label_column or config.label_column,
            label_separator=label_separator or config.label_separator,
            preprocess=preprocess or config.preprocess,
        )
        if read is None and bands is None and value_range is None:
            return config
        digits = config.kind == "digits" and (data is None or recipe is not None)
        if digits or config.max_side_px or config.max_short_side_px or config.preprocess:
            raise ConfigError(
                "--read, --bands and --value-range need images in files that are neither preprocessed nor downscaled; "
                "omit them, or --preprocess and the recipe's data.max_side_px and data.max_short_side_px"
            )
        scene = common.parse_scene(config.scene, bands, value_range)
        return replace(config, read=read or config.read, scene=scene, overview_px=0)

    place = common.pick_device(device)
    model = load_model(run)
    searched = common.searchable(model, run) if frontier else None
    images, source = open_labelled(model.config, run, data, recipe, split, as_asked)
    if not model.config.class_names:
        note = "the model has no class names; assuming that its classes are numbered as in the data"
        common.say(f"{note}: {shorten(images.classes)}", err=True)
    found = boxes_of(boxes, images, model) if boxes is not None else None
    plain = None if gradcam is None else _load_gradcam(gradcam, model)
    folder = out or run / "evaluation"
    more = ["frontier.csv", "frontier.png"] if frontier else []
    more += ["attention.csv", "attention.json", "attention.png"] if found else []
    page = common.results_page(folder, "evaluation", _TITLE, [data, boxes], overwrite, more)
    head = f"{model.config.line()}\n{markdown(source)}: {len(images)} images, {len(images.classes)} classes\n"
    common.say(head)
    options: dict[str, Any] = {"batch_size": batch_size, "workers": workers, "device": place, "progress": progress}
    rows = measure(
        model, images, looks=chosen or model.config.listed_looks(),
        policies=[item.value for item in policy] if policy else None, seed=seed, precision=precision, **options,
    )  # fmt: skip
    table, notes = looks_table(rows), looks_notes(rows)
    common.say(f"{table}\n{notes}")
    write_rows_csv(rows, folder / "evaluation.csv")
    plot_looks(rows, folder / "evaluation.png")
    text = f"{head}\n{table}\n{notes}\n![evaluation.png](evaluation.png)\n"
    if searched is not None:
        text += _frontier(searched, images, rows, folder, {**options, "precision": precision})
    if found is not None:
        options |= {"looks": chosen, "curve_images": curve_images, "seed": seed, "plain": plain}
        text += _attention(model, images, found, [item.value for item in policy or []], folder, options)
    title = f"{_TITLE}: {markdown(run.resolve().name)}"
    write_text(page, f"{title}\n\n{text}")
    common.say(f"written: {', '.join([str(page), 'evaluation.csv', 'evaluation.png', *more])}")


def _frontier(model: TNet, images: LabelledData, rows: list[LooksRow], folder: Path, options: dict[str, Any]) -> str:
    """Measure accuracy against mean cost, write it, and return its section of the page."""
    from tnet.evaluation.frontier import measure_curves
    from tnet.evaluation.plots import plot_frontier
    from tnet.evaluation.report import frontier_table, write_csv
    from tnet.evaluation.stopping import frontier
    from tnet.geometry import total_looks
    from tnet.traversal import BestFirst

    config, calibration = model.config, model.calibration
    search = calibration.search() if calibration else BestFirst(2 * total_looks(config.looks), config.levels)
    own = [row for row in rows if not row.looks or row.policy == config.eval_policy]
    points = frontier(model, measure_curves(model, images, search, **options), own)
    note = "On the images of its own calibration, stopping looks better than it is.\n" if calibration else ""
    table = f"{frontier_table(points)}\n{note}"
    common.say(table)
    write_csv([vars(point) for point in points], folder / "frontier.csv")
    plot_frontier(points, folder / "frontier.png")
    return f"\n## Accuracy against mean cost\n\n{table}\n![frontier.png](frontier.png)\n"


def boxes_of(boxes: Path, images: LabelledData, model: Model) -> ImageBoxes:
    """Read the boxes of images, in which a model with looks is to look at them."""
    from tnet.data.annotated import AnnotatedImages
    from tnet.data.boxes import read_boxes
    from tnet.data.folder import LabelledImages

    if not isinstance(images, LabelledImages) or (isinstance(images, AnnotatedImages) and images.crop):
        kind = "cut out of their files" if isinstance(images, LabelledImages) else "synthetic"
        raise ConfigError(f"--boxes {boxes} is about images in files, but these are {kind}; give images, or omit it")
    if not model.config.default_looks:
        raise ConfigError(f"--boxes {boxes} measures where a model looks, but this one has no looks; omit it")
    return read_boxes(boxes, images.paths)


def _load_gradcam(gradcam: Path, model: Model) -> GradCam:
    """Load the plain network to compare with."""
    from tnet.evaluation.gradcam import GradCam
    from tnet.models.io import load_model

    plain = GradCam(load_model(gradcam), str(gradcam))
    if plain.model.config.in_channels != model.config.in_channels:
        channels = f"{plain.model.config.in_channels} channels, and the model {model.config.in_channels}"
        raise ConfigError(f"the plain network {gradcam} takes {channels}; give one of the same images")
    return plain


def _attention(
    model: Model,
    images: LabelledData,
    boxes: ImageBoxes,
    policies: list[str],
    folder: Path,
    options: dict[str, Any],
) -> str:
    """Measure where a model looks, write it, and return its section of the page."""
    import json

    from tnet.evaluation.attention import CONTROLS, measure_attention
    from tnet.evaluation.plots import plot_attention
    from tnet.evaluation.report import attention_notes, attention_records, attention_table, write_csv
    from tnet.files import write_text

    names = list(dict.fromkeys([*(policies or [model.config.eval_policy]), *CONTROLS]))
    rows = measure_attention(model, images, boxes.by_image, policies=names, **options)
    rest = f"Rows of the table of boxes about other images: {boxes.unmatched}.\n" if boxes.unmatched else ""
    table, notes = attention_table(rows), attention_notes(rows) + rest
    common.say(f"{table}\n{notes}")
    records = attention_records(rows)
    write_csv(records, folder / "attention.csv")
    write_text(folder / "attention.json", json.dumps(records, indent=1, allow_nan=False) + "\n")
    plot_attention(rows, folder / "attention.png")
    return f"\n## Where it looks\n\n{table}\n{notes}\n![attention.png](attention.png)\n"


def open_labelled(
    model: ModelConfig,
    run: Path,
    data: Path | None,
    recipe: Path | None,
    split: Split,
    change: Callable[[DataConfig], DataConfig] = lambda config: config,
) -> tuple[LabelledData, str]:
    """Open labelled images for a run, and describe them.

    They are read as its recipe, or another ``recipe``, says after the ``change`` of its data section; ``data`` replaces
    its images, and of another recipe the root.
    """
    from dataclasses import replace

    from tnet.data.loading import number_classes_as
    from tnet.training.recipe import load_recipe

    described = common.recipe_of(run) if recipe is None else load_recipe(recipe)
    config = common.data_of(described)
    if recipe is not None and data is not None:
        config, data = replace(config, root=str(data)), None
    images, source = _open_images(model, described, change(config), run, data, split)
    number_classes_as(model.class_names, images)
    return images, source


def _open_images(
    model: ModelConfig, recipe: Recipe | None, config: DataConfig, run: Path, data: Path | None, split: Split
) -> tuple[LabelledData, str]:
    """Open the images to evaluate on, and describe them."""
    from tnet.data.loading import name_of_test_images, open_split

    if data is not None:
        return _open_path(model, config, data), str(data)
    if recipe is None:
        raise DataError(
            f"{run} has no recipe.yaml that names the images to evaluate on; name a folder of class folders, or a "
            f"table: tnet evaluate {run} IMAGES"
        )
    images = open_split(config, model.in_channels, recipe.seed, split)
    if config.kind == "digits":
        return images, f"synthetic digits ({config.digits.task}), {split} images"
    root, name = Path(config.root), config.val if split == "val" else name_of_test_images(config)
    return images, str(root / name) if name else f"{config.val_fraction:g} of {root / config.train}"


def _open_path(model: ModelConfig, config: DataConfig, path: Path) -> LabelledData:
    """Open a folder of class folders, or a table, with the model's classes in the model's order."""
    from dataclasses import replace

    from tnet.data.folder import ImageFolder
    from tnet.data.loading import read_options
    from tnet.data.table import ImageTable

    if model.in_channels not in (1, 3):
        if config.read == "memory":
            channels = f"images are decoded with 1 or 3 channels, but the model takes {model.in_channels}"
            raise ConfigError(f"{channels}; read them with --read lazy")
        config = replace(config, read="lazy")
    classes = model.class_names or None
    reading = read_options(config, model.in_channels)
    if path.is_dir() or not path.suffix:
        return ImageFolder(path, classes=classes, reading=reading)
    return ImageTable(
        path,
        path_column=config.path_column,
        label_column=config.label_column,
        label_separator=(config.label_separator or "|") if model.multilabel else None,
        image_root=path.parent,
        classes=classes,
        reading=reading,
    )
