"""Plots of evaluations and comparisons: accuracy against looks, cost, time and training effort."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, StrMethodFormatter

from tnet.evaluation.attention import CONTROLS, AttentionRow
from tnet.evaluation.evaluator import NO_POLICY, LooksRow
from tnet.evaluation.frontier import FrontierRow
from tnet.evaluation.report import looks_label, macs_unit
from tnet.files import atomic_path

_LABELS = {
    "topk": "learned (top-k)",
    "sample": "learned (sampled)",
    "random": "random",
    "centre": "centre out",
    "gradcam": "Grad-CAM",
}
_ACCURACY, _NO_LOOKS = "val/accuracy", "val/accuracy_0_looks"


@dataclass(frozen=True)
class Point:
    """A measured accuracy with its interval; shares between 0 and 1."""

    x: float
    accuracy: float
    low: float
    high: float


@dataclass(frozen=True)
class Curve:
    """One line of a plot, through points in any order."""

    label: str  # in the legend; empty for none
    points: Sequence[Point]
    color: int  # index into matplotlib's colour cycle
    marker: str = "o"
    is_control: bool = False  # drawn dashed and faint


def _draw_curve(axis: Axes, curve: Curve, *, band: bool = False) -> None:
    """Draw accuracy in percent with error bars; ``band`` also shades the interval."""
    points = sorted(curve.points, key=lambda point: point.x)
    x, y = [point.x for point in points], [100 * point.accuracy for point in points]
    below = [max(0.0, 100 * (point.accuracy - point.low)) for point in points]
    above = [max(0.0, 100 * (point.high - point.accuracy)) for point in points]
    color = f"C{curve.color % 10}"
    axis.grid(alpha=0.3)
    axis.errorbar(
        x, y, [below, above], marker=curve.marker, color=color, elinewidth=0.8, capsize=2,
        label=curve.label.replace("$", r"\$") or None,  # not a formula
        linestyle="--" if curve.is_control else "-", alpha=0.6 if curve.is_control else 1.0,
    )  # fmt: skip
    if band:
        low, high = [100 * point.low for point in points], [100 * point.high for point in points]
        axis.fill_between(x, low, high, color=color, alpha=0.12, linewidth=0)


def _plain_log_scale(axis: Axes) -> None:
    axis.set_xscale("log")
    axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.xaxis.set_major_formatter(StrMethodFormatter("{x:,g}"))
    axis.xaxis.set_minor_formatter(NullFormatter())


def _save(figure: Figure, path: str | Path, *, outer_legend: bool = True) -> None:
    """Add a legend beside the axes, and write a figure atomically."""
    if outer_legend:
        figure.legend(fontsize=8, loc="outside right upper")
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=120)


def plot_looks(rows: Sequence[LooksRow], path: str | Path) -> None:
    """Write the figure of :func:`looks_figure`.

    Raises:
        OutputError: the file cannot be written.
    """
    _save(looks_figure(rows), path, outer_legend=False)


def looks_figure(rows: Sequence[LooksRow], others: Sequence[tuple[str, LooksRow]] = ()) -> Figure:
    """Draw accuracy, with its 95 % intervals, against looks and against multiply-adds; one line per policy.

    ``others`` are single points of other models, by name, against multiply-adds.
    """
    unit, letter = macs_unit(max(row.macs for row in [*rows, *(row for _, row in others)]))
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    by_looks, by_macs = figure.subplots(1, 2, sharey=True)
    none = [row for row in rows if not row.looks]
    policies = list(dict.fromkeys(row.policy for row in rows if row.looks))
    for index, policy in enumerate(policies or [""]):
        line = none + [row for row in rows if row.policy == policy]
        for axis, x_of in ((by_looks, lambda row: float(row.total_looks)), (by_macs, lambda row: row.macs / unit)):
            points = [Point(x_of(row), row.accuracy, row.accuracy_low, row.accuracy_high) for row in line]
            _draw_curve(axis, Curve(_LABELS.get(policy, policy or "0 looks"), points, index), band=True)
    if any(len(row.looks) > 1 for row in rows):  # 4 looks can be 4 or 2x1: name the points
        for row in rows:
            at = (row.total_looks, 100 * row.accuracy)
            by_looks.annotate(looks_label(row.looks), at, (4, 5), textcoords="offset points", fontsize=8)
    by_looks.xaxis.set_major_locator(MaxNLocator(integer=True))
    by_looks.set(xlabel="looks (regions per image)", ylabel="accuracy (%)")
    for color, (name, row) in enumerate(others, max(1, len(policies))):
        point = Point(row.macs / unit, row.accuracy, row.accuracy_low, row.accuracy_high)
        _draw_curve(by_macs, Curve(name, [point], color, "D"))
    by_macs.set(xlabel=f"multiply-adds per image ({letter})")
    by_looks.legend()
    if others:
        by_macs.legend(handles=by_macs.containers[max(1, len(policies)) :])
        if max(row.macs for _, row in others) > 4 * max(row.macs for row in rows):
            _plain_log_scale(by_macs)
    return figure


def plot_frontier(rows: Sequence[FrontierRow], path: str | Path) -> None:
    """Draw accuracy against mean multiply-adds, one line per kind of row."""
    unit, letter = macs_unit(max(int(row.mean_macs) for row in rows))
    curves = []
    for color, kind in enumerate(dict.fromkeys(row.kind for row in rows)):
        mine = [row for row in rows if row.kind == kind]
        points = [Point(row.mean_macs / unit, row.accuracy, row.accuracy_low, row.accuracy_high) for row in mine]
        curves.append(Curve(kind, points, color, is_control=kind != "stopping"))
    figure = Figure(figsize=(7, 4.4), layout="constrained")
    axis = figure.subplots()
    for curve in curves:
        _draw_curve(axis, curve)
    axis.set(xlabel=f"mean multiply-adds per image ({letter})", ylabel="accuracy (%)")
    axis.legend()
    _save(figure, path, outer_legend=False)


def plot_attention(rows: Sequence[AttentionRow], path: str | Path) -> None:
    """Draw what :func:`~tnet.evaluation.attention.measure_attention` measured against looks, one line per policy."""
    panels = {"hit_any": "images with a box hit by a look (%)", "box_share": "box area seen (%)"}
    if any(row.deletion is not None for row in rows):
        panels |= {"deletion": "probability, looks covered (%)", "insertion": "probability, only looks sharp (%)"}
    figure = Figure(figsize=(4.4 * len(panels), 3.8), layout="constrained")
    policies = list(dict.fromkeys(row.policy for row in rows if row.policy != NO_POLICY))
    for axis, (name, label) in zip(figure.subplots(1, len(panels)), panels.items(), strict=True):
        for color, policy in enumerate(policies):
            points = [
                Point(row.total_looks, *value)
                for row in rows
                if row.policy in (policy, NO_POLICY) and (value := getattr(row, name)) is not None
            ]
            curve = Curve(_LABELS.get(policy, policy), points, color, is_control=policy in CONTROLS)
            _draw_curve(axis, curve)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.set(xlabel="looks (regions per image)", ylabel=label, ylim=(0, None))
    figure.axes[0].legend(fontsize=8)
    _save(figure, path, outer_legend=False)


def plot_curves(curves: Sequence[Curve], xlabel: str, path: Path, *, logarithmic: bool) -> None:
    """Draw the accuracy of several systems against one quantity, which ``xlabel`` names with its unit."""
    figure = Figure(figsize=(9, 4.8), layout="constrained")
    axis = figure.subplots()
    for curve in curves:
        _draw_curve(axis, curve)
    if logarithmic:
        _plain_log_scale(axis)
    else:
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.set(xlabel=xlabel, ylabel="top-1 accuracy (%)")
    _save(figure, path)


@dataclass(frozen=True)
class RunCurve:
    """Validation accuracy of one training run after each epoch, of the policy by which the best model was chosen."""

    system: str
    images: tuple[float, ...]  # seen in training by the end of each epoch
    accuracy: tuple[float, ...]  # 0 to 1


def run_curve(system: str, metrics: Sequence[dict[str, float]], batch_size: int) -> RunCurve:
    """Return the curve of a run from the metrics of each epoch."""
    names = sorted({name for epoch in metrics for name in epoch if name.startswith(_ACCURACY)})
    # Prefer the model's own looks, then those of another policy; without looks only if there is nothing else.
    name = min(names, key=lambda name: (name != _ACCURACY, name == _NO_LOOKS, name), default=_ACCURACY)
    points = [((epoch["step"] + 1) * batch_size, epoch[name]) for epoch in metrics if name in epoch]
    return RunCurve(system, tuple(x for x, _ in points), tuple(y for _, y in points))


def plot_training(curves: Sequence[RunCurve], path: Path) -> None:
    """Draw validation accuracy against images seen, one colour per system and one line per seed."""
    figure = Figure(figsize=(9, 4.8), layout="constrained")
    axis = figure.subplots()
    names = list(dict.fromkeys(curve.system for curve in curves))
    for curve in curves:
        index = names.index(curve.system)
        first = curve is next(other for other in curves if other.system == curve.system)
        axis.plot(
            curve.images, [100 * value for value in curve.accuracy], color=f"C{index % 10}", marker=".",
            linestyle="-" if index < 10 else ":", label=curve.system.replace("$", r"\$") if first else None,
        )  # fmt: skip
    axis.set(xlabel="images seen in training", ylabel="validation accuracy (%)")
    axis.grid(alpha=0.3)
    _plain_log_scale(axis)
    _save(figure, path)
