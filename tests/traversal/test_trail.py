"""Trail: rows, scores and grouping by image."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tnet.errors import GeometryError
from tnet.geometry import Grid
from tnet.traversal import Choice, Trail
from tnet.traversal.trail import gather_rows, group_rows

GRID = Grid(2, 2, 0.5)


def started(images: int = 2) -> Trail:
    """A trail with whole images and the scores of their cells."""
    trail = Trail([(64, 64)] * images, GRID)
    scores = torch.arange(images * 4.0).reshape(images, 4)
    trail.append(trail.first_step(), torch.zeros(images, 3), scores, torch.ones(images, dtype=torch.bool))
    return trail


def test_trail_starts_with_the_whole_images() -> None:
    trail = Trail([(64, 64), (32, 96)], GRID)
    assert len(trail) == 0
    step = trail.first_step()
    trail.append(step, torch.ones(2, 3))
    assert trail.regions.box_l0_yxyx.tolist() == [[0, 0, 64, 64], [0, 0, 32, 96]]
    assert trail.looks.tolist() == [0, 0] and trail.log_prob.tolist() == [0, 0]
    assert trail.joint_log_prob().tolist() == [0, 0]
    assert not trail.scores(torch.tensor([0, 1])).any()  # nothing was scored


def test_rows_have_parents_and_scores() -> None:
    trail = started()
    log_prob = torch.tensor([[-1.0], [-2.0]])
    trail.append(
        trail.step(torch.tensor([0, 1]), Choice(torch.tensor([[3], [0]]), log_prob, log_prob[:, 0])), torch.ones(2, 3)
    )
    # One more look at the second image only, inside its first region.
    step = trail.step(torch.tensor([3]), Choice.of_cells(torch.tensor([[1]])))
    scored = torch.ones(1, dtype=torch.bool)
    trail.append(step, torch.full((1, 3), 2.0), torch.tensor([[9.0, 8.0, 7.0, 6.0]]), scored)
    assert trail.regions.level.tolist() == [0, 0, 1, 1, 2]
    assert trail.regions.parent.tolist() == [-1, -1, 0, 1, 3]
    assert trail.regions.image.tolist() == [0, 1, 0, 1, 1]
    assert trail.looks.tolist() == [1, 2]
    assert trail.joint_log_prob().tolist() == [-1, -2]
    assert trail.scored_rows.tolist() == [0, 1, 4] and trail.divided_rows().tolist() == [0, 1, 3, 4]
    assert trail.scores(torch.tensor([4, 3, 1])).tolist() == [[9, 8, 7, 6], [0, 0, 0, 0], [4, 5, 6, 7]]
    rows, seen = trail.by_image()
    assert rows.tolist() == [[0, 2, 0], [1, 3, 4]] and seen is not None
    assert seen.tolist() == [[True, True, False], [True, True, True]]
    assert gather_rows(trail.features, rows, seen)[:, :, 0].tolist() == [[0, 1, 0], [0, 1, 2]]


@pytest.mark.parametrize(("parents", "cells"), [([2], [[0]]), ([-1], [[0]]), ([0], [[4]])])
def test_missing_rows_and_cells(parents: list[int], cells: list[list[int]]) -> None:
    with pytest.raises(GeometryError, match=r"0\.\.[13]"):
        started().step(torch.tensor(parents), Choice.of_cells(torch.tensor(cells)))


def test_scores_are_replaced_and_the_first_stay() -> None:
    trail = Trail([(32, 32)] * 2, GRID)
    trail.append(trail.first_step(), torch.zeros(2, 3))
    trail.rescore(torch.tensor([0]), torch.full((1, 4), 1.0))
    trail.rescore(torch.tensor([0, 1]), torch.tensor([[2.0] * 4, [3.0] * 4]))
    trail.rescore(torch.tensor([1]), torch.full((1, 4), 4.0))
    assert trail.scored_rows.tolist() == [0, 1]
    assert trail.scores(torch.tensor([1, 0]))[:, 0].tolist() == [4.0, 2.0]
    assert trail.scores(torch.tensor([1, 0]), first=True)[:, 0].tolist() == [3.0, 1.0]


@given(st.lists(st.integers(0, 4), min_size=1, max_size=20))
def test_group_rows(groups: list[int]) -> None:
    rows, seen = group_rows(torch.tensor(groups), 5)
    for group in range(5):
        expected = [row for row, one in enumerate(groups) if one == group]
        actual = rows[group] if seen is None else rows[group][seen[group]]
        assert actual.tolist() == expected
