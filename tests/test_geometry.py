"""Grids, boxes and levels: cells are placed as in the reference implementation."""

from __future__ import annotations

import math
import re
from fractions import Fraction
from itertools import pairwise

import pytest
import torch
from hypothesis import assume, example, given
from hypothesis import strategies as st

from tnet.errors import GeometryError
from tnet.geometry import (
    Grid,
    Regions,
    axis_cells,
    cell_boxes,
    cell_spans,
    choose_cells,
    clipped_box,
    contains,
    covered_share,
    covered_shares,
    divisible,
    fit_grid,
    image_shares,
    resolve_looks,
    square_boxes,
    total_looks,
    whole_images,
)

PAPER_GRIDS = [Grid(5, 5, 0.34375), Grid(5, 5, 0.35), Grid(3, 3, 0.5)]

extents = st.floats(0.05, 0.95)
sides = st.integers(1, 4000)


@st.composite
def axes(draw: st.DrawFn) -> tuple[int, int, float]:
    """An axis that can be divided: size, number of cells, extent."""
    size, count, extent = draw(sides), draw(st.integers(2, 24)), draw(extents)
    cell = round(size * extent)
    assume(1 <= cell < size)
    return size, count, extent


# --- one axis


def layout(size: int, count: int, extent: float) -> tuple[int, int, int, int]:
    """Size of a cell, stride, and padding before and after the parent."""
    starts, cell = axis_cells(size, count, extent)
    (stride,) = {b - a for a, b in pairwise(starts)}
    assert len(starts) == count
    return cell, stride, -starts[0], starts[-1] + cell - size


