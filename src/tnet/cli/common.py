"""What several verbs of the command line read in the same way."""

from __future__ import annotations

import re
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tnet.errors import ConfigError

if TYPE_CHECKING:
    from tnet.data.config import DataConfig
    from tnet.data.loading import LabelledData
    from tnet.scenes.reading import Reading, ReadOptions
    from tnet.training.recipe import Recipe

Looks = int | tuple[int, ...]
"""Looks as ``TNet.forward`` takes them: a number for level 1, or one number a level."""

LOOKS_HELP = "Number of looks; for several levels one number each, such as 2x1 (2 looks, and 1 inside each)."
PREPROCESS_HELP = (
    "Prepare every picture by a named method: reference_448 makes a square of 448 pixels of it, as the paper's "
    "reference implementation does for evaluation. [default: the recipe's]"
)
DEVICE_HELP = "auto (the GPU if there is one), cpu, cuda, or another device that PyTorch names, such as cuda:1."


class PolicyName(StrEnum):
    """How locations are chosen, of which a model may know some; an Enum, because Typer takes no list of a Literal."""

    topk = "topk"
    sample = "sample"
    random = "random"
    centre = "centre"
    learned = "learned"
    ordered_logits = "ordered_logits"
    sobel_mean = "sobel_mean"
    sobel_var = "sobel_var"


class ReadName(StrEnum):
    """How pictures are read."""

    auto = "auto"
    lazy = "lazy"
    memory = "memory"


_READ_HELP = (
    "memory: decode whole pictures; lazy: read only what is looked at, of files of any size and kind; auto: lazily "
    "what is large, and what Pillow does not read rightly. [default: the recipe's, or auto]"
)
_BANDS_HELP = "Bands of lazily read images to look at, counted from 0, such as 3,2,1. [default: what suits the model]"
_RANGE_HELP = "Stored values that become black and white in lazily read images, such as 0,10000. [default: of the type]"

# Options of every verb that reads pictures.
ReadOption = Annotated[ReadName | None, typer.Option(help=_READ_HELP, show_default=False)]
BandsOption = Annotated[str | None, typer.Option(metavar="N,N,...", help=_BANDS_HELP)]
RangeOption = Annotated[str | None, typer.Option(metavar="LOW,HIGH", help=_RANGE_HELP)]

_MAX_SIDE_PX = 10_000_000


def parse_looks(text: str) -> Looks:
    """Read ``3`` as 3 looks (deeper levels as the model is configured) and ``2x1`` as one number a level.

    Raises:
        typer.BadParameter: it is neither; a usage error, with exit status 2.
    """
    if not re.fullmatch(r"\d{1,6}(x\d{1,6})*", text.strip()):
        raise typer.BadParameter(f"{text!r} is not a number of looks; write 3, or 2x1 for two levels of regions")
    numbers = [int(number) for number in text.strip().split("x")]
    return numbers[0] if len(numbers) == 1 else tuple(numbers)


def parse_looks_list(texts: Sequence[str]) -> list[Looks]:
    """Read a repeatable option whose values may hold several numbers of looks with commas between.

    Raises:
        typer.BadParameter: a part is not a number of looks.
    """
    return [parse_looks(part) for text in texts for part in text.split(",")]


def parse_image_size(text: str) -> tuple[int, int]:
    """Read ``768x1024`` as height and width, and ``1024`` as the side of a square; pixels.

    Raises:
        typer.BadParameter: it is neither, or out of range.
    """
    match = re.fullmatch(r"(\d{1,9})(?:x(\d{1,9}))?", text.strip().lower())
    if match is None:
        raise typer.BadParameter(f"{text!r} is not a size; write height x width in pixels such as 768x1024, or 1024")
    height, width = int(match[1]), int(match[2] or match[1])
    if not (min(height, width) >= 1 and max(height, width) <= _MAX_SIDE_PX):
        raise typer.BadParameter(f"{text!r} is out of range; give sides of 1 to {_MAX_SIDE_PX} pixels")
    return height, width


