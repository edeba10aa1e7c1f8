"""Attention, measured: do looks fall on what decides, and does the answer rest on what they show?

Measures are means over the images that have boxes, each with its 95 % bootstrap interval. With regions in regions,
looks are those of the deepest level. Two control policies, random and centre looks, are measured beside the learned
ones, and Grad-CAM of a plain network if there is one. Where a model looks needs no more than the regions before the
last level, so that many images take minutes; deletion and insertion classify changed images, and take a subset.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from tnet.cost import synchronize
from tnet.data.folder import LabelledImages
from tnet.data.loading import LabelledData, eval_loader
from tnet.errors import ConfigError, DataError
from tnet.evaluation.evaluator import LEARNED, NO_POLICY, Looks, Setting, check_data_fits, settings
from tnet.evaluation.gradcam import GradCam, best_windows
from tnet.evaluation.masking import MaskedBatch, blurred
from tnet.geometry import Regions, contains, covered_share, total_looks
from tnet.inference.progress import track_images
from tnet.inference.records import class_probs
from tnet.models.base import Model
from tnet.models.engine import Traversal, advance
from tnet.models.tnet import TNet
from tnet.scenes.base import SceneBatch
from tnet.traversal import LevelByLevel, Policy

GRADCAM = "gradcam"
"""The policy of a row about the best windows of Grad-CAM."""

CONTROLS = ("random", "centre")

_RESAMPLES = 1000
_SHARES = 6  # pointing to image_share
_TIMED = 3


class Estimate(NamedTuple):
    """A mean over images and its 95 % bootstrap interval."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class AttentionRow:
    """Where a model looks with one number of looks and one policy; shares and probabilities are 0 to 1.

    Attributes:
        looks: locations per region for levels 1, 2, ...; empty for 0 looks.
        total_looks: regions seen per image after the whole.
        policy: the requested policy, ``gradcam``, or ``none`` for 0 looks.
        images: number of images that have boxes.
        pointing: share of images with the centre of the first look in a box (pointing game). The first look is the one
            that the policy takes when it may take only one (per level). Few cells of a coarse grid can do that if boxes
            are small: see ``hit``.
        pointing_any: share of images with the centre of any look in a box.
        hit: share of images of which the first look shows the centre of a box.
        hit_any: share of images of which any look shows the centre of a box.
        box_share: share of the area of an image's boxes that looks cover.
        image_share: share of the image's area that looks cover.
        curve_images: number of images of ``deletion`` and ``insertion``.
        deletion: probability of the class that the model predicts, once what was looked at is covered with the image's
            mean colour; the model looks again, its own number of times. Low if the evidence was there.
        insertion: the same if what was looked at is all that is not blurred. High if the evidence was there.
        answer_ms: milliseconds per image of the answer; ``None`` for controls.
        extra_ms: milliseconds per image that the regions cost on top: 0 for looks, which the answer is made of.
    """

    looks: tuple[int, ...]
    total_looks: int
    policy: str
    images: int
    pointing: Estimate | None
    pointing_any: Estimate | None
    hit: Estimate | None
    hit_any: Estimate | None
    box_share: Estimate | None
    image_share: Estimate | None
    curve_images: int
    deletion: Estimate | None
    insertion: Estimate | None
    answer_ms: float | None
    extra_ms: float | None


def bootstrap(values: Float[np.ndarray, "images measures"], seed: int = 0) -> list[Estimate]:
    """Return the mean of each measure and its 95 % percentile interval over resampled images."""
    rng = np.random.default_rng(seed)
    means = np.stack([values[rng.integers(len(values), size=len(values))].mean(0) for _ in range(_RESAMPLES)])
    low, high = np.quantile(means, (0.025, 0.975), axis=0)
    columns = zip(values.mean(0).tolist(), low.tolist(), high.tolist(), strict=True)
    return [Estimate(*column) for column in columns]


