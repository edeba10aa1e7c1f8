"""``tnet import-tf``: a model from a TensorFlow checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from tnet.models.config import TNetConfig


def import_tf(
    checkpoint: Annotated[Path, typer.Argument(help="Checkpoint: its folder, its prefix, or one of its files.")],
    out: Annotated[Path, typer.Argument(help="Folder for the model.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            help="Settings that differ from the registered model's: num_classes=10 backbone.kwargs.width=0.5"
        ),
    ] = None,
    model: Annotated[
        str, typer.Option(help="Registered model that the checkpoint belongs to (`tnet models` lists them).")
    ] = "",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the folder if it exists.")] = False,
) -> None:
    """Turn a TensorFlow checkpoint of the paper's models, or of Google's EfficientNet, into a model.

    Needs no TensorFlow. Every variable must find its place and every weight its variable; the model is written as
    safetensors, config.json and a model card, read back, and must answer the same.
    """
    from tnet.errors import ConfigError, OutputError
    from tnet.interop.import_tf import read_tf_checkpoint, save_imported

    if not model:
        raise ConfigError("which model the checkpoint belongs to was not said; give --model, see `tnet models`")
    if out.exists() and not overwrite:
        raise OutputError(f"{out} exists; name another folder, or replace it with --overwrite")
    imported = read_tf_checkpoint(checkpoint, _config(model, overrides or []))
    folder = save_imported(imported, out, model)
    step = "" if imported.step is None else f", saved at step {imported.step:,}"
    typer.echo(
        f"{imported.checkpoint}{step}: {imported.variables} variables used, {imported.left_out} of training state not"
        f"\nwritten and verified by a forward pass: {folder}\nnext: tnet info {folder}   tnet predict {folder} IMAGES"
    )


def _config(name: str, overrides: list[str]) -> TNetConfig:
    """The registered configuration, with settings over it."""
    from tnet.config import parse_dataclass, to_plain
    from tnet.models.config import TNetConfig
    from tnet.models.registry import model_config
    from tnet.training.recipe import apply_overrides

    return parse_dataclass(TNetConfig, apply_overrides(to_plain(model_config(name)), overrides), f"model {name}")
