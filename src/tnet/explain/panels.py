"""Panels of a figure: axes whose coordinates run from 0 to 1 over the image or region they show, y down."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from matplotlib.patheffects import Normal, withStroke

INK, FAINT, GOOD, BAD, ACCENT, BAR = "#16202c", "#66717f", "#15803d", "#c62828", "#2563eb", "#b9c6d8"
LEVEL_COLORS = ("#ff9d1e", "#17c3b2", "#ff5fa2", "#9b8cff", "#b7e23b")  # levels 1, 2, ...; then repeated
ShareBox = tuple[float, float, float, float]  # (y0, x0, y1, x1) as fractions of a frame

# Indices into a box of x and y of its badge, and the alignment, for levels 1, 2, ...
_CORNERS = ((1, 0, "left", "top"), (3, 0, "right", "top"), (3, 2, "right", "bottom"), (1, 2, "left", "bottom"))
_HALO = [withStroke(linewidth=4.2, foreground="#000000b0"), Normal()]
_TEXT_HALO = [withStroke(linewidth=2, foreground="#000000c0")]
_MAP = matplotlib.colormaps["magma"]
_SMALLEST_PT = 5.5


class Frame(NamedTuple):
    """A box to draw."""

    box: ShareBox
    number: str
    level: int


@dataclass(frozen=True)
class CellMap:
    """Probabilities and boxes of the cells of one region, in raster order."""

    probs: Sequence[float]
    boxes: Sequence[ShareBox]
    rows: int
    cols: int
    chosen: frozenset[int]  # indices of the chosen cells
    level: int  # of the chosen cells


def level_color(level: int) -> str:
    """Return the color of a level, from 1."""
    return LEVEL_COLORS[(level - 1) % len(LEVEL_COLORS)]


def show_image(
    axes: Axes, pixels: np.ndarray, *, dim: bool = False, smooth: bool = False, frame: str | None = None
) -> None:
    """Show ``uint8`` pixels, gray or RGB, over the whole panel; with ``dim`` gray and dark, as a background."""
    if dim:
        gray = pixels.mean(axis=2) if pixels.ndim == 3 else pixels
        pixels = (0.55 * gray).astype(np.uint8)
    axes.imshow(
        pixels, cmap="gray", vmin=0, vmax=255, extent=(0, 1, 1, 0), aspect="auto",
        interpolation="antialiased" if smooth else "nearest",
    )  # fmt: skip
    axes.set(xlim=(0, 1), ylim=(1, 0), xticks=[], yticks=[])
    for spine in axes.spines.values():
        spine.set(color=frame or "#9aa5b1", linewidth=3 if frame else 0.8)


def badge(axes: Axes, box: ShareBox, number: str, level: int, size: float = 10, *, nested: bool = True) -> None:
    """Draw a region's number at a corner of its box that depends on the level, since nested boxes can share one."""
    x_at, y_at, ha, va = _CORNERS[(level - 1) % 4 if nested else 0]
    style = {"boxstyle": "round,pad=0.22", "facecolor": level_color(level), "edgecolor": "#000000a0", "linewidth": 0.8}
    axes.text(
        box[x_at], box[y_at], number, fontsize=size, color="black", weight="bold", ha=ha, va=va, bbox=style,
        clip_on=False, zorder=6,
    )  # fmt: skip


def draw_frames(axes: Axes, frames: Sequence[Frame], numbered: set[str]) -> None:
    """Draw boxes over an image; those in ``numbered`` with their numbers."""
    for box, number, level in frames:
        y0, x0, y1, x1 = (min(max(value, 0.0), 1.0) for value in box)
        width, effects = (max(1.2, 3.1 - 0.5 * level), _HALO) if number in numbered else (0.8, None)
        axes.add_patch(Rectangle(
            (x0, y0), x1 - x0, y1 - y0, fill=False, edgecolor=level_color(level), clip_on=False, zorder=3,
            linewidth=width, path_effects=effects,
        ))  # fmt: skip
        if number in numbered:
            badge(axes, (y0, x0, y1, x1), number, level, 10 if level == 1 else 8.5)


