"""The single answers of an evaluation, kept as a few numbers per image, and what follows from them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torchmetrics.functional.classification import binary_roc

from tnet.data.sample import Batch
from tnet.evaluation.evaluator import Setting, is_right
from tnet.evaluation.probabilities import bins_of, calibration_error
from tnet.inference.records import class_probs
from tnet.models.base import ModelConfig, ModelOutput
from tnet.traversal import CERTAINTIES

SIDE = 24
"""Cells per side of a map of looks."""
MAPPED = 1000
"""Classes, the first ones, whose looks are mapped."""

_MOST_POINTS = 300  # of a ROC curve that is drawn


class Bin(NamedTuple):
    """Images whose confidence is in one bin of :func:`tnet.evaluation.probabilities.bins_of`."""

    images: int
    confidence: float  # mean
    accuracy: float


class ClassCount(NamedTuple):
    """How often a class was there, was answered, and both."""

    name: str
    images: int
    answered: int
    right: int


class Answers:
    """Observes an evaluation (:data:`tnet.evaluation.evaluator.Observer`) and keeps the answers of one setting.

    Some 20 bytes per image, so that a million images fit.
    """

    def __init__(self, setting: Setting, config: ModelConfig, classes: Sequence[str]) -> None:
        self.setting, self.config, self.classes = setting, config, list(classes)
        self.counts = torch.zeros(3, len(classes), dtype=torch.long)  # images, answered, right
        self.looked = torch.zeros(1 + min(len(classes), MAPPED), SIDE, SIDE)  # row 0: of all images
        self.sizes_hw = Counter[tuple[int, int]]()
        self._parts: list[tuple[Tensor, ...]] = []

    def __call__(self, setting: Setting, batch: Batch, output: ModelOutput) -> None:
        """Keep the answers of a batch, if they are of this object's setting."""
        if setting != self.setting:
            return
        logits, targets, multilabel = output.logits.float().cpu(), batch.targets, self.config.multilabel
        probs = class_probs(logits, self.config)
        answer = probs.argmax(dim=1)
        present = targets > 0.5 if multilabel else _one_hot(targets, len(self.classes))
        answered = logits > 0 if multilabel else _one_hot(answer, len(self.classes))
        self.counts += torch.stack([present.sum(0), answered.sum(0), (present & answered).sum(0)])
        self._map(output, present)
        sure = CERTAINTIES["confidence"](logits, multilabel)
        truth = targets if targets.ndim == 1 else targets.argmax(dim=1)
        self._parts.append((truth, answer, sure, is_right(logits, targets), probs[:, -1].clone()))

    def _map(self, output: ModelOutput, present: Bool[Tensor, "batch classes"]) -> None:
        """Add the looks to the maps of all images and of their classes."""
        regions = output.regions
        level, image, boxes = (part.cpu() for part in (regions.level, regions.image, regions.box_l0_yxyx))
        ends = torch.zeros(len(present), 2, dtype=torch.long)
        ends.scatter_reduce_(0, image[level == 0, None].expand(-1, 2), boxes[level == 0, 2:], "amax")
        self.sizes_hw.update((int(h), int(w)) for h, w in ends.tolist())
        image, boxes = image[level > 0], boxes[level > 0]
        if not len(boxes):
            return
        shown = cover(boxes / ends[image].repeat(1, 2).clamp_min(1), SIDE)
        self.looked[0] += shown.sum(0)
        for row, label in (present[image, : len(self.looked) - 1]).nonzero().tolist():
            self.looked[1 + label] += shown[row]

    def __len__(self) -> int:
        return len(self.right)

    @cached_property
    def _columns(self) -> list[Tensor]:
        return [torch.cat(column) for column in zip(*self._parts, strict=True)]

    @property
    def truth(self) -> Int[np.ndarray, " images"]:
        """Index of the class; of several labels the first."""
        return self._columns[0].numpy()

    @property
    def answer(self) -> Int[np.ndarray, " images"]:
        """Index of the most probable class."""
        return self._columns[1].numpy()

    @property
    def confidence(self) -> Float[np.ndarray, " images"]:
        """Largest probability; with several labels per image, that of the least certain label's verdict."""
        return self._columns[2].numpy()

    @property
    def right(self) -> Bool[np.ndarray, " images"]:
        """Whether the answer is right."""
        return self._columns[3].numpy()

    def by_class(self) -> list[ClassCount]:
        """Return the counts of each class that occurs or was answered."""
        counts = [ClassCount(name, *row) for name, row in zip(self.classes, self.counts.T.tolist(), strict=True)]
        return [count for count in counts if count.images or count.answered]

    def confusion(self) -> Int[np.ndarray, "classes classes"]:
        """Return how many images of each class (row) got each answer (column); one class per image only."""
        n = len(self.classes)
        return np.bincount(self.truth * n + self.answer, minlength=n * n).reshape(n, n)

    def mistakes(self) -> list[tuple[tuple[int, int], int]]:
        """Return pairs of class and wrong answer with their numbers of images, the most frequent first."""
        wrong = ~self.right
        return Counter(zip(self.truth[wrong].tolist(), self.answer[wrong].tolist(), strict=True)).most_common()

    def bins(self) -> list[Bin]:
        """Return the bins of confidence that have images, in order."""
        which = bins_of(self._columns[2]).numpy()
        masks = [which == index for index in sorted(set(which.tolist()))]
        return [Bin(int(m.sum()), float(self.confidence[m].mean()), float(self.right[m].mean())) for m in masks]

    def calibration_error(self) -> float:
        """Return the expected calibration error."""
        return calibration_error(self._columns[2], self._columns[3])

    def roc(self) -> tuple[list[float], list[float]]:
        """Return false and true positive rates of the second of two classes, at up to 300 thresholds."""
        false, true, _ = binary_roc(self._columns[4], self._columns[0])
        kept = np.unique(np.linspace(0, len(false) - 1, _MOST_POINTS).round().astype(int))
        return false[kept].tolist(), true[kept].tolist()


def cover(boxes: Float[Tensor, "boxes 4"], side: int) -> Float[Tensor, "boxes side side"]:
    """Return the share of each of ``side`` x ``side`` cells that boxes ``(y0, x0, y1, x1)``, from 0 to 1, cover."""
    edges = torch.arange(side + 1) / side
    inside = [
        (
            torch.minimum(boxes[:, axis + 2, None], edges[1:]) - torch.maximum(boxes[:, axis, None], edges[:-1])
        ).clamp_min(0)
        for axis in (0, 1)
    ]
    return (side * inside[0])[:, :, None] * (side * inside[1])[:, None, :]


def _one_hot(indices: Int[Tensor, " batch"], classes: int) -> Bool[Tensor, "batch classes"]:
    return torch.nn.functional.one_hot(indices, classes).bool()
