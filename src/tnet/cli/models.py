"""``tnet models``: models and backbones by name."""

from __future__ import annotations

from typing import Annotated

import typer

from tnet.cli.common import say
from tnet.errors import ConfigError


def models(
    pattern: Annotated[str, typer.Argument(help="Names with wildcards: '*b0*'.")] = "*",
    backbones: Annotated[
        bool, typer.Option("--backbones", help="List backbones for recipes instead: bagnet77 and timm's models.")
    ] = False,
) -> None:
    """List registered models, or backbones.

    `tnet info NAME` shows parts and costs of a model; `tnet.create_model(NAME)` builds it.
    """
    if backbones:
        _list_backbones(pattern)
    else:
        _list_models(pattern)


def _list_backbones(pattern: str) -> None:
    from fnmatch import fnmatchcase

    import timm

    names = [name for name in ["bagnet77", *timm.list_models()] if fnmatchcase(name, pattern)]
    if not names:
        raise ConfigError(f"no backbone matches {pattern!r}; give a pattern such as '*{pattern.strip('*')[:6]}*'")
    say("\n".join(names))


def _list_models(pattern: str) -> None:
    from tnet.evaluation.report import looks_label, markdown_table
    from tnet.models.config import TNetConfig
    from tnet.models.registry import list_models, model_config

    names = list_models(pattern)
    if not names:
        raise ConfigError(f"no registered model matches {pattern!r}; see `tnet models` for all names")
    lines = []
    for name in names:
        config = model_config(name)
        levels, grid = str(1 + len(config.default_looks)), "-"
        if isinstance(config, TNetConfig):
            grid = f"{config.grid.rows} x {config.grid.cols} of {config.grid.cell_extent:g}"
        numbers = [str(config.region_px), levels, grid, looks_label(config.default_looks), str(config.num_classes)]
        lines.append([name, config.network, *numbers])
    say(markdown_table(["name", "backbone", "base px", "levels", "grid", "looks", "classes"], lines), nl=False)