def draw_cell_map(axes: Axes, cells: CellMap, size_in: tuple[float, float]) -> None:
    """Draw probabilities in per cent over a dimmed image, every cell at its true extent, chosen ones on their color.

    Where cells overlap, the largest probability is shown. ``size_in`` is the panel's width and height, inches.
    """
    boxes = np.asarray(cells.boxes, dtype=float).clip(0, 1)
    probs = np.asarray(cells.probs, dtype=float)
    axes.imshow(_heat(boxes, probs / max(float(probs.max()), 1e-12)), extent=(0, 1, 1, 0), aspect="auto", zorder=2)
    axes.set(xlim=(0, 1), ylim=(1, 0))
    middles = boxes.reshape(cells.rows, cells.cols, 4)
    pitch_h = _pitch((middles[:, 0, 0] + middles[:, 0, 2]) / 2)
    pitch_w = _pitch((middles[0, :, 1] + middles[0, :, 3]) / 2)
    text_pt = min(10.0, 72 * min(pitch_h * size_in[1] * 0.5, pitch_w * size_in[0] * 0.32))
    edge = level_color(cells.level)
    for cell in cells.chosen:
        y0, x0, y1, x1 = boxes[cell]
        axes.add_patch(Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, edgecolor=edge, lw=1.6, zorder=4))
    if text_pt < _SMALLEST_PT:
        return
    for cell, ((y0, x0, y1, x1), prob) in enumerate(zip(boxes, probs, strict=True)):
        chosen = cell in cells.chosen
        box = {"boxstyle": "round,pad=0.2", "facecolor": edge, "edgecolor": "#000000a0", "linewidth": 0.8}
        axes.text(
            (x0 + x1) / 2, (y0 + y1) / 2, _percent(prob), fontsize=text_pt, ha="center", va="center", zorder=5,
            color="black" if chosen else "white", weight="bold" if chosen else "normal", bbox=box if chosen else None,
            path_effects=None if chosen else _TEXT_HALO,
        )  # fmt: skip


def _heat(boxes: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """Return RGBA colors ``[side, side, 4]``, per pixel by the largest share of the cells that cover it."""
    side = 400
    values = np.zeros((side, side))
    for (y0, x0, y1, x1), share in zip((boxes * side).round().astype(int), shares, strict=True):
        spot = values[y0:y1, x0:x1]
        np.maximum(spot, share, out=spot)
    colors = _MAP(0.3 + 0.5 * values)
    colors[..., 3] = 0.06 + 0.6 * values
    return colors


def _pitch(middles: np.ndarray) -> float:
    return float(np.diff(middles).min()) if len(middles) > 1 else 1.0


def _percent(share: float) -> str:
    """Format a share as per cent in at most three characters."""
    value = 100 * share
    return f"{value:.0f}" if value >= 9.95 or value < 0.05 else f"{value:.1f}"


@dataclass(frozen=True)
class Bar:
    """Probability of a class, and whether it is (one of) the predicted or the true labels."""

    label: str
    prob: float
    predicted: bool
    true: bool


def draw_bars(axes: Axes, bars: Sequence[Bar], threshold: float | None) -> None:
    """Draw probabilities of classes."""
    axes.set_axis_off()
    axes.set(xlim=(0, 1), ylim=(len(bars), 0))
    right = 0.82
    labels = [clip(bar.label, 20) for bar in bars]
    left = min(0.52, 0.06 + 0.026 * max(map(len, labels)))
    for row, bar in enumerate(bars):
        for width, color in ((1, "#eef2f6"), (bar.prob, ACCENT if bar.predicted else BAR)):
            size = ((right - left) * width, 0.68)
            axes.add_patch(Rectangle((left, row + 0.16), *size, facecolor=color, edgecolor="none"))
        weight = "bold" if bar.predicted else "normal"
        ink = GOOD if bar.true else INK
        axes.text(
            left - 0.02, row + 0.5, labels[row], fontsize=9.5, ha="right", va="center", weight=weight, color=ink,
            parse_math=False,
        )  # fmt: skip
        axes.text(right + 0.02, row + 0.5, f"{bar.prob:.1%}", fontsize=9.5, va="center", weight=weight, color=INK)
    if threshold is not None:
        x = left + (right - left) * threshold
        axes.plot([x, x], [0, len(bars)], color=FAINT, lw=0.9, ls=(0, (3, 2)))


def one_line(text: str) -> str:
    """Replace line breaks and other characters that do not print by spaces."""
    return "".join(char if char.isprintable() else " " for char in text)


def clip(text: str, most: int) -> str:
    """Shorten a name to its first ``most`` characters."""
    line = one_line(text)
    return line if len(line) <= most else line[: most - 1] + "…"


def shorten(text: str, most: int) -> str:
    """Shorten a path to ``most`` characters by leaving out its middle."""
    line = one_line(text)
    head = (most - 1) // 3
    return line if len(line) <= most else f"{line[:head]}…{line[len(line) - (most - 1 - head) :]}"
