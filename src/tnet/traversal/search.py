"""Searches: which regions to see next, given the trail of those seen. Independent of networks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from typing_extensions import override

from tnet.geometry import Regions
from tnet.traversal.policies import Policy, TopK
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

    def wants_now(self, trail: Trail) -> Int[Tensor, " rows"]:
        """Return the drafted rows, ascending, to score (again) from everything seen so far; by default the new ones."""
        rows = trail.drafted_rows
        return rows[~torch.isin(rows, trail.scored_rows)]

    @abstractmethod
    def __call__(self, trail: Trail) -> Step | None:
        """Return the next step, built by :meth:`Trail.step`, or ``None`` when every image is done."""


class LevelByLevel(Search):
    """The published traversal: level by level, ``looks[level]`` cells of every region of a level.

    ``one_by_one`` (not published): one cell of every region per step, for scores that depend on what was seen.
    """

    def __init__(self, looks: Sequence[int], policy: Policy, one_by_one: bool = False) -> None:
        self.looks = tuple(looks)
        self.policy = policy
        self.one_by_one = one_by_one and policy.needs_logits

    @override
    def wants_scores(self, regions: Regions) -> Bool[Tensor, " regions"]:
        return (regions.level < len(self.looks)) & self.policy.needs_logits

    @override
    def wants_now(self, trail: Trail) -> Int[Tensor, " rows"]:
        rows = trail.drafted_rows
        return rows[trail.regions.level[rows] == self._unfinished(trail)]

    @override
    def __call__(self, trail: Trail) -> Step | None:
        level = self._unfinished(trail)
        if level == len(self.looks):
            return None
        parents = trail.rows_at(level)
        scores, count = trail.scores(parents), self.looks[level]
        if self.one_by_one:
            scores, count = scores - self._handicap(trail, parents).to(scores), 1
        return trail.step(parents, self.policy(scores, count))

    def _unfinished(self, trail: Trail) -> int:
        """Return the level whose regions are divided next."""
        level = trail.regions.depth
        if not self.one_by_one or not 0 < level <= len(self.looks):
            return level
        wanted = len(trail.rows_at(level - 1)) * self.looks[level - 1]
        return level - (len(trail.rows_at(level)) < wanted)

    def _handicap(self, trail: Trail, parents: Int[Tensor, " parents"]) -> Float[Tensor, "parents cells"]:
        """Return what puts cells that were seen last, after those that cover seen ones too much."""
        handicap = torch.zeros(len(parents), trail.grid.cells)
        children = (torch.isin(trail.regions.parent, parents) & (trail.regions.cell >= 0)).nonzero().flatten()
        row, cell = torch.searchsorted(parents, trail.regions.parent[children]), trail.regions.cell[children]
        if isinstance(self.policy, TopK) and self.policy.apart is not None:
            handicap.index_put_((row,), 1e4 * self.policy.apart[cell].float(), accumulate=True)
        handicap[row, cell] = 1e9
        return handicap
