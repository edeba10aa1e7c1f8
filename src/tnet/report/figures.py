"""Plots of single answers: confusion, calibration, ROC, confidence."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tnet.evaluation.probabilities import BINS
from tnet.explain.panels import clip
from tnet.report.answers import Bin

MOST_CONFUSED = 200
"""Limit of the classes of a confusion matrix that is drawn."""

_MOST_NAMES = 60
_MOST_NUMBERS = 20


def confusion_figure(counts: Int[np.ndarray, "classes classes"], names: Sequence[str]) -> Figure:
    """Draw shares of each class (row) by answer (column), with names and numbers while there is room for them."""
    n = len(names)
    side = min(9.5, max(3.6, 1.6 + 0.24 * n + (0.2 * n if n <= _MOST_NUMBERS else 0)))
    figure = Figure(figsize=(side, side), layout="constrained")
    axis = figure.subplots()
    shares = counts / counts.sum(axis=1, keepdims=True).clip(1)
    axis.imshow(shares, cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
    axis.set(xlabel="answer", ylabel="true class")
    if n <= _MOST_NAMES:
        labels, size = [clip(name, 22) for name in names], 9 if n <= _MOST_NUMBERS else 6
        axis.set_xticks(range(n), labels, rotation=90, fontsize=size, parse_math=False)
        axis.set_yticks(range(n), labels, fontsize=size, parse_math=False)
    if n <= _MOST_NUMBERS:
        for row, column in np.argwhere(counts).tolist():
            ink = "white" if shares[row, column] > 0.55 else "black"
            axis.text(column, row, str(counts[row, column]), ha="center", va="center", fontsize=8, color=ink)
    return figure


def calibration_figure(bins: Sequence[Bin]) -> Figure:
    """Draw accuracy against confidence, and the number of images, per bin of confidence."""
    figure = Figure(figsize=(5.2, 5), layout="constrained")
    above, below = figure.subplots(2, 1, height_ratios=(3, 1), sharex=True)
    confidence, accuracy = [[100 * getattr(part, name) for part in bins] for name in ("confidence", "accuracy")]
    above.plot([0, 100], [0, 100], color="gray", linestyle="--", linewidth=1, label="as sure as it should be")
    above.plot(confidence, accuracy, marker="o", label="this network")
    above.set(ylabel="right (%)", xlim=(0, 100), ylim=(0, 102))
    above.legend(loc="lower right")
    starts = [min(int(part.confidence * BINS), BINS - 1) * 100 / BINS for part in bins]
    below.bar(starts, [part.images for part in bins], width=100 / BINS, align="edge", edgecolor="white")
    below.set(xlabel="confidence (%)", ylabel="images")
    return _with_grid(figure, above, below)


def roc_figure(false: Sequence[float], true: Sequence[float], name: str) -> Figure:
    """Draw the share of class ``name`` that is found against the share of the other class that is mistaken for it."""
    figure = Figure(figsize=(4.6, 4.4), layout="constrained")
    axis = figure.subplots()
    axis.plot([0, 100], [0, 100], color="gray", linestyle="--", linewidth=1)
    axis.plot(100 * np.asarray(false), 100 * np.asarray(true))
    axis.set(xlabel="false alarms (% of the other class)", xlim=(-1, 101), ylim=(-1, 101))
    axis.set_ylabel(f"found (% of {clip(name, 30)})", parse_math=False)
    return _with_grid(figure, axis)


def confidence_figure(confidence: Float[np.ndarray, " images"]) -> Figure:
    """Draw how many answers have which probability."""
    figure = Figure(figsize=(7, 3), layout="constrained")
    axis = figure.subplots()
    axis.hist(100 * confidence, bins=20, range=(0, 100), edgecolor="white")
    axis.set(xlabel="probability of the answer (%)", ylabel="images", xlim=(0, 100))
    return _with_grid(figure, axis)


def _with_grid(figure: Figure, *axes: Axes) -> Figure:
    for axis in axes:
        axis.grid(alpha=0.3)
        axis.set_axisbelow(True)
    return figure
