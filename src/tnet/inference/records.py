"""The prediction for one image as plain data, for tables, JSON and figures."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from jaxtyping import Float
from torch import Tensor

from tnet.errors import CheckpointError, ConfigError, ImageSizeError
from tnet.geometry import scaled_box
from tnet.models.base import ModelConfig, ModelOutput
from tnet.scenes.find import image_exists

LABEL_THRESHOLD = 0.5
"""Probability above which a label of a multi-label model counts as present."""

_DIGITS = 6  # precision of a float32 softmax


@dataclass(frozen=True)
class RegionRecord:
    """One region that the model looked at.

    Attributes:
        number: label in figures: ``2`` is the second most probable location in the image, ``2.1`` the most probable one
            inside it. Raster order if the locator was not used; the order of looking for sequential models.
        level: 1 for regions of the whole image, 2 for regions inside those, ...
        box_l0_yxyx: ``(y0, x0, y1, x1)`` in level-0 pixels, end exclusive; may reach into the padding past the edge.
        cell: flat (row-major) cell of the grid in the parent.
        parent: index of the parent in the prediction's ``regions``; -1 for the whole image.
        location_probability: probability of this cell among its parent's; ``None`` without the locator.
        weight: share of this region in the aggregated feature; all shares, with the whole image's, sum to 1.
        label: most probable class for this region alone; for a recurrent model, up to and including this region.
        probability: probability of that class. Weight, label and probability are ``None`` for models without them.
    """

    number: str
    level: int
    box_l0_yxyx: tuple[int, int, int, int]
    cell: int
    parent: int
    location_probability: float | None
    weight: float | None
    label: str | None
    probability: float | None


@dataclass(frozen=True)
class Prediction:
    """The prediction for one image.

    Attributes:
        path: source of the image; for tensors and scenes their position in the input.
        label: name of the class; for a multi-label model those above 0.5 joined by ``|``, possibly none.
        labels: the same as a tuple, most probable first.
        index: index of the most probable class.
        probability: probability of the most probable class.
        top5: the five most probable classes and their probabilities, in order.
        size_hw: height and width of the image, level-0 pixels: the frame of the boxes.
        regions: regions after the whole image, level by level in raster order; empty for 0 looks.
    """

    path: str
    label: str
    labels: tuple[str, ...]
    index: int
    probability: float
    top5: tuple[tuple[str, float], ...]
    size_hw: tuple[int, int]
    regions: tuple[RegionRecord, ...]


@dataclass(frozen=True)
class Unreadable:
    """An image that was skipped, and the reason in one sentence.

    Attributes:
        path: as in :class:`Prediction`.
        error: the reason.
        kind: ``missing``, ``unreadable``, ``too small``, or ``memory``.
    """

    path: str
    error: str
    kind: Literal["missing", "unreadable", "too small", "memory"] = "unreadable"

    @staticmethod
    def of(path: str, error: Exception) -> Unreadable:
        """Return the record of an error about an image."""
        if isinstance(error, ImageSizeError):
            return Unreadable(path, str(error), "too small")
        return Unreadable(path, str(error), "unreadable" if image_exists(path) else "missing")


def class_labels(config: ModelConfig, names: Sequence[str] | None = None) -> list[str]:
    """Return the given class names, or the model's, or indices."""
    if names is None:
        names = config.class_names or tuple(str(index) for index in range(config.num_classes))
    if len(names) != config.num_classes:
        raise ConfigError(f"{len(names)} class names for {config.num_classes} classes; give one per class")
    return list(names)


def class_probs(logits: Float[Tensor, "*rows classes"], config: ModelConfig) -> Float[Tensor, "*rows classes"]:
    """Return probabilities on the CPU, at the model's temperature: softmax, or sigmoid for a multi-label model."""
    logits = logits.detach().float().cpu() / config.temperature
    return logits.sigmoid() if config.multilabel else logits.softmax(dim=-1)


