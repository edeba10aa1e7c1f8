"""The trail: everything a traversal has seen so far, as one append-only table.

Knows no network and decides nothing: a model appends what it saw, a search reads the table and says what comes next.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tnet.errors import GeometryError
from tnet.geometry import Grid, Regions, choose_cells, whole_images
from tnet.traversal.policies import Choice


@dataclass(frozen=True)
class Step:
    """Regions to look at next.

    Attributes:
        regions: their ``parent`` counts rows of the trail.
        log_prob: log-probability with which each was chosen.
        joint_log_prob: log-probability of each choice of several regions together.
        joint_image: image in which that choice was made.
    """

    regions: Regions
    log_prob: Float[Tensor, " regions"]
    joint_log_prob: Float[Tensor, " choices"]
    joint_image: Int[Tensor, " choices"]


class Trail:
    """What has been seen of a batch of images; row ``i`` is the ``i``-th region that was looked at.

    Rows are appended step by step, so a parent always comes before its children. Images may have different numbers of
    rows. Geometry lives on the CPU, features and scores on the model's device.

    Args:
        sizes_hw: height and width of each image, level-0 pixels.
        grid: how a region is divided into cells.

    Attributes:
        regions: the table, whole images first.
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

    def __len__(self) -> int:
        return len(self.regions)

    @property
    def images(self) -> int:
        """Number of images in the batch."""
        return len(self.sizes_hw)

    @property
    def features(self) -> Float[Tensor, "rows dim"]:
        """One feature per row, position included."""
        return torch.cat(self._features)

    @property
    def log_prob(self) -> Float[Tensor, " rows"]:
        """Log-probability with which each row was chosen; 0 for whole images."""
        return torch.cat(self._log_prob)

    @property
    def looks(self) -> Int[Tensor, " images"]:
        """Regions seen of each image after the whole."""
        return torch.bincount(self.regions.image[self.regions.level > 0], minlength=self.images)

    @property
    def scored_rows(self) -> Int[Tensor, " scored"]:
        """Rows whose cells the locator has scored, in the order of :attr:`all_scores`."""
        return torch.cat(self._scored_rows) if self._scored_rows else torch.zeros(0, dtype=torch.long)

    @property
    def all_scores(self) -> Float[Tensor, "scored cells"]:
        """Location logits of the cells of all scored rows."""
        return torch.cat(self._scores) if self._scores else self._features[0].new_zeros(0, self.grid.cells)

    def rows_at(self, level: int) -> Int[Tensor, " rows"]:
        """Rows of one level."""
        return (self.regions.level == level).nonzero().flatten()

    def scores(self, rows: Int[Tensor, " rows"]) -> Float[Tensor, "rows cells"]:
        """Location logits of the cells of some rows; zeros where the locator was not asked."""
        scored = self.scored_rows
        if len(rows) == len(scored) and torch.equal(rows, scored):
            return self.all_scores
        place = torch.full((len(self),), -1, dtype=torch.long)
        place[scored] = torch.arange(len(scored))
        chosen = place[rows]
        if not len(scored) or bool((chosen < 0).all()):
            return self._features[0].new_zeros(len(rows), self.grid.cells)
        scores = self.all_scores
        unknown = (chosen < 0).to(scores.device)[:, None]
        return scores[chosen.clamp_min(0).to(scores.device)].masked_fill(unknown, 0.0)

    def divided_rows(self) -> Int[Tensor, " divided"]:
        """Rows that were scored or have children, ascending."""
        parents = self.regions.parent[self.regions.parent >= 0]
        return torch.cat([self.scored_rows, parents]).unique()

    def first_step(self) -> Step:
        """The whole images, which every traversal sees first."""
        count, none = self.images, torch.zeros(0)
        return Step(whole_images(self.sizes_hw), torch.zeros(count), none, none.long())

    def step(self, parents: Int[Tensor, " parents"], choice: Choice) -> Step:
        """The step that looks at chosen cells of some rows: what a search returns.

        Args:
            parents: rows of the trail.
            choice: cells of each of them.

        Raises:
            GeometryError: a row that does not exist, a cell outside the grid, or a region too small to be divided.
        """
        if len(parents) and not 0 <= int(parents.min()) <= int(parents.max()) < len(self):
            raise GeometryError(f"parents must be rows 0..{len(self) - 1} of the trail; got {parents.tolist()}")
        table = self.regions.take(parents)
        regions = choose_cells(table, self.grid, choice.cells, parents)
        return Step(regions, choice.log_prob.reshape(-1), choice.joint_log_prob, table.image)

    def append(
        self,
        step: Step,
        features: Float[Tensor, "regions dim"],
        scores: Float[Tensor, "scored cells"] | None = None,
        scored: Bool[Tensor, " regions"] | None = None,
    ) -> None:
        """Add what was seen of the regions of a step.

        Args:
            step: what was looked at.
            features: of its regions.
            scores: location logits of the cells of the scored regions; ``None`` if none was scored.
            scored: which regions those are.
        """
        start = len(self)
        self.regions = Regions.concat([self.regions, step.regions]) if start else step.regions
        self._features.append(features)
        self._log_prob.append(step.log_prob.to(features.device))
        if len(step.joint_image):
            self._joint.append((step.joint_image, step.joint_log_prob))
        if scores is not None and scored is not None:
            self._scores.append(scores)
            self._scored_rows.append(start + scored.nonzero().flatten())

    def joint_log_prob(self) -> Float[Tensor, " images"]:
        """Log-probability of all choices made in each image."""
        if not self._joint:
            return self._features[0].new_zeros(self.images)
        values = torch.cat([value for _, value in self._joint])
        rows, seen = group_rows(torch.cat([image for image, _ in self._joint]), self.images)
        return gather_rows(values, rows, seen).sum(1)

    def by_image(self) -> tuple[Int[Tensor, "images n"], Bool[Tensor, "images n"] | None]:
        """Rows of each image in the order in which they were seen; see :func:`group_rows`."""
        return group_rows(self.regions.image, self.images)


def group_rows(
    group: Int[Tensor, " rows"], groups: int
) -> tuple[Int[Tensor, "groups n"], Bool[Tensor, "groups n"] | None]:
    """List the rows of each group, in order.

    Args:
        group: group of each row, from 0.
        groups: their number.

    Returns:
        Rows of each group; and which of them are meant, or ``None`` if all groups have the same number. Places past the
        last row of a group hold row 0.
    """
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
    """Values of a table as :func:`group_rows` lists them; zeros where a group has fewer rows than others."""
    found = values[rows.to(values.device)]
    if seen is None:
        return found
    mask = seen.to(values.device).reshape(*seen.shape, *[1] * (found.ndim - 2))
    return found * mask
