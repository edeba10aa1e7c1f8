"""Rows of an evaluation, and how they are shown: as a table, as CSV, as a picture."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from tnet.files import atomic_path, write_text

NO_POLICY = "none"
"""What :attr:`LooksRow.policy` says of 0 looks, where there is nothing to choose."""

_Z_95 = 1.959964
_EXTRA = {"top5": "top-5 %", "auc": "AUC", "jaccard": "Jaccard"}
_LABELS = {"topk": "learned (top-k)", "sample": "learned (sampled)", "random": "random", "centre": "centre out"}


@dataclass(frozen=True)
class LooksRow:
    """What a model reached with one number of looks and one policy.

    Shares and probabilities are between 0 and 1.

    Attributes:
        looks: locations per region for levels 1, 2, ...; empty for 0 looks.
        total_looks: regions looked at in one image after the whole.
        policy: how locations were chosen; ``none`` for 0 looks.
        images: evaluated.
        accuracy: share of images whose most probable class is right; for several labels an image, whose labels are all
            right at a threshold of 0.5 (exact match).
        accuracy_low: lower end of the 95 % Wilson interval of the accuracy.
        accuracy_high: its upper end.
        top5: share of images whose class is among the five most probable; ``None`` with 5 classes or fewer.
        auc: area under the receiver operating characteristic; only with 2 classes, both of which must occur.
        jaccard: labels both predicted and true over labels either, over all images; only for several labels an image.
        confidence: mean over the images of the largest probability.
        macs: multiply-adds of one image; of the first where they depend on its size.
        parameters: trainable parameters of the model.
        time_ms: milliseconds an image in batches as evaluated, without reading and decoding: median over batches. The
            first batch warms up.
        time_ms_min: fastest batch.
        time_ms_max: slowest batch.
        batch_size: images a batch that was timed.
        device: that it ran on.
    """

    looks: tuple[int, ...]
    total_looks: int
    policy: str
    images: int
    accuracy: float
    accuracy_low: float
    accuracy_high: float
    top5: float | None
    auc: float | None
    jaccard: float | None
    confidence: float
    macs: int
    parameters: int
    time_ms: float
    time_ms_min: float
    time_ms_max: float
    batch_size: int
    device: str


def wilson_interval(correct: int, total: int) -> tuple[float, float]:
    """95 % interval of a share (Wilson's score interval): honest for few images and for shares near 0 and 1.

    Args:
        correct: successes, at most ``total``.
        total: trials, at least 1.
    """
    share, z2 = correct / total, _Z_95**2
    middle = (share + z2 / (2 * total)) / (1 + z2 / total)
    half = _Z_95 / (1 + z2 / total) * math.sqrt(share * (1 - share) / total + z2 / (4 * total**2))
    # At 0 and 1 rounding could leave the share itself outside.
    return min(share, max(0.0, middle - half)), max(share, min(1.0, middle + half))


def looks_label(looks: Sequence[int]) -> str:
    """Looks as the command line writes them: ``0``, ``3``, ``2x1``."""
    return "x".join(map(str, looks)) or "0"


def looks_table(rows: Sequence[LooksRow]) -> str:
    """The rows as a Markdown table, aligned so that it reads well as plain text.

    Args:
        rows: at least one.
    """
    extra = [name for name in _EXTRA if any(getattr(row, name) is not None for row in rows)]
    unit, letter = macs_unit(max(row.macs for row in rows))
    header = ["looks", "policy", "accuracy % (95 % interval)", *(_EXTRA[name] for name in extra), "confidence"]
    header += [f"multiply-adds ({letter})", "parameters (M)", "ms/image (min to max)"]
    lines = []
    for row in rows:
        interval = f"{100 * row.accuracy_low:.1f} to {100 * row.accuracy_high:.1f}"
        cells = [looks_label(row.looks), row.policy, f"{100 * row.accuracy:.1f} ({interval})"]
        for name in extra:
            value = getattr(row, name)
            cells.append("-" if value is None else f"{100 * value:.1f}" if name == "top5" else f"{value:.3f}")
        cells += [f"{row.confidence:.3f}", short_number(row.macs / unit), short_number(row.parameters / 1e6)]
        cells.append(f"{row.time_ms:.2f} ({row.time_ms_min:.2f} to {row.time_ms_max:.2f})")
        lines.append(cells)
    return markdown_table(header, lines)


def markdown_table(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A Markdown table with aligned columns.

    Args:
        header: names of the columns.
        lines: cells of each line, as many as columns.
    """
    widths = [max(len(line[column]) for line in (header, *lines)) for column in range(len(header))]
    shown = [header, ["-" * width for width in widths], *lines]
    padded = [[cell.ljust(width) for cell, width in zip(line, widths, strict=True)] for line in shown]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in padded) + "\n"


