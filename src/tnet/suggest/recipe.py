"""A recipe for somebody's own pictures, by their sizes, their number and what may be spent on one; with the reasons.

What is proposed follows from geometry: the base resolution leaves something to look closer at, cells and levels are
such that the last look shows pixels of the median picture at about their own resolution, and looks are as many as the
multiply-adds allow. The other values are those that did best on our own sets (docs/results.md).
"""

from __future__ import annotations

import json
import math
import re
import shlex
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from tnet.config import to_plain
from tnet.data.augment import AugmentConfig
from tnet.data.config import DataConfig
from tnet.errors import ConfigError
from tnet.geometry import total_looks
from tnet.models.config import TNetConfig
from tnet.objectives import ObjectiveConfig
from tnet.suggest.plan import Weights, amount, choose_plan
from tnet.suggest.reasons import Reason, data_warnings, model_reasons, model_warnings, other_reasons, times
from tnet.suggest.survey import Survey
from tnet.training.recipe import OptimConfig, Recipe, TrainConfig, parse_recipe

DEFAULT_BACKBONE = "mobilenetv2_100"

_BATCH_PX = 80 * 224**2  # pixels shown in a training step: 16 images of 5 glimpses at 224 px
_MOST_BATCH = 32
_STEPS, _EPOCHS = 2000, (5, 50)  # training steps aimed at, and the fewest and most epochs they may take
_LR, _BACKBONE_LR, _WEIGHT_DECAY = 1e-3, 1e-4, 1e-2
_RECALIBRATE_BATCHES = 12
_FEW_TO_TRAIN = 1000  # training pictures below which they are changed more

# What a recipe says even where it is the default.
_ALWAYS = {
    "model": ("base_px", "levels", "grid", "looks"),
    "objective": (),
    "optim": ("lr", "schedule"),
    "data": ("kind", "root", "train", "val"),
    "train": ("epochs", "batch_size"),
}
_BARE = re.compile(r"[A-Za-z][\w./-]*")
_NOT_BARE = {"true", "false", "null", "yes", "no", "on", "off", "y", "n"}


@dataclass(frozen=True)
class Proposal:
    """A recipe and what speaks for it.

    Attributes:
        survey: of the pictures that it is for.
        recipe: complete but for the classes, which come from the data.
        reasons: one for each choice.
        warnings: what stands in the way of a good result.
        macs: multiply-adds of one picture as proposed.
        macs_base: of the plain backbone on the whole picture at the base resolution.
        macs_full: of the plain backbone on the median picture at full resolution; ``None`` if it takes none such.
    """

    survey: Survey
    recipe: Recipe
    reasons: tuple[Reason, ...]
    warnings: tuple[str, ...]
    macs: int
    macs_base: int
    macs_full: int | None


def parse_macs(text: str) -> int:
    """Read a number of multiply-adds: ``1.0G``, ``300M``, ``2e8``.

    Raises:
        ConfigError: it is not a number of at least 1.
    """
    match = re.fullmatch(r"(\d{1,20}(?:\.\d{1,20})?(?:e\d{1,2})?)\s*([kmgt]?)", text.strip(), re.IGNORECASE)
    macs = float(match[1]) * {"": 1.0, "k": 1e3, "m": 1e6, "g": 1e9, "t": 1e12}[match[2].lower()] if match else 0.0
    if macs < 1:
        raise ConfigError(
            f"the budget {text!r} is not a number of multiply-adds; give a positive number such as 1.0G or 300M"
        )
    return round(macs)


