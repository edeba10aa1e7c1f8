"""Models from TensorFlow checkpoints: the reference implementation's, and Google's EfficientNets."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from tnet.errors import CheckpointError
from tnet.interop.tf_bundle import TFCheckpoint, find_checkpoint
from tnet.interop.tf_names import Family, family_of, tensorflow_shape, tensors_of, to_tensor, variable_names
from tnet.models.config import TNetConfig
from tnet.models.io import default_card, load_model, save_model
from tnet.models.tnet import TNet

_VALUE = "/.ATTRIBUTES/VARIABLE_VALUE"
_AVERAGE = "/ExponentialMovingAverage"
# What training keeps beside the weights.
_TRAINING_STATE = re.compile(
    r"_CHECKPOINTABLE_OBJECT_GRAPH|save_counter.*|iter/.*|optimizer\d*/.*|.*/\.OPTIMIZER_SLOT/.*|global_step|"
    r".*/(RMSProp|Momentum|Adam)(_\d+)?"
)
_BASELINE, _STEP = "baseline_var", "iter"
_PROOF_BATCH = 2

CLASS_INDICES = {
    "imagenet": "ImageNet's 1,000 classes in the order of their synset numbers (n01440764 tench is 0), without a "
    "background class",
    "fmow": "the 62 categories of Functional Map of the World, from 0",
    "cub": "the 200 species of CUB-200-2011 in the order of its classes.txt, whose numbers start at 1, less 1",
    "nabirds": "the 555 classes of NABirds that have images, as they first come in its images.txt, from 0",
}
"""What class indices mean, by the tag of a registered model."""


@dataclass(frozen=True)
class Imported:
    """A model that was read from a checkpoint.

    Attributes:
        model: in evaluation mode.
        checkpoint: prefix of the checkpoint's files.
        family: whose names its variables have.
        variables: number of variables that became weights.
        left_out: number of entries that are training state: the optimiser's, and counters.
        step: training step at which it was saved; ``None`` if it does not say.
        baseline: moving reward baseline of its training; ``None`` if it does not say.
    """

    model: TNet
    checkpoint: Path
    family: Family
    variables: int
    left_out: int
    step: int | None
    baseline: float | None


def read_tf_checkpoint(path: str | os.PathLike[str], config: TNetConfig) -> Imported:
    """Build a model and fill it from a TensorFlow checkpoint.

    Every variable of the checkpoint must be used (but training state), and every weight of the model filled. Where
    Google's checkpoints hold moving averages of the weights, those are taken: they are what was evaluated.

    Args:
        path: the checkpoint's folder, its prefix, or one of its files.
        config: of the model it belongs to.

    Raises:
        CheckpointError: no checkpoint, a damaged one, or one of another model: which variable, what shape was found
            and what was expected.
        ConfigError: a model that no checkpoint exists for.
    """
    prefix = find_checkpoint(path)
    checkpoint = TFCheckpoint(prefix)
    checkpoint.check_complete()
    keys, left_out = _variables(checkpoint.shapes)
    family = family_of(list(keys))
    model = TNet(config).eval()
    names = variable_names(model, family)
    baseline = keys.pop(_BASELINE, None)
    _compare(prefix, checkpoint.shapes, keys, names, tensors_of(model))
    state = model.state_dict()
    for name, variable in names.items():
        value = checkpoint.read(keys[variable])
        if not np.isfinite(value).all():
            raise CheckpointError(
                f"{prefix}: variable {variable!r} holds infinite or NaN numbers; take an earlier checkpoint"
            )
        state[name] = to_tensor(variable, value)
    model.load_state_dict(state)
    step = next((key for key in (_STEP + _VALUE, "global_step") if key in checkpoint.shapes), None)
    return Imported(
        model=model,
        checkpoint=prefix,
        family=family,
        variables=len(names),
        left_out=left_out,
        step=None if step is None else int(checkpoint.read(step)),
        baseline=None if baseline is None else float(checkpoint.read(baseline)),
    )


def _variables(shapes: Mapping[str, tuple[int, ...]]) -> tuple[dict[str, str], int]:
    """Keys of the weights by name of the variable, moving averages in place of what they average; and what is left."""
    kept = [key for key in shapes if not _TRAINING_STATE.fullmatch(key)]
    keys = {}
    for key in sorted(kept, key=lambda key: key.endswith(_AVERAGE)):
        name = key.removesuffix(_AVERAGE)
        if name.endswith(_VALUE):
            # TensorFlow writes "/" in a name as ".S", and "." as "..".
            name = name.removesuffix(_VALUE).replace("..", "\0").replace(".S", "/").replace("\0", ".")
        keys[name] = key
    return keys, len(shapes) - len(kept)


def _compare(
    prefix: Path,
    shapes: Mapping[str, tuple[int, ...]],
    keys: Mapping[str, str],
    names: Mapping[str, str],
    tensors: Mapping[str, Tensor],
) -> None:
    """Hold the checkpoint's variables against the model's weights, before any is read."""
    expected = {variable: tensorflow_shape(variable, tensors[name].shape) for name, variable in names.items()}
    wrong = [variable for variable in expected if variable in keys and shapes[keys[variable]] != expected[variable]]
    missing = [variable for variable in expected if variable not in keys]
    unknown = [variable for variable in keys if variable not in expected]
    if not (wrong or missing or unknown):
        return
    counts = f"({len(missing)} missing, {len(unknown)} unknown, {len(wrong)} of another shape in all)"
    remedy = "name the model it was trained as (--model), with its settings (key=value)"
    if missing:
        variable = missing[0]
        what = f"lacks variable {variable!r}, for which shape {list(expected[variable])} was expected"
    elif unknown:
        variable = unknown[0]
        what = f"has variable {variable!r} of shape {list(shapes[keys[variable]])}, which the model does not have"
    else:
        # The classifier says most about what differs: the number of classes.
        variable = next((v for v in wrong if "logits_layer" in v or "dense" in v), wrong[0])
        found = list(shapes[keys[variable]])
        what = f"has variable {variable!r} of shape {found}, but the model expects {list(expected[variable])}"
        if len(wrong) <= 2 and variable.rpartition("/")[2] in ("kernel", "bias"):
            remedy = f"if its number of classes differs, add num_classes={found[-1]}"
    raise CheckpointError(f"checkpoint {prefix} {what} {counts}; {remedy}")


def proof_images(config: TNetConfig) -> UInt8[Tensor, "batch channels side side"]:
    """Noise for a forward pass: large enough for every level of a model."""
    side = round(config.base_px / config.grid.cell_extent ** (config.levels - 1)) + 1
    generator = torch.Generator().manual_seed(0)
    size = (_PROOF_BATCH, config.in_channels, side, side)
    return torch.randint(0, 256, size, dtype=torch.uint8, generator=generator)


def save_imported(imported: Imported, folder: str | Path, name: str) -> Path:
    """Write an imported model, and verify it: what is read back must answer as the one in memory.

    Args:
        imported: the model.
        folder: replaced if it exists.
        name: of the registered model, for the model card.

    Raises:
        CheckpointError: answers that are not numbers, or differ.
        OutputError: the folder cannot be written.
    """
    model = imported.model
    images = proof_images(model.config)
    with torch.inference_mode():
        expected = model(images).logits
    if not bool(torch.isfinite(expected).all()):
        raise CheckpointError(
            f"the model read from {imported.checkpoint} answers with infinite or NaN numbers; nothing was written, "
            "take another checkpoint"
        )
    folder = save_model(model, folder, card=_card(imported, name))
    with torch.inference_mode():
        found = load_model(folder)(images).logits
    if not torch.equal(found, expected):
        raise CheckpointError(f"{folder} does not answer as the model that was written there; write it elsewhere")
    return folder


def tag_of(name: str) -> str:
    """The data set that a registered model is of: ``fmow`` of ``tnet_efficientnet_b0.fmow_448``."""
    return name.partition(".")[2].partition("_")[0]


def _card(imported: Imported, name: str) -> str:
    """The model card: where the weights are from, what classes mean, how images were prepared."""
    model, tag = imported.model, tag_of(name)
    at_step = "" if imported.step is None else f" at step {imported.step:,}"
    author = "Google's EfficientNet" if imported.family == "google" else "the reference implementation's"
    classes = CLASS_INDICES.get(tag, "not known")
    text = (
        f"\n## Imported\n\n`{name}` from {author} TensorFlow checkpoint `{imported.checkpoint.name}`{at_step}: "
        f"{imported.variables} variables; the optimiser's state is left out.\n\nClass indices: {classes}.\n"
    )
    if imported.family == "reference":
        text += (
            "\nThe reference implementation evaluates on whole images resized to one square (bilinear, without "
            "antialiasing), as recipes of its data set say: `tnet evaluate MODEL ROOT --recipe RECIPE`; of other "
            "pictures `--preprocess reference_448`, with the side of its training images in place of 448.\n"
        )
    return default_card(model.config) + text
