"""Layout of a figure, in inches from its top left corner."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tnet.explain.panels import INK
from tnet.inference.records import RegionRecord

MAX_TILES = 12  # maximum number of regions shown for one level; half as many per level for several levels
DPI = 120
WIDTH_IN, MARGIN_IN, GAP_IN = 13.0, 0.35, 0.35
COLUMN_IN = 3.3  # width of the column of the first glimpse and the classes
HEAD_IN, TITLE_IN, CAPTION_IN, BAR_IN = 0.95, 0.26, 0.68, 0.29
ALONE_IN = 0.45  # the line below the first glimpse
_STACK_ABOVE = 2.2  # aspect above which the large panels are stacked
_MOST_STRETCH = 5.0  # largest aspect that is drawn


class Sheet:
    """A figure measured in inches from its top left corner."""

    def __init__(self, height_in: float) -> None:
        self.height_in = height_in
        self.figure = Figure(figsize=(WIDTH_IN, height_in), dpi=DPI, facecolor="white")

    def axes(self, x: float, y: float, width: float, height: float) -> Axes:
        """Add axes whose top left corner is at ``x``, ``y``."""
        at = (x / WIDTH_IN, 1 - (y + height) / self.height_in, width / WIDTH_IN, height / self.height_in)
        return self.figure.add_axes(at)

    def text(self, x: float, y: float, text: str, size: float = 10, color: str = INK, **options: Any) -> None:
        """Add a line of text whose top left corner is at ``x``, ``y``."""
        self.figure.text(
            x / WIDTH_IN, 1 - y / self.height_in, text, fontsize=size, color=color, va="top", parse_math=False,
            **options,
        )  # fmt: skip


@dataclass(frozen=True)
class Top:
    """Sizes of the upper part, inches."""

    stacked: bool  # the two large panels are above each other
    width: float  # of a large panel
    height: float
    slot: float  # width of a large panel with its title
    seen: tuple[float, float]  # width and height of the first glimpse
    bars: float  # height of the most probable classes

    @property
    def panels(self) -> float:
        """Height of the large panels."""
        return (2 if self.stacked else 1) * (TITLE_IN + self.height) + (GAP_IN if self.stacked else 0)

    @property
    def total(self) -> float:
        """Height of the upper part."""
        return max(self.panels, 2 * TITLE_IN + self.seen[1] + ALONE_IN + self.bars)


def top_sizes(aspect: float, classes: int) -> Top:
    """Return the sizes for an image of this aspect (width / height) and this number of class bars."""
    aspect = clamped(aspect, _MOST_STRETCH)
    inside = WIDTH_IN - 2 * MARGIN_IN - COLUMN_IN
    stacked = aspect > _STACK_ABOVE
    most_w = inside - GAP_IN if stacked else inside / 2 - GAP_IN
    most_h = 3.8 if stacked else 4.6 if aspect > 0.7 else 6.2
    width = min(most_w, most_h * aspect)
    top = Top(stacked, width, width / aspect, max(width, 2.4), (0.0, 0.0), classes * BAR_IN)
    # The column ends where the panels end, if there is room.
    seen_h = min(max(top.panels - 2 * TITLE_IN - ALONE_IN - top.bars, 1.3), 2.4)
    seen_w = min(COLUMN_IN, seen_h * aspect)
    return replace(top, seen=(seen_w, seen_w / aspect))


@dataclass(frozen=True)
class Row:
    """The regions of one level, sizes in inches."""

    level: int
    records: list[RegionRecord]  # the regions shown, in order of their numbers
    total: int  # regions of the level, including those not shown
    columns: int  # regions per line
    width: float  # of a region
    height: float
    divided: bool  # probabilities inside the regions are shown too
    beside: bool  # they are beside the regions rather than below

    @property
    def slot(self) -> float:
        """Width of the text below a region."""
        return max(self.width, 1.75)

    @property
    def step_xy(self) -> tuple[float, float]:
        """Distance from one region to the next, across and down."""
        beside = self.divided and self.beside
        across = self.slot + GAP_IN
        down = self.height + CAPTION_IN + 0.2
        return across * (2 if beside else 1), down + (self.height + 0.28 if self.divided and not beside else 0)

    @property
    def total_height(self) -> float:
        """Height of the row with its heading."""
        return 0.42 + math.ceil(len(self.records) / self.columns) * self.step_xy[1]


def level_rows(records: Sequence[RegionRecord], *, divided: bool) -> list[Row]:
    """Choose the regions shown for each level; ``divided`` shows the probabilities inside all but the last level's."""
    levels = max((record.level for record in records), default=0)
    most = MAX_TILES if levels == 1 else MAX_TILES // 2
    rows = []
    for level in range(1, levels + 1):
        of_level = [record for record in records if record.level == level]
        likely = sorted(of_level, key=lambda record: -_path_chance(records, record))[:most]
        shown = sorted(likely, key=lambda record: [int(part) for part in record.number.split(".")])
        y0, x0, y1, x1 = shown[0].box_l0_yxyx
        aspect = clamped((x1 - x0) / max(y1 - y0, 1), 2.5)
        across = min(6, max(4, len(shown)))
        width = (WIDTH_IN - 2 * MARGIN_IN - (across - 1) * GAP_IN) / across
        height = min(width / aspect, 2.7)
        inside, beside = divided and level < levels, len(shown) <= 2
        columns = across // 2 if inside and beside else across
        rows.append(Row(level, shown, len(of_level), columns, height * aspect, height, inside, beside))
    return rows


def _path_chance(records: Sequence[RegionRecord], record: RegionRecord) -> float:
    """Return the product of the probabilities of a location and its ancestors."""
    own = 1.0 if record.location_probability is None else record.location_probability
    return own if record.parent < 0 else own * _path_chance(records, records[record.parent])


def clamped(aspect: float, most: float) -> float:
    """Clamp an aspect to between ``1 / most`` and ``most``."""
    return min(max(aspect, 1 / most), most)