def measure_attention(
    model: Model,
    data: LabelledData,
    boxes: Mapping[int, Float[Tensor, "_ 4"]],
    *,
    looks: Sequence[Looks] = (),
    policies: Sequence[str] = (LEARNED, *CONTROLS),
    plain: GradCam | None = None,
    curve_images: int = 200,
    batch_size: int = 16,
    workers: int = 0,
    device: str = "cpu",
    progress: bool = True,
    seed: int = 0,
) -> list[AttentionRow]:
    """Measure where a model looks beside where it should.

    Args:
        model: is moved to the device and left in evaluation mode.
        data: labelled images with the model's classes.
        boxes: boxes of the images that have any, by index in ``data``; see :class:`tnet.data.boxes.ImageBoxes`.
        looks: numbers of looks; empty for the model's own.
        policies: policies to compare; those that the model does not have are left out.
        plain: Grad-CAM of a plain network, to compare with.
        curve_images: number of images, evenly spread, for deletion and insertion; 0 for neither.
        batch_size: images per batch.
        workers: processes that read images.
        device: device to run on.
        progress: show progress on standard error.
        seed: seed of random looks and of the bootstrap.

    Returns:
        A row of 0 looks if there are curves, then one per number of looks and policy.

    Raises:
        DataError: the images do not fit the model, or a box lies outside its image.
        ConfigError: there is nothing to measure.
        GeometryError: the model does not allow these looks.
    """
    config, place = model.config, torch.device(device)
    known = [name for name in policies if name == LEARNED or name in config.policies]
    chosen = [item for item in settings(model, looks or config.listed_looks(), known) if item.looks]
    if not chosen or not boxes:
        problem = f"{config.line()}: there are no looks to measure" if boxes else "there are no boxes"
        raise ConfigError(f"{problem}; give a model with looks, at least 1 look, and boxes")
    check_data_fits(config, data)
    for net in [model] if plain is None else [model, plain.model]:
        net.to(place).eval()
    by_looks = dict.fromkeys(item.looks for item in chosen)
    if plain is not None:
        chosen += [Setting(one, GRADCAM, GRADCAM) for one in by_looks]
        chosen.sort(key=lambda item: list(by_looks).index(item.looks))
    indices = sorted(boxes)
    spread = set(indices[:: math.ceil(len(indices) / curve_images)] if curve_images else [])
    finder = _Finder(model, chosen, plain, seed, place)
    kept: dict[int, dict[Setting, Tensor]] = {}
    measured: list[list[float]] = []
    timed: _Times | None = None
    with torch.no_grad():
        loader = eval_loader(data, batch_size, workers, indices=indices)
        for batch in track_images(loader, len(indices), "looking", progress):
            scene = model.scene(batch.to(place).images)
            timed = timed or _Times(model, plain, scene)
            found = finder(scene)
            for i, (name, size_hw) in enumerate(zip(batch.names, scene.sizes_hw, strict=True)):
                index = indices[len(measured)]
                wanted = _in_frame(boxes[index], data, index, size_hw, name)
                mine = {item: regions[i] for item, regions in found.items()}
                measured.append([value for item in chosen for value in _measures(item, mine, wanted, size_hw)])
                if index in spread:
                    kept[index] = mine
        curves = _curves(model, data, chosen, kept, batch_size, workers, place, progress)
    assert timed is not None
    estimates = bootstrap(np.array(measured), seed)
    rows = []
    for n, item in enumerate([Setting((), NO_POLICY, ""), *chosen] if curves else chosen):
        at = n - bool(curves)
        shares = [None] * _SHARES if at < 0 else estimates[_SHARES * at : _SHARES * (at + 1)]
        changed = curves[2 * n : 2 * n + 2] if curves else [None] * 2
        is_timed = item.policy not in CONTROLS and (item.looks or config.allows_no_looks)
        answer_ms = timed.answer(item) if is_timed else None
        extra_ms = timed.gradcam_ms if item.policy == GRADCAM else 0.0
        rows.append(
            AttentionRow(
                looks=config.looks_at_each_level(item.looks),
                total_looks=total_looks(item.looks),
                policy=item.policy,
                images=len(indices),
                pointing=shares[0],
                pointing_any=shares[1],
                hit=shares[2],
                hit_any=shares[3],
                box_share=shares[4],
                image_share=shares[5],
                curve_images=len(kept),
                deletion=changed[0],
                insertion=changed[1],
                answer_ms=answer_ms,
                extra_ms=extra_ms if item.looks and answer_ms is not None else None,
            )
        )
    return rows