def prediction_of(
    output: ModelOutput,
    image: int,
    config: ModelConfig,
    path: str,
    *,
    located: bool = True,
    names: Sequence[str] | None = None,
    stored_size_hw: tuple[int, int] | None = None,
) -> Prediction:
    """Return the prediction for one image of a batch, given by its index.

    ``located``: whether the locator chose the regions. ``names``: class names instead of the model's own.
    ``stored_size_hw``: height and width before downscaling, to which boxes are scaled back.
    """
    labels = class_labels(config, names)
    answers = (output.logits, output.region_logits, output.whole_logits)
    if not all(bool(logits[image].isfinite().all()) for logits in answers if logits is not None):
        raise CheckpointError(f"the model outputs infinite or NaN values (image {path}); load an earlier checkpoint")
    probs = class_probs(output.logits[image], config)
    top = probs.topk(min(5, len(labels)))
    top5 = tuple((labels[i], round(p, _DIGITS)) for p, i in zip(top.values.tolist(), top.indices.tolist(), strict=True))
    present = (top5[0][0],)
    if config.multilabel:
        order = probs.sort(descending=True, stable=True).indices.tolist()
        present = tuple(labels[index] for index in order if probs[index] > LABEL_THRESHOLD)
    is_whole = (output.regions.image == image) & (output.regions.level == 0)
    y1, x1 = output.regions.box_l0_yxyx[is_whole, 2:].amax(dim=0).tolist()
    size_hw = (y1, x1) if stored_size_hw is None else stored_size_hw
    scale_yx = (size_hw[0] / y1, size_hw[1] / x1)
    return Prediction(
        path=path,
        label="|".join(present),
        labels=present,
        index=int(top.indices[0]),
        probability=top5[0][1],
        top5=top5,
        size_hw=size_hw,
        regions=tuple(_records(output, image, config, labels, located, scale_yx)),
    )


def _records(
    output: ModelOutput,
    image: int,
    config: ModelConfig,
    labels: Sequence[str],
    located: bool,
    scale_yx: tuple[float, float],
) -> list[RegionRecord]:
    """Return the regions of one image after the whole, or the squares that it was seen as, in the order of looking."""
    rows = (output.regions.image == image).nonzero().flatten()[1:]
    looks = (output.regions.level[rows] > 0).nonzero().flatten()
    rows = rows[looks]
    alone = None
    if output.region_logits is not None:
        alone = class_probs(output.region_logits[image].cpu()[looks], config).max(dim=1)
    weights, probs = (
        None if values is None else values[image].detach().float().cpu()[looks].tolist()
        for values in (output.region_weights, output.region_probs if located else None)
    )
    regions = output.regions.take(rows)
    place = {row: n for n, row in enumerate(rows.tolist())}
    parents = [place.get(row, -1) for row in regions.parent.tolist()]
    chances = [0.0] * len(rows) if probs is None or not output.is_ranked else probs
    ranks = _ranks(parents, chances)
    records: list[RegionRecord] = []
    for n, (level, cell, box) in enumerate(
        zip(regions.level.tolist(), regions.cell.tolist(), regions.box_l0_yxyx.tolist(), strict=True)
    ):
        parent = parents[n]
        records.append(
            RegionRecord(
                number=str(ranks[n]) if parent < 0 else f"{records[parent].number}.{ranks[n]}",
                level=level,
                box_l0_yxyx=scaled_box(box, scale_yx),
                cell=cell,
                parent=parent,
                location_probability=None if probs is None or math.isnan(probs[n]) else round(probs[n], _DIGITS),
                weight=None if weights is None else round(weights[n], _DIGITS),
                label=None if alone is None else labels[int(alone.indices[n])],
                probability=None if alone is None else round(float(alone.values[n]), _DIGITS),
            )
        )
    return records


def _ranks(parents: Sequence[int], chances: Sequence[float]) -> list[int]:
    """Return the rank of each region among its siblings by probability, from 1; ties keep their order."""
    ranks, ranked = [0] * len(parents), Counter[int]()
    for i in sorted(range(len(parents)), key=lambda i: -chances[i] if chances[i] >= 0 else 0.0):
        ranked[parents[i]] += 1
        ranks[i] = ranked[parents[i]]
    return ranks
