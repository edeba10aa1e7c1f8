"""What a model says of one picture, as plain data: for tables, JSON and figures alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from tnet.errors import ConfigError
from tnet.geometry import scaled_box
from tnet.models.base import ModelConfig, ModelOutput

LABEL_THRESHOLD = 0.5
"""Probability above which a label counts as present where a picture can have several."""

TOP = 5
"""Classes that are kept beside the most probable one, itself included."""

_DIGITS = 6  # what a float32 softmax is worth in a file


@dataclass(frozen=True)
class RegionRecord:
    """One region that was looked at after the whole picture.

    Attributes:
        number: what figures call it: ``2`` is the second most probable location of the picture, ``2.1`` the most
            probable one inside that. Where the locator was not asked, raster order; of
            models that look at one place after the other, the order in which they did.
        level: 1 for regions of the whole picture, 2 for regions inside those, ...
        box_l0_yxyx: ``(y0, x0, y1, x1)`` in the picture's own pixels, ``y1`` and ``x1`` exclusive. May reach past the
            edge by a few pixels, where the network sees padding.
        cell: flat (row-major) cell of the grid in the parent.
        parent: index of the region it lies in, into the prediction's ``regions``; -1 for the whole picture.
        location_probability: of this cell among those of its parent, by the locator; ``None`` if it was not asked.
        weight: this region's share of the feature that was classified; with that of the whole picture they sum to 1.
            ``None`` if the model does not say.
        label: what the classifier says of this region alone (the most probable class); of a recurrent model, after
            this region and those before. ``None`` if the model does not say.
        probability: of that class.
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
    """What a model says of one picture.

    Attributes:
        path: where the picture came from.
        label: the class; where a picture can have several, those above 0.5 joined by ``|``, possibly none.
        labels: the same one by one, most probable first.
        index: of the most probable class, from 0.
        probability: of the most probable class.
        top5: the five most probable classes and their probabilities, in order.
        size_hw: height and width of the picture, pixels: the frame of the boxes.
        regions: what was looked at after the whole picture, level by level in raster order; empty for 0 looks.
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
    """A picture that was skipped.

    Attributes:
        path: of the picture.
        error: why, and what to do about it, in one sentence.
    """

    path: str
    error: str


def class_labels(config: ModelConfig, names: Sequence[str] | None = None) -> list[str]:
    """Names of the classes: those given, those of the model, or their indices.

    Raises:
        ConfigError: another number of names than classes.
    """
    if names is None:
        names = config.class_names or tuple(str(index) for index in range(config.num_classes))
    if len(names) != config.num_classes:
        raise ConfigError(f"{len(names)} class names for {config.num_classes} classes; give one for each")
    return list(names)


def class_probs(logits: Float[Tensor, "*rows classes"], config: ModelConfig) -> Float[Tensor, "*rows classes"]:
    """Probabilities: softmax, or sigmoid where a picture can have several labels."""
    logits = logits.detach().float().cpu()
    return logits.sigmoid() if config.multilabel else logits.softmax(dim=-1)


def prediction_of(
    output: ModelOutput,
    image: int,
    config: ModelConfig,
    path: str,
    *,
    located: bool = True,
    names: Sequence[str] | None = None,
    own_size_hw: tuple[int, int] | None = None,
) -> Prediction:
    """Put what a traversal found of one image of its batch into plain data.

    Args:
        output: of the traversal.
        image: index in the batch.
        config: of the model.
        path: of the picture.
        located: whether the locator decided where to look.
        names: of the classes; the model's own if ``None``.
        own_size_hw: height and width of the picture where it was shrunk on reading: boxes are scaled back to it.
    """
    labels = class_labels(config, names)
    probs = class_probs(output.logits[image], config)
    top = probs.topk(min(TOP, len(labels)))
    top5 = tuple((labels[i], _rounded(p)) for p, i in zip(top.values.tolist(), top.indices.tolist(), strict=True))
    found = _above_threshold(probs, labels) if config.multilabel else (top5[0][0],)
    y1, x1 = output.regions.box_l0_yxyx[image, 2:].tolist()  # whole images come first
    size_hw = (y1, x1) if own_size_hw is None else own_size_hw
    scale_yx = (size_hw[0] / y1, size_hw[1] / x1)
    return Prediction(
        path=path,
        label="|".join(found),
        labels=found,
        index=int(top.indices[0]),
        probability=top5[0][1],
        top5=top5,
        size_hw=size_hw,
        regions=tuple(_records(output, image, config, labels, located, scale_yx)),
    )


def _above_threshold(probs: Float[Tensor, " classes"], labels: Sequence[str]) -> tuple[str, ...]:
    """Labels that count as present, most probable first."""
    order = probs.sort(descending=True, stable=True).indices.tolist()
    return tuple(labels[index] for index in order if probs[index] > LABEL_THRESHOLD)


def _records(
    output: ModelOutput,
    image: int,
    config: ModelConfig,
    labels: Sequence[str],
    located: bool,
    scale_yx: tuple[float, float],
) -> list[RegionRecord]:
    """Records of the regions of one image after the whole, in the order in which they were looked at."""
    alone = None if output.region_logits is None else class_probs(output.region_logits[image], config).max(dim=1)
    weights = _row(output.region_weights, image)
    probs = _row(output.region_probs if located else None, image)
    rows = (output.regions.image == image).nonzero().flatten()[1:]
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
                location_probability=None if probs is None else _rounded(probs[n]),
                weight=None if weights is None else _rounded(weights[n]),
                label=None if alone is None else labels[int(alone.indices[n])],
                probability=None if alone is None else _rounded(float(alone.values[n])),
            )
        )
    return records


def _row(values: Float[Tensor, "batch n"] | None, image: int) -> list[float] | None:
    """One image's values as numbers."""
    return None if values is None else values[image].detach().float().cpu().tolist()


def _ranks(parents: Sequence[int], chances: Sequence[float]) -> list[int]:
    """Place of each region among its siblings by falling probability, from 1; ties in the order given."""
    order = sorted(range(len(parents)), key=lambda i: (parents[i], -chances[i]))
    ranks = [0] * len(parents)
    for position, i in enumerate(order):
        first = position == 0 or parents[order[position - 1]] != parents[i]
        ranks[i] = 1 if first else ranks[order[position - 1]] + 1
    return ranks


def _rounded(value: float) -> float:
    return round(value, _DIGITS)
