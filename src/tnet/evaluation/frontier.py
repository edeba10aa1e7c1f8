"""Accuracy against mean cost: the same number of looks for every image, or stopping per image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tnet.backbones import Precision
from tnet.cost import multiply_adds
from tnet.data.loading import LabelledData, eval_loader
from tnet.errors import ConfigError
from tnet.evaluation.evaluator import check_data_fits, is_right, wilson_interval
from tnet.inference.progress import track_images
from tnet.models.tnet import TNet
from tnet.traversal import CERTAINTIES, BestFirst


@dataclass(frozen=True)
class Curves:
    """Answers of a search after each number of looks, for each image; an image that ran out of cells keeps its last.

    Attributes:
        right: whether the answer is right.
        certainty: certainty of the answer, by measure.
        looks: looks taken.
        macs: multiply-adds spent.
    """

    right: Bool[Tensor, "images n"]
    certainty: dict[str, Float[Tensor, "images n"]]
    looks: Int[Tensor, "images n"]
    macs: Int[Tensor, "images n"]


@dataclass(frozen=True)
class FrontierRow:
    """One point of the frontier.

    Attributes:
        kind: ``level by level`` or ``best-first`` (the same number of looks for every image), or ``stopping``.
        setting: number of looks, or budget of mean looks.
        mean_looks: mean looks per image.
        mean_macs: mean multiply-adds per image.
        accuracy: share of images answered rightly.
        accuracy_low: lower end of its 95 % Wilson interval.
        accuracy_high: upper end.
        images: number of images.
    """

    kind: str
    setting: float
    mean_looks: float
    mean_macs: float
    accuracy: float
    accuracy_low: float
    accuracy_high: float
    images: int


def measure_curves(
    model: TNet,
    data: LabelledData,
    search: BestFirst,
    *,
    batch_size: int = 16,
    workers: int = 0,
    device: str = "cpu",
    precision: Precision = "fp32",
    progress: bool = True,
) -> Curves:
    """Run a search that does not stop over labelled images, and record every answer on the way.

    Raises:
        DataError: the images do not fit the model, or cannot be read.
        ConfigError: the search has stopping rules.
    """
    if search.stop:
        raise ConfigError("the search stops by itself, so its later answers cannot be measured; give one without rules")
    check_data_fits(model.config, data)
    model.to(device).eval()
    costs, fast = step_costs(model), model.prepare_for_inference(precision)
    parts: list[tuple[Tensor, ...]] = []
    with torch.inference_mode():
        for batch in track_images(eval_loader(data, batch_size, workers), len(data), "measuring", progress):
            output = fast(batch.to(torch.device(device)).images, search=search)
            n = torch.arange(search.looks + 1)
            taken = n.expand(len(batch.targets), -1)
            if output.seen is not None or output.features.shape[1] <= search.looks:
                counts = torch.bincount(output.regions.image, minlength=len(batch.targets))
                taken = torch.minimum(taken, counts[:, None] - 1)
            logits = model.answers(output.features, output.seen, output.places).float().cpu()
            logits = logits.gather(1, taken[:, :, None].expand(-1, -1, logits.shape[2]))
            targets = batch.targets.repeat_interleave(len(n), dim=0)
            right = is_right(logits.flatten(0, 1), targets).reshape(taken.shape)
            divided = search.wants_scores(output.regions).long()[output.rows].cumsum(1).gather(1, taken)
            macs = costs.image + (taken + 1) * costs.region + divided * costs.scored
            sure = [measure(logits, model.config.multilabel) for measure in CERTAINTIES.values()]
            parts.append((right, taken, macs, *sure))
    right, taken, macs, *sure = (torch.cat(column) for column in zip(*parts, strict=True))
    return Curves(right, dict(zip(CERTAINTIES, sure, strict=True)), taken, macs)


class StepCosts(NamedTuple):
    """Multiply-adds of the steps of a traversal: once per image, per region seen, per region whose cells are scored.

    Answers before the last are not counted, nor, with ``model.locator.context: collected``, that the cells of regions
    are scored again and that a canvas is read with more and more features (together less than 2 %).
    """

    image: int
    region: int
    scored: int


def step_costs(model: TNet) -> StepCosts:
    """Return the costs that add up to those of any traversal of a TNet of 2 or more levels with 2 or more cells."""
    none, one, two = (multiply_adds(model, looks, policy="topk") for looks in ((), (1,), (2,)))
    region = two - one
    return StepCosts(none - region, region, one - none - region)


def best_first_rows(curves: Curves) -> list[FrontierRow]:
    """Return the rows of every number of looks, the same for every image."""
    count, n = curves.right.shape
    return [frontier_row("best-first", looks, curves, torch.full((count,), looks)) for looks in range(n)]


def frontier_row(kind: str, setting: float, curves: Curves, at: Int[Tensor, " images"]) -> FrontierRow:
    """Return the row of a search that ends after ``at`` looks in each image."""

    def of(values: Tensor) -> Tensor:
        return values.gather(1, at[:, None]).squeeze(1)

    right, total = int(of(curves.right).sum()), len(at)
    low, high = wilson_interval(right, total)
    looks, macs = float(of(curves.looks).float().mean()), float(of(curves.macs).double().mean())
    return FrontierRow(kind, float(setting), looks, macs, right / total, low, high, total)
