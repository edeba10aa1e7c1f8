"""Models from TensorFlow checkpoints: the reference implementation's, and Google's EfficientNets."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from tnet.errors import CheckpointError
from tnet.interop.tf_names import Family, family_of, tensorflow_shape, tensors_of, to_tensor, variable_names
from tnet.interop.variables import Variables
from tnet.models.config import TNetConfig
from tnet.models.io import default_card, load_model, save_model
from tnet.models.tnet import TNet

_VALUE = "/.ATTRIBUTES/VARIABLE_VALUE"
_AVERAGE = "/ExponentialMovingAverage"
_TRAINING_STATE = re.compile(
    r"_CHECKPOINTABLE_OBJECT_GRAPH|save_counter.*|iter/.*|optimizer\d*/.*|.*/\.OPTIMIZER_SLOT/.*|global_step|"
    r".*/(RMSProp|Momentum|Adam)(_\d+)?"
)
_BASELINE, _STEPS = "baseline_var", ("iter" + _VALUE, "global_step")

CLASS_INDICES = {
    "imagenet": "ImageNet's 1,000 classes by synset number (n01440764 tench is 0), without a background class",
    "fmow": "the 62 categories of Functional Map of the World, from 0",
    "cub": "the 200 species of CUB-200-2011 in the order of its classes.txt, from 0",
    "nabirds": "the 555 classes of NABirds with images, in the order of their first image in its images.txt, from 0",
}
"""Meaning of class indices, by the tag of a registered model."""


@dataclass(frozen=True)
class Imported:
    """A model read from a checkpoint, in evaluation mode."""

    model: TNet
    checkpoint: Path  # file of the variables
    family: Family
    variables: int  # number of variables that became weights
    left_out: int  # number of entries that are training state: optimizer slots and counters
    step: int | None  # training step, if stored
    baseline: float | None  # moving reward baseline, if stored


def read_tf_checkpoint(path: str | os.PathLike[str], config: TNetConfig) -> Imported:
    """Build a model and fill it from an ``.npz`` file of variables, see :data:`tnet.interop.CONVERT`.

    Every weight of the model must be filled, and every variable used except training state. If the checkpoint holds
    moving averages of the weights (Google's do), they are loaded, because those weights were evaluated.
    """
    variables = Variables(path)
    shapes = variables.shapes
    keys = _weight_keys(shapes)
    family = family_of(keys)
    model = TNet(config).eval()
    names = variable_names(model, family)
    baseline_key = keys.pop(_BASELINE, None)
    _check_shapes(variables, keys, names, model)
    state = model.state_dict()
    for name, variable in names.items():
        key, where = keys[variable], f"variable {variable!r} of {variables.path}"
        if variables.dtypes[key].kind != "f":
            raise CheckpointError(f"{where} has type {variables.dtypes[key]}; convert it to float32")
        value = variables.read(key)
        if not np.isfinite(value).all():
            raise CheckpointError(f"{where} holds infinite or NaN values; take an earlier checkpoint")
        state[name] = to_tensor(variable, value)
    model.load_state_dict(state)
    step = next((variables.scalar(key) for key in _STEPS if key in shapes), None)
    left_out = sum(_TRAINING_STATE.fullmatch(key) is not None for key in shapes)
    step = None if step is None else int(step)
    baseline = None if baseline_key is None else variables.scalar(baseline_key)
    return Imported(model, variables.path, family, len(names), left_out, step, baseline)


def _weight_keys(keys: Iterable[str]) -> dict[str, str]:
    """Return the keys of the weights by name of the variable; moving averages replace the averaged weights."""
    weights = {}
    for key in sorted(keys, key=lambda key: key.endswith(_AVERAGE)):
        if _TRAINING_STATE.fullmatch(key):
            continue
        name = key.removesuffix(_AVERAGE)
        if name.endswith(_VALUE):
            # TensorFlow writes "/" in a name as ".S", and "." as "..".
            name = name.removesuffix(_VALUE).replace("..", "\0").replace(".S", "/").replace("\0", ".")
        weights[name] = key
    return weights


def _check_shapes(variables: Variables, keys: Mapping[str, str], names: Mapping[str, str], model: TNet) -> None:
    """Compare the names and shapes of the variables with the model's weights, before any value is read."""
    shapes, tensors = variables.shapes, tensors_of(model)
    expected = {variable: tensorflow_shape(variable, tensors[name].shape) for name, variable in names.items()}
    wrong = [variable for variable in expected if variable in keys and shapes[keys[variable]] != expected[variable]]
    missing = [variable for variable in expected if variable not in keys]
    extra = [variable for variable in keys if variable not in expected]
    if not (wrong or missing or extra):
        return
    remedy = "give the model it was trained as (--model), with its settings (key=value)"
    if missing:
        what = f"lacks variable {missing[0]!r} of shape {list(expected[missing[0]])}"
    elif extra:
        what = f"has variable {extra[0]!r} of shape {list(shapes[keys[extra[0]]])}, which the model does not have"
    else:
        # The classifier shows the most likely difference, the number of classes.
        variable = next((v for v in wrong if "logits_layer" in v or "dense" in v), wrong[0])
        shape = list(shapes[keys[variable]])
        what = f"has variable {variable!r} of shape {shape}, but the model expects {list(expected[variable])}"
        if len(wrong) <= 2 and variable.rpartition("/")[2] in ("kernel", "bias"):
            remedy = f"if its number of classes differs, add num_classes={shape[-1]}"
    counts = f"({len(missing)} missing, {len(extra)} unknown, {len(wrong)} of another shape in all)"
    raise CheckpointError(f"checkpoint {variables.path} {what} {counts}; {remedy}")


def save_imported(imported: Imported, folder: str | Path, name: str, *, overwrite: bool = False) -> Path:
    """Save an imported model, and verify that the saved model gives the same finite output; see :func:`save_model`."""
    model, config = imported.model, imported.model.config
    # Two images of noise, large enough for every level.
    side = round(config.base_px / config.grid.cell_extent ** (config.levels - 1)) + 1
    size, generator = (2, config.in_channels, side, side), torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, size, dtype=torch.uint8, generator=generator)
    with torch.inference_mode():
        expected = model(images).logits
    if not bool(torch.isfinite(expected).all()):
        problem = f"the model read from {imported.checkpoint} outputs infinite or NaN values"
        raise CheckpointError(f"{problem}; take another checkpoint (nothing was written)")
    folder = save_model(model, folder, card=_card(imported, name), overwrite=overwrite)
    with torch.inference_mode():
        saved = load_model(folder)(images).logits
    if not torch.equal(saved, expected):
        raise CheckpointError(f"{folder} gives other outputs than the model that was saved there; save it elsewhere")
    return folder


def tag_of(name: str) -> str:
    """Return the dataset of a registered model: ``fmow`` for ``tnet_efficientnet_b0.fmow_448``."""
    return name.partition(".")[2].partition("_")[0]


def _card(imported: Imported, name: str) -> str:
    model = imported.model
    at_step = "" if imported.step is None else f" at step {imported.step:,}"
    author = "Google's EfficientNet" if imported.family == "google" else "the reference implementation's"
    text = (
        f"\n## Imported\n\n`{name}` from {author} TensorFlow checkpoint `{imported.checkpoint.name}`{at_step}: "
        f"{imported.variables} variables, without the optimizer's state.\n\nClass indices: "
        f"{CLASS_INDICES.get(tag_of(name), 'unknown')}.\n"
    )
    if imported.family == "reference":
        text += (
            "\nThe reference implementation evaluates on whole images resized to a square (bilinear, without "
            "antialiasing), as the recipes of its dataset do: `tnet evaluate MODEL ROOT --recipe RECIPE`; for other "
            "images use `--preprocess reference_448`, with the side of its training images in place of 448.\n"
        )
    return default_card(model.config) + text
