"""The trail: append-only table of everything a traversal has seen. Independent of networks and decisions."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tnet.errors import ConfigError, GeometryError
from tnet.geometry import Grid, Regions, choose_cells, region_at, whole_images
from tnet.traversal.policies import Choice


@dataclass(frozen=True)
class Step:
    """Regions to see next."""

    regions: Regions  # `parent` refers to rows of the trail
    log_prob: Float[Tensor, " regions"]  # of each region's choice
    joint_log_prob: Float[Tensor, " choices"]  # of each joint choice of several regions
    joint_image: Int[Tensor, " choices"]  # image of each joint choice


class Trail:
    """Everything seen of a batch of images; row ``i`` of ``regions`` is the ``i``-th region seen, whole images first.

    A whole image is one row of level 0, or several if a search divides long images into squares.

    Rows are appended step by step, so a parent always comes before its children. Images may have different numbers of
    rows. Geometry is on the CPU, features and scores on the model's device. ``sizes_hw`` are in level-0 pixels.
    """

    def __init__(self, sizes_hw: Sequence[tuple[int, int]], grid: Grid) -> None:
        self.sizes_hw = list(sizes_hw)
        self.grid = grid
        self.regions = whole_images(self.sizes_hw).take(torch.zeros(0, dtype=torch.long))
        self._features: list[Tensor] = []
        self._log_prob: list[Tensor] = []
        self._joint: list[tuple[Tensor, Tensor]] = []
        self._scores: list[Tensor] = []
        self._scored_rows: list[Tensor] = []
        self._latest_scores: Tensor | None = None  # if any row was scored again
        self.start: Tensor | None = None  # of the canvas of each image, if the model has one
        self.drafts: list[tuple[Tensor, Tensor]] = []  # rows and drafts of their scores, if the model scores them again
        self._gains: list[Tensor] = []
        self.logits = torch.zeros(0)  # [images, classes] from all rows so far, if the search wants them
        self.started_s = self._appended_s = time.monotonic()
        self.slowest_step_ms = 0.0

    def __len__(self) -> int:
        return len(self.regions)

    @property
    def images(self) -> int:
        """Number of images."""
        return len(self.sizes_hw)

    @property
    def features(self) -> Float[Tensor, "rows dim"]:
        """Feature of each row, with its position encoded."""
        return torch.cat(self._features)

    @property
    def log_prob(self) -> Float[Tensor, " rows"]:
        """Log-probability of each row's choice; 0 for whole images."""
        return torch.cat(self._log_prob)

    @property
    def looks(self) -> Int[Tensor, " images"]:
        """Number of regions seen per image after the whole."""
        return torch.bincount(self.regions.image[self.regions.level > 0], minlength=self.images)

    @property
    def scored_rows(self) -> Int[Tensor, " scored"]:
        """Rows whose cells have scores, in the order of :attr:`all_scores`."""
        return torch.cat(self._scored_rows) if self._scored_rows else torch.zeros(0, dtype=torch.long)

    @property
    def score_places(self) -> Int[Tensor, " rows"]:
        """Place of each row in :attr:`scored_rows`, -1 for rows without scores."""
        places, scored = torch.full((len(self),), -1, dtype=torch.long), self.scored_rows
        places[scored] = torch.arange(len(scored))
        return places

    @property
    def drafted_rows(self) -> Int[Tensor, " drafted"]:
        """Rows with :attr:`drafts`, ascending."""
        return torch.cat([torch.zeros(0, dtype=torch.long), *(rows for rows, _ in self.drafts)])

    @property
    def all_scores(self) -> Float[Tensor, "scored cells"]:
        """Location logits of the cells of all scored rows, the latest of each."""
        return self.first_scores if self._latest_scores is None else self._latest_scores

    @property
    def first_scores(self) -> Float[Tensor, "scored cells"]:
        """Location logits of the cells of all scored rows from when the row was seen."""
        return torch.cat(self._scores) if self._scores else self._features[0].new_zeros(0, self.grid.cells)

    @property
    def gains(self) -> Float[Tensor, "scored cells"] | None:
        """Predicted gains of the cells of all scored rows, in nats; ``None`` if they are not predicted."""
        return torch.cat(self._gains) if self._gains else None

    def unseen(self, values: Float[Tensor, "scored cells"] | None) -> Float[Tensor, "scored cells"]:
        """Return values of the cells of all scored rows, on the CPU, with minus infinity for cells that were seen.

        Raises:
            ConfigError: there are no values, such as gains that the model does not predict.
        """
        if values is None:
            raise ConfigError("the model predicts no gains; train with model.locator.value and objective.gain_weight")
        place, regions = self.score_places, self.regions
        seen = ((regions.parent >= 0) & (regions.cell >= 0)).nonzero().flatten()
        seen = seen[place[regions.parent[seen]] >= 0]
        open_values = values.detach().float().cpu().clone()
        open_values[place[regions.parent[seen]], regions.cell[seen]] = -torch.inf
        return open_values

    def rows_at(self, level: int) -> Int[Tensor, " rows"]:
        """Return the rows of one level."""
        return (self.regions.level == level).nonzero().flatten()

    def scores(self, rows: Int[Tensor, " rows"], *, first: bool = False) -> Float[Tensor, "rows cells"]:
        """Return the location logits (the latest, or the first) of the cells of rows; zeros for rows without scores."""
        scored, scores = self.scored_rows, self.first_scores if first else self.all_scores
        if len(rows) == len(scored) and torch.equal(rows, scored):
            return scores
        index = self.score_places[rows]
        if bool((index < 0).all()):
            return self._features[0].new_zeros(len(rows), self.grid.cells)
        index = index.to(scores.device)
        return scores[index.clamp_min(0)].masked_fill((index < 0)[:, None], 0.0)

    def divided_rows(self) -> Int[Tensor, " divided"]:
        """Return the rows with scores or children, ascending."""
        parents = self.regions.parent[self.regions.parent >= 0]
        return torch.cat([self.scored_rows, parents]).unique()

    def first_step(self, *, squares: bool = False) -> Step:
        """Return the step of the whole images, the first of every traversal; see :func:`whole_images`."""
        regions, none = whole_images(self.sizes_hw, squares=squares), torch.zeros(0)
        return Step(regions, torch.zeros(len(regions)), none, none.long())

    def step(self, parents: Int[Tensor, " parents"], choice: Choice) -> Step:
        """Return the step of the cells chosen in each of these rows, for a search to return."""
        if len(parents) and not 0 <= int(parents.min()) <= int(parents.max()) < len(self):
            raise GeometryError(f"parents {parents.tolist()} must be rows 0..{len(self) - 1} of the trail")
        table = self.regions.take(parents)
        regions = choose_cells(table, self.grid, choice.cells, parents)
        return Step(regions, choice.log_prob.reshape(-1), choice.joint_log_prob, table.image)

    def step_to(self, box_l0_yxyx: Sequence[int], image: int, deepest: int) -> Step:
        """Return the step of a region at any place of an image; see :func:`tnet.geometry.region_at`."""
        rows = ((self.regions.image == image) & (self.regions.level == 0)).nonzero().flatten()
        if not len(rows):
            raise GeometryError(f"image {image} is not one of the {self.images} seen; give its index in the batch")
        wholes = self.regions.take(rows)
        region = region_at(wholes, rows, self.sizes_hw[image], self.grid, box_l0_yxyx, deepest)
        return Step(region, torch.zeros(1), torch.zeros(0), torch.zeros(0).long())

    def append(
        self,
        step: Step,
        features: Float[Tensor, "regions dim"],
        scores: Float[Tensor, "scored cells"] | None = None,
        scored: Bool[Tensor, " regions"] | None = None,
        gains: Float[Tensor, "scored cells"] | None = None,
    ) -> None:
        """Append a step, the features of its regions, and location logits and gains of those in the mask ``scored``."""
        start = len(self)
        self.regions = Regions.concat([self.regions, step.regions]) if start else step.regions
        self._features.append(features)
        self._log_prob.append(step.log_prob.to(features.device))
        if len(step.joint_image):
            self._joint.append((step.joint_image, step.joint_log_prob))
        now_s = time.monotonic()
        self.slowest_step_ms = max(self.slowest_step_ms, 1000 * (now_s - self._appended_s))
        self._appended_s = now_s
        if scores is not None and scored is not None:
            self._scores.append(scores)
            self._scored_rows.append(start + scored.nonzero().flatten())
            self._gains += [] if gains is None else [gains]

    def first(self, rows: int) -> Trail:
        """Return a trail of the first rows alone, with the scores that they have now."""
        trail, kept = Trail(self.sizes_hw, self.grid), torch.arange(rows)
        trail.regions, trail.start = self.regions.take(kept), self.start
        trail._features, trail._log_prob = [self.features[:rows]], [self.log_prob[:rows]]
        scored = self.scored_rows < rows
        if bool(scored.any()):
            index = scored.nonzero().flatten()
            trail._scored_rows = [self.scored_rows[index]]
            trail._scores = [self.all_scores[index.to(self.all_scores.device)]]
            trail._gains = [] if self.gains is None else [self.gains[index.to(self.gains.device)]]
        return trail

    def rescore(self, rows: Int[Tensor, " rows"], scores: Float[Tensor, "rows cells"]) -> None:
        """Set the location logits of ascending rows; those without any so far come after those that have some."""
        old = int(torch.isin(rows, self.scored_rows).sum())
        place = torch.searchsorted(self.scored_rows, rows[:old]).to(scores.device)
        latest = self.all_scores.to(scores).index_put((place,), scores[:old])
        self._latest_scores = torch.cat([latest, scores[old:]])
        self._scores.append(scores[old:])
        self._scored_rows.append(rows[old:])

    def joint_log_prob(self) -> Float[Tensor, " images"]:
        """Return the log-probability of all choices in each image."""
        if not self._joint:
            return self._features[0].new_zeros(self.images)
        images, values = map(torch.cat, zip(*self._joint, strict=True))
        return gather_rows(values, *group_rows(images, self.images)).sum(1)

    def by_image(self) -> tuple[Int[Tensor, "images n"], Bool[Tensor, "images n"] | None]:
        """Return the rows of each image in the order seen; see :func:`group_rows`."""
        return group_rows(self.regions.image, self.images)


def group_rows(
    group: Int[Tensor, " rows"], groups: int
) -> tuple[Int[Tensor, "groups n"], Bool[Tensor, "groups n"] | None]:
    """Return the rows of each group, padded with row 0, and the mask of valid ones; ``None`` if nothing is padded."""
    order = group.sort(stable=True).indices
    counts = torch.bincount(group, minlength=groups)
    most = int(counts.max()) if len(counts) else 0
    if bool((counts == most).all()):
        return order.reshape(groups, most), None
    seen = torch.arange(most)[None, :] < counts[:, None]
    rows = torch.zeros(groups, most, dtype=torch.long)
    rows[seen] = order
    return rows, seen


def gather_rows(
    values: Float[Tensor, "rows ..."], rows: Int[Tensor, "groups n"], seen: Bool[Tensor, "groups n"] | None
) -> Float[Tensor, "groups n ..."]:
    """Gather values of a table by the result of :func:`group_rows`; padding becomes zeros."""
    gathered = values[rows.to(values.device)]
    if seen is None:
        return gathered
    return gathered * seen.to(values.device).reshape(*seen.shape, *[1] * (gathered.ndim - 2))