def propose(survey: Survey, *, budget_macs: int | None = None, backbone: str = DEFAULT_BACKBONE) -> Proposal:
    """Propose a recipe.

    No weights are loaded or fetched.

    Args:
        survey: of the pictures.
        budget_macs: most multiply-adds that one picture may take; ``None`` for half of what the plain backbone takes at
            full resolution, if that can be had.
        backbone: ``bagnet77`` or the name of a timm model.

    Raises:
        ConfigError: no such backbone, or a budget that does not suffice for the whole picture alone.
    """
    weights = Weights.of(backbone)
    plan = choose_plan(survey, weights, budget_macs)
    train, optim = _training(survey, plan.config, weights)
    # The data sets the classes when training starts.
    model = replace(plan.config, num_classes=TNetConfig.num_classes, multilabel=False)
    title = f"{_printable(survey.place)}, {len(survey.classes)} classes"
    data, objective = _data(survey), _objective(model)
    recipe = Recipe(title=title, model=model, objective=objective, optim=optim, data=data, train=train)
    reasons = (*model_reasons(survey, plan, weights, budget_macs), *other_reasons(survey, recipe, weights, _STEPS))
    warnings = (*data_warnings(survey), *model_warnings(survey, plan, weights, budget_macs))
    return Proposal(survey, recipe, reasons, warnings, plan.macs, plan.macs_whole, plan.macs_full)


def _objective(model: TNetConfig) -> ObjectiveConfig:
    """The locator learns from what looks are worth; from rewards where a look has no other to be compared with."""
    if max(model.looks, default=0) < 2:
        return ObjectiveConfig()
    rewarded = ObjectiveConfig.reinforce_weight if min(model.looks) < 2 else 0.0
    return ObjectiveConfig(worth_weight=1.0, reinforce_weight=rewarded)


