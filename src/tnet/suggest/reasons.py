"""Why a recipe is proposed as it is, and what stands in its way: sentences, with the numbers that they follow from."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from tnet.geometry import total_looks
from tnet.objectives import ObjectiveConfig
from tnet.suggest.plan import BASES_PX, GAIN, LEAST_GAIN, LookPlan, Weights, amount
from tnet.suggest.survey import Survey
from tnet.training.recipe import Recipe

_FEW_PICTURES = 20  # of a class, to train with
_IMBALANCED = 10.0  # times as many pictures as another class
_SIZES_VARY = 3.0  # longer sides: that which 95 % do not exceed, over that which 5 % do not


@dataclass(frozen=True)
class Reason:
    """Why something is as it is proposed.

    Attributes:
        topic: what it is about, in a word or two.
        section: of the recipe that it belongs to: ``model``, ``optim``, ``data`` or ``train``.
        text: the value, and why.
    """

    topic: str
    section: str
    text: str


def times(ratio: float) -> str:
    """A ratio, short."""
    return f"{ratio:.1f}" if ratio < 9.95 else f"{ratio:,.0f}"


def model_reasons(survey: Survey, plan: LookPlan, weights: Weights, budget_macs: int | None) -> Iterator[Reason]:
    """Why the model looks as it does."""
    config, (height, width) = plan.config, survey.median_hw
    longer, base_px = max(height, width), config.base_px
    if not weights.hub_id:
        state = "no pretrained weights are known, so it starts at random, and needs more pictures and epochs"
    elif weights.is_cached:
        state = "starts from timm's pretrained weights, which are in the local cache"
    else:
        state = "starts from timm's pretrained weights, which are fetched when first used"
    yield Reason("backbone", "model", f"{weights.name}: {state}")
    shrunk = f"the median picture, {height} x {width} px, is shrunk {times(longer / base_px)} times to be seen whole"
    yield Reason("base", "model", f"{base_px} px: {shrunk}")
    if plan.step is None:
        yield Reason("levels", "model", "1: the plain backbone on the whole picture")
        return
    extent, deepest = config.grid.cell_extent, config.levels - 1
    scale = plan.step.finest_scale
    seen = "native resolution" if scale < 1.05 else f"1/{scale:.1f} of native resolution"
    power = f"^{deepest}" if deepest > 1 else ""
    yield Reason(
        "levels",
        "model",
        f"{config.levels}, the whole included: regions of the last are {longer} x {extent:.3f}{power} = "
        f"{longer * extent**deepest:.0f} px, seen at {base_px} px: {seen}",
    )
    yield Reason(
        "grid",
        "model",
        f"{config.grid.rows} x {config.grid.cols} cells of {extent:.3f} of a side: neighbours share half or more, so "
        "that what is up to half a cell large is whole in one of them",
    )
    if budget_macs is not None:
        limit = f", within the budget of {amount(budget_macs)}"
    elif plan.macs_full is not None and plan.macs <= plan.macs_full / 2:
        limit = ", at most half as much as the plain backbone at full resolution"
    else:
        limit = ""
    inside = "" if deepest == 1 else f" ({' x '.join(map(str, config.looks))}, level by level)"
    yield Reason(
        "looks",
        "model",
        f"{total_looks(config.looks)}{inside}, {1 + total_looks(config.looks)} glimpses with the whole{limit}; the "
        "number can be changed at inference",
    )
    same_px = 16 * round(base_px * math.sqrt(1 + total_looks(config.looks)) / 16)  # as many pixels as in all glimpses
    yield Reason(
        "compare",
        "model",
        f"the plain backbone costs as much with levels: 1, looks: [], base_px: {same_px}; where the subject fills the "
        "picture it can be better, so train it too",
    )


def other_reasons(survey: Survey, recipe: Recipe, weights: Weights, steps: int) -> Iterator[Reason]:
    """Why the rest of the recipe is as it is.

    Args:
        survey: of the pictures.
        recipe: that is proposed.
        weights: of its backbone.
        steps: of training that are aimed at.
    """
    train, optim = recipe.train, recipe.optim
    new = f"{optim.lr:g} for the new layers, {optim.backbone_lr or optim.lr:g} for the pretrained backbone"
    rates = new if weights.hub_id else f"{optim.lr:g} for all layers, none of which is pretrained"
    if isinstance(recipe.objective, ObjectiveConfig) and recipe.objective.worth_weight:
        yield Reason(
            "locator",
            "objective",
            "learns from what each region looked at is worth beside its siblings, so that every look teaches"
            + (", and from rewards where it has none" if recipe.objective.reinforce_weight else ""),
        )
    yield Reason("rates", "optim", f"{rates}; falling to 0 along a cosine")
    yield from _data_reasons(survey, recipe)
    glimpses = 1 + total_looks(recipe.model.default_looks)
    yield Reason("batch", "train", f"{train.batch_size} pictures of {glimpses} glimpses; halve it if memory runs out")
    each = max(1, survey.train_images // train.batch_size)
    aim = f"aiming at {steps} steps"
    if train.epochs * each < steps:
        done = train.epochs * each
        aim = f"{done} of the {steps} steps that are aimed at: more passes over few pictures learn them by heart"
    yield Reason("epochs", "train", f"{train.epochs} of {each} steps each, {aim}")


def _data_reasons(survey: Survey, recipe: Recipe) -> Iterator[Reason]:
    augment = recipe.data.augment
    lazy, headers = survey.count("is_lazy"), len(survey.pictures)
    reading = {
        0: "each picture is decoded whole: none is large, or of a kind that is read in parts",
        headers: "only what is looked at is read: all are large, slides, maps or OME-Zarr",
    }
    some = f"of {lazy} of {headers} pictures only what is looked at is read, the others are decoded whole"
    yield Reason("reading", "data", reading.get(lazy, some))
    grey = survey.count("is_grey")
    if grey:
        yield Reason(
            "colour", "data", f"{grey} of {headers} are grey: shown as three equal channels, as weights expect"
        )
    turns = "mirrored both ways and turned (slides and maps have no up)" if augment.quarter_turns else "mirrored"
    light = ", made lighter and darker, since they are few" if augment.brightness else ""
    unless = "" if augment.quarter_turns else "; horizontal_flip: false where left and right differ in meaning"
    area = f"cut to {augment.crop_area[0]:.0%} of their area or more"
    yield Reason("changes", "data", f"training pictures are {turns}, {area}{light}{unless}")
    if recipe.data.val is None:
        yield Reason(
            "validation",
            "data",
            f"{survey.val_images} pictures are set aside, {recipe.data.val_fraction:.0%} of each class, by a hash of "
            "their names; if several show one patient, place or film, split by hand",
        )


def data_warnings(survey: Survey) -> Iterator[str]:
    """What is unfortunate about the pictures."""
    counts = sorted(zip(survey.train_counts, survey.classes, strict=True))
    few = [f"{name} ({count})" for count, name in counts if count < _FEW_PICTURES]
    if few:
        shown = ", ".join(few[:5]) + (f" and {len(few) - 5} more" if len(few) > 5 else "")
        yield f"fewer than {_FEW_PICTURES} training pictures: {shown}; add some, little can be learned from these"
    (least, rare), (most, common) = counts[0], counts[-1]
    if most > _IMBALANCED * max(1, least):
        yield (
            f"{common} has {most} training pictures, {rare} only {least}: accuracy then says little of the rare ones; "
            "even them out, or compare predictions (tnet predict) class by class"
        )
    if survey.left_out:
        shown = ", ".join(f"{count} {ending}" for ending, count in survey.left_out)
        yield f"files of kinds that are not read were left out: {shown}; convert them, to JPEG or TIFF, say"
    low, high = survey.longer_side_px(0.05), survey.longer_side_px(0.95)
    if high > _SIZES_VARY * low:
        yield (
            f"sizes vary a lot: of 9 in 10 pictures the longer side is {low} to {high} px; levels suit the median, so "
            "small ones are magnified and large ones not seen at full resolution; one scale is better"
        )
    bands = max(picture.bands for picture in survey.pictures)
    if bands > 3:
        yield f"pictures have up to {bands} bands; the first three are looked at: choose them with data.scene.bands"
    flat = sum(picture.is_flat and picture.pixels > survey.data.lazy_above_px for picture in survey.pictures)
    if flat:
        yield (
            f"{flat} of {len(survey.pictures)} pictures are large and in one piece, which is decoded for a look; "
            "convert them once with tnet pyramid"
        )


def model_warnings(survey: Survey, plan: LookPlan, weights: Weights, budget_macs: int | None) -> Iterator[str]:
    """What keeps the model from looking closer, or makes that a poor bargain."""
    from huggingface_hub import constants

    smallest, median_hw = survey.smallest, survey.median_hw
    short, longer = min(smallest.size_hw), max(median_hw)
    if short < 0.5 * min(median_hw) and short < min(BASES_PX[0], longer / GAIN):
        yield (
            f"{smallest.path} ({smallest.size_hw[0]} x {smallest.size_hw[1]} px) is far smaller than most, and no "
            "picture may be smaller than the base: remove those like it, and ask again"
        )
    if plan.step is None and not plan.wanted_steps:
        yield (
            f"the pictures are too small to gain: a closer look needs a longer side of {LEAST_GAIN} times the base and "
            f"a shorter one of the base, which is at least {BASES_PX[-1]} px; use larger originals if there are any"
        )
    elif plan.step is None:
        yield (
            f"the budget of {amount(budget_macs or 0)} leaves nothing for looks: this is the plain network on the "
            "shrunk picture; raise --macs"
        )
    elif plan.config.levels - 1 < plan.wanted_steps:
        yield (
            f"the budget does not reach native resolution, which takes {1 + plan.wanted_steps} levels: at the last one "
            f"{plan.step.finest_scale:.1f} pixels are seen as one; raise --macs"
        )
    full = plan.macs_full
    if full is not None and plan.step is not None and plan.macs > full / 2:
        yield (
            f"the plain backbone at full resolution takes {times(full / plan.macs)} times as much, less than "
            "twice: train that too, and keep what is better"
        )
    if weights.hub_id and constants.HF_HUB_OFFLINE and not weights.is_cached:
        yield (
            f"HF_HUB_OFFLINE is set and the weights of {weights.name} are not in the cache: train with "
            "model.backbone.pretrained=false model.backbone.weights=FILE"
        )
