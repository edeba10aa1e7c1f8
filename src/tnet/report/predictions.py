"""The report of predictions without labels: which answers there are, and how sure they are."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np

from tnet.explain.explanation import overview
from tnet.inference.predictor import DEFAULT_READ, size_of
from tnet.inference.progress import progress_bar
from tnet.inference.read import Answer, read_predictions
from tnet.report.figures import confidence_figure
from tnet.report.gallery import MOST_SHOTS, SIDE_PX, file_name, frame
from tnet.report.page import Box, Gallery, Page, Section, Shot, Table, percent, plot, thumbnail, write_page

_UNSURE = 0.6
_MOST_LABELS = 100
_MOST_FRAMES = 64
_NONE = "(none above 50 %)"


def write_predictions_report(source: Path, path: Path, *, progress: bool = True) -> int:
    """Write the report of a file of predictions, replacing ``path``; return the number of predictions.

    Up to 24 images are read and shown, those of the least probable answers; images that are gone are left out.

    Raises:
        DataError: the file cannot be read, lacks a column, has no predictions, or a probability that is none.
        OutputError: the report cannot be written.
    """
    answers, skipped = read_predictions(source)
    probability = np.array([answer.probability for answer in answers])
    more = f", and {skipped:,} could not be read" if skipped else ""
    page = Page(
        f"Report: {source.name}",
        [
            f"{len(answers):,} images were classified{more}. Without labels nothing is known about how many answers "
            "are right: check the least sure ones first."
        ],
        [_labels(answers), _confidence(probability), _unsure(answers, probability, source.parent, progress)],
        [
            (f"{len(answers):,}", "images"),
            (percent(float(probability.mean())), "mean probability of the answer"),
            (f"{int((probability < _UNSURE).sum()):,}", f"answers below {100 * _UNSURE:.0f} %"),
        ],
        [time.strftime("%Y-%m-%d")],
    )
    write_page(page, path)
    return len(answers)


def _labels(answers: list[Answer]) -> Section:
    groups: dict[str, list[float]] = {}
    for answer in answers:
        groups.setdefault(answer.label or _NONE, []).append(answer.probability)
    ranked = sorted(groups.items(), key=lambda group: (-len(group[1]), group[0]))
    body = [
        [label, f"{len(found):,}", percent(len(found) / len(answers)), percent(sum(found) / len(found))]
        for label, found in ranked[:_MOST_LABELS]
    ]
    label, found = ranked[0]
    lead = f"The most frequent of {len(ranked)} answers is {label}, in {len(found):,} of {len(answers):,} images."
    note = f"The {_MOST_LABELS} most frequent of {len(ranked)}." if len(ranked) > _MOST_LABELS else ""
    return Section("Answers", lead, [Table(["answer", "images", "share", "mean probability"], body, note=note)])


def _confidence(probability: np.ndarray) -> Section:
    share = float((probability < _UNSURE).mean())
    lead = (
        f"{percent(share)} of the answers have a probability below {100 * _UNSURE:.0f} %. A probability is the "
        "network's own estimate; the report of its run says how far it can be trusted."
    )
    return Section("How sure it is", lead, [plot(confidence_figure(probability), "Distribution of the probabilities")])


def _unsure(answers: list[Answer], probability: np.ndarray, folder: Path, progress: bool) -> Section:
    order = [answers[index] for index in np.argsort(probability, kind="stable")[:MOST_SHOTS]]
    with progress_bar(progress) as bar:
        shots = [_shot(answer, folder) for answer in bar.track(order, description="drawing")]
    shown = [shot for shot in shots if shot is not None]
    lead = f"The {len(order)} answers of the lowest probability; the boxes are where the network looked."
    gone = [
        [answer.path, answer.label, percent(answer.probability)]
        for answer, shot in zip(order, shots, strict=True)
        if not shot
    ]
    blocks: list[Table | Gallery] = [Gallery(shown)] if shown else []
    if gone:
        blocks.append(Table(["image that cannot be read here", "answer", "probability"], gone, texts=2))
    return Section("Least sure", lead, blocks)


def _shot(answer: Answer, folder: Path) -> Shot | None:
    """Return the image with its boxes, or ``None`` if it is not there, or cannot be read."""
    given = Path(answer.path)
    try:
        image = DEFAULT_READ.load(given if given.exists() else folder / given)
        pixels, size_hw = overview(image, DEFAULT_READ.channels), size_of(image)
    except (OSError, ValueError):  # also of names that a file cannot have
        return None
    uri, width, height = thumbnail(pixels, size_hw, SIDE_PX)
    caption = f"{answer.label or _NONE}, {percent(answer.probability)}"
    return Shot(uri, width, height, file_name(answer.path), caption, boxes=_frames(answer.regions, size_hw))


def _frames(regions: str, size_hw: tuple[int, int]) -> list[Box]:
    """Return the boxes of regions as ``tnet predict`` writes them; none if they are not."""
    try:
        records = json.loads(regions or "[]")[:_MOST_FRAMES]
        return [
            frame(str(region["number"]), int(region["level"]), [float(end) for end in region["box_l0_yxyx"]], size_hw)
            for region in records
        ]
    except (ValueError, TypeError, KeyError, RecursionError):
        return []