def _first(item: Setting) -> Setting:
    """Return the setting that takes one look per level: its look is the first one."""
    return item._replace(looks=(1,) * len(item.looks))


def _measures(
    item: Setting, found: Mapping[Setting, Int[Tensor, "_ 4"]], boxes: Float[Tensor, "_ 4"], size_hw: tuple[int, int]
) -> list[float]:
    """Return the shares of one image, from pointing to image_share."""
    looks, first, whole = found[item].float(), found[_first(item)].float(), torch.tensor([[0.0, 0.0, *size_hw]])
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    shares = [bool(contains(boxes, (seen[:, :2] + seen[:, 2:]) / 2).any()) for seen in (first, looks)]
    shares += [bool(contains(seen, centres).any()) for seen in (first, looks)]
    return [*map(float, shares), covered_share(boxes, looks), covered_share(whole, looks)]


def _in_frame(
    boxes: Float[Tensor, "_ 4"], data: LabelledData, index: int, size_hw: tuple[int, int], name: str
) -> Float[Tensor, "_ 4"]:
    """Return boxes in pixels of the image as loaded, cut to it."""
    stored = size_hw
    if isinstance(data, LabelledImages) and data.reading.changes_images:
        stored = data.reading.size_hw(data.paths[index])
    height, width = stored
    inside = torch.minimum(boxes.clamp_min(0), torch.tensor([height, width, height, width]))
    empty = ~(inside[:, :2] < inside[:, 2:]).all(1)
    if bool(empty.any()):
        y0, x0, y1, x1 = boxes[empty][0].tolist()
        outside = f"box y {y0:g} to {y1:g}, x {x0:g} to {x1:g} is outside image {name}, {width} x {height} px"
        raise DataError(f"{outside}; boxes are in pixels of the image as stored, correct the table")
    return inside * torch.tensor([size_hw[0] / height, size_hw[1] / width]).repeat(2)


class _Finder:
    """Finds the regions of settings without seeing those that no later choice depends on."""

    def __init__(
        self, model: Model, chosen: Sequence[Setting], plain: GradCam | None, seed: int, device: torch.device
    ) -> None:
        self.model, self.plain, self.seed = model, plain, seed
        listed = dict.fromkeys([*chosen, *map(_first, chosen)])
        self.windows = [item for item in listed if item.policy == GRADCAM]
        # A generator each, all seeded alike: what a policy takes with 1 look it also takes with 2.
        self.policies = {
            item: model.seeded_policy(item.kind, seed, device) for item in listed if item.policy != GRADCAM
        }

    def __call__(self, scene: SceneBatch) -> dict[Setting, Int[Tensor, "images n 4"]]:
        """Return the looks of the deepest level of each image."""
        model, images = self.model, len(scene.sizes_hw)
        if isinstance(model, TNet):
            overview = Traversal(model, scene, LevelByLevel((1,), model.policy("topk")))
            advance([overview])
            found = {item: self._plan(model, scene, overview, item, policy) for item, policy in self.policies.items()}
        else:
            found = {}
            for item, policy in self.policies.items():
                with torch.random.fork_rng():  # a policy without a generator draws from the global one
                    torch.manual_seed(self.seed)
                    found[item] = model(scene, item.looks, policy).regions
            self.seed += 1
        looks = {item: _deepest(regions, images) for item, regions in found.items()}
        if self.plain is not None:
            pixels = self.plain.pixels(scene)
            maps = self.plain.maps(pixels, self.plain.answer(pixels)).cpu()
            sizes = torch.tensor(scene.sizes_hw)
            for item in self.windows:
                like = next(boxes for other, boxes in looks.items() if len(other.looks) == len(item.looks))[:, 0]
                window = ((like[:, 2:] - like[:, :2]) / sizes).clamp_max(1)
                shares = best_windows(maps, window, math.prod(item.looks))
                looks[item] = (shares * sizes.repeat(1, 2)[:, None]).round().long()
        return looks

    def _plan(
        self, model: TNet, scene: SceneBatch, overview: Traversal, item: Setting, policy: Policy | str
    ) -> Regions:
        assert isinstance(policy, Policy)
        search = LevelByLevel(item.looks, policy, one_by_one=model.sees_collected)
        if len(item.looks) == 1 and not search.one_by_one:
            step = search(overview.trail)
            assert step is not None
            return step.regions
        traversal, rows = Traversal(model, scene, search), len(scene.sizes_hw) * (1 + total_looks(item.looks))
        while (step := traversal.pending) is not None and len(traversal.trail) + len(step.regions) < rows:
            advance([traversal])
        assert step is not None
        return Regions.concat([traversal.trail.regions, step.regions])


