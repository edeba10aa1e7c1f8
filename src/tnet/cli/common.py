"""Options and parsers shared by several verbs."""

from __future__ import annotations

import re
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from tnet.errors import ConfigError, first_line
from tnet.text import visible

if TYPE_CHECKING:
    from tnet.data.config import DataConfig
    from tnet.models.base import Model
    from tnet.models.tnet import TNet
    from tnet.scenes.file import SceneOptions
    from tnet.scenes.reading import ReadOptions
    from tnet.training.recipe import Recipe

Looks = int | tuple[int, ...]
"""Looks as ``model(images, looks)`` takes them: a number for level 1, or one per level."""

# Policies of all models; an Enum, because Typer does not support a list of a Literal.
PolicyName = StrEnum(
    "PolicyName", ["topk", "sample", "random", "centre", "learned", "ordered_logits", "sobel_mean", "sobel_var"]
)
ReadName = Literal["auto", "lazy", "memory"]
PrecisionName = Literal["fp32", "bf16", "fp16"]

DEVICE_HELP = "auto (the GPU if there is one), cpu, cuda, or another PyTorch device, such as cuda:1."
_PRECISION_HELP = (
    "Precision of the network. bf16 and fp16 are for GPUs, and round to three digits; regions and classes are chosen "
    "in fp32."
)
_COMPILE_HELP = (
    "Compile the network first, on GPUs with CUDA graphs. Takes up to minutes; pays for very many images in small "
    "batches."
)
_LOOKS_HELP = "Number of looks; for several levels one number per level, such as 2x1 (2 looks, and 1 inside each)."
_LOOKS_LIST_HELP = (
    "Numbers of looks, such as 0,1,2,3, or one number per level, such as 2x1. Can be repeated. "
    "[default: 0 up to the model's own]"
)
_PREPROCESS_HELP = (
    "Preprocess every image by a named method: reference_448 resizes to a square of 448 pixels, as the paper's "
    "reference implementation does for evaluation. [default: the recipe's]"
)
_MAX_SIDE_HELP = (
    "Downscale larger images to this longer side, pixels. Boxes are in pixels of the image as stored. "
    "[default: the recipe's]"
)
_READ_HELP = (
    "memory: decode whole images; lazy: read only the regions that are seen, of files of any size and format; auto: "
    "lazily for large images and formats that Pillow does not support. [default: the recipe's, or auto]"
)
_BANDS_HELP = "Bands of lazily read images, counted from 0, such as 3,2,1. [default: as the model needs]"
_RANGE_HELP = "Stored values of black and white in lazily read images, such as 0,10000. [default: range of the type]"

# Options shared by verbs.
ModelArgument = Annotated[Path, typer.Argument(help="Run directory, or the folder of a saved model.")]
LooksOption = Annotated[str | None, typer.Option(help=f"{_LOOKS_HELP} [default: the model's]")]
LooksListOption = Annotated[list[str] | None, typer.Option(metavar="N,N,...", help=_LOOKS_LIST_HELP)]
PolicyOption = Annotated[
    PolicyName | None, typer.Option(help="How regions are chosen. [default: the model's, commonly topk]")
]
BatchSizeOption = Annotated[int, typer.Option(min=1, help="Maximum number of images per batch.")]
WorkersOption = Annotated[int, typer.Option(min=0, help="Number of processes that read images.")]
DeviceOption = Annotated[str, typer.Option(help=DEVICE_HELP)]
PrecisionOption = Annotated[PrecisionName, typer.Option(help=_PRECISION_HELP)]
CompileOption = Annotated[bool, typer.Option("--compile", help=_COMPILE_HELP)]
MaxSideOption = Annotated[int | None, typer.Option(min=1, help=_MAX_SIDE_HELP)]
PreprocessOption = Annotated[str | None, typer.Option(metavar="NAME", help=_PREPROCESS_HELP)]
ReadOption = Annotated[ReadName | None, typer.Option(help=_READ_HELP, show_default=False)]
BandsOption = Annotated[str | None, typer.Option(metavar="N,N,...", help=_BANDS_HELP)]
RangeOption = Annotated[str | None, typer.Option(metavar="LOW,HIGH", help=_RANGE_HELP)]
SmallOption = Annotated[
    bool, typer.Option("--allow-small", help="Enlarge images below the model's base resolution instead of an error.")
]
SkipOption = Annotated[
    bool, typer.Option("--skip-unreadable", help="Skip images that cannot be read, and report them.")
]
OverwriteOption = Annotated[bool, typer.Option("--overwrite", help="Replace what exists, but never an input.")]
ProgressOption = Annotated[bool, typer.Option(help="Show a progress bar.")]

_MAX_SIDE_PX = 10_000_000


def say(text: object = "", *, err: bool = False, nl: bool = True) -> None:
    """Print text, with control characters in names from outside escaped."""
    typer.echo(visible(str(text)), err=err, nl=nl)