def parse_reading(data: DataConfig, read: ReadName | None, bands: str | None, value_range: str | None) -> Reading:
    """How pictures are read: as a run's recipe says of its data, but for what is given.

    Raises:
        typer.BadParameter: bands or a range that are not numbers.
        ConfigError: bands or a range that cannot be.
    """
    from dataclasses import replace

    from tnet.scenes.reading import Reading

    scene = data.scene
    if bands is not None:
        scene = replace(scene, bands=tuple(int(n) for n in _numbers(bands, r"\d{1,4}", "bands such as 3,2,1")))
    if value_range is not None:
        low_high = _numbers(value_range, r"[-+]?[\d.]+(?:e[-+]?\d+)?", "two numbers such as 0,10000")
        if len(low_high) != 2:
            raise typer.BadParameter(f"{value_range!r} is not a range; write two numbers such as 0,10000")
        scene = replace(scene, value_range=(low_high[0], low_high[1]))
    return Reading(read.value if read else data.read, data.lazy_above_px, scene=scene)


def parse_read_options(
    run: Path,
    max_side_px: int | None,
    preprocess: str | None,
    read: ReadName | None,
    bands: str | None,
    value_range: str | None,
) -> ReadOptions:
    """Return how images are read: as the run's recipe says, with overrides.

    Raises:
        typer.BadParameter: bands or a range that are not numbers.
        ConfigError: values that are out of range or contradict each other.
    """
    from dataclasses import replace

    from tnet.data.transforms import named_transform
    from tnet.inference.predictor import read_options

    data = data_of(recipe_of(run))
    options = read_options(data)
    scene = parse_reading(data, read, bands, value_range).scene
    return replace(
        options,
        mode=read.value if read else options.mode,
        scene=scene,
        max_side_px=options.max_side_px if max_side_px is None else max_side_px,
        prepare=options.prepare if preprocess is None else named_transform(preprocess),
    )


def set_reading(images: LabelledData, reading: Reading) -> None:
    """Read a data set's pictures otherwise than its recipe says.

    Raises:
        ConfigError: images that are not in files, or that are prepared or shrunk.
    """
    from dataclasses import replace

    from tnet.data.folder import LabelledImages

    if not isinstance(images, LabelledImages) or images.reading.changes_images:
        raise ConfigError(
            "--read, --bands and --value-range are for pictures in files that are neither prepared nor shrunk; leave "
            "them out, or --preprocess and the recipe's data.max_side_px and data.max_short_side_px"
        )
    images.reading = replace(
        images.reading, mode=reading.mode, lazy_above_px=reading.lazy_above_px, scene=reading.scene, overview_px=0
    )


def _numbers(text: str, pattern: str, what: str) -> list[float]:
    parts = [part.strip() for part in text.split(",")]
    try:
        if all(re.fullmatch(pattern, part, re.IGNORECASE) for part in parts):
            return [float(part) for part in parts]
    except ValueError:
        pass
    raise typer.BadParameter(f"{text!r} is not understood; write {what}")


def pick_device(name: str) -> str:
    """The device of that name, with ``auto`` settled.

    Raises:
        ConfigError: no such device here.
    """
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        # Making something there and reading it back is the one check that holds for every kind of device.
        torch.zeros(1, device=name).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise ConfigError(f"device {name!r} cannot be used here ({reason}); give --device cpu, or auto") from None
    return name


def data_of(recipe: Recipe | None) -> DataConfig:
    """What a recipe says of its pictures; without one that there is nothing to say."""
    from tnet.data.config import DataConfig

    return recipe.data if recipe else DataConfig()


def recipe_of(run: Path) -> Recipe | None:
    """The recipe by which a model was trained, if it lies beside it.

    Args:
        run: a run directory, or its ``model/`` folder, or the folder of any saved model.

    Raises:
        RecipeError: it is there but cannot be read.
    """
    from tnet.training.recipe import load_recipe

    for folder in (run, run.parent) if run.resolve().name == "model" else (run,):
        if (folder / "recipe.yaml").is_file():
            return load_recipe(folder / "recipe.yaml")
    return None
