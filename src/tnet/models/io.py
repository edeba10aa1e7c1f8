"""Saving and loading models: safetensors beside a JSON configuration, never a pickle."""

from __future__ import annotations

import hashlib
import json
import os
import re
import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from tnet.backbones import Precision
from tnet.config import parse_dataclass, shown, to_plain
from tnet.errors import CheckpointError, ClassesWarning, ConfigError, TnetError
from tnet.files import atomic_folder, check_new_folder, file_digest, write_text
from tnet.models.base import Model, ModelConfig
from tnet.models.calibration import CALIBRATION_NAME, read_calibration
from tnet.models.kind import MODEL_KINDS, build_model, kind_of
from tnet.models.tnet import TNet
from tnet.remote import check_local
from tnet.text import markdown
from tnet.weights import MemoryLimit, check_state, check_values, read_tensors

WEIGHTS_NAME = "model.safetensors"
RECIPE_NAME = "recipe.yaml"
CONFIG_NAME = "config.json"
CARD_NAME = "README.md"
_MAX_CONFIG_BYTES = 16 * 2**20
_SPARE_BYTES, _SPARE_TENSORS = 2**28, 2**12  # of a model while it is built, beyond a multiple of its weights


def save_model(model: Model, folder: str | Path, *, card: str | None = None, overwrite: bool = False) -> Path:
    """Save weights, configuration and model card to a folder, atomically.

    Args:
        model: the model.
        folder: output folder; must be new or empty unless ``overwrite``.
        card: text of the model card; :func:`default_card` if ``None``.
        overwrite: replace the three files in an existing folder; others stay.

    Raises:
        OutputError: the folder exists and is not empty, or cannot be written.
    """
    model.check_original("saved")
    folder = Path(folder)
    check_new_folder(folder, overwrite=overwrite)
    # The file contains the pretrained weights; loading must not fetch them again.
    config = model.config.without_weights()
    with atomic_folder(folder) as temporary:
        tensors = _separate(model.state_dict())
        config_path, weights_path = temporary / CONFIG_NAME, temporary / WEIGHTS_NAME
        config_path.write_text(_config_text(config), encoding="utf-8")
        (temporary / CARD_NAME).write_text(card or default_card(config), encoding="utf-8")
        if isinstance(model, TNet) and model.calibration is not None:
            (temporary / CALIBRATION_NAME).write_text(model.calibration.text(), encoding="utf-8")
        else:
            (folder / CALIBRATION_NAME).unlink(missing_ok=True)  # of other weights
        try:
            save_file(tensors, weights_path, metadata={"format": "pt"})
        except SafetensorError as error:
            number = re.search(r"os error (\d+)", str(error))
            raise OSError(int(number[1]), os.strerror(int(number[1]))) if number else OSError(str(error)) from None
        weights_path.chmod(config_path.stat().st_mode)  # safetensors ignores the umask
        old = folder / CONFIG_NAME
        if old.is_file() and old.read_bytes() != config_path.read_bytes():
            old.unlink()  # new weights must not be read with it if the process is killed before it is replaced
    return folder


