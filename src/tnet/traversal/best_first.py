"""Best-first search: the next look is the most promising cell that is not yet seen, at any level."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from typing_extensions import override

from tnet.errors import ConfigError, LooksWarning
from tnet.geometry import Regions, box_overlap, cell_boxes
from tnet.traversal.policies import Choice
from tnet.traversal.search import Search
from tnet.traversal.stopping import StoppingRule
from tnet.traversal.trail import Step, Trail

Score = Literal["path", "density", "gain"]
Aspect = Literal["squeeze", "keep"]


@dataclass(frozen=True)
class BestFirst(Search):
    """Look at the most promising cells among all unseen cells of all regions seen so far.

    The number of looks is free: a trained model needs no retraining, and may take more looks than in training.

    Attributes:
        looks: largest number of looks per image after the whole. An image whose cells are all seen is done before.
        levels: levels that may be seen, including the whole image; more than the model was trained with are allowed.
        at_once: looks per image and step. 1 is sequential; more make fuller batches.
        score: promise of a cell. ``path``: the probability of its location, times those of the regions it lies in.
            ``density``: that times the number of cells at its level, the probability relative to chance, by which
            finer cells are not at a disadvantage. ``gain``: the gain that the model predicts (``model.locator.value``).
        max_overlap: share of a cell that a region seen at the same level may cover, while any other cell is left.
        explore: share of looks at a random unseen cell, in [0, 1].
        stop: rules, any of which ends an image's looks.
        generator: source of the random looks.
        aspect: how an image that is 1.5 times as long as wide, or longer, is seen whole: ``squeeze``, as a square, like
            all others; or ``keep``, as squares side by side, of which there are at most 16 and which do not count as
            looks. Each square is divided into cells as a whole image is.
    """

    looks: int
    levels: int
    at_once: int = 1
    score: Score = "path"
    max_overlap: float = 1.0
    explore: float = 0.0
    stop: tuple[StoppingRule, ...] = ()
    generator: torch.Generator | None = None
    aspect: Aspect = "squeeze"

    def __post_init__(self) -> None:
        for name, least in (("looks", 0), ("levels", 1), ("at_once", 1)):
            if getattr(self, name) < least:
                raise ConfigError(f"search.{name} is {getattr(self, name)}; give at least {least}")
        for name in ("max_overlap", "explore"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"search.{name} is {getattr(self, name)}; give a share from 0 to 1")
        for name, known in (("score", get_args(Score)), ("aspect", get_args(Aspect))):
            if getattr(self, name) not in known:
                raise ConfigError(f"search.{name} is {getattr(self, name)!r}; give one of {', '.join(known)}")

    @property
    @override
    def wants_logits(self) -> bool:
        return bool(self.stop)

    @override
    def wants_scores(self, regions: Regions) -> Bool[Tensor, " regions"]:
        return (regions.level < self.levels - 1) & (self.looks > 0)

    @override
    def wants_now(self, trail: Trail) -> Int[Tensor, " rows"]:
        rows = trail.drafted_rows
        return rows[trail.looks[trail.regions.image[rows]] < self.looks]

    @override
    def first_step(self, trail: Trail) -> Step:
        step, grid = trail.first_step(squares=self.aspect == "keep"), trail.grid
        squares = int(torch.bincount(step.regions.image).max())
        places = squares * sum(grid.cells**level for level in range(1, self.levels))
        if self.looks > places and not self.stop:
            cells = f"{self.levels} levels of {grid.rows} x {grid.cols} cells have {places:,} places"
            warnings.warn(f"search.looks is {self.looks:,}, but {cells}; all are seen", LooksWarning, stacklevel=4)
        return step

    @override
    def __call__(self, trail: Trail) -> Step | None:
        left = (self.looks - trail.looks).clamp(0, self.at_once)
        for rule in self.stop:
            left[rule(trail)] = 0
        if not len(trail.scored_rows) or not bool(left.any()):
            return None
        rows, promise = trail.scored_rows, self._promise(trail)
        image, boxes = trail.regions.image[rows], None
        if self.max_overlap < 1:
            boxes = cell_boxes(trail.regions.take(rows), trail.grid)
        chosen: list[tuple[int, int]] = []
        for index in left.nonzero().flatten().tolist():
            mine = (image == index).nonzero().flatten()
            level = trail.regions.level[rows[mine]] + 1
            avoided = None if boxes is None else _Avoided(trail, index, level, boxes[mine], self.max_overlap)
            for row, cell in self._best(promise[mine], int(left[index]), avoided):
                chosen.append((int(rows[mine[row]]), cell))
        if not chosen:
            return None
        parents, cells = torch.tensor(chosen).unbind(1)
        return trail.step(parents, Choice.of_cells(cells[:, None]))

    def _promise(self, trail: Trail) -> Float[Tensor, "scored cells"]:
        """Return the score of each cell of the scored rows, or its logarithm; minus infinity for those seen."""
        if self.score == "gain":
            return trail.unseen(trail.gains)
        rows, regions, place = trail.scored_rows, trail.regions, trail.score_places
        log_prob = trail.all_scores.detach().float().log_softmax(dim=1).cpu()
        if self.score == "density":
            log_prob = log_prob + math.log(trail.grid.cells)
        for i, row in enumerate(rows.tolist()):  # parents come before their children
            parent = int(regions.parent[row])
            if parent >= 0 and place[parent] >= 0 and regions.cell[row] >= 0:
                log_prob[i] += log_prob[place[parent], regions.cell[row]]
        return trail.unseen(log_prob)

    def _best(
        self, promise: Float[Tensor, "rows cells"], count: int, avoided: _Avoided | None
    ) -> list[tuple[int, int]]:
        """Return up to ``count`` cells of one image as row and cell, most promising first."""
        best: list[tuple[int, int]] = []
        promise = promise.clone()
        for _ in range(count):
            open_cells = promise > -torch.inf
            if not bool(open_cells.any()):
                break
            values = promise
            if self.explore and float(torch.rand(1, generator=self.generator)) < self.explore:
                values = torch.rand(promise.shape, generator=self.generator).masked_fill(~open_cells, -torch.inf)
            if avoided is not None and bool((open_cells & ~avoided.covered).any()):
                values = values.masked_fill(avoided.covered, -torch.inf)
            row, cell = divmod(int(values.argmax()), promise.shape[1])
            promise[row, cell] = -torch.inf
            best.append((row, cell))
            if avoided is not None:
                avoided.add(row, cell)
        return best


class _Avoided:
    """Cells of one image that are mostly covered by what was seen, or is chosen, at the same level."""

    def __init__(
        self,
        trail: Trail,
        image: int,
        level: Int[Tensor, " rows"],
        boxes: Int[Tensor, "rows cells 4"],
        max_overlap: float,
    ) -> None:
        self.level, self.boxes, self.max_overlap = level, boxes, max_overlap
        self.covered = torch.zeros(boxes.shape[:2], dtype=torch.bool)
        regions = trail.regions
        for row in ((regions.image == image) & (regions.level > 0)).nonzero().flatten().tolist():
            self._cover(int(regions.level[row]), regions.box_l0_yxyx[row])

    def add(self, row: int, cell: int) -> None:
        """Cover the cells around one that is chosen now."""
        self._cover(int(self.level[row]), self.boxes[row, cell])

    def _cover(self, level: int, box: Int[Tensor, "4"]) -> None:
        same = self.level == level
        self.covered[same] |= box_overlap(self.boxes[same], box) > self.max_overlap
