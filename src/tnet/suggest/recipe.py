"""Proposed recipes: chosen by image sizes, number of images and a budget, and written with the reasons.

Everything but the model is the library's defaults, or the constants below, which did best on our own datasets.
"""

from __future__ import annotations

import json
import math
import re
import shlex
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tnet.backbones import BackboneConfig
from tnet.config import to_plain
from tnet.data.augment import AugmentConfig
from tnet.data.config import DataConfig
from tnet.errors import ConfigError
from tnet.geometry import total_looks
from tnet.models.config import TNetConfig
from tnet.objectives import ObjectiveConfig
from tnet.suggest.plan import Weights, choose_plan, format_macs
from tnet.suggest.probe import probe
from tnet.suggest.reasons import (
    Reason,
    data_warnings,
    format_ratio,
    model_reasons,
    model_warnings,
    other_reasons,
    probe_reason,
)
from tnet.suggest.survey import Survey
from tnet.text import on_one_line
from tnet.training.config import OptimConfig, TrainConfig
from tnet.training.recipe import Recipe, parse_recipe

DEFAULT_BACKBONE = BackboneConfig.name
# For fine-tuning, which learning from worth was studied in; from random weights it was not. Also in own_images.yaml.
OBJECTIVE = ObjectiveConfig(worth_weight=1.0, reinforce_weight=0.0)
OPTIM = OptimConfig(lr=1e-3, backbone_lr=1e-4)

_BATCH_PX = 80 * 224**2  # pixels per training step: 16 images of 5 glimpses at 224 px
_MOST_BATCH = 32
_STEPS, _EPOCHS = 2000, (5, 50)  # aim in training steps, within these numbers of epochs
_FEW_TO_TRAIN = 1000  # training images below which augmentation is stronger

# Keys that a recipe shows even if they have the default value.
_ALWAYS = {
    "model": ("base_px", "levels", "grid", "looks"),
    "objective": (),
    "optim": ("lr", "schedule"),
    "data": ("kind", "root", "train", "val"),
    "train": ("epochs", "batch_size"),
}
_BARE = re.compile(r"[A-Za-z][\w./-]*", re.ASCII)
_NOT_BARE = {"true", "false", "null", "yes", "no", "on", "off", "y", "n"}


@dataclass(frozen=True)
class Proposal:
    """A proposed recipe, with costs in multiply-adds per image."""

    survey: Survey
    recipe: Recipe  # without the classes, which come from the data
    reasons: tuple[Reason, ...]
    warnings: tuple[str, ...]
    macs: int
    macs_base: int  # the plain backbone on the whole image at the base resolution
    macs_full: int | None  # the plain backbone on the median image at full size; ``None`` if it does not accept that


def parse_macs(text: str) -> int:
    """Parse a number of multiply-adds: ``1.0G``, ``300M``, ``2e8``."""
    match = re.fullmatch(r"(\d{1,20}(?:\.\d{1,20})?(?:e\d{1,2})?)\s*([kmgt]?)", text.strip(), re.IGNORECASE)
    macs = float(match[1]) * {"": 1.0, "k": 1e3, "m": 1e6, "g": 1e9, "t": 1e12}[match[2].lower()] if match else 0.0
    if macs < 1:
        raise ConfigError(f"the budget {text!r} is not a number of multiply-adds; give 1 or more, such as 1.0G or 300M")
    return round(macs)


def propose(
    survey: Survey,
    *,
    budget_macs: int | None = None,
    backbone: str = DEFAULT_BACKBONE,
    weights_file: Path | None = None,
    probe_images: int = 0,
    progress: bool = True,
) -> Proposal:
    """Propose a recipe; weights are loaded for the test alone.

    Args:
        survey: survey of the images.
        budget_macs: maximum multiply-adds per image; ``None`` for half of the plain backbone's at full resolution, if
            possible.
        backbone: ``bagnet77`` or the name of a timm model.
        weights_file: file of the backbone's weights, instead of timm's.
        probe_images: training images to test with whether looks are likely to pay (:mod:`tnet.suggest.probe`).
        progress: show the progress of the test on standard error.

    Raises:
        ConfigError: the backbone is unknown, the budget too small for the whole image alone, or the test impossible.
        DataError: an image of the test cannot be read.
    """
    weights = Weights.of(backbone, weights_file)
    plan = choose_plan(survey, weights, budget_macs)
    # Training sets the classes.
    model = replace(plan.config, num_classes=TNetConfig.num_classes, multilabel=False)
    title = f"{on_one_line(survey.place)}, {len(survey.classes)} classes"
    optim = OPTIM if weights.is_pretrained else replace(OPTIM, backbone_lr=None)
    recipe = Recipe(title, 0, model, _objective(model), optim, _data(survey), _train(survey, model))
    reasons = [*model_reasons(survey, plan, weights, budget_macs)]
    if probe_images:
        reasons.append(probe_reason(probe(survey, model, images=probe_images, progress=progress)))
    reasons += other_reasons(survey, recipe, weights, _STEPS)
    warnings = (*data_warnings(survey), *model_warnings(survey, plan, weights, budget_macs))
    return Proposal(survey, recipe, tuple(reasons), warnings, plan.macs, plan.macs_whole, plan.macs_full)


def _objective(model: TNetConfig) -> ObjectiveConfig:
    """Return the objective: worth needs siblings to compare, so single looks are rewarded instead."""
    if max(model.looks, default=0) < 2:
        return ObjectiveConfig()
    return OBJECTIVE if min(model.looks) > 1 else replace(OBJECTIVE, reinforce_weight=ObjectiveConfig.reinforce_weight)


