"""A cheap test of whether looks are likely to pay: what a frozen backbone reads from a few images.

The images are classified by linear readouts of the backbone's features, cross-validated, at the base resolution and at
higher ones: once from the pooled feature, once from the most telling positions of the last map. Looks pay where higher
resolution helps and few positions tell the class; where the pooled feature is as good, so is a plain network.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tnet.cost import multiply_adds
from tnet.data.folder import LabelledImages
from tnet.data.groups import make_folds
from tnet.data.loading import eval_loader, open_data
from tnet.errors import ConfigError, DataError
from tnet.geometry import whole_images
from tnet.inference.progress import track_images
from tnet.models.config import TNetConfig
from tnet.models.tnet import TNet
from tnet.suggest.survey import Survey

Verdict = Literal["looks", "pixels", "plain", "unreadable"]
"""Looks should pay; a plain network of higher resolution is as good; the base resolution is enough; nothing is read."""

TIMES = (2, 4)
"""Resolutions of the test besides the base, as multiples of it; less where the images end."""
_LEAST_STEP = 1.25  # between resolutions, below which the higher one shows too little more
_FOLDS = 5
_MOST_POSITIONS = 20  # of the map, per axis
_MOST_NUMBERS = 2**27  # in the maps of all images together: 512 MiB, and twice that while they are read
# The decay was chosen from 1e-3, 1e-2 and 3e-2 on circuit boards with small defects (docs/results/probe.md).
_STEPS, _RATE, _DECAY = 150, 3e-3, 1e-2
_Z = 1.96  # standard errors of a difference that is not taken for chance


@dataclass(frozen=True)
class Reading:
    """What is read at one resolution.

    Attributes:
        side_px: side to which whole images are resized, pixels.
        macs: multiply-adds of the plain backbone.
        whole: whether the class of each image is right from the pooled feature.
        parts: the same from the most telling positions of the last map.
        area: median share of the map that holds half of the evidence, of images that ``parts`` has right; nan if none.
    """

    side_px: int
    macs: int
    whole: Bool[Tensor, " images"]
    parts: Bool[Tensor, " images"]
    area: float

    @property
    def best(self) -> Bool[Tensor, " images"]:
        """The better of both readouts."""
        return self.parts if self.parts.sum() > self.whole.sum() else self.whole


@dataclass(frozen=True)
class Probe:
    """What is read at each resolution, the base first."""

    readings: tuple[Reading, ...]
    chance: float  # share of the most common class

    @property
    def verdict(self) -> Verdict:
        """What follows; differences count beyond 95 % of chance."""
        base, finest = self.readings[0], self.readings[-1]
        if not _is_above(finest.best.float() - self.chance) and not _is_above(base.best.float() - self.chance):
            return "unreadable"
        if not _is_above(finest.best.float() - base.best.float()):
            return "plain"
        return "looks" if _is_above(finest.parts.float() - finest.whole.float()) else "pixels"


def _is_above(differences: Float[Tensor, " images"]) -> bool:
    """Whether the mean of paired differences is above 0 by more than chance."""
    error = differences.std() / math.sqrt(len(differences))
    return float(differences.mean()) > _Z * float(error)


def probe(survey: Survey, config: TNetConfig, *, images: int = 700, seed: int = 0, progress: bool = True) -> Probe:
    """Read training images, as many of each class, with the frozen backbone of a configuration.

    Args:
        survey: survey of the images.
        config: of the proposed model: backbone, weights, base resolution and normalisation.
        images: number of images; fewer if classes are small.
        seed: seed of the choice and of the folds.
        progress: show progress on standard error.

    Raises:
        ConfigError: the images have several labels, are too small, or are too few; or the backbone has no weights.
        DataError: an image cannot be read, or groups cannot be divided into folds.
    """
    if survey.multilabel:
        raise ConfigError("the test for looks takes one label per image, and these have several; leave out --probe")
    if not (config.backbone.pretrained or config.backbone.weights):
        problem = f"the test for looks needs pretrained weights, and {config.backbone.name} has none"
        raise ConfigError(f"{problem}; give --weights FILE, or another --backbone")
    sides = tuple(_sides(config.base_px, max(survey.median_hw)))
    if len(sides) < 2:
        longer, least = max(survey.median_hw), math.ceil(_LEAST_STEP * config.base_px)
        problem = f"the median image has a longer side of {longer} px, and the test for looks takes {least} px"
        raise ConfigError(f"{problem}; use larger originals, or leave out --probe")
    data, _ = open_data(survey.data, config.in_channels, seed)
    assert isinstance(data, LabelledImages)
    data = copy.copy(data)
    data.augment = None
    chosen = _choose(data.targets, images, seed)
    targets = data.targets[chosen].long()
    groups = None if data.groups is None else [data.groups[index] for index in chosen.tolist()]
    folds = torch.from_numpy(make_folds(targets, groups, _FOLDS, seed))
    readings = []
    for side_px in sides:
        macs, pooled, maps = _describe(data, chosen, config, side_px, progress)
        whole, _ = read_out(pooled[:, None], targets, folds)
        parts, areas = read_out(maps, targets, folds)
        right = areas[parts]
        readings.append(Reading(side_px, macs, whole, parts, float(right.median()) if len(right) else math.nan))
    return Probe(tuple(readings), float(targets.bincount().max()) / len(targets))


def _sides(base_px: int, longer_px: int) -> Iterator[int]:
    """Yield the base, twice and four times of it, but no more than the images have."""
    last_px = base_px
    yield base_px
    for times in TIMES:
        side_px = min(times * base_px, longer_px // 32 * 32)
        if side_px >= _LEAST_STEP * last_px:
            yield side_px
            last_px = side_px


def _choose(targets: Tensor, images: int, seed: int) -> Int[Tensor, " chosen"]:
    """Return images at random, as many of each class if they have as many."""
    order = torch.randperm(len(targets), generator=torch.Generator().manual_seed(seed))
    classes = targets[order].long()
    each = max(_FOLDS, images // len(classes.unique()))
    found = [order[classes == label][:each] for label in classes.unique()]
    least = min(map(len, found))
    if least < _FOLDS:
        problem = f"the test for looks takes {_FOLDS} training images of each class, and the rarest has {least}"
        raise DataError(f"{problem}; add images, or leave out --probe")
    return torch.cat(found).sort().values


def _describe(
    data: LabelledImages, chosen: Int[Tensor, " images"], config: TNetConfig, side_px: int, progress: bool
) -> tuple[int, Float[Tensor, "images features"], Float[Tensor, "images positions channels"]]:
    """Return multiply-adds per image, pooled features and last maps of whole images."""
    model = TNet(replace(config.plain(side_px), backbone=replace(config.backbone, tap=-1))).eval()
    fast = model.prepare_for_inference()
    pooled, maps = [], []
    title = f"reading at {side_px} px"
    with torch.inference_mode():
        # One by one, since the larger ones take memory.
        for batch in track_images(eval_loader(data, 1, 0, indices=chosen.tolist()), len(chosen), title, progress):
            scene = fast.scene(batch.images)
            wholes = whole_images(scene.sizes_hw)
            described = fast.describe(fast.pixels(scene, wholes, side_px), wholes.level > 0)
            most = min(_MOST_POSITIONS, math.isqrt(_MOST_NUMBERS // (len(chosen) * described.cell_map.shape[1])))
            height, width = (min(side, max(1, most)) for side in described.cell_map.shape[2:])
            pooled.append(described.pooled)
            maps.append(F.adaptive_avg_pool2d(described.cell_map, (height, width)).flatten(2).transpose(1, 2))
    return multiply_adds(model), torch.cat(pooled).clone(), torch.cat(maps).clone()


def read_out(
    features: Float[Tensor, "images positions channels"],
    targets: Int[Tensor, " images"],
    folds: Int[Tensor, " images"],
) -> tuple[Bool[Tensor, " images"], Float[Tensor, " images"]]:
    """Classify each image by a linear classifier of positions that is fitted to the other folds.

    The logit of a class is the log-mean-exp over positions, so that a single position can decide.

    Returns:
        Whether each image is right, and the share of positions that hold half of the evidence for its answer.
    """
    right = torch.zeros(len(targets), dtype=torch.bool)
    area = torch.zeros(len(targets))
    classes = int(targets.max()) + 1
    for fold in folds.unique():
        train, test = folds != fold, folds == fold
        mean = features[train].mean(dim=(0, 1))
        scale = features[train].std(dim=(0, 1)).clamp(min=1e-6)
        weight = torch.zeros(features.shape[2], classes, requires_grad=True)
        bias = torch.zeros(classes, requires_grad=True)
        optimizer = torch.optim.Adam([weight, bias], lr=_RATE)
        inputs = (features[train] - mean) / scale
        for _ in range(_STEPS):
            logits = (inputs @ weight + bias).logsumexp(dim=1)
            loss = F.cross_entropy(logits, targets[train]) + _DECAY * weight.square().sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        with torch.no_grad():
            scores = (features[test] - mean) / scale @ weight + bias
            answer = scores.logsumexp(dim=1).argmax(dim=1)
            right[test] = answer == targets[test]
            own = scores.gather(2, answer[:, None, None].expand(-1, scores.shape[1], 1))[..., 0].softmax(dim=1)
            held = own.sort(dim=1, descending=True).values.cumsum(dim=1)
            area[test] = ((held < 0.5).sum(dim=1) + 1) / scores.shape[1]
    return right, area