def _separate(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors on the CPU, with copies of those that share memory, as modules used twice do."""
    tensors: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in state.items():
        tensor = tensor.detach().cpu().contiguous()
        memory = tensor.untyped_storage().data_ptr()
        tensors[name] = tensor.clone() if memory in seen else tensor
        seen.add(memory)
    return tensors


def load_model(folder: str | Path, *, device: str | torch.device = "cpu", calibrated: bool = True) -> Model:
    """Load a model from its folder or from that of its training run, in evaluation mode.

    ``calibrated`` is false to ignore the calibration of stopping that may be saved with it.

    Raises:
        CheckpointError: a file is missing or damaged, or the weights are of another model.
    """
    check_local(folder, CheckpointError)
    folder = model_folder(folder)
    config = read_config(folder)
    weights, tensors = _read_weights(folder)
    stored = sum(tensor.nbytes for tensor in tensors.values())
    problem = f"the model described is much larger than its weights of {stored:,} bytes"
    remedy = "use the config.json that was saved with them"
    # An untrusted configuration must not make us fetch or open other files, or fill the memory.
    limit = MemoryLimit(4 * stored + _SPARE_BYTES, 4 * len(tensors) + _SPARE_TENSORS, f"{problem}; {remedy}")
    try:
        model = build_model(config.without_weights(), limit)
    except TnetError as error:
        raise CheckpointError(f"{folder / CONFIG_NAME}: {error}") from None
    check_state(model.state_dict(), tensors, str(weights))
    model.load_state_dict(tensors)
    if isinstance(model, TNet) and calibrated:
        model.calibration = read_calibration(folder, model.config.class_names)
    return model.to(device).eval()


def load_for_inference(
    folder: str | Path, *, device: str | torch.device = "cpu", precision: Precision = "fp32", compiled: bool = False
) -> Model:
    """Load a model as :func:`load_model` does, and prepare it: :meth:`tnet.models.base.Model.prepare_for_inference`."""
    return load_model(folder, device=device).prepare_for_inference(precision, compiled=compiled)


def fill_from(model: Model, folder: str | Path) -> list[str]:
    """Copy all weights whose name and shape match from a saved model, which may be of another type, in place.

    A backbone of regions that the file lacks starts from the file's backbone. The rows of the classifier are copied by
    the names of the classes if both models know theirs, else in order; a :class:`ClassesWarning` says so unless the
    classes are the same.

    Returns the names of the tensors left unchanged, because the file lacks them or has them in another shape.
    """
    weights, tensors = _read_weights(model_folder(folder))
    own = model.state_dict()
    shared = {f"look_{name}": tensor for name, tensor in tensors.items() if name.startswith("backbone.")}
    tensors = {**{name: tensor for name, tensor in shared.items() if name in own}, **tensors}
    _match_classes(model.config, own, weights, tensors)
    fitting = {name: tensor for name, tensor in tensors.items() if name in own and own[name].shape == tensor.shape}
    if not fitting:
        raise CheckpointError(f"none of the weights in {weights} match the model; start from one with the same sizes")
    check_values(own, fitting, str(weights))
    model.load_state_dict(fitting, strict=False)
    return [name for name in own if name not in fitting]


def _match_classes(config: ModelConfig, own: dict[str, Tensor], weights: Path, tensors: dict[str, Tensor]) -> None:
    """Replace the classifier among ``tensors`` by one for the model's classes, with its rows where names differ."""
    has_names = (weights.parent / CONFIG_NAME).is_file()
    theirs, ours = read_config(weights.parent).class_names if has_names else (), config.class_names
    parts = [n for n in ("classifier.weight", "classifier.bias") if n in own and n in tensors]
    fitting = all(own[name].shape[1:] == tensors[name].shape[1:] for name in parts)
    if theirs == ours or not parts or not fitting:
        return
    if not theirs or not ours:
        if own[parts[0]].shape == tensors[parts[0]].shape:
            who = f"{weights.parent} has" if ours else "the model has"
            text = f"{who} no names of classes; the classifier is copied as if they were in the same order"
            warnings.warn(text, ClassesWarning, stacklevel=3)
        return
    pairs = [(row, theirs.index(name)) for row, name in enumerate(ours) if name in theirs]
    for name in parts:
        value, source = own[name].clone(), tensors.pop(name)
        for row, index in pairs:
            value[row] = source[index]
        if pairs:
            tensors[name] = value
    new = [name for name in ours if name not in theirs]
    counts = f"{len(pairs)} of the {len(ours)} classes"
    text = f"{weights.parent} has {counts}; their rows of the classifier are copied by name"
    others = f", the others start at random, such as {shown(new[0])}" if new else ""
    warnings.warn(text + others, ClassesWarning, stacklevel=3)


def model_folder(folder: str | Path) -> Path:
    """Return the folder of a saved model, which may be inside that of a training run."""
    folder = Path(folder)
    inside = folder / "model"
    return inside if not (folder / CONFIG_NAME).is_file() and (inside / CONFIG_NAME).is_file() else folder


def model_digest(folder: str | Path) -> str:
    """Return a hash of the weights and the configuration of a model in its own folder or that of its run.

    Raises:
        ConfigError: the folder does not contain a model.
    """
    folder = model_folder(folder)
    files = [folder / CONFIG_NAME, folder / WEIGHTS_NAME]
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise ConfigError(f"{folder} has no {missing[0]}; give a run folder or a saved model's folder")
    return hashlib.sha256(json.dumps([[file_digest(file) for file in files]]).encode()).hexdigest()[:16]


def save_temperature(folder: str | Path, temperature: float) -> Path:
    """Set the temperature of a saved model, and return the path of its configuration."""
    folder = model_folder(folder)
    config = replace(read_config(folder), temperature=temperature)
    write_text(folder / CONFIG_NAME, _config_text(config))
    return folder / CONFIG_NAME


def _config_text(config: ModelConfig) -> str:
    return json.dumps({"model_type": kind_of(config), **to_plain(config)}, indent=2) + "\n"


def recipe_path(folder: Path) -> Path | None:
    """Return the recipe of a run, given its folder or the ``model/`` folder inside it, if there is one."""
    run = folder.resolve().parent if folder.resolve().name == "model" else folder
    return next((path for path in (folder / RECIPE_NAME, run / RECIPE_NAME) if path.is_file()), None)


def _read_weights(folder: Path) -> tuple[Path, dict[str, Tensor]]:
    weights = folder / WEIGHTS_NAME
    if not weights.is_file():
        raise CheckpointError(f"{folder} has no {WEIGHTS_NAME}; give the model/ folder of a finished training run")
    return weights, read_tensors(weights)


def read_config(folder: Path) -> ModelConfig:
    """Read the configuration in a model's folder; raise CheckpointError if it is missing or damaged."""
    path = folder / CONFIG_NAME
    if not path.is_file():
        raise CheckpointError(f"{folder} has no {CONFIG_NAME}; give a run folder or a saved model's folder")
    try:
        if path.stat().st_size > _MAX_CONFIG_BYTES:
            raise ValueError(f"it is larger than {_MAX_CONFIG_BYTES} bytes")
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is damaged ({error}); copy it again or retrain the model") from None
    kind = data.pop("model_type", None) if isinstance(data, dict) else None
    if not isinstance(kind, str) or kind not in MODEL_KINDS:
        why = f"model_type {str(kind)[:80]!r} is not one of {', '.join(MODEL_KINDS)}"
        raise CheckpointError(f"{path} does not describe a tnet model ({why}); give a folder written by tnet")
    try:
        return parse_dataclass(MODEL_KINDS[kind].config, data, str(path))
    except TnetError as error:
        raise CheckpointError(f"{path} was edited, or written by another version of tnet: {error}") from None


def default_card(config: ModelConfig) -> str:
    """Return a model card made from the configuration."""
    looks = sum(config.default_looks[:1])
    kind = "independent labels" if config.multilabel else "exclusive classes"
    names = ", ".join(map(markdown, config.class_names[:20])) + (", ..." if len(config.class_names) > 20 else "")
    return (
        "---\nlibrary_name: tnet\npipeline_tag: image-classification\ntags: [hard-attention, tnet]\n---\n\n"
        f"# {config.title}\n\n{markdown(config.line())}.\n\n"
        f"{config.num_classes} {kind}; class indices start at 0"
        f"{': ' + names if names else ''}.\n\n"
        "```python\nimport tnet\nmodel = tnet.load_model('path/to/this/folder')\n"
        f"output = model(images, looks={looks})  # uint8 [batch, channels, height, width]\n```\n"
    )