def _train(survey: Survey, model: TNetConfig) -> TrainConfig:
    """Return the batch size by pixels per step, and the epochs by the steps that this leaves."""
    image_px = (1 + total_looks(model.looks)) * model.base_px**2
    # At most a fourth of the images, so that an epoch is more than one step.
    most = min(_MOST_BATCH, _BATCH_PX / image_px, survey.train_images / 4)
    batch_size = max(2, 2 ** math.floor(math.log2(max(1.0, most))))
    epochs = math.ceil(_STEPS / max(1, survey.train_images // batch_size))
    return TrainConfig(epochs=min(max(epochs, _EPOCHS[0]), _EPOCHS[1]), batch_size=batch_size, workers=2)


def _data(survey: Survey) -> DataConfig:
    turns, few = survey.count("has_no_up") > 0, survey.train_images < _FEW_TO_TRAIN
    augment = AugmentConfig(horizontal_flip=True, vertical_flip=turns, quarter_turns=turns, crop_area=(0.8, 1.0))
    if few:
        augment = replace(augment, crop_area=(0.6, 1.0), brightness=0.2, contrast=0.2)
    all_lazy = survey.count("is_lazy") == len(survey.images)
    return replace(survey.data, read="lazy" if all_lazy else survey.data.read, augment=augment)


def explain(proposal: Proposal) -> str:
    """Return the survey, the reason for each choice, costs and warnings as plain text."""
    width = 2 + max(len(reason.topic) for reason in proposal.reasons)
    lines = [_describe(proposal.survey), ""]
    for reason in proposal.reasons:
        topic = reason.topic.ljust(width)
        lines += textwrap.wrap(reason.text, 116, initial_indent=topic, subsequent_indent=" " * width)
    lines += ["", *_costs(proposal)]
    for warning in proposal.warnings:
        lines += ["", *textwrap.wrap(f"warning: {on_one_line(warning)}", 116, subsequent_indent="  ")]
    return "\n".join(lines) + "\n"


def recipe_text(proposal: Proposal, run: str = "runs/mine") -> str:
    """Return the recipe as YAML, with the reasons as comments; ``run`` is the run directory of the command in it."""
    recipe = proposal.recipe
    head = [f"Proposed by `tnet suggest`. {_describe(proposal.survey)}"]
    head.append(f"Command: tnet train THIS_FILE --out {shlex.quote(run)}")
    if recipe.model.backbone.pretrained:  # type: ignore[attr-defined]
        head.append(
            "Offline: add model.backbone.pretrained=false model.backbone.weights=FILE to the command, with a "
            f".safetensors or .pth file of timm's {recipe.model.network}, unless timm's own weights are in its cache."
        )
    head += _costs(proposal)
    head += [f"Warning: {warning}" for warning in proposal.warnings]
    lines = [line for text in head for line in _comment(text)]
    lines.append(f"title: {_flow(recipe.title)}")
    plain, default = to_plain(recipe), to_plain(Recipe())
    for section, always in _ALWAYS.items():
        values = plain[section]
        if not always and values == default[section]:
            continue
        lines.append(f"{section}:")
        for reason in proposal.reasons:
            if reason.section == section:
                lines += [f"  {line}" for line in _comment(f"{reason.topic}: {reason.text}")]
        for key, value in values.items():
            if key in always:
                lines.append(f"  {key}: {_flow(value)}")
            elif value != default[section][key]:
                lines.append(f"  {key}: {_flow(_changed(value, default[section][key]))}")
    text = "\n".join(lines) + "\n"
    assert parse_recipe(text) == recipe
    return text


def _describe(survey: Survey) -> str:
    height, width = survey.median_hw
    common = max(survey.train_counts) / max(1, sum(survey.train_counts))
    least, low, high, most = (survey.longer_side_px(share) for share in (0, 0.05, 0.95, 1))
    varying = f"longer sides are {least} to {most} px, 9 in 10 of them {low} to {high} px"
    spread = f"all longer sides are {least} px" if least == most else varying
    text = (
        f"{on_one_line(survey.place)}: {survey.train_images} training and {survey.val_images} validation images, "
        f"{len(survey.classes)} {'labels' if survey.multilabel else 'classes'} (the most common one is {common:.0%}). "
        f"The median of {len(survey.images)} headers is {height} x {width} px; {spread}."
    )
    return "\n".join(textwrap.wrap(text, 116))


def _costs(proposal: Proposal) -> Iterator[str]:
    base_px, (height, width) = proposal.recipe.model.region_px, proposal.survey.median_hw
    yield f"Multiply-adds per image: {format_macs(proposal.macs)} as proposed;"
    yield f"  {format_macs(proposal.macs_base)}, the plain backbone on the whole image at {base_px} px;"
    if proposal.macs_full is None:
        yield f"  the plain backbone does not support images of {height} x {width} px."
        return
    ratio = format_ratio(proposal.macs_full / proposal.macs)
    yield f"  {format_macs(proposal.macs_full)}, the plain backbone at {height} x {width} px: {ratio} times as much."


def _comment(text: str) -> list[str]:
    return textwrap.wrap(on_one_line(text), 116, initial_indent="# ", subsequent_indent="#   ")


def _changed(value: Any, default: Any) -> Any:
    """Keep nested keys whose values differ from the default, and the name of what they belong to."""
    if not isinstance(value, dict) or not isinstance(default, dict):
        return value
    kept = {key: item for key, item in value.items() if key == "name" or item != default.get(key, ...)}
    return {key: _changed(item, default.get(key)) for key, item in kept.items()}


def _flow(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_flow(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_flow, value)) + "]"
    if isinstance(value, str) and _BARE.fullmatch(value) and value.lower() not in _NOT_BARE:
        return value
    return json.dumps(value, ensure_ascii=not (isinstance(value, str) and value.isprintable()))