def _deepest(regions: Regions, images: int) -> Int[Tensor, "images n 4"]:
    rows = (regions.level == regions.depth).nonzero().flatten()
    order = rows[regions.image[rows].sort(stable=True).indices]
    return regions.box_l0_yxyx[order].reshape(images, -1, 4)


def _curves(
    model: Model, data: LabelledData, chosen: Sequence[Setting], kept: Mapping[int, Mapping[Setting, Tensor]],
    batch_size: int, workers: int, device: torch.device, progress: bool,
) -> list[Estimate]:  # fmt: skip
    """Return deletion and insertion of nothing, then of the looks of each setting, which ``kept`` has by image."""
    values: list[Tensor] = []
    looks = list(kept.values())
    loader = eval_loader(data, batch_size, workers, indices=list(kept))

    def answer(scene: SceneBatch) -> Float[Tensor, "images classes"]:
        return class_probs(model(scene).logits, model.config)

    for batch in track_images(loader if kept else (), len(kept), "masking", progress and bool(kept)):
        scene = model.scene(batch.to(device).images)
        mine, looks = looks[: len(batch.names)], looks[len(batch.names) :]
        probs, copies = answer(scene), blurred(scene)
        colours = copies.mean((2, 3), keepdim=True)
        nothing = torch.zeros(len(mine), 1, 4, dtype=torch.long)
        columns = [probs, answer(MaskedBatch(scene, nothing, copies, keep=True))]
        for item in chosen:
            boxes = torch.stack([found[item] for found in mine])
            columns.append(answer(MaskedBatch(scene, boxes, colours)))
            columns.append(answer(MaskedBatch(scene, boxes, copies, keep=True)))
        predicted = probs.argmax(1, keepdim=True)
        values.append(torch.cat([column.gather(1, predicted) for column in columns], dim=1))
    return bootstrap(torch.cat(values).double().numpy()) if values else []


class _Times:
    """Milliseconds per image of answers and of Grad-CAM, on one batch: the median of some passes after the first."""

    def __init__(self, model: Model, plain: GradCam | None, scene: SceneBatch) -> None:
        self.model, self.scene = model, scene
        self.answers_ms: dict[tuple[int, ...], float] = {}
        self.plain_ms = self.gradcam_ms = math.nan
        if plain is not None:
            pixels = plain.pixels(scene)
            classes = plain.answer(pixels)
            self.plain_ms = self._time(lambda: plain.answer(plain.pixels(scene)))
            self.gradcam_ms = self._time(lambda: plain.maps(pixels, classes))

    def answer(self, item: Setting) -> float:
        """Time the answer with the looks of a setting, or of the plain network."""
        if item.policy == GRADCAM:
            return self.plain_ms
        if item.looks not in self.answers_ms:
            self.answers_ms[item.looks] = self._time(lambda: self.model(self.scene, looks=item.looks or 0))
        return self.answers_ms[item.looks]

    def _time(self, run: Callable[[], object]) -> float:
        times_ms = []
        for _ in range(_TIMED + 1):
            synchronize(self.scene.device)
            start = time.perf_counter()
            with torch.no_grad():
                run()
            synchronize(self.scene.device)
            times_ms.append(1000 * (time.perf_counter() - start) / len(self.scene.sizes_hw))
        return statistics.median(times_ms[1:])
