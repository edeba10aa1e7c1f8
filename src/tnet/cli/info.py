"""``tnet info``: parts and costs of a recipe or model, or a table of registered models."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tnet.cli.common import Looks, LooksListOption, ProgressOption, parse_image_size, parse_looks_list, say
from tnet.errors import ConfigError, GeometryError

if TYPE_CHECKING:
    from tnet.models.base import Model, ModelConfig
    from tnet.models.tnet import TNet

_TARGET_HELP = (
    "Recipe (YAML), run directory, folder of a saved model, or model name; with --table names with wildcards: '*b0*'."
)
_SIZE_HELP = "Also show regions and costs for images of this size, such as 768x1024."
_TABLE_NOTES = """\
Base px: side of the backbone's input. Looks: the default number per region, for each level.
Trainable: parameters; total: including the running statistics of batch norm, as in the published totals, which for
traversal networks are 1 higher: the scalar reward baseline, which here belongs to the objective.
Multiply-adds: per image, at these looks and at 0; 1 multiply-add is 2 FLOPs. Classifying each feature is included, and
the location module if it runs (the published figure at 0 looks includes it). IPS and attention sampling cost more on
larger images; the numbers are for an image of 30 x 30 patches (1500 px).
"""


def info(
    target: Annotated[str | None, typer.Argument(help=_TARGET_HELP)] = None,
    looks: LooksListOption = None,
    image_size: Annotated[str | None, typer.Option(metavar="HEIGHTxWIDTH", help=_SIZE_HELP)] = None,
    table: Annotated[bool, typer.Option("--table", help="Show a table of registered models instead.")] = False,
    progress: ProgressOption = True,
) -> None:
    """Show parameters and multiply-adds of a recipe or model, per part and number of looks.

    No weights are loaded or downloaded.
    """
    if table:
        if looks or image_size is not None:
            option = "--looks" if looks else "--image-size"
            raise typer.BadParameter(f"{option} is for a single model; omit it with --table")
        say(_table("*" if target is None else target, progress))
        return
    if target is None:
        raise typer.BadParameter("give a recipe, folder or model, or --table for all registered models")
    chosen = parse_looks_list(looks or [])
    size_hw = parse_image_size(image_size) if image_size is not None else None
    say(_single(target, chosen, size_hw))


def _single(target: str, chosen: Sequence[Looks], size_hw: tuple[int, int] | None) -> str:
    """Describe one recipe or model."""
    from tnet.cost import build_outline
    from tnet.models.tnet import TNet

    config, kind = _read_config(target)
    settings = [config.resolve_looks(item) for item in chosen or config.listed_looks()]
    model = build_outline(config)
    facts = config.facts()
    width = max(12, *(len(name) for name, _ in facts))
    described = "\n".join(f"{name:{width}} {text}" for name, text in facts)
    text = f"{target} ({kind})\n\n{described}\n\n{_costs(model, list(dict.fromkeys(settings)), size_hw)}"
    return f"{text}\n{_geometry(model, size_hw)}" if size_hw is not None and isinstance(model, TNet) else text


def _table(pattern: str, progress: bool) -> str:
    """Return a table of sizes and costs of the registered models that match a pattern."""
    from tnet.cost import build_outline, count_parameters, multiply_adds
    from tnet.evaluation.report import looks_label, markdown_table, short_number
    from tnet.inference.progress import progress_bar
    from tnet.models.registry import list_models, model_config

    names = list_models(pattern)
    if not names:
        raise ConfigError(f"no registered model matches {pattern!r}; see `tnet models` for all names")
    lines = []
    with progress_bar(progress) as bar:
        for name in bar.track(names, description="counting"):
            config = model_config(name)
            model = build_outline(config)
            count, macs = count_parameters(model), multiply_adds(model)
            whole = short_number(multiply_adds(model, 0) / 1e9) if config.allows_no_looks else "-"
            cells = [name, str(config.region_px), str(1 + len(config.default_looks)), looks_label(config.default_looks)]
            cells += [f"{count.trainable:,}", f"{count.total:,}", short_number(macs / 1e9), whole]
            lines.append(cells)
    header = ["name", "base px", "levels", "looks", "trainable", "total"]
    return f"{markdown_table([*header, 'multiply-adds (G)', 'at 0 looks (G)'], lines)}{_TABLE_NOTES}"


def _read_config(target: str) -> tuple[ModelConfig, str]:
    """Return the configuration of a path or name, and what it is."""
    from tnet.models.io import CONFIG_NAME, read_config
    from tnet.models.registry import model_config
    from tnet.training.recipe import load_recipe

    path = Path(target)
    if path.is_dir():
        for folder in (path, path / "model"):
            if (folder / CONFIG_NAME).is_file():
                return read_config(folder), "saved model" if folder == path else "run directory"
        if (path / "recipe.yaml").is_file():
            return load_recipe(path / "recipe.yaml").model, "run directory without a model yet"
        return read_config(path), ""
    if path.is_file() or path.suffix in (".yaml", ".yml"):
        return load_recipe(path).model, "recipe; training takes the number of classes from the dataset"
    try:
        return model_config(target), "registered model"
    except ConfigError as error:
        raise ConfigError(f"{target} is not a file, folder or model: {error}") from None


def _costs(model: Model, settings: list[tuple[int, ...]], size_hw: tuple[int, int] | None) -> str:
    """Return a table of parameters and multiply-adds of each part, for each number of looks."""
    from tnet.cost import cost_by_module, count_parameters
    from tnet.evaluation.report import looks_label, macs_unit, markdown_table, short_number

    # A TNet costs the same for images of any size, and --image-size has a table of its own.
    sized = model.config.cost_depends_on_size
    columns = [cost_by_module(model, looks, size_hw if sized else None) for looks in settings]
    totals = [sum(part.macs for part in column) for column in columns]
    unit, letter = macs_unit(max(totals))
    lines = [
        [parts[0].name, f"{parts[0].parameters.trainable:,}", *(short_number(part.macs / unit) for part in parts)]
        for parts in zip(*columns, strict=True)
    ]
    height, width = size_hw or model.config.typical_size_hw
    size = f" of {height} x {width} px (--image-size sets another)" if sized else ""
    count = count_parameters(model)
    lines.append(["total", f"{count.trainable:,}", *(short_number(macs / unit) for macs in totals)])
    names = [f"{looks_label(model.config.looks_at_each_level(looks))} looks" for looks in settings]
    table = markdown_table(["part", "parameters", *names], lines)
    return (
        f"{table}\nLooks: multiply-adds ({letter}) per image{size}; 1 multiply-add is 2 FLOPs.\n"
        f"Parameters: trainable; {count.total:,} including frozen ones and the running statistics of batch norm.\n"
    )


def _geometry(model: TNet, size_hw: tuple[int, int]) -> str:
    """Describe images of one size: their regions, the cost of processing them whole, and a suggested geometry."""
    import torch

    from tnet.cost import full_image_multiply_adds, multiply_adds
    from tnet.evaluation.report import macs_unit, markdown_table, short_number
    from tnet.geometry import choose_cells, fit_grid, whole_images

    config = model.config
    regions, count, lines = whole_images([size_hw]), 1, []
    for level in range(config.levels):
        if level:
            regions = choose_cells(regions, config.grid, torch.zeros(1, 1, dtype=torch.long))
            count *= config.looks[level - 1]
        height, width = regions.size_hw[0].tolist()
        shown_px = config.region_px if level else config.base_px
        lines.append([f"{level}", f"{count}", f"{height} x {width}", f"{max(height, width) / shown_px:.2f}"])
    table = markdown_table(["level", "regions", "image px (height x width)", "image px per input px"], lines)
    text = f"An image of {size_hw[0]} x {size_hw[1]} px:\n\n{table}\n"
    try:
        whole, own = full_image_multiply_adds(model, size_hw), multiply_adds(model)
        unit, letter = macs_unit(whole)
        text += (
            f"The same backbone on the whole image: {short_number(whole / unit)} {letter} multiply-adds, "
            f"{short_number(whole / own)} times as many as this model.\n"
        )
    except ConfigError as error:
        text += f"No comparison: {error}.\n"
    try:
        proposal = fit_grid(size_hw, config.base_px)
    except GeometryError as error:
        return f"{text}{error}\n"
    grid = f"{{rows: {proposal.grid.rows}, cols: {proposal.grid.cols}, cell_extent: {proposal.grid.cell_extent:g}}}"
    return (
        f"{text}Suggested for this size: levels: {proposal.levels}, grid: {grid}, looks: {list(proposal.looks)}\n"
        f"({proposal.why})\n"
    )
