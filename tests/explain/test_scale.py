from __future__ import annotations

import math

import pytest
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from tnet.explain.scale import Place, draw_scale_bar, length_text, map_point, round_length
from tnet.scenes.readers.base import GeoReference

UTM = GeoReference((10.0, 0.0, 500_000.0, 0.0, -10.0, 5_000_000.0), "EPSG:32633")


@pytest.mark.parametrize(
    ("metres", "text"),
    [(2e-4, "200 µm"), (5e-7, "500 nm"), (0.001, "1 mm"), (0.05, "50 mm"), (1, "1 m"), (500, "500 m"), (2e4, "20 km"),
     (0, "0 nm"), (-3e-6, "-3 µm"), (1e-6, "1 µm")],
)  # fmt: skip
def test_lengths_have_the_unit_that_reads_best(metres: float, text: str) -> None:
    assert length_text(metres) == text


def test_lengths_can_be_rounded() -> None:
    assert length_text(1.23456e-3, 3) == "1.23 mm" and length_text(80_412.0, 3) == "80.4 km"


@pytest.mark.parametrize(("most", "length"), [(1.0, 1), (1.99, 1), (2, 2), (4.9e-4, 2e-4), (0.3, 0.2), (7300, 5000)])
def test_bars_have_round_lengths(most: float, length: float) -> None:
    assert round_length(most) == pytest.approx(length)


def test_a_bar_is_as_long_as_it_says() -> None:
    axes = Figure().add_axes((0.1, 0.1, 0.8, 0.8))
    axes.set(xlim=(0, 1), ylim=(1, 0))
    draw_scale_bar(axes, 2220 * 0.5e-6)  # 1.11 mm across: 30 % are 0.333 mm
    (bar,) = (patch for patch in axes.patches if isinstance(patch, Rectangle))
    assert bar.get_width() == pytest.approx(200 / 1110)
    assert bar.get_x() + bar.get_width() == pytest.approx(0.97) and 0.9 < bar.get_y() < 1
    assert [text.get_text() for text in axes.texts] == ["200 µm"]


def test_places_on_a_slide_are_from_its_corner() -> None:
    slide = Place((0.25e-6, 0.5e-6), None)
    assert slide.centre_text((0, 0, 800, 4000)) == "x 1 mm   y 100 µm"
    assert slide.record((10, 20, 30, 40)) == {"box_um_yxyx": [2.5, 10, 7.5, 20]}


def test_places_on_a_map_are_the_maps() -> None:
    raster = Place((10.0, 10.0), UTM)
    assert raster.centre_text((100, 200, 300, 500)) == "x 503,500   y 4,998,000"
    assert raster.record((100, 200, 300, 500)) == {
        "corners_map_xy": [[502_000, 4_999_000], [505_000, 4_999_000], [505_000, 4_997_000], [502_000, 4_997_000]]
    }
    degrees = GeoReference((1e-4, 0, 13.0, 0, -1e-4, 52.5), "EPSG:4326")
    assert Place(None, degrees).centre_text((0, 0, 100, 100)) == "x 13.00500   y 52.49500"
    turned = GeoReference((0.0, 2.0, 7.0, 3.0, 0.0, 9.0))
    assert map_point(turned, 10, 100) == (207, 39)


def test_nothing_is_known_of_pixels_in_memory() -> None:
    nowhere = Place.of(object())
    assert nowhere == (None, None) and nowhere.centre_text((0, 0, 9, 9)) == "" and nowhere.record((0, 0, 9, 9)) == {}


def test_lengths_of_all_sizes_are_round() -> None:
    for power in range(-9, 6):
        for step in (1.0, 1.7, 3.0, 9.9):
            length = round_length(step * 10**power)
            digit = length / 10 ** math.floor(math.log10(length) + 1e-9)
            assert round(digit, 6) in (1, 2, 5) and 0.4 * step * 10**power <= length <= step * 10**power * 1.001
