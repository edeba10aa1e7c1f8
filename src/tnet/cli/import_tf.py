"""``tnet import-tf``: a model from a TensorFlow checkpoint."""

from __future__ import annotations

import shlex
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
    data: Annotated[
        Path | None,
        typer.Option(
            help="Folder of the data set that the model is of, for the names of its classes (fMoW needs none)."
        ),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the folder if it exists.")] = False,
) -> None:
    """Turn a TensorFlow checkpoint of the paper's models, or of Google's EfficientNet, into a model.

    Needs no TensorFlow. Every variable must find its place and every weight its variable; the model is written as
    safetensors, config.json and a model card, read back, and must answer the same.
    """
    from tnet.errors import ConfigError, OutputError
    from tnet.interop.import_tf import CLASS_INDICES, read_tf_checkpoint, save_imported, tag_of

    if not model:
        raise ConfigError("which model the checkpoint belongs to was not said; give --model, see `tnet models`")
    if out.exists() and not overwrite:
        raise OutputError(f"{out} exists; name another folder, or replace it with --overwrite")
    config = with_class_names(_config(model, overrides or []), tag_of(model), data)
    imported = read_tf_checkpoint(checkpoint, config)
    folder = save_imported(imported, out, model)
    step = "" if imported.step is None else f", saved at step {imported.step:,}"
    quoted = shlex.quote(str(folder))
    typer.echo(
        f"{imported.checkpoint}{step}: {imported.variables} variables used, {imported.left_out} of training state not"
        f"\nwritten and verified by a forward pass: {folder}\nnext: tnet info {quoted}   tnet predict {quoted} IMAGES"
    )
    if not config.class_names:
        meaning = CLASS_INDICES.get(tag_of(model), "not known")
        typer.echo(f"its classes have numbers for names ({meaning}); --data ROOT names them", err=True)


def with_class_names(config: TNetConfig, tag: str, data: Path | None) -> TNetConfig:
    """The configuration with the names of the classes, in the order of the checkpoint's numbers.

    Raises:
        ConfigError: the data set has another number of classes, or is not known.
    """
    from dataclasses import replace

    from tnet.data.fmow import CATEGORIES
    from tnet.data.published import PUBLISHED
    from tnet.errors import ConfigError

    if data is None:
        known = tag == "fmow" and not config.class_names and config.num_classes == len(CATEGORIES)
        return replace(config, class_names=CATEGORIES) if known else config
    names = tuple(PUBLISHED[tag].author_classes(data))
    if len(names) != config.num_classes:
        raise ConfigError(
            f"{data} has {len(names)} classes but the model {config.num_classes}; name the whole data set with --data, "
            "or leave that out"
        )
    return replace(config, class_names=names)


def _config(name: str, overrides: list[str]) -> TNetConfig:
    """The registered configuration, with settings over it."""
    from tnet.config import parse_dataclass, to_plain
    from tnet.models.config import TNetConfig
    from tnet.models.registry import model_config
    from tnet.training.recipe import apply_overrides

    return parse_dataclass(TNetConfig, apply_overrides(to_plain(model_config(name)), overrides), f"model {name}")