def macs_unit(macs: int) -> tuple[float, str]:
    """The unit in which multiply-adds up to a number read best: its size and its letter, G or M."""
    return (1e9, "G") if macs >= 1e9 else (1e6, "M")


def short_number(value: float) -> str:
    """Four significant digits, without an exponent."""
    if value == 0:
        return "0"
    return f"{value:,.0f}" if value >= 1000 else f"{value:#.4g}" if value >= 0.001 else f"{value:.6f}"


def looks_notes(rows: Sequence[LooksRow]) -> str:
    """What the numbers of :func:`looks_table` are, in sentences."""
    row = rows[0]
    accuracy = "share of images whose labels are all right (exact match at 0.5)" if row.jaccard is not None else "top-1"
    return (
        f"{row.images} images. Accuracy: {accuracy}, with its 95 % Wilson interval. Confidence: mean of the largest "
        "probability. Multiply-adds: of one image; 1 multiply-add is 2 FLOPs. Parameters: trainable ones, of the whole "
        f"model. Time: on {row.device} in batches of {row.batch_size}, reading and decoding left out; median, fastest "
        "and slowest batch.\n"
    )


def write_rows_csv(rows: Sequence[LooksRow], path: str | Path) -> None:
    """Write the rows as CSV, whole or not at all; shares from 0 to 1, an empty field where a value does not apply.

    Raises:
        OutputError: the file cannot be written.
    """
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, [field.name for field in fields(LooksRow)], lineterminator="\n")
    writer.writeheader()
    for row in rows:
        values = {**asdict(row), "looks": looks_label(row.looks)}
        writer.writerow({key: f"{value:.6g}" if isinstance(value, float) else value for key, value in values.items()})
    write_text(path, text.getvalue())


def plot_looks(rows: Sequence[LooksRow], path: str | Path) -> None:
    """Draw accuracy against the number of looks and against multiply-adds, one line a policy; whole or not at all.

    The bands are the 95 % intervals of the accuracy.

    Args:
        rows: at least one.
        path: of the picture; its ending gives the format.

    Raises:
        OutputError: the file cannot be written.
    """
    unit, letter = macs_unit(max(row.macs for row in rows))
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    by_looks, by_macs = figure.subplots(1, 2, sharey=True)
    none = [row for row in rows if not row.looks]
    kinds = list(dict.fromkeys(row.policy for row in rows if row.looks))
    for index, kind in enumerate(kinds or [""]):
        line = none + [row for row in rows if row.policy == kind]
        line.sort(key=lambda row: (row.total_looks, row.macs))
        label = _LABELS.get(kind, "0 looks")
        _draw_line(by_looks, [float(row.total_looks) for row in line], line, f"C{index}", label)
        _draw_line(by_macs, [row.macs / unit for row in line], line, f"C{index}", label)
    if any(len(row.looks) > 1 for row in rows):
        _name_points(by_looks, rows)
    by_looks.xaxis.set_major_locator(MaxNLocator(integer=True))
    by_looks.set(xlabel="looks (regions per image)", ylabel="accuracy (%)")
    by_macs.set(xlabel=f"multiply-adds per image ({letter})")
    by_looks.legend()
    for axis in (by_looks, by_macs):
        axis.grid(alpha=0.3)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=120)


def _draw_line(axis: Axes, x: Sequence[float], line: Sequence[LooksRow], color: str, label: str) -> None:
    """Accuracy in percent, with its interval as a band (and as bars: a single point has no band)."""
    accuracy = [100 * row.accuracy for row in line]
    low, high = [100 * row.accuracy_low for row in line], [100 * row.accuracy_high for row in line]
    reach = [[a - b for a, b in zip(accuracy, low, strict=True)], [b - a for a, b in zip(accuracy, high, strict=True)]]
    axis.errorbar(x, accuracy, reach, marker="o", color=color, label=label, elinewidth=0.8, capsize=2)
    axis.fill_between(x, low, high, color=color, alpha=0.12, linewidth=0)


def _name_points(axis: Axes, rows: Sequence[LooksRow]) -> None:
    """With several levels, 4 looks can be 4 or 2x1: say which beside the point."""
    for row in rows:
        point = (row.total_looks, 100 * row.accuracy)
        axis.annotate(looks_label(row.looks), point, (4, 5), textcoords="offset points", fontsize=8)
