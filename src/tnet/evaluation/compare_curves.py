"""How the rows of a comparison learned: validation accuracy against images seen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

from tnet.files import atomic_path

_ACCURACY, _NO_LOOKS = "val/accuracy", "val/accuracy_0_looks"


@dataclass(frozen=True)
class RunCurve:
    """One run of a row.

    Attributes:
        row: its name.
        images: seen in training by the end of each epoch.
        accuracy: on the validation images then, 0 to 1: of the policy by which the best model was chosen.
    """

    row: str
    images: tuple[float, ...]
    accuracy: tuple[float, ...]


def run_curve(row: str, metrics: Sequence[dict[str, float]], batch_size: int) -> RunCurve:
    """The curve of a run.

    Args:
        row: its name.
        metrics: one an epoch, as a run keeps them.
        batch_size: images a step.
    """
    known = sorted({name for epoch in metrics for name in epoch if name.startswith(_ACCURACY)})
    # The model's own looks come first, then another policy's, and none only where there is nothing else.
    name = min(known, key=lambda name: (name != _ACCURACY, name == _NO_LOOKS, name), default=_ACCURACY)
    points = [((epoch["step"] + 1) * batch_size, epoch[name]) for epoch in metrics if name in epoch]
    return RunCurve(row, tuple(x for x, _ in points), tuple(y for _, y in points))


def plain_log_scale(axis: Axes) -> None:
    """Make the horizontal axis logarithmic, its numbers written out."""
    axis.set_xscale("log")
    axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.xaxis.set_major_formatter(StrMethodFormatter("{x:,g}"))
    axis.xaxis.set_minor_formatter(NullFormatter())


def plot_training(curves: Sequence[RunCurve], path: Path) -> None:
    """Draw the curves, one colour a row and one line a seed, whole or not at all.

    Raises:
        OutputError: the picture cannot be written.
    """
    figure = Figure(figsize=(9, 4.8), layout="constrained")
    axis = figure.subplots()
    names = list(dict.fromkeys(curve.row for curve in curves))
    for curve in curves:
        index = names.index(curve.row)
        first = curve is next(other for other in curves if other.row == curve.row)
        axis.plot(
            curve.images, [100 * value for value in curve.accuracy], color=f"C{index % 10}", marker=".",
            linestyle="-" if index < 10 else ":", label=curve.row if first else None,
        )  # fmt: skip
    axis.set(xlabel="images seen in training", ylabel="validation accuracy (%)")
    plain_log_scale(axis)
    axis.grid(alpha=0.3)
    figure.legend(fontsize=8, loc="outside right upper")
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=120)
