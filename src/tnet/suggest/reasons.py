"""The reasons for a proposed recipe, and warnings, as sentences with the numbers behind them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from tnet.geometry import square_boxes, total_looks
from tnet.objectives import ObjectiveConfig
from tnet.suggest.plan import BASES_PX, GAIN, LEAST_GAIN, LookPlan, Weights, format_macs
from tnet.suggest.probe import Probe
from tnet.suggest.survey import Survey
from tnet.training.recipe import Recipe

_FEW_IMAGES = 20  # training images of a class
_IMBALANCED = 10.0  # ratio of the largest class to the smallest
_MOST_IMAGES = 0.95  # quantile of the longer sides that inference should show at native resolution
_MOST_LEVELS = 16  # that `tnet predict` takes
_ROUNDING = 0.05  # of a level, below which it is not worth one more
_SIZES_VARY = 3.0  # ratio of the 95 % quantile of the longer sides to the 5 % quantile


@dataclass(frozen=True)
class Reason:
    """The reason for one choice."""

    topic: str  # the choice, in one or two words
    section: str  # section of the recipe
    text: str  # the value, and why


def format_ratio(ratio: float) -> str:
    """Return a ratio with two or more digits."""
    return f"{ratio:.1f}" if ratio < 9.95 else f"{ratio:,.0f}"


def model_reasons(survey: Survey, plan: LookPlan, weights: Weights, budget_macs: int | None) -> Iterator[Reason]:
    """Yield the reasons for the model."""
    config, (height, width) = plan.config, survey.median_hw
    longer, base_px = max(height, width), config.base_px
    if weights.file is not None:
        state = f"starts from the weights in {weights.file}"
    elif not weights.hub_id:
        state = "has no pretrained weights, so it starts at random and needs more images and epochs"
    elif weights.is_cached:
        state = "starts from timm's pretrained weights, which are in the local cache"
    else:
        state = "starts from timm's pretrained weights, which are downloaded on first use"
    yield Reason("backbone", "model", f"{weights.name} {state}")
    ratio = format_ratio(longer / base_px)
    text = f"{base_px} px: the median image, {height} x {width} px, is downscaled {ratio} times to be seen whole"
    yield Reason("base", "model", text)
    if plan.fit is None:
        yield Reason("levels", "model", "1: the plain backbone on the whole image")
        return
    grid, deepest, looks = config.grid, config.levels - 1, total_looks(config.looks)
    scale = plan.fit.finest_scale
    resolution = "native resolution" if scale < 1.05 else f"1/{scale:.1f} of native resolution"
    power = f"^{deepest}" if deepest > 1 else ""
    sides = f"{longer} x {grid.cell_extent:.3f}{power} = {longer * grid.cell_extent**deepest:.0f} px"
    text = f"regions of the last level have {sides} and are seen at {base_px} px: {resolution}"
    yield Reason("levels", "model", f"{config.levels}, including the whole image: {text}")
    yield from _inference_reasons(survey, plan)
    cells = f"{grid.rows} x {grid.cols} cells of {grid.cell_extent:.3f} of a side: neighbours overlap by half or more"
    yield Reason("grid", "model", f"{cells}, so that anything up to half a cell in size is whole in one of them")
    limit = ""
    if budget_macs is not None:
        limit = f", within the budget of {format_macs(budget_macs)}"
    elif plan.macs_full is not None and plan.macs <= plan.macs_full / 2:
        limit = ", at most half as much as the plain backbone at full resolution"
    inside = "" if deepest == 1 else f" ({' x '.join(map(str, config.looks))}, level by level)"
    text = f"{looks}{inside}, {1 + looks} glimpses with the whole image{limit}; the number can be changed at inference"
    yield Reason("looks", "model", text)
    same_px = 16 * round(base_px * math.sqrt(1 + looks) / 16)  # as many pixels as all glimpses together
    text = f"the plain backbone costs as much with levels: 1, looks: [], base_px: {same_px}"
    advice = "it can be better if the subject fills the image, so train it too"
    yield Reason("compare", "model", f"{text}; {advice}")


def _inference_reasons(survey: Survey, plan: LookPlan) -> Iterator[Reason]:
    """Yield what large or long images gain from a search that the trained model needs no retraining for."""
    config, largest = plan.config, survey.longer_side_px(_MOST_IMAGES)
    steps = math.log(largest / config.base_px) / -math.log(config.grid.cell_extent)
    needed = min(1 + math.ceil(steps - _ROUNDING), _MOST_LEVELS)
    if needed > config.levels:
        text = (
            f"the largest images have {largest} px and take {needed} levels to native resolution, {config.levels} are "
            f"trained: add --levels {needed} and --looks {needed - 1} or more to tnet predict; it needs no retraining"
        )
        yield Reason("larger", "model", text)
    long = sum(len(square_boxes(image.size_hw)) > 1 for image in survey.images)
    if long:
        text = (
            f"{long} of {len(survey.images)} images are 1.5 times as long as wide, or longer, and are squeezed into a "
            "square: add --aspect keep to tnet predict to see them as several squares, and compare"
        )
        yield Reason("aspect", "model", text)


def probe_reason(probe: Probe) -> Reason:
    """Return what a frozen backbone read of a few images, and what follows."""
    base, finest = probe.readings[0], probe.readings[-1]
    count = len(base.whole)
    best = ", ".join(f"{reading.best.float().mean():.0%} at {reading.side_px} px" for reading in probe.readings)
    read = f"frozen features tell the class of {best}, of {count} images (chance: {probe.chance:.0%})"
    parts, whole = (f"{right.float().mean():.0%}" for right in (finest.parts, finest.whole))
    at = f"at {finest.side_px} px, {parts} from single places and {whole} from the whole"
    if probe.verdict == "unreadable":
        text = f"{read}, so this test cannot tell; train the plain backbone at two resolutions"
    elif probe.verdict == "plain":
        text = f"{read}: resolution hardly helps, so the plain backbone at {base.side_px} px may be as good for less"
    elif probe.verdict == "pixels":
        text = f"{read}; {at}: resolution helps, but the whole shows as much; train a plain backbone of that size too"
    else:
        text = f"{read}; {at}; half of the evidence is in {finest.area:.1%} of the image: looks should pay"
    return Reason("test", "model", text)


def other_reasons(survey: Survey, recipe: Recipe, weights: Weights, steps: int) -> Iterator[Reason]:
    """Yield the reasons for the rest of the recipe; ``steps`` is the aim in training steps."""
    train, optim, objective = recipe.train, recipe.optim, recipe.objective
    if isinstance(objective, ObjectiveConfig) and objective.worth_weight:
        rewards = ", and from rewards if it has no siblings" if objective.reinforce_weight else ""
        yield Reason("locator", "objective", f"learns from the worth of each look compared with its siblings{rewards}")
    rates = f"{optim.lr:g} for all layers, none of which is pretrained"
    if weights.is_pretrained:
        rates = f"{optim.lr:g} for the new layers, {optim.backbone_lr or optim.lr:g} for the pretrained backbone"
    yield Reason("rates", "optim", f"{rates}; cosine decay to 0")
    yield from _data_reasons(survey, recipe)
    glimpses = 1 + total_looks(recipe.model.default_looks)
    yield Reason("batch", "train", f"{train.batch_size} images of {glimpses} glimpses; halve it if memory runs out")
    per_epoch = max(1, survey.train_images // train.batch_size)
    aim = f"aiming at {steps} steps"
    if train.epochs * per_epoch < steps:
        aim = f"{train.epochs * per_epoch} steps instead of {steps}: more epochs on few images would overfit"
    yield Reason("epochs", "train", f"{train.epochs} of {per_epoch} steps each, {aim}")


def _data_reasons(survey: Survey, recipe: Recipe) -> Iterator[Reason]:
    augment = recipe.data.augment
    lazy, grey, headers = survey.count("is_lazy"), survey.count("is_grey"), len(survey.images)
    if lazy == 0:
        reading = "images are decoded whole: none is large or tiled"
    elif lazy == headers:
        reading = "only the regions that are seen are read: all images are large, slides, maps or OME-Zarr"
    else:
        reading = f"only the regions that are seen are read of {lazy} of {headers} images; the others are decoded whole"
    yield Reason("reading", "data", reading)
    if grey:
        yield Reason("colour", "data", f"{grey} of {headers} images are grey and get three equal channels")
    turns = "flipped both ways and turned (slides and maps have no up)" if augment.quarter_turns else "flipped"
    light = ", changed in brightness and contrast, since they are few" if augment.brightness else ""
    unless = "" if augment.quarter_turns else "; set horizontal_flip: false if left and right differ in meaning"
    crops = f"cropped to {augment.crop_area[0]:.0%} of their area or more"
    yield Reason("augment", "data", f"training images are {turns}, {crops}{light}{unless}")
    if recipe.data.val is None:
        text = f"{survey.val_images} images are set aside, {recipe.data.val_fraction:.0%} of each class"
        advice = "if several show one patient, place or film, split by hand"
        yield Reason("validation", "data", f"{text}, by a hash of their names; {advice}")


def data_warnings(survey: Survey) -> Iterator[str]:
    """Yield warnings about the images."""
    counts = sorted(zip(survey.train_counts, survey.classes, strict=True))
    few = [f"{name} ({count})" for count, name in counts if count < _FEW_IMAGES]
    if few:
        shown = ", ".join(few[:5]) + (f" and {len(few) - 5} more" if len(few) > 5 else "")
        yield f"fewer than {_FEW_IMAGES} training images: {shown}; add some, as little can be learned from these"
    (least, rare), (most, common) = counts[0], counts[-1]
    if most > _IMBALANCED * max(1, least):
        counted = f"{common} has {most} training images, {rare} only {least}"
        advice = "balance them, or compare predictions (tnet predict) per class"
        yield f"{counted}, so that accuracy says little about rare classes; {advice}"
    yield from survey.repeats
    if survey.left_out:
        shown = ", ".join(f"{count} {suffix}" for suffix, count in survey.left_out)
        yield f"unsupported formats are left out: {shown}; convert them, for example to JPEG or TIFF"
    low, high = survey.longer_side_px(0.05), survey.longer_side_px(0.95)
    if high > _SIZES_VARY * low:
        effect = "levels suit the median, so small images are magnified and large ones not seen at full resolution"
        yield f"sizes vary: 9 in 10 images have a longer side of {low} to {high} px; {effect}; one scale is better"
    bands = max(image.bands for image in survey.images)
    if bands > 3:
        yield f"images have up to {bands} bands, of which the first three are used; choose with data.scene.bands"
    large = survey.data.lazy_above_px
    flat = sum(image.is_flat and image.size_hw[0] * image.size_hw[1] > large for image in survey.images)
    if flat:
        problem = f"{flat} of {len(survey.images)} images are large and not tiled"
        yield f"{problem}, so that each glimpse decodes all of it; convert them once with tnet pyramid"


def model_warnings(survey: Survey, plan: LookPlan, weights: Weights, budget_macs: int | None) -> Iterator[str]:
    """Yield warnings about reasons that keep the model from looking closer, or make that a poor bargain."""
    from huggingface_hub import constants

    smallest, median_hw = survey.smallest, survey.median_hw
    short, longer = min(smallest.size_hw), max(median_hw)
    if short < 0.5 * min(median_hw) and short < min(BASES_PX[0], longer / GAIN):
        where = f"{smallest.path} ({smallest.size_hw[0]} x {smallest.size_hw[1]} px)"
        problem = f"{where} is far smaller than most images, and none may be smaller than the base"
        yield f"{problem}; remove such images and run tnet suggest again"
    if plan.fit is None and not plan.wanted_steps:
        needed = f"a longer side of {LEAST_GAIN} times the base and a shorter one of the base"
        problem = f"the images are too small to gain from looks, which take {needed}, at least {BASES_PX[-1]} px"
        yield f"{problem}; use larger originals if there are any"
    elif plan.fit is None:
        problem = f"the budget of {format_macs(budget_macs or 0)} leaves nothing for looks"
        yield f"{problem}: this is the plain network on the downscaled image; raise --macs"
    elif plan.config.levels - 1 < plan.wanted_steps:
        problem = f"the budget does not reach native resolution, which takes {1 + plan.wanted_steps} levels"
        yield f"{problem}: the last level is downscaled {plan.fit.finest_scale:.1f} times; raise --macs"
    full = plan.macs_full
    if full is not None and plan.fit is not None and plan.macs > full / 2:
        times = format_ratio(full / plan.macs)
        problem = f"the plain backbone at full resolution costs {times} times as much, less than twice"
        yield f"{problem}; train it too, and keep the better one"
    if weights.hub_id and constants.HF_HUB_OFFLINE and not weights.is_cached:
        problem = f"HF_HUB_OFFLINE is set and the weights of {weights.name} are not in the cache"
        yield f"{problem}; train with model.backbone.pretrained=false model.backbone.weights=FILE"
