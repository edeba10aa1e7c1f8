"""Images with their looks, as shots of a page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePosixPath

import numpy as np

from tnet.data.loading import LabelledData
from tnet.explain.explanation import Explanation, look, shares
from tnet.explain.panels import level_color
from tnet.inference.progress import progress_bar
from tnet.inference.records import RegionRecord
from tnet.models.base import Model
from tnet.report.answers import Answers
from tnet.report.page import Box, Gallery, Shot, percent, thumbnail

MOST_SHOTS = 24
"""Limit of the images of a report that are shown."""

SIDE_PX = 320
_LOOK_PX = 96
_MOST_LOOKS = 8  # of one image


def galleries(model: Model, data: LabelledData, answers: Answers, progress: bool) -> list[Gallery]:
    """Return images that are wrong though sure, unsure, and right, with their looks; few enough to decode again."""
    chosen = choose(answers)
    shots: dict[int, Shot] = {}
    with progress_bar(progress) as bar:
        indices = [index for group in chosen.values() for index in group]
        for index in bar.track(indices, description="drawing"):
            image, target, name = data[index]
            present = target.nonzero().flatten() if target.ndim else target[None]
            truth = "|".join(answers.classes[label] for label in present)
            policy, looks = model.policy(answers.setting.kind), answers.setting.looks
            shots[index] = shot(
                look(model, image, looks=looks, policy=policy, names=answers.classes, truth=truth, title=name)
            )
    return [Gallery([shots[index] for index in group], heading) for heading, group in chosen.items() if group]


def choose(answers: Answers) -> dict[str, list[int]]:
    """Return the indices of the images to show, by heading; none twice."""
    each = MOST_SHOTS // 3
    by_confidence = np.argsort(answers.confidence, kind="stable")
    wrong = [int(index) for index in by_confidence[::-1] if not answers.right[index]][:each]
    rest = [int(index) for index in by_confidence if index not in wrong]
    unsure = rest[: min(each, len(rest) // 2)]
    right = [index for index in sorted(rest[len(unsure) :]) if answers.right[index]]
    spread = [right[place * len(right) // each] for place in range(each)] if len(right) > each else right
    return {
        "Wrong, and most sure of it": wrong,
        "Least sure": unsure,
        "Right, spread over the images": spread,
    }


def shot(explanation: Explanation) -> Shot:
    """Return the image of an explanation with its boxes, regions and answer."""
    prediction = explanation.prediction
    uri, width, height = thumbnail(explanation.whole(), prediction.size_hw, SIDE_PX)
    regions = prediction.regions
    shown = sorted(range(len(regions)), key=lambda index: [int(part) for part in regions[index].number.split(".")])
    looks = []
    shown = shown[:_MOST_LOOKS]
    for index, pixels in zip(shown, explanation.glimpses(shown) if shown else [], strict=True):
        y0, x0, y1, x1 = regions[index].box_l0_yxyx
        looks.append((regions[index].number, thumbnail(pixels, (y1 - y0, x1 - x0), _LOOK_PX)[0]))
    answer = f"{prediction.label or 'none above 50 %'} ({percent(prediction.probability)})"
    if explanation.is_right is False:
        answer += f", true: {explanation.truth or 'none'}"
    boxes = frames(regions, prediction.size_hw)
    return Shot(uri, width, height, file_name(explanation.title), answer, explanation.is_right, boxes, looks)


def frames(regions: Sequence[RegionRecord], size_hw: tuple[int, int]) -> list[Box]:
    """Return the boxes of regions, clipped to the image."""
    return [frame(region.number, region.level, region.box_l0_yxyx, size_hw) for region in regions]


def frame(number: str, level: int, box_l0_yxyx: Sequence[float], size_hw: tuple[int, int]) -> Box:
    """Return one box, clipped to the image."""
    y0, x0, y1, x1 = (min(max(share, 0.0), 1.0) for share in shares(box_l0_yxyx, size_hw))
    return Box(y0, x0, y1, x1, number, level_color(level))


def file_name(path: str) -> str:
    """Return the last two parts of a path of any system: images of several folders often have the same names."""
    return "/".join(PurePosixPath(path.replace("\\", "/")).parts[-2:]) or path