def _training(survey: Survey, model: TNetConfig, weights: Weights) -> tuple[TrainConfig, OptimConfig]:
    """Batch size by what a step shows, epochs by the steps that this leaves."""
    shown_px = (1 + total_looks(model.looks)) * model.base_px**2
    # A fourth of the pictures at most, so that an epoch is more than one step.
    most = min(_MOST_BATCH, _BATCH_PX / shown_px, survey.train_images / 4)
    batch = max(2, 2 ** math.floor(math.log2(max(1.0, most))))
    steps = max(1, survey.train_images // batch)
    epochs = min(max(math.ceil(_STEPS / steps), _EPOCHS[0]), _EPOCHS[1])
    train = TrainConfig(epochs=epochs, batch_size=batch, workers=2, recalibrate_batches=_RECALIBRATE_BATCHES)
    backbone_lr = _BACKBONE_LR if weights.hub_id else None
    return train, OptimConfig(lr=_LR, backbone_lr=backbone_lr, weight_decay=_WEIGHT_DECAY)


def _data(survey: Survey) -> DataConfig:
    turns, few = survey.count("has_no_up") > 0, survey.train_images < _FEW_TO_TRAIN
    changes = AugmentConfig(
        horizontal_flip=True,
        vertical_flip=turns,
        quarter_turns=turns,
        crop_area=(0.6 if few else 0.8, 1.0),
        brightness=0.2 if few else 0.0,
        contrast=0.2 if few else 0.0,
    )
    all_lazy = survey.count("is_lazy") == len(survey.pictures)
    return replace(survey.data, read="lazy" if all_lazy else survey.data.read, augment=changes)


def explain(proposal: Proposal) -> str:
    """What was found and what is proposed, a line a choice, with costs and warnings; plain text."""
    width = 2 + max(len(reason.topic) for reason in proposal.reasons)
    lines = [_found(proposal.survey), ""]
    for reason in proposal.reasons:
        lines += textwrap.wrap(
            reason.text, 116, initial_indent=reason.topic.ljust(width), subsequent_indent=" " * width
        )
    lines += ["", *_costs(proposal)]
    for warning in proposal.warnings:
        lines += ["", *textwrap.wrap(f"warning: {_printable(warning)}", 116, subsequent_indent="  ")]
    return "\n".join(lines) + "\n"


def recipe_text(proposal: Proposal, run: str = "runs/mine") -> str:
    """The recipe as YAML, with the reasons as comments.

    Args:
        proposal: what to write.
        run: run directory for the command that its head shows.
    """
    recipe, survey = proposal.recipe, proposal.survey
    name = recipe.model.network
    head = [f"Proposed by `tnet suggest`. {_found(survey)}"]
    head.append(f"Command: tnet train THIS_FILE --out {shlex.quote(run)}")
    if recipe.model.backbone.pretrained:  # type: ignore[attr-defined]
        head.append(
            "Offline: add model.backbone.pretrained=false model.backbone.weights=FILE to the command, with a "
            f".safetensors or .pth file of timm's {name}; once fetched, timm's own weights are found in its cache."
        )
    head += _costs(proposal)
    head += [f"Warning: {warning}" for warning in proposal.warnings]
    lines = [line for text in head for line in _comment(text)]
    lines.append(f"title: {_flow(recipe.title)}")
    plain, default = to_plain(recipe), to_plain(Recipe())
    for section, always in _ALWAYS.items():
        if not always and plain[section] == default[section]:
            continue
        lines.append(f"{section}:")
        for reason in proposal.reasons:
            if reason.section == section:
                lines += [f"  {line}" for line in _comment(f"{reason.topic}: {reason.text}")]
        values = plain[section]
        lines += [
            f"  {key}: {_flow(values[key] if key in always else _changed(values[key], default[section][key]))}"
            for key in sorted(values, key=lambda key: key in ("mean", "std"))
            if key in always or values[key] != default[section][key]
        ]
    text = "\n".join(lines) + "\n"
    assert parse_recipe(text) == recipe
    return text


def _found(survey: Survey) -> str:
    height, width = survey.median_hw
    common = max(survey.train_counts) / max(1, sum(survey.train_counts))
    least, low, high, most = (survey.longer_side_px(share) for share in (0, 0.05, 0.95, 1))
    spread = (
        f"all with a longer side of {least} px"
        if least == most
        else (f"and longer sides are {least} to {most} px, 9 in 10 of them {low} to {high} px")
    )
    kind = "labels" if survey.multilabel else "classes"
    text = (
        f"{_printable(survey.place)}: {survey.train_images} training and {survey.val_images} validation pictures, "
        f"{len(survey.classes)} {kind} (the most common one is {common:.0%}). By {len(survey.pictures)} headers the "
        f"median is {height} x {width} px, {spread}."
    )
    return "\n".join(textwrap.wrap(text, 116))


def _costs(proposal: Proposal) -> Iterator[str]:
    """The multiply-adds of one picture, against the plain backbone."""
    base_px, (height, width) = proposal.recipe.model.look_px, proposal.survey.median_hw
    yield f"Multiply-adds of one picture: {amount(proposal.macs)} as proposed;"
    yield f"  {amount(proposal.macs_base)}, the plain backbone on the whole at {base_px} px;"
    if proposal.macs_full is None:
        yield f"  the plain backbone takes no picture of {height} x {width} px."
        return
    ratio = times(proposal.macs_full / proposal.macs)
    yield f"  {amount(proposal.macs_full)}, the plain backbone on all {height} x {width} px: {ratio} times as proposed."


def _printable(text: str) -> str:
    """On one line, without what would end a comment or upset a terminal."""
    return "".join(letter if letter.isprintable() else "?" for letter in " ".join(text.split()))


def _comment(text: str) -> list[str]:
    return textwrap.wrap(_printable(text), 116, initial_indent="# ", subsequent_indent="#   ")


def _changed(value: Any, default: Any) -> Any:
    """Of nested keys, those whose values are not the default's."""
    if not isinstance(value, dict) or not isinstance(default, dict):
        return value
    return {key: _changed(item, default.get(key)) for key, item in value.items() if item != default.get(key, ...)}


def _flow(value: Any) -> str:
    """A value as YAML on one line."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_flow(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_flow, value)) + "]"
    if isinstance(value, str) and _BARE.fullmatch(value) and value.isascii() and value.lower() not in _NOT_BARE:
        return value
    return json.dumps(value, ensure_ascii=not (isinstance(value, str) and value.isprintable()))
