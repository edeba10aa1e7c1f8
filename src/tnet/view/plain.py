"""Regions, answers and cells of a run as plain data, in pixels of the image as stored."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from jaxtyping import Float
from torch import Tensor

from tnet.errors import CheckpointError
from tnet.geometry import cell_boxes, scaled_box
from tnet.inference.records import class_probs
from tnet.models.base import ModelConfig, ModelOutput
from tnet.models.engine import Traversal

_DIGITS = 6

T = TypeVar("T")


def probabilities(logits: Float[Tensor, " classes"], config: ModelConfig) -> list[float]:
    """Return class probabilities; raise CheckpointError for infinite or NaN values."""
    probs = class_probs(logits, config)
    if not bool(probs.isfinite().all()):
        raise CheckpointError("the model outputs infinite or NaN values for this image; load an earlier checkpoint")
    return [round(p, _DIGITS) for p in probs.tolist()]


def regions_of(
    output: ModelOutput, config: ModelConfig, scale_yx: tuple[float, float], *, is_led: bool
) -> list[dict[str, Any]]:
    """Return each region of one image. ``is_led``: regions without a cell were asked for."""

    def top(logits: Tensor) -> tuple[int, float]:
        prob, index = class_probs(logits, config).max(dim=0)
        return int(index), round(float(prob), _DIGITS)

    regions, count = output.regions, len(output.regions)
    levels, cells = regions.level.tolist(), regions.cell.tolist()
    columns = {
        "row": range(count),
        "level": levels,
        "parent": regions.parent.tolist(),
        "box": [scaled_box(box, scale_yx) for box in regions.box_l0_yxyx.tolist()],
        "asked": [is_led and level > 0 and cell < 0 for level, cell in zip(levels, cells, strict=True)],
        "weight": _each(output.whole_weights, output.region_weights, count, lambda value: round(float(value), _DIGITS)),
        "top": _each(output.whole_logits, output.region_logits, count, top),
    }
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def _each(whole: Tensor | None, regions: Tensor | None, count: int, make: Callable[[Tensor], T]) -> list[T | None]:
    """Return something of the whole image and of each region after it; ``None`` where a model has nothing."""
    rest = [None] * (count - 1) if regions is None else [make(value) for value in regions[0][: count - 1]]
    return [None if whole is None else make(whole[0]), *rest]


def cells_of(traversal: Traversal, rows: int, scale_yx: tuple[float, float]) -> list[dict[str, Any]]:
    """Return boxes and probabilities of the cells of the regions that were scored, up to a row."""
    trail = traversal.trail
    boxes = cell_boxes(trail.regions.take(trail.scored_rows), traversal.model.grid).tolist()
    probs = trail.all_scores.float().softmax(dim=1).cpu().tolist()
    scored = sorted(zip(trail.scored_rows.tolist(), boxes, probs, strict=True))
    return [
        {"row": row, "boxes": [scaled_box(box, scale_yx) for box in own], "probs": [round(p, _DIGITS) for p in chances]}
        for row, own, chances in scored
        if row < rows
    ]
