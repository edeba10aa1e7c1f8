"""Searches: given what has been seen, what to look at next.

A search holds no network. It reads the :class:`Trail` and returns the next :class:`Step`, or ``None`` when all images
of the batch are done. Images may differ in what is looked at and in how often.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from jaxtyping import Bool
from torch import Tensor
from typing_extensions import override

from tnet.geometry import Regions
from tnet.traversal.policies import Policy
from tnet.traversal.trail import Step, Trail


class Search(ABC):
    """Decides where to look.

    Example:
        >>> class Deeper(Search):
        ...     "Three looks per image, each at the best cell of the one before."
        ...
        ...     def __call__(self, trail):
        ...         if int(trail.looks.max()) == 3:
        ...             return None
        ...         last = trail.rows_at(trail.regions.depth)
        ...         return trail.step(last, Choice.of_cells(trail.scores(last).argmax(1, keepdim=True)))
        >>> model(images, search=Deeper())
    """

    def wants_scores(self, regions: Regions) -> Bool[Tensor, " regions"]:
        """Which regions' cells the locator is to score; all of them unless overridden."""
        return torch.ones(len(regions), dtype=torch.bool)

    @abstractmethod
    def __call__(self, trail: Trail) -> Step | None:
        """The next step, built by :meth:`Trail.step`; ``None`` when every image is done."""


class LevelByLevel(Search):
    """The published traversal: the same number of cells of every region of a level, one level after the other.

    Args:
        looks: cells per region for levels 1, 2, ...; empty to see the whole images only.
        policy: chooses the cells of a region.
    """

    def __init__(self, looks: Sequence[int], policy: Policy) -> None:
        self.looks = tuple(looks)
        self.policy = policy

    @override
    def wants_scores(self, regions: Regions) -> Bool[Tensor, " regions"]:
        return (regions.level < len(self.looks)) & self.policy.needs_logits

    @override
    def __call__(self, trail: Trail) -> Step | None:
        level = trail.regions.depth
        if level == len(self.looks):
            return None
        parents = trail.rows_at(level)
        return trail.step(parents, self.policy(trail.scores(parents), self.looks[level]))
