"""Lengths and places of an image in the world: scale bars and coordinates."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from tnet.scenes.readers.base import GeoReference

_UNITS = (("km", 1e3), ("m", 1.0), ("mm", 1e-3), ("µm", 1e-6), ("nm", 1e-9))
_BAR_SHARE = 0.3  # longest bar, of the width


class Place(NamedTuple):
    """What is known of where an image is.

    Attributes:
        spacing_m_yx: height and width of a pixel in metres; ``None`` if unknown.
        georeference: position on a map; ``None`` if unknown.
    """

    spacing_m_yx: tuple[float, float] | None
    georeference: GeoReference | None

    @classmethod
    def of(cls, image: object) -> Place:
        """Return the place of an image: of a scene in a file, what the file says."""
        return cls(getattr(image, "spacing_m_yx", None), getattr(image, "georeference", None))

    def centre_text(self, box_yxyx: Sequence[int]) -> str:
        """Return the centre of a box: on the map, or from the top left corner of the image; empty if unknown."""
        y, x = (box_yxyx[0] + box_yxyx[2]) / 2, (box_yxyx[1] + box_yxyx[3]) / 2
        if self.georeference is not None:
            a, _, _, d, *_ = self.georeference.transform
            digits = max(0, 1 - math.floor(math.log10(math.hypot(a, d) or 1)))  # a tenth of a pixel
            map_x, map_y = map_point(self.georeference, x, y)
            return f"x {map_x:,.{digits}f}   y {map_y:,.{digits}f}"
        if self.spacing_m_yx is None:
            return ""
        down, across = self.spacing_m_yx
        return f"x {length_text(x * across, 3)}   y {length_text(y * down, 3)}"

    def record(self, box_yxyx: Sequence[int]) -> dict[str, list[float] | list[list[float]]]:
        """Return a box in the world: corners on the map ``[x, y]``, or micrometres from the top left corner."""
        y0, x0, y1, x1 = box_yxyx
        if self.georeference is not None:
            corners = [(x0, y0), (x1, y0), (x1, y1), (x0, y1)]
            return {"corners_map_xy": [list(map_point(self.georeference, x, y)) for x, y in corners]}
        if self.spacing_m_yx is None:
            return {}
        down, across = (1e6 * spacing for spacing in self.spacing_m_yx)
        return {"box_um_yxyx": [round(side, 3) for side in (y0 * down, x0 * across, y1 * down, x1 * across)]}


def map_point(georeference: GeoReference, x: float, y: float) -> tuple[float, float]:
    """Return the place on the map of a point in level-0 pixels."""
    a, b, c, d, e, f = georeference.transform
    return a * x + b * y + c, d * x + e * y + f


def length_text(metres: float, digits: int = 6) -> str:
    """Format a length with the largest unit of which it has at least one."""
    name, unit = next(((name, unit) for name, unit in _UNITS if abs(metres) >= 0.9999 * unit), _UNITS[-1])
    return f"{float(f'{metres / unit:.{digits}g}'):g} {name}"


def round_length(most: float) -> float:
    """Return the largest of 1, 2 and 5 times a power of ten that is not longer."""
    power = 10.0 ** math.floor(math.log10(most))
    return max(step * power for step in (1, 2, 5) if step * power <= most * (1 + 1e-9))


def draw_scale_bar(axes: Axes, width_m: float, size: float = 9) -> None:
    """Draw a bar of a round length into the lower right corner of a panel that shows ``width_m`` metres across."""
    length = round_length(_BAR_SHARE * width_m)
    share = length / width_m
    height = axes.get_window_extent().height
    line, pad = 4 / height, 12 / height  # pixels of the figure
    text = length_text(length)
    x, y = 0.97 - share, 1 - pad - line
    axes.add_patch(Rectangle((x, y), share, line, facecolor="white", edgecolor="#000000c0", linewidth=0.8, zorder=7))
    box = {"boxstyle": "round,pad=0.15", "facecolor": "#000000a0", "edgecolor": "none"}
    axes.text(
        x + share / 2, y - 6 / height, text, fontsize=size, color="white", ha="center", va="bottom", bbox=box, zorder=7,
    )  # fmt: skip
