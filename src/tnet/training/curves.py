"""The metrics of a run, as a table and as curves."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from tnet.files import atomic_path, write_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Row = dict[str, float]

_LOCATOR = ("train/location_entropy", "train/baseline")


def read_metrics(csv_logs: Path) -> list[Row]:
    """Read one row per epoch from a folder of CSV logs; later versions (after a resume) replace repeated epochs."""
    epochs: dict[int, Row] = {}
    versions = sorted(csv_logs.glob("version_*/metrics.csv"), key=lambda path: int(path.parent.name.split("_")[1]))
    for version in versions:
        epochs |= _read(version)
    return [epochs[epoch] for epoch in sorted(epochs)]


def read_run(folder: Path) -> list[Row]:
    """Read one row per epoch from the ``metrics.csv`` of a run; none if it is missing or not as a run writes it."""
    try:
        return list(_read(folder / "metrics.csv").values())
    except (OSError, ValueError, KeyError, OverflowError, csv.Error):
        return []


def _read(table: Path) -> dict[int, Row]:
    with table.open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row.get("epoch")]
    merged: dict[int, Row] = {}
    for row in rows:
        values = {name: float(value) for name, value in row.items() if value}
        merged.setdefault(int(values["epoch"]), {}).update(values)
    return merged


def write_metrics(rows: list[Row], path: Path) -> None:
    """Write the rows as one CSV file."""
    names = ["epoch", "step", *sorted({name for row in rows for name in row} - {"epoch", "step"})]
    lines = [",".join(names)]
    # Ten digits keep every float32 and every step.
    lines += [",".join(f"{row[name]:.10g}" if name in row else "" for name in names) for row in rows]
    write_text(path, "\n".join(lines) + "\n")


def plot_curves(rows: list[Row], path: Path) -> None:
    """Write the figure of :func:`curves_figure`."""
    with atomic_path(path) as temporary:
        curves_figure(rows).savefig(temporary, dpi=110)


def curves_figure(rows: list[Row], labels: Mapping[str, str] | None = None) -> Figure:
    """Draw accuracy, loss terms and location entropy over the epochs; ``labels`` are words for names of metrics."""
    # Not pyplot, whose backend belongs to the caller.
    from matplotlib.figure import Figure

    names = sorted({name for row in rows for name in row})
    accuracy, locator = [n for n in names if "accuracy" in n], [n for n in names if n in _LOCATOR]
    terms = [n for n in names if n.startswith("train/") and n not in (*accuracy, *locator)]
    panels = {"accuracy": accuracy, "loss terms (weighted)": terms, "locator": locator}
    panels = {title: metrics for title, metrics in panels.items() if metrics}
    figure = Figure(figsize=(5.5 * len(panels), 4), layout="constrained")
    axes = figure.subplots(1, len(panels), squeeze=False)
    for axis, (title, metrics) in zip(axes[0], panels.items(), strict=True):
        for name in metrics:
            points = [(row["epoch"] + 1, row[name]) for row in rows if name in row]
            axis.plot(
                *zip(*points, strict=True), label=(labels or {}).get(name, name), marker="." if len(points) < 30 else ""
            )
        axis.set(title=title, xlabel="epoch")
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.grid(alpha=0.3)
        axis.legend(fontsize=7)
    return figure
