"""Saving and loading models: safetensors beside a JSON configuration, never a pickle."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save_file

from tnet.config import parse_dataclass, to_plain
from tnet.errors import CheckpointError, TnetError
from tnet.files import atomic_folder
from tnet.models.config import TNetConfig
from tnet.models.tnet import TNet
from tnet.weights import check_state, read_tensors

WEIGHTS_NAME = "model.safetensors"
CONFIG_NAME = "config.json"
CARD_NAME = "README.md"
_MAX_CONFIG_BYTES = 16 * 2**20


def save_model(model: TNet, folder: str | Path, *, card: str | None = None) -> Path:
    """Write a model as a folder of weights, configuration and model card, whole or not at all.

    Args:
        model: what to save.
        folder: replaced if it exists.
        card: text of the model card; a short one is made if ``None``.

    Raises:
        OutputError: the folder cannot be written.
    """
    folder = Path(folder)
    # Pretrained weights are in the file already; loading must not fetch them again.
    config = replace(model.config, backbone=replace(model.config.backbone, pretrained=False, weights=None))
    with atomic_folder(folder) as temporary:
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
        save_file(tensors, temporary / WEIGHTS_NAME, metadata={"format": "pt"})
        text = json.dumps({"model_type": "tnet", **to_plain(config)}, indent=2)
        (temporary / CONFIG_NAME).write_text(text + "\n", encoding="utf-8")
        (temporary / CARD_NAME).write_text(card or default_card(config), encoding="utf-8")
    return folder


def load_model(folder: str | Path, *, device: str | torch.device = "cpu") -> TNet:
    """Read a model that :func:`save_model` wrote, or the ``model/`` folder of a training run.

    Args:
        folder: the model's folder, or the run's.
        device: where to put it.

    Returns:
        The model in evaluation mode.

    Raises:
        CheckpointError: files missing or damaged, or weights of another model.
    """
    folder = Path(folder)
    if not (folder / CONFIG_NAME).is_file() and (folder / "model" / CONFIG_NAME).is_file():
        folder = folder / "model"
    config = read_config(folder)
    # A file from outside must not make us fetch or open anything beside it.
    backbone = replace(config.backbone, pretrained=False, weights=None)
    model = TNet(replace(config, backbone=backbone))
    weights = folder / WEIGHTS_NAME
    if not weights.is_file():
        raise CheckpointError(f"{folder} has no {WEIGHTS_NAME}; give the model/ folder of a finished training run")
    tensors = read_tensors(weights)
    check_state(model.state_dict(), tensors, str(weights))
    model.load_state_dict(tensors)
    return model.to(device).eval()


def read_config(folder: Path) -> TNetConfig:
    """Read the configuration beside a model's weights.

    Raises:
        CheckpointError: missing, damaged, or not a TNet's.
    """
    path = folder / CONFIG_NAME
    if not path.is_file():
        raise CheckpointError(f"{folder} has no {CONFIG_NAME}; give a run folder or a saved model's folder")
    try:
        if path.stat().st_size > _MAX_CONFIG_BYTES:
            raise ValueError(f"it is larger than {_MAX_CONFIG_BYTES} bytes")
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is damaged ({error}); copy it again or train anew") from None
    if not isinstance(data, dict) or data.pop("model_type", None) != "tnet":
        raise CheckpointError(f"{path} does not describe a tnet model; give a folder that tnet wrote")
    try:
        return parse_dataclass(TNetConfig, data, str(path))
    except TnetError as error:
        raise CheckpointError(f"{error}; it was written by another version or changed by hand") from None


def default_card(config: TNetConfig) -> str:
    """A model card from the configuration alone."""
    kind = "independent labels" if config.multilabel else "classes that exclude each other"
    names = ", ".join(config.class_names[:20]) + (", ..." if len(config.class_names) > 20 else "")
    return (
        "---\nlibrary_name: tnet\npipeline_tag: image-classification\ntags: [hard-attention, tnet]\n---\n\n"
        "# TNet\n\n"
        f"A traversal network: backbone `{config.backbone.name}` at {config.base_px} px, {config.levels} level(s), "
        f"grid {config.grid.rows} x {config.grid.cols}, {list(config.looks)} location(s) a region by default.\n\n"
        f"{config.num_classes} {kind}; class indices start at 0"
        f"{': ' + names if names else ''}.\n\n"
        "```python\nimport tnet\nmodel = tnet.load_model('path/to/this/folder')\n"
        "output = model(images, looks=3)  # uint8 [batch, channels, height, width]\n```\n"
    )
