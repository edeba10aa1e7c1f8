"""The looks of a policy one after the other, so that more of them go on from fewer."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Bool
from torch import Tensor
from typing_extensions import override

from tnet.geometry import Regions
from tnet.traversal import Choice, Policy, Search, Step, Trail


class InOrder(Search):
    """Look at one cell at a time, best first: after each look at level 1, those inside it.

    The regions are those of :class:`tnet.traversal.LevelByLevel` with as many looks; only their order differs.

    Args:
        looks: cells of each region of levels 0, 1, ...
        policy: makes the policy; one that draws must draw the same each time, and one cell more for one look more.
    """

    def __init__(self, looks: Sequence[int], policy: Callable[[], Policy]) -> None:
        self.looks, self.policy = tuple(looks), policy
        self.needs_logits = policy().needs_logits

    @override
    def wants_scores(self, regions: Regions) -> Bool[Tensor, " regions"]:
        return (regions.level < len(self.looks)) & self.needs_logits

    @override
    def __call__(self, trail: Trail) -> Step | None:
        regions = trail.regions
        for row in reversed(range(len(trail))):  # what is seen last is divided first
            level, is_placed = int(regions.level[row]), int(regions.level[row]) > 0 and int(regions.cell[row]) < 0
            if level >= len(self.looks) or is_placed:
                continue
            seen = regions.cell[(regions.parent == row) & (regions.cell >= 0)].tolist()
            if len(seen) < self.looks[level]:
                parent = torch.tensor([row])
                chosen = self.policy()(trail.scores(parent), len(seen) + 1).cells[0].tolist()
                return trail.step(parent, Choice.of_cells(torch.tensor([[c for c in chosen if c not in seen][:1]])))
        return None
