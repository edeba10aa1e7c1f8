"""``tnet import-tf``: a model from a TensorFlow checkpoint."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tnet.cli.common import OverwriteOption, say
from tnet.errors import ConfigError
from tnet.interop import CONVERT

if TYPE_CHECKING:
    from tnet.models.config import TNetConfig

EPILOG = f"\b\nTo convert a checkpoint, run where TensorFlow is installed:\n{CONVERT}"


def import_tf(
    checkpoint: Annotated[Path, typer.Argument(help="Variables of a checkpoint (.npz), converted as shown below.")],
    out: Annotated[Path, typer.Argument(help="Folder for the model.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Overrides of settings: num_classes=10 backbone.kwargs.width=0.5")
    ] = None,
    model: Annotated[
        str, typer.Option(help="Registered model that the checkpoint belongs to (see `tnet models`).")
    ] = "",
    data: Annotated[
        Path | None, typer.Option(help="Folder of the model's dataset, for the class names (not needed for fMoW).")
    ] = None,
    overwrite: OverwriteOption = False,
) -> None:
    """Convert a TensorFlow checkpoint of the paper's models, or of Google's EfficientNet, to a model.

    Every variable must match a weight, and every weight a variable. The model is saved as safetensors, config.json and
    a model card, loaded again, and must give the same output.
    """
    from tnet.files import check_new_folder
    from tnet.interop.import_tf import CLASS_INDICES, read_tf_checkpoint, save_imported, tag_of

    if not model:
        raise ConfigError("--model is missing; give the registered model that the checkpoint belongs to")
    check_new_folder(out, overwrite=overwrite)
    config = with_class_names(_config(model, overrides or []), tag_of(model), data)
    imported = read_tf_checkpoint(checkpoint, config)
    folder = save_imported(imported, out, model, overwrite=overwrite)
    step = "" if imported.step is None else f", saved at step {imported.step:,}"
    quoted = shlex.quote(str(folder))
    say(
        f"{imported.checkpoint}{step}: {imported.variables} variables used, {imported.left_out} of training state not"
        f"\nsaved and verified by a forward pass: {folder}\nnext: tnet info {quoted}   tnet predict {quoted} IMAGES"
    )
    if not config.class_names:
        meaning = CLASS_INDICES.get(tag_of(model), "unknown order")
        say(f"classes are named by their indices ({meaning}); --data ROOT adds their names", err=True)


def with_class_names(config: TNetConfig, tag: str, data: Path | None) -> TNetConfig:
    """Return the configuration with class names, in the order of the checkpoint's indices."""
    from dataclasses import replace

    from tnet.data.fmow import CATEGORIES
    from tnet.data.published import PUBLISHED

    if data is None:
        is_fmow = tag == "fmow" and not config.class_names and config.num_classes == len(CATEGORIES)
        return replace(config, class_names=CATEGORIES) if is_fmow else config
    names = tuple(PUBLISHED[tag].author_classes(data))
    if len(names) != config.num_classes:
        raise ConfigError(
            f"{data} has {len(names)} classes, but the model has {config.num_classes}; give the complete dataset with "
            "--data, or omit it"
        )
    return replace(config, class_names=names)


def _config(name: str, overrides: list[str]) -> TNetConfig:
    """Return a registered configuration with overrides."""
    from tnet.config import parse_dataclass, to_plain
    from tnet.models.config import TNetConfig
    from tnet.models.registry import model_config
    from tnet.training.recipe import apply_overrides

    return parse_dataclass(TNetConfig, apply_overrides(to_plain(model_config(name)), overrides), f"model {name}")
