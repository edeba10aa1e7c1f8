"""The metrics of a run, as a table and as curves."""

from __future__ import annotations

import csv
from pathlib import Path

from tnet.files import atomic_path, write_text

Row = dict[str, float]

_LOCATOR = ("train/location_entropy", "train/baseline")


def read_metrics(csv_logs: Path) -> list[Row]:
    """Read the epochs of CSV logs; a later version (after a resume) replaces the epochs that it repeats.

    Args:
        csv_logs: folder of the logger's ``version_*`` folders.

    Returns:
        One row per epoch, in order, with ``epoch``, ``step`` and the metrics.
    """
    epochs: dict[int, Row] = {}
    versions = sorted(csv_logs.glob("version_*/metrics.csv"), key=lambda path: int(path.parent.name.split("_")[1]))
    for version in versions:
        with version.open(newline="", encoding="utf-8") as file:
            rows = [row for row in csv.DictReader(file) if row.get("epoch")]
        seen: set[int] = set()
        for row in rows:
            epoch = int(float(row["epoch"]))
            if epoch not in seen:
                epochs[epoch] = {}
                seen.add(epoch)
            epochs[epoch].update({name: float(value) for name, value in row.items() if value})
    return [epochs[epoch] for epoch in sorted(epochs)]


def write_metrics(rows: list[Row], path: Path) -> None:
    """Write the rows as one CSV file."""
    names = ["epoch", "step", *sorted({name for row in rows for name in row} - {"epoch", "step"})]
    lines = [",".join(names)]
    # Ten digits keep every float32 and every step.
    lines += [",".join(f"{row[name]:.10g}" if name in row else "" for name in names) for row in rows]
    write_text(path, "\n".join(lines) + "\n")


def plot_curves(rows: list[Row], path: Path) -> None:
    """Plot accuracy, loss terms and location entropy over the epochs."""
    # Not pyplot, whose backend belongs to the caller.
    from matplotlib.figure import Figure

    names = sorted({name for row in rows for name in row})
    panels = {
        "accuracy": [n for n in names if "accuracy" in n],
        "loss terms (weighted)": [
            n for n in names if n.startswith("train/") and "accuracy" not in n and n not in _LOCATOR
        ],
        "locator": [n for n in names if n in _LOCATOR],
    }
    panels = {title: metrics for title, metrics in panels.items() if metrics}
    figure = Figure(figsize=(5.5 * len(panels), 4), layout="constrained")
    axes = figure.subplots(1, len(panels), squeeze=False)
    for axis, (title, metrics) in zip(axes[0], panels.items(), strict=True):
        for name in metrics:
            points = [(row["epoch"] + 1, row[name]) for row in rows if name in row]
            axis.plot(*zip(*points, strict=True), label=name, marker="." if len(points) < 30 else "")
        axis.set(title=title, xlabel="epoch")
        axis.grid(alpha=0.3)
        axis.legend(fontsize=7)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=110)
