"""Searches: which regions to see next, given the trail of those seen. Independent of networks."""

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
    """Decision where to look next. Images of a batch may differ in level and number of looks.

    Example:
        >>> class Deeper(Search):
        ...     "Three looks per image, each at the best cell of the previous one."
        ...
        ...     def __call__(self, trail):
        ...         if int(trail.looks.max()) == 3:
        ...             return None
        ...         last = trail.rows_at(trail.regions.depth)
        ...         return trail.step(last, Choice.of_cells(trail.scores(last).argmax(1, keepdim=True)))
        >>> model(images, search=Deeper())
    """

    @property
    def wants_logits(self) -> bool:
        """Whether the search reads :attr:`Trail.logits`, the class logits so far."""
        return False

    def wants_scores(self, regions: Regions) -> Bool[Tensor, " regions"]:
        """Return which regions need location scores for their cells; all by default."""
        return torch.ones(len(regions), dtype=torch.bool)

    def first_step(self, trail: Trail) -> Step:
        """Return the step that begins a traversal; the whole images by default."""
        return trail.first_step()

    @abstractmethod
    def __call__(self, trail: Trail) -> Step | None:
        """Return the next step, built by :meth:`Trail.step`, or ``None`` when every image is done."""


class LevelByLevel(Search):
    """The published traversal: level by level, ``looks[level]`` cells of every region of a level."""

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
