from __future__ import annotations

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patches import Rectangle

from tnet.explain.panels import (
    ACCENT,
    Bar,
    CellMap,
    Frame,
    clip,
    draw_bars,
    draw_cell_map,
    draw_frames,
    level_color,
    one_line,
    shorten,
    show_image,
)


@pytest.fixture
def axes() -> Axes:
    return Figure().add_axes((0, 0, 1, 1))


def rectangles(axes: Axes) -> list[tuple[float, float, float, float]]:
    """x, y, width and height of every rectangle, in the panel's shares."""
    boxes = [patch for patch in axes.patches if isinstance(patch, Rectangle)]
    return [(*box.get_xy(), box.get_width(), box.get_height()) for box in boxes]


def words(axes: Axes) -> list[str]:
    return [text.get_text() for text in axes.texts]


def test_boxes_are_drawn_where_they_are_and_cut_at_the_edge(axes: Axes) -> None:
    found = [Frame((0.25, 0.5, 0.75, 1.1), "1", 1), Frame((-0.1, 0.0, 0.2, 0.3), "2", 1)]
    draw_frames(axes, found, {"1", "2"})
    assert rectangles(axes) == [pytest.approx((0.5, 0.25, 0.5, 0.5)), pytest.approx((0, 0, 0.3, 0.2))]
    assert words(axes) == ["1", "2"]
    assert [text.get_position() for text in axes.texts] == [(0.5, 0.25), (0.0, 0.0)]


def test_nested_boxes_that_share_a_corner_have_their_numbers_apart(axes: Axes) -> None:
    found = [Frame((0, 0, 0.5 / level, 0.5 / level), ".".join("1" * level), level) for level in (1, 2, 3, 4)]
    draw_frames(axes, found, {frame.number for frame in found})
    assert len({text.get_position() for text in axes.texts}) == 4
    assert [to_hex(patch.get_edgecolor()) for patch in axes.patches] == [level_color(level) for level in (1, 2, 3, 4)]


def test_only_numbered_boxes_get_a_number(axes: Axes) -> None:
    draw_frames(axes, [Frame((0, 0, 1, 1), "1", 1), Frame((0, 0, 0.5, 0.5), "2", 1)], {"2"})
    assert words(axes) == ["2"] and len(axes.patches) == 2


def overlapping() -> CellMap:
    """Two cells side by side that share the middle half, the left one chosen."""
    return CellMap([0.75, 0.25], [(0, 0, 1, 0.75), (0, 0.25, 1, 1)], 1, 2, frozenset({0}), 1)


def test_a_spot_takes_the_largest_probability_of_the_cells_it_lies_in(axes: Axes) -> None:
    draw_cell_map(axes, overlapping(), (4, 4))
    (heat,) = [image for image in axes.get_images() if isinstance(image, AxesImage)]
    opacity = np.asarray(heat.get_array())[..., 3]
    left, middle, right = (opacity[opacity.shape[0] // 2, int(opacity.shape[1] * x)] for x in (0.1, 0.5, 0.9))
    assert left == middle > right > 0
    assert tuple(heat.get_extent()) == (0, 1, 1, 0)


def test_numbers_are_in_the_middle_of_each_cell_and_chosen_cells_are_framed(axes: Axes) -> None:
    draw_cell_map(axes, overlapping(), (4, 4))
    assert words(axes) == ["75", "25"]
    assert [text.get_position() for text in axes.texts] == [(0.375, 0.5), (0.625, 0.5)]
    assert rectangles(axes) == [(0, 0, 0.75, 1)]
    assert [text.get_weight() for text in axes.texts] == ["bold", "normal"]


def test_numbers_that_would_not_fit_are_left_out(axes: Axes) -> None:
    draw_cell_map(axes, overlapping(), (0.3, 0.3))
    assert words(axes) == [] and len(rectangles(axes)) == 1


@pytest.mark.parametrize(("prob", "text"), [(1.0, "100"), (0.0996, "10"), (0.0994, "9.9"), (0.0006, "0.1"), (0.0, "0")])
def test_probabilities_take_three_characters_at_most(axes: Axes, prob: float, text: str) -> None:
    draw_cell_map(axes, CellMap([prob], [(0, 0, 1, 1)], 1, 1, frozenset(), 1), (4, 4))
    assert words(axes) == [text]


def test_bars_are_as_long_as_the_probability(axes: Axes) -> None:
    draw_bars(axes, [Bar("cat", 0.5, True, False), Bar("dog", 0.25, False, True)], 0.5)
    grounds, filled = rectangles(axes)[::2], rectangles(axes)[1::2]
    assert [fill[2] / ground[2] for fill, ground in zip(filled, grounds, strict=True)] == pytest.approx([0.5, 0.25])
    assert to_hex(axes.patches[1].get_facecolor()) == ACCENT
    assert words(axes) == ["cat", "50.0%", "dog", "25.0%"]
    (threshold,) = axes.get_lines()
    x, _, width, _ = grounds[0]
    assert np.asarray(threshold.get_xdata()) == pytest.approx([x + width / 2] * 2)


def test_a_dimmed_picture_is_grey_and_darker(axes: Axes) -> None:
    colors = np.full((2, 2, 3), (200, 100, 0), dtype=np.uint8)
    show_image(axes, colors, dim=True)
    (shown,) = axes.get_images()
    assert np.asarray(shown.get_array()).tolist() == [[55, 55], [55, 55]]
    assert axes.get_ylim() == (1, 0)


def test_long_and_unprintable_names_are_made_to_fit() -> None:
    assert clip("goldfinch", 9) == "goldfinch" and clip("goldfinches", 9) == "goldfinc…"
    assert len(shorten("x" * 99, 20)) == 20
    assert shorten("/data/a/very/long/path/picture.png", 20).endswith("picture.png")
    assert one_line("a\nb\tc") == "a b c"