def parse_looks(text: str) -> Looks:
    """Parse ``3`` as 3 looks (deeper levels as the model is configured) and ``2x1`` as one number per level."""
    if not re.fullmatch(r"\d{1,6}(x\d{1,6})*", text.strip()):
        raise typer.BadParameter(f"{text!r} is not a number of looks; give 3, or 2x1 for two levels of regions")
    numbers = [int(number) for number in text.strip().split("x")]
    return numbers[0] if len(numbers) == 1 else tuple(numbers)


def parse_looks_list(texts: Sequence[str]) -> list[Looks]:
    """Parse a repeatable option whose values are comma-separated numbers of looks."""
    return [parse_looks(part) for text in texts for part in text.split(",")]


def parse_image_size(text: str) -> tuple[int, int]:
    """Parse ``768x1024`` as height and width, and ``1024`` as the side of a square; pixels."""
    match = re.fullmatch(r"(\d{1,9})(?:x(\d{1,9}))?", text.strip().lower())
    if match is None:
        raise typer.BadParameter(f"{text!r} is not a size; give height x width in pixels such as 768x1024, or 1024")
    height, width = int(match[1]), int(match[2] or match[1])
    if not (min(height, width) >= 1 and max(height, width) <= _MAX_SIDE_PX):
        raise typer.BadParameter(f"{text!r} is out of range; give sides of 1 to {_MAX_SIDE_PX} pixels")
    return height, width


def parse_scene(scene: SceneOptions, bands: str | None, value_range: str | None) -> SceneOptions:
    """Return scene options with the bands and the range of values of the command line, if given."""
    from dataclasses import replace

    if bands is not None:
        scene = replace(scene, bands=tuple(int(n) for n in _numbers(bands, r"\d{1,4}", "bands such as 3,2,1")))
    if value_range is not None:
        limits = _numbers(value_range, r"[-+]?[\d.]+(?:e[-+]?\d+)?", "two numbers such as 0,10000")
        if len(limits) != 2:
            raise typer.BadParameter(f"{value_range!r} is not a range; give two numbers such as 0,10000")
        scene = replace(scene, value_range=(limits[0], limits[1]))
    return scene


def parse_reading(
    data: DataConfig,
    read: ReadName | None,
    bands: str | None,
    value_range: str | None,
    max_side_px: int | None = None,
    preprocess: str | None = None,
) -> ReadOptions:
    """Return how images are read: as a recipe's data section says, with overrides."""
    from dataclasses import replace

    from tnet.data.transforms import named_transform
    from tnet.inference.predictor import data_read_options

    options = data_read_options(data)
    scene = parse_scene(options.scene, bands, value_range)
    mode = data.read if scene != options.scene else options.mode  # memory if the recipe changes images
    return replace(
        options,
        mode=read or mode,
        scene=scene,
        max_side_px=options.max_side_px if max_side_px is None else max_side_px,
        prepare=options.prepare if preprocess is None else named_transform(preprocess),
    )


def _numbers(text: str, pattern: str, what: str) -> list[float]:
    parts = [part.strip() for part in text.split(",")]
    try:
        if all(re.fullmatch(pattern, part, re.IGNORECASE) for part in parts):
            return [float(part) for part in parts]
    except ValueError:
        pass
    raise typer.BadParameter(f"{text!r} cannot be parsed; give {what}")


def pick_device(name: str) -> str:
    """Return the device of that name, with ``auto`` resolved, after checking that it is available."""
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        # A round trip is the one check that works for every kind of device.
        torch.zeros(1, device=name).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        problem = f"device {name!r} is not available ({first_line(error)})"
        raise ConfigError(f"{problem}; use --device cpu, or auto") from None
    return name


def data_of(recipe: Recipe | None) -> DataConfig:
    """Return the data section of a recipe, or the default."""
    from tnet.data.config import DataConfig

    return recipe.data if recipe else DataConfig()


def recipe_of(run: Path) -> Recipe | None:
    """Return the recipe of a run directory, of its ``model/`` folder or of a saved model, if there is one."""
    from tnet.models.io import recipe_path
    from tnet.training.recipe import load_recipe

    path = recipe_path(run)
    return None if path is None else load_recipe(path)


def results_page(
    folder: Path, name: str, title: str, inputs: Sequence[Path | None], overwrite: bool, more: Sequence[str] = ()
) -> Path:
    """Return the page of results (``NAME.md``), after checking that it, a table, a figure and more may be written.

    Results of before, which the ``title`` at the head of their page shows, are replaced.
    """
    from tnet.files import check_outputs, make_folder

    page = make_folder(folder) / f"{name}.md"
    is_own = page.is_file() and page.read_text(encoding="utf-8", errors="replace").startswith(title)
    files = [page, page.with_suffix(".csv"), page.with_suffix(".png"), *(folder / other for other in more)]
    sources = [path for path in inputs if path is not None and path.is_file()]
    check_outputs(files, inputs=sources, overwrite=overwrite or is_own)
    return page


def searchable(model: Model, folder: Path) -> TNet:
    """Return the model if best-first search can use it; raise ConfigError otherwise."""
    from tnet.models.tnet import TNet

    if not isinstance(model, TNet) or model.locator is None:
        raise ConfigError(f"{folder} is a {model.config.title} without a search; give a TNet of 2 or more levels")
    return model