@given(axes())
def test_cell_size_stride_and_padding(axis: tuple[int, int, float]) -> None:
    size, count, extent = axis
    cell, stride, before, after = layout(size, count, extent)
    assert cell == round(size * extent)
    assert stride == -(-(size - cell) // (count - 1))  # ceil by integers
    assert before + after == stride * (count - 1) + cell - size >= 0
    assert before - after == (before + after) % 2  # the odd pixel goes before


@given(axes())
def test_cells_cover_the_parent_if_large_enough(axis: tuple[int, int, float]) -> None:
    size, count, extent = axis
    cells = axis_cells(size, count, extent)
    assert cells.starts_px[0] <= 0 and cells.starts_px[-1] + cells.cell_px >= size
    covered = {pixel for start in cells.starts_px for pixel in range(start, start + cells.cell_px)}
    assert (set(range(size)) <= covered) == (count * cells.cell_px >= size)


@pytest.mark.parametrize(
    ("size", "extent", "cell"),
    [(5, 0.5, 2), (7, 0.5, 4), (225, 0.5, 112), (227, 0.5, 114), (157, 0.35, 55), (100, 0.35, 35)],
)
def test_halves_round_to_even(size: int, extent: float, cell: int) -> None:
    assert axis_cells(size, 3, extent).cell_px == cell


@pytest.mark.parametrize(
    ("size", "extent", "count", "cell", "stride", "before", "after"),
    [
        (224, 0.34375, 5, 77, 37, 1, 0),
        (448, 0.35, 5, 157, 73, 1, 0),
        (448, 0.5, 3, 224, 112, 0, 0),
        (896, 0.5, 3, 448, 224, 0, 0),
        (224, 0.5, 3, 112, 56, 0, 0),
        (3584, 0.5, 3, 1792, 896, 0, 0),
        (157, 0.35, 5, 55, 26, 1, 1),
        (225, 0.5, 3, 112, 57, 1, 0),
        (100, 0.35, 5, 35, 17, 2, 1),
        (101, 0.5, 3, 50, 26, 1, 0),
    ],
)
def test_reference_geometry(
    size: int, extent: float, count: int, cell: int, stride: int, before: int, after: int
) -> None:
    assert layout(size, count, extent) == (cell, stride, before, after)


def test_single_cell_is_centred() -> None:
    assert axis_cells(10, 1, 0.4).starts_px == (3,)
    assert axis_cells(10, 1, 1.0).starts_px == (0,)


@pytest.mark.parametrize(("size", "count", "extent"), [(1, 3, 0.3), (2, 5, 0.2), (1, 2, 0.9), (3, 4, 0.99)])
def test_axis_too_short(size: int, count: int, extent: float) -> None:
    with pytest.raises(GeometryError, match=rf"\b{size} px cannot hold {count} cells"):
        axis_cells(size, count, extent)


@pytest.mark.parametrize(
    ("rows", "cols", "extent", "message"),
    [
        (0, 5, 0.3, "0 x 5"),
        (5, -1, 0.3, "5 x -1"),
        (5, 5, 0.0, "cell_extent is 0.0"),
        (5, 5, 1.2, "cell_extent is 1.2"),
        (5, 5, math.nan, "cell_extent is nan"),
        (2, 1, 1.0, "cell_extent 1 "),
        (1, 2, 1.0, "cell_extent 1 "),
    ],
)
def test_invalid_grid(rows: int, cols: int, extent: float, message: str) -> None:
    with pytest.raises(GeometryError, match=message):
        Grid(rows, cols, extent)


# --- boxes


@pytest.mark.parametrize(
    ("size_hw", "boxes"),
    [
        ((100, 149), [(0, 0, 100, 149)]),
        ((100, 150), [(0, 0, 100, 75), (0, 75, 100, 150)]),
        ((100, 400), [(0, 0, 100, 100), (0, 100, 100, 200), (0, 200, 100, 300), (0, 300, 100, 400)]),
        ((250, 100), [(0, 0, 83, 100), (83, 0, 166, 100), (166, 0, 250, 100)]),
        ((1, 1), [(0, 0, 1, 1)]),
        ((1, 2), [(0, 0, 1, 1), (0, 1, 1, 2)]),
    ],
)
def test_squares(size_hw: tuple[int, int], boxes: list[tuple[int, int, int, int]]) -> None:
    assert square_boxes(size_hw) == boxes


@given(st.integers(1, 3000), st.integers(1, 3000))
def test_squares_cover_an_image_once_and_are_nearly_square(height: int, width: int) -> None:
    boxes = square_boxes((height, width))
    assert sum((y1 - y0) * (x1 - x0) for y0, x0, y1, x1 in boxes) == height * width
    assert all(a[2] == b[0] or a[3] == b[1] for a, b in pairwise(boxes))
    for y0, x0, y1, x1 in boxes if max(height, width) <= 16 * min(height, width) else []:
        # Up to rounding to whole pixels.
        assert max(y1 - y0, x1 - x0) - 1 <= 1.5 * min(y1 - y0 + 1, x1 - x0 + 1)
    assert len(boxes) <= 16


def test_level_0_in_squares() -> None:
    regions = whole_images([(100, 200), (50, 50)], squares=True)
    assert regions.image.tolist() == [0, 0, 1] and regions.level.tolist() == [0, 0, 0]
    assert regions.box_l0_yxyx.tolist() == [[0, 0, 100, 100], [0, 100, 100, 200], [0, 0, 50, 50]]
    assert regions.position_yx.tolist() == [[0, 0]] * 3 and regions.parent.tolist() == [-1] * 3


@pytest.mark.parametrize("grid", [Grid(3, 3, 0.5), Grid(5, 5, 0.2), Grid(1, 2, 0.5), Grid(1, 1, 0.1)])
def test_divisible_regions_are_those_whose_cells_can_be_placed(grid: Grid) -> None:
    for size in ((1, 1), (1, 9), (2, 2), (3, 40), (4, 5), (40, 2)):
        regions = whole_images([size])
        try:
            cell_boxes(regions, grid)
            fits = True
        except GeometryError:
            fits = False
        assert divisible(regions, grid).tolist() == [fits]


def test_whole_images() -> None:
    regions = whole_images([(10, 20), (30, 40)])
    assert regions.level.tolist() == [0, 0] and (len(regions), regions.depth) == (2, 0)
    assert regions.box_l0_yxyx.tolist() == [[0, 0, 10, 20], [0, 0, 30, 40]]
    assert regions.size_hw.tolist() == [[10, 20], [30, 40]]
    assert regions.image.tolist() == [0, 1]
    assert regions.parent.tolist() == regions.cell.tolist() == [-1, -1]
    assert regions.position_yx.tolist() == [[0, 0], [0, 0]]


@pytest.mark.parametrize("sizes", [[], [(0, 5)], [(4, 4), (5, 0)]])
def test_empty_images(sizes: list[tuple[int, int]]) -> None:
    with pytest.raises(GeometryError, match=re.escape(str(sizes))):
        whole_images(sizes)


def test_reference_pixel_indices() -> None:
    """The reference's 5 x 5 patches of 224 px: flat pixel indices from 1, 0 where a patch starts in the padding."""
    size = 224
    boxes = cell_boxes(whole_images([(size, size)]), Grid(5, 5, 0.34375))[0].tolist()
    first = [0 if min(y0, x0) < 0 else y0 * size + x0 + 1 for y0, x0, _, _ in boxes]
    last = [(y1 - 1) * size + x1 for _, _, y1, x1 in boxes]
    rows_first = [8101, 16389, 24677, 32965]
    rows_last = [16876, 25164, 33452, 41740, 50028]
    assert first == [0] * 5 + [pixel for row in rows_first for pixel in [0, *(row + 37 * i for i in range(4))]]
    assert last == [row + 37 * i for row in rows_last for i in range(5)]


def test_cell_boxes_are_in_raster_order() -> None:
    boxes = cell_boxes(whole_images([(40, 100)]), Grid(2, 3, 0.5))[0]
    assert boxes.tolist() == [[y, x, y + 20, x + 50] for y in (0, 20) for x in (0, 25, 50)]


def test_choose_cells_of_any_rows() -> None:
    """Parents of different levels in one call; ``parent`` counts rows of the whole table."""
    grid = Grid(3, 3, 0.5)
    table = whole_images([(64, 64), (96, 64)])
    table = Regions.concat([table, choose_cells(table, grid, torch.tensor([[4], [0]]))])
    rows = torch.tensor([3, 0])
    children = choose_cells(table.take(rows), grid, torch.tensor([[1, 2], [0, 8]]), rows)
    assert children.level.tolist() == [2, 2, 1, 1] and children.parent.tolist() == [3, 3, 0, 0]
    assert children.image.tolist() == [1, 1, 0, 0]
    assert children.position_yxl.tolist() == [[0, 1, 2], [0, 2, 2], [0, 0, 1], [2, 2, 1]]
    assert table.at_level(1).parent.tolist() == [0, 1] and table.depth == 1


sizes_hw = st.lists(st.tuples(st.integers(20, 3000), st.integers(20, 3000)), min_size=1, max_size=2)
grids = st.builds(Grid, st.integers(1, 6), st.integers(1, 6), st.floats(0.2, 0.8))


@given(st.data(), grids, sizes_hw, st.integers(1, 4))
def test_regions_at_several_levels(data: st.DataObject, grid: Grid, sizes: list[tuple[int, int]], deepest: int) -> None:
    levels = [whole_images(sizes)]
    while len(levels) <= deepest and len(levels[-1]) < 30 and int(levels[-1].size_hw.min()) * grid.cell_extent > 4:
        k = data.draw(st.integers(1, min(grid.cells, 3)))
        picks = st.lists(st.integers(0, grid.cells - 1), min_size=k, max_size=k, unique=True)
        cells = torch.tensor([sorted(data.draw(picks)) for _ in range(len(levels[-1]))])
        levels.append(choose_cells(levels[-1], grid, cells))
    for number, (parents, children) in enumerate(pairwise(levels), start=1):
        assert children.level.unique().tolist() == [number]
        for i in range(len(children)):
            parent = int(children.parent[i])
            row, col = divmod(int(children.cell[i]), grid.cols)
            assert children.image[i] == parents.image[parent]
            box, around = children.box_l0_yxyx[i].tolist(), parents.box_l0_yxyx[parent].tolist()
            for axis, (index, count) in enumerate(((row, grid.rows), (col, grid.cols))):
                size = around[axis + 2] - around[axis]
                starts, cell = axis_cells(size, count, grid.cell_extent)
                assert box[axis] == around[axis] + starts[index]
                assert box[axis + 2] - box[axis] == cell
            y, x = parents.position_yx[parent].tolist()
            assert children.position_yx[i].tolist() == [y * grid.rows + row, x * grid.cols + col]
        keys = list(zip(children.image.tolist(), children.parent.tolist(), children.cell.tolist(), strict=True))
        assert keys == sorted(keys)


def test_positions_index_the_overall_grid_of_a_level() -> None:
    grid = Grid(2, 3, 0.5)
    everything = torch.arange(6)[None]
    level_1 = choose_cells(whole_images([(96, 96)]), grid, everything)
    level_2 = choose_cells(level_1, grid, everything.expand(6, 6))
    assert sorted(map(tuple, level_1.position_yx.tolist())) == [(y, x) for y in range(2) for x in range(3)]
    assert sorted(map(tuple, level_2.position_yx.tolist())) == [(y, x) for y in range(4) for x in range(9)]


@given(grids)
def test_covered_shares_match_box_overlap(grid: Grid) -> None:
    boxes = cell_boxes(whole_images([(4000, 6000)]), grid)[0].double()
    low, high = torch.maximum(boxes[:, None, :2], boxes[:, :2]), torch.minimum(boxes[:, None, 2:], boxes[:, 2:])
    shared = (high - low).clamp(min=0).prod(dim=2) / (boxes[0, 2:] - boxes[0, :2]).prod()
    torch.testing.assert_close(covered_shares(grid).double(), shared, rtol=0, atol=0.01)


@pytest.mark.parametrize("cells", [[[9]], [[-1]], [[0, 12]]])
def test_cells_outside_the_grid(cells: list[list[int]]) -> None:
    with pytest.raises(GeometryError, match=r"0\.\.8"):
        choose_cells(whole_images([(50, 50)]), Grid(3, 3, 0.5), torch.tensor(cells))


def test_level_too_deep_for_the_image() -> None:
    grid, regions = Grid(3, 3, 0.5), whole_images([(8, 8)])
    with pytest.raises(GeometryError, match="1 px cannot hold"):
        for _ in range(5):
            regions = choose_cells(regions, grid, torch.zeros(1, 1, dtype=torch.long))


# --- what a cell covers of its parent


@given(axes())
@example((7, 5, 0.34375))
@example((104, 20, 0.08))  # the first cell lies entirely in the padding
def test_spans_are_the_cells_without_padding(axis: tuple[int, int, float]) -> None:
    size, count, extent = axis
    rows, cols = cell_spans(whole_images([(size, size)]), Grid(count, count, extent))
    assert torch.equal(rows, cols)
    cells = axis_cells(size, count, extent)
    for (low, high), start in zip(rows[0].tolist(), cells.starts_px, strict=True):
        inside = (max(start, 0), min(start + cells.cell_px, size))
        if inside[0] < inside[1]:
            assert low == pytest.approx(inside[0] / size, abs=1e-6)
            assert high == pytest.approx(inside[1] / size, abs=1e-6)
        # Never empty: that would be an average over nothing.
        assert 0 <= low < high <= 1
        assert high - low >= 0.99 / size


@given(st.tuples(sides, sides), st.lists(st.integers(-5000, 9000), min_size=4, max_size=4))
def test_shares_of_an_image_keep_a_pixel_of_it(size_hw: tuple[int, int], sides_px: list[int]) -> None:
    (y0, y1), (x0, x1) = sorted(sides_px[:2]), sorted(sides_px[2:])
    box = y0, x0, y1 + 1, x1 + 1
    shares = image_shares(torch.tensor([[box]]), torch.tensor([size_hw]))[0, 0].tolist()
    for axis, size in enumerate(size_hw):
        low, high = shares[axis], shares[axis + 2]
        assert 0 <= low < high <= 1 and high - low >= 0.99 / size
        first, last = max(box[axis], 0), min(box[axis + 2], size)
        if first < last:
            assert low == pytest.approx(first / size, abs=1e-6) and high == pytest.approx(last / size, abs=1e-6)


# --- numbers of looks


@pytest.mark.parametrize(
    ("looks", "resolved"),
    [(0, ()), (3, (3, 2)), (9, (9, 2)), ((1,), (1,)), ((1, 4), (1, 4)), ((2, 0), (2,)), ((0, 0), ()), ((), ())],
)
def test_resolve_looks(looks: int | tuple[int, ...], resolved: tuple[int, ...]) -> None:
    assert resolve_looks(looks, (4, 2), Grid(3, 3, 0.5), 3) == resolved


@pytest.mark.parametrize("looks", [10, -1, (2, 10), (0, 2), (1, 2, 3), (-1,)])
def test_invalid_looks(looks: int | tuple[int, ...]) -> None:
    with pytest.raises(GeometryError, match="looks"):
        resolve_looks(looks, (4, 2), Grid(3, 3, 0.5), 3)


def test_plain_network_takes_no_looks() -> None:
    assert resolve_looks(0, (), Grid(3, 3, 0.5), 1) == ()
    with pytest.raises(GeometryError, match="model has 0"):
        resolve_looks(1, (), Grid(3, 3, 0.5), 1)


@pytest.mark.parametrize(("looks", "total"), [((), 0), ((3,), 3), ((2, 1), 4), ((2, 3), 8), ((2, 3, 2), 20)])
def test_total_looks(looks: tuple[int, ...], total: int) -> None:
    assert total_looks(looks) == total


# --- suggestions


@pytest.mark.parametrize(
    ("side", "base", "levels", "grid"),
    [(224, 77, 2, PAPER_GRIDS[0]), (448, 224, 2, PAPER_GRIDS[2]), (896, 224, 3, PAPER_GRIDS[2])],
)
def test_fit_grid_gives_the_settings_of_the_paper(side: int, base: int, levels: int, grid: Grid) -> None:
    suggestion = fit_grid((side, side), base)
    assert (suggestion.levels, suggestion.grid) == (levels, grid)
    assert suggestion.finest_scale == pytest.approx(1)


@given(st.tuples(st.integers(32, 200_000), st.integers(32, 200_000)), st.integers(32, 512), st.floats(0.1, 0.9))
def test_fit_grid_reaches_full_resolution_in_the_fewest_levels(
    size: tuple[int, int], base: int, smallest: float
) -> None:
    assume(max(size) >= base)
    suggestion = fit_grid(size, base, min_cell_extent=smallest)
    steps, extent = suggestion.levels - 1, suggestion.grid.cell_extent
    ratio = Fraction(max(size), base)
    assert suggestion.finest_scale == pytest.approx(max(1, float(ratio) * extent**steps), rel=1e-3)
    assert suggestion.finest_scale == pytest.approx(1, rel=1e-3)
    assert extent >= min(smallest, 0.9) - 1e-6
    # One step fewer would need smaller cells than allowed.
    assert steps == 1 or float(ratio) ** (-1 / (steps - 1)) < smallest + 1e-6
    assert len(suggestion.looks) == steps
    assert all(1 <= number <= suggestion.grid.cells for number in suggestion.looks)
    # Neighbours overlap by half or more (of a cell in a large parent, where rounding counts for little).
    cell, stride, *_ = layout(10**6, suggestion.grid.cols, extent)
    assert stride <= cell / 2 + 1


@pytest.mark.parametrize(
    ("size", "base", "smallest", "message"),
    [
        ((100, 90), 224, 0.3, "100 x 90 px.*224 px"),
        ((100, 90), 0, 0.3, "base_px 0"),
        ((100, 90), 32, 1.0, "min_cell_extent 1.0"),
    ],
)
def test_fit_grid_rejects_invalid_sizes(size: tuple[int, int], base: int, smallest: float, message: str) -> None:
    with pytest.raises(GeometryError, match=message):
        fit_grid(size, base, min_cell_extent=smallest)


def test_areas_that_boxes_cover_together_count_once() -> None:
    boxes = torch.tensor([[0.0, 0.0, 4.0, 4.0], [2.0, 2.0, 4.0, 6.0]])  # 16 + 8 - 4
    assert covered_share(boxes, torch.tensor([[0.0, 0.0, 2.0, 10.0]])) == pytest.approx(8 / 20)
    assert covered_share(boxes, torch.tensor([[3.0, 0.0, 9.0, 9.0], [3.0, 3.0, 5.0, 9.0]])) == pytest.approx(6 / 20)
    assert covered_share(boxes, torch.tensor([[4.0, 0.0, 9.0, 9.0]])) == 0
    assert covered_share(boxes, boxes) == 1


def test_ends_of_boxes_are_exclusive() -> None:
    boxes = torch.tensor([[0.0, 0.0, 2.0, 4.0], [5.0, 5.0, 6.0, 6.0]])
    points = torch.tensor([[0.0, 0.0], [2.0, 1.0], [1.0, 4.0], [5.5, 5.0]])
    assert contains(boxes, points).tolist() == [True, False, False, True]


def test_boxes_are_clipped_to_the_image() -> None:
    assert clipped_box((-3, 2, 9, 30), (8, 20)) == (0, 2, 8, 20)
    assert clipped_box((-3, 2, 0, 30), (8, 20)) is None and clipped_box((0, 20, 5, 22), (8, 20)) is None
