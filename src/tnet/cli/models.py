"""``tnet models``: what can be built by name."""

from __future__ import annotations

from typing import Annotated

import typer

from tnet.errors import ConfigError


def models(
    pattern: Annotated[str, typer.Argument(help="Which names, as for files: '*b0*'.")] = "*",
    backbones: Annotated[
        bool, typer.Option("--backbones", help="List backbones for recipes instead: bagnet77 and timm's models.")
    ] = False,
) -> None:
    """List models that can be built by name, or backbones.

    `tnet info NAME` says what a model consists of and costs; `tnet.create_model(NAME)` builds it.
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
        raise ConfigError(f"no backbone is called {pattern!r}; give a pattern such as '*{pattern.strip('*')[:6]}*'")
    typer.echo("\n".join(names))


def _list_models(pattern: str) -> None:
    from tnet.evaluation.report import looks_label, markdown_table
    from tnet.models.config import TNetConfig
    from tnet.models.registry import list_models, model_config

    names = list_models(pattern)
    if not names:
        raise ConfigError(f"no registered model is called {pattern!r}; `tnet models` lists all of them")
    lines = []
    for name in names:
        config = model_config(name)
        levels, grid = str(1 + len(config.default_looks)), "-"
        if isinstance(config, TNetConfig):
            grid = f"{config.grid.rows} x {config.grid.cols} of {config.grid.cell_extent:g}"
        numbers = [str(config.look_px), levels, grid, looks_label(config.default_looks), str(config.num_classes)]
        lines.append([name, config.network, *numbers])
    typer.echo(markdown_table(["name", "backbone", "base px", "levels", "grid", "looks", "classes"], lines), nl=False)
