"""What a comparison found, summed up and shown: as tables, as CSV, as pictures."""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from tnet.evaluation.compare_curves import plain_log_scale
from tnet.evaluation.compare_measure import Accuracy, Cost, MemoryUse, Setting, TimeUse
from tnet.evaluation.compare_rows import Effort
from tnet.evaluation.compare_suite import LEARNED
from tnet.evaluation.report import NO_POLICY, macs_unit, markdown_table, short_number
from tnet.files import atomic_path, write_text

_BOOTSTRAP_SEED = 0
_MARKERS = {LEARNED: "o", NO_POLICY: "o", "random": "x", "centre": "^"}


@dataclass(frozen=True)
class Share:
    """A share of images, between 0 and 1, over the seeds of a row.

    Attributes:
        mean: over seeds.
        low: lower end of the 95 % bootstrap interval of the mean, images being resampled.
        high: its upper end.
        std: standard deviation over seeds; ``None`` for a single one.
        least: of the worst seed.
        most: of the best seed.
        images: evaluated with each seed.
    """

    mean: float
    low: float
    high: float
    std: float | None
    least: float
    most: float
    images: int


@dataclass(frozen=True)
class Line:
    """One line of the comparison: a row at one number of looks and one policy.

    Attributes:
        row: its name.
        setting: looks and policy.
        seeds: that were trained.
        top1: accuracy; ``None`` for what was not trained.
        top5: ``None`` with 5 classes or fewer, too.
        without_context: accuracy from the attended regions alone.
        cost: ``None`` if not measured.
        effort: of training, a seed's mean; ``None`` if it was not trained here.
    """

    row: str
    setting: Setting
    seeds: int
    top1: Share | None
    top5: Share | None
    without_context: Share | None
    cost: Cost | None
    effort: Effort | None


def bootstrap_interval(
    values: Float[np.ndarray, " images"], resamples: int = 2000, seed: int = _BOOTSTRAP_SEED
) -> tuple[float, float]:
    """95 % percentile bootstrap interval of a mean.

    Args:
        values: one an image.
        resamples: means of as many values, drawn with replacement.
        seed: the same seed gives the same interval.

    Returns:
        2.5th and 97.5th percentile of these means.
    """
    # How often each of the few distinct values is drawn is multinomial: no need to draw image by image.
    distinct, counts = np.unique(values, return_counts=True)
    drawn = np.random.default_rng(seed).multinomial(len(values), counts / len(values), size=resamples)
    low, high = np.percentile(drawn @ distinct / len(values), [2.5, 97.5])
    return float(low), float(high)


def share(right: Sequence[str], resamples: int = 2000) -> Share:
    """Sum up which images were right.

    Args:
        right: for each seed, one ``1`` or ``0`` an image.
        resamples: of the bootstrap.
    """
    table = np.array([[float(bit) for bit in bits] for bits in right])
    means = table.mean(axis=1)
    low, high = bootstrap_interval(table.mean(axis=0), resamples)
    std = float(means.std(ddof=1)) if len(right) > 1 else None
    return Share(float(means.mean()), low, high, std, float(means.min()), float(means.max()), table.shape[1])


def lines_of(
    row: str,
    accuracies: Sequence[Sequence[Accuracy]],
    costs: Sequence[Cost],
    efforts: Sequence[Effort],
    resamples: int,
) -> list[Line]:
    """Put what was measured of a row together.

    Args:
        row: its name.
        accuracies: for each seed, its settings; no seeds for what was not trained.
        costs: of its settings.
        efforts: of each seed that was trained here.
        resamples: of the bootstrap.
    """
    by_setting = {cost.setting: cost for cost in costs}
    found: dict[Setting, list[Accuracy]] = {cost.setting: [] for cost in costs}
    for seed in accuracies:
        for accuracy in seed:
            found.setdefault(accuracy.setting, []).append(accuracy)

    def over_seeds(items: list[Accuracy], pick: Callable[[Accuracy], str | None]) -> Share | None:
        bits = [text for item in items if (text := pick(item)) is not None]
        return share(bits, resamples) if bits else None

    effort = None
    if efforts:
        mean = [
            statistics.mean(values) for values in zip(*((e.steps, e.images, e.minutes) for e in efforts), strict=True)
        ]
        effort = Effort(round(mean[0]), round(mean[1]), float(mean[2]))
    return [
        Line(
            row,
            setting,
            max(1, len(accuracies)),
            over_seeds(items, lambda item: item.top1),
            over_seeds(items, lambda item: item.top5),
            over_seeds(items, lambda item: item.without_context),
            by_setting.get(setting),
            effort,
        )
        for setting, items in found.items()
    ]


def _percent(found: Share | None) -> str:
    """Mean, interval, and spread over seeds where there are several."""
    if found is None:
        return "-"
    text = f"{100 * found.mean:.1f} ({100 * found.low:.1f} to {100 * found.high:.1f})"
    if found.std is not None:
        text += f" ± {100 * found.std:.1f} [{100 * found.least:.1f} to {100 * found.most:.1f}]"
    return text


def _times(lines: Sequence[Line]) -> list[tuple[str, int]]:
    """Devices and batch sizes that anything was timed with."""
    return list(dict.fromkeys((t.device, t.batch_size) for line in lines if line.cost for t in line.cost.times))


def _memories(lines: Sequence[Line]) -> list[tuple[str, int]]:
    return list(dict.fromkeys((m.device, m.batch_size) for line in lines if line.cost for m in line.cost.memory))


def _time(line: Line, key: tuple[str, int]) -> TimeUse | None:
    times = line.cost.times if line.cost else ()
    return next((time for time in times if (time.device, time.batch_size) == key), None)


def _memory(line: Line, key: tuple[str, int]) -> MemoryUse | None:
    memory = line.cost.memory if line.cost else ()
    return next((use for use in memory if (use.device, use.batch_size) == key), None)


def comparison_table(lines: Sequence[Line]) -> str:
    """The lines as a Markdown table.

    Args:
        lines: at least one.
    """
    unit, letter = macs_unit(max((line.cost.macs for line in lines if line.cost), default=0))
    times, memories = _times(lines), _memories(lines)
    header = [
        "row",
        "#locs",
        "policy",
        "top-1 %",
        "top-5 %",
        "without context %",
        f"FLOPs ({letter})",
        "parameters (M)",
    ]
    header += [f"ms/image, {device}, batch {size}" for device, size in times]
    header += [f"peak MB, {device}, batch {size}" for device, size in memories]
    body = []
    for line in lines:
        cells = [line.row, line.setting.looks, line.setting.policy]
        cells += [_percent(found) for found in (line.top1, line.top5, line.without_context)]
        cost = line.cost
        cells += ["-", "-"] if cost is None else [short_number(cost.macs / unit), f"{cost.parameters / 1e6:.3f}"]
        for key in times:
            time = _time(line, key)
            cells.append("-" if time is None else f"{time.median_ms:.2f} ({time.min_ms:.2f} to {time.max_ms:.2f})")
        for key in memories:
            memory = _memory(line, key)
            cells.append("-" if memory is None else f"{memory.peak_bytes / 1e6:.1f}")
        body.append(cells)
    return markdown_table(header, body)


def effort_table(lines: Sequence[Line]) -> str:
    """What training took, one line a row; empty if nothing was trained."""
    trained = {line.row: line for line in lines if line.effort is not None}
    body = [
        [name, str(line.seeds), f"{line.effort.steps:,}", f"{line.effort.images:,}", f"{line.effort.minutes:.1f}"]
        for name, line in trained.items()
        if line.effort is not None
    ]
    return markdown_table(["row", "seeds", "steps", "images seen", "minutes"], body) if body else ""


def comparison_notes(lines: Sequence[Line], skipped: Sequence[str], machine: dict[str, str]) -> str:
    """What the numbers of the tables are, in sentences.

    Args:
        lines: of the table.
        skipped: devices that this machine does not have.
        machine: that costs were measured on.
    """
    images = sorted({line.top1.images for line in lines if line.top1})
    sizes = sorted({line.cost.image_size_hw for line in lines if line.cost})
    seeds = max((line.seeds for line in lines), default=1)
    notes = []
    if images:
        over = f"; ± standard deviation over up to {seeds} seeds [least to most]" if seeds > 1 else ""
        notes.append(
            f"Accuracy on {' or '.join(map(str, images))} images, with its 95 % bootstrap interval (images resampled, "
            f"fixed seed){over}."
        )
        notes.append(
            "Without context: the answer from the attended regions alone, the whole image's feature left out; models "
            "that have no such feature have no such column."
        )
    notes.append(
        "FLOPs: multiply-adds of one image, as in the published tables; 1 multiply-add is 2 operations. Parameters: "
        "trainable ones."
    )
    if sizes:
        notes.append(
            f"Costs at {' and '.join(f'{height} x {width}' for height, width in sizes)} px, images in memory. Time: "
            "after warm-up; median (fastest to slowest pass). Peak memory, CPU: rise of a fresh process's resident "
            "memory over the loaded model; CUDA: peak allocation, weights included."
        )
        notes.append(f"Measured on {', '.join(f'{key} {value}' for key, value in machine.items())}.")
    if skipped:
        notes.append(f"Not on this machine, so not measured: {', '.join(skipped)}.")
    return "\n".join(notes) + "\n"


def _share_fields(name: str, found: Share | None) -> dict[str, object]:
    return {
        name: found and found.mean,
        f"{name}_low": found and found.low,
        f"{name}_high": found and found.high,
        f"{name}_std": found and found.std,
        f"{name}_min": found and found.least,
        f"{name}_max": found and found.most,
    }


def write_comparison_csv(lines: Sequence[Line], path: str | Path) -> None:
    """Write the lines as CSV, whole or not at all; shares from 0 to 1, an empty field where there is no value.

    Raises:
        OutputError: the file cannot be written.
    """
    rows: list[dict[str, object]] = []
    for line in lines:
        cost, effort, setting = line.cost, line.effort, line.setting
        row: dict[str, object] = {
            "row": line.row, "looks": setting.looks, "total_looks": setting.total_looks, "policy": setting.policy,
            "seeds": line.seeds, "images": line.top1 and line.top1.images,
        }  # fmt: skip
        for name in ("top1", "top5", "without_context"):
            row |= _share_fields(name, getattr(line, name))
        row |= {"macs": cost and cost.macs, "flops": cost and 2 * cost.macs, "parameters": cost and cost.parameters}
        row |= {"total_parameters": cost and cost.total_parameters}
        row |= {"image_height_px": cost and cost.image_size_hw[0], "image_width_px": cost and cost.image_size_hw[1]}
        for device, size in _times(lines):
            time = _time(line, (device, size))
            stem = f"ms_per_image_{device}_batch{size}"
            row |= {stem: time and time.median_ms, f"{stem}_min": time and time.min_ms}
            row |= {f"{stem}_max": time and time.max_ms}
        for device, size in _memories(lines):
            memory = _memory(line, (device, size))
            row[f"peak_bytes_{device}_batch{size}"] = memory and memory.peak_bytes
        row |= {"steps": effort and effort.steps, "images_seen": effort and effort.images}
        row |= {"train_minutes": effort and effort.minutes}
        rows.append(row)
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({key: f"{value:.6g}" if isinstance(value, float) else value for key, value in row.items()})
    write_text(path, text.getvalue())


def plot_comparison(lines: Sequence[Line], folder: Path) -> list[Path]:
    """Draw accuracy against multiply-adds, time and number of looks: a picture each, whole or not at all.

    Bars are the 95 % bootstrap intervals; controls are dashed.

    Args:
        lines: those without an accuracy are left out.
        folder: of the pictures.

    Returns:
        The pictures drawn: those that there are numbers for.

    Raises:
        OutputError: a picture cannot be written.
    """
    unit, letter = macs_unit(max((line.cost.macs for line in lines if line.cost), default=0))
    times = _times(lines)
    first = times[0] if times else ("", 0)

    def milliseconds(line: Line) -> float | None:
        time = _time(line, first)
        return time.median_ms if time else None

    pictures: dict[str, tuple[str, Callable[[Line], float | None]]] = {
        "accuracy_macs.png": (
            f"multiply-adds per image ({letter})", lambda line: line.cost.macs / unit if line.cost else None
        ),
        "accuracy_time.png": (f"ms per image ({first[0]}, batch {first[1]})", milliseconds),
        "accuracy_looks.png": ("looks (regions per image)", lambda line: float(line.setting.total_looks)),
    }  # fmt: skip
    drawn = []
    for name, (label, x_of) in pictures.items():
        if any(line.top1 is not None and x_of(line) is not None for line in lines):
            _plot(lines, label, x_of, folder / name)
            drawn.append(folder / name)
    return drawn


def _plot(lines: Sequence[Line], label: str, x_of: Callable[[Line], float | None], path: Path) -> None:
    """One picture: a curve for each row and policy, the point without looks being of every curve of its row."""
    figure = Figure(figsize=(9, 4.8), layout="constrained")
    axis = figure.subplots()
    names = list(dict.fromkeys(line.row for line in lines))
    for line_row, policy in dict.fromkeys((line.row, line.setting.policy) for line in lines):
        own = [line for line in lines if line.row == line_row]
        policies = {line.setting.policy for line in own} - {NO_POLICY}
        if policy == NO_POLICY and policies:
            continue
        curve = [line for line in own if line.setting.policy in (policy, NO_POLICY)]
        points = [(x, line.top1) for line in curve if line.top1 is not None and (x := x_of(line)) is not None]
        if not points:
            continue
        points.sort(key=lambda point: point[0])
        mean = [100 * found.mean for _, found in points]
        below = [100 * (found.mean - found.low) for _, found in points]
        above = [100 * (found.high - found.mean) for _, found in points]
        control = policy not in (LEARNED, NO_POLICY)
        axis.errorbar(
            [x for x, _ in points],
            mean,
            [np.maximum(below, 0), np.maximum(above, 0)],
            marker=_MARKERS.get(policy, "s"),
            linestyle="--" if control else "-",
            alpha=0.6 if control else 1.0,
            color=f"C{names.index(line_row) % 10}",
            label=f"{line_row}, {policy}" if control else line_row,
            elinewidth=0.8,
            capsize=2,
        )
    if label.startswith("looks"):
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    else:  # costs of systems differ by factors
        plain_log_scale(axis)
    axis.set(xlabel=label, ylabel="top-1 accuracy (%)")
    axis.grid(alpha=0.3)
    figure.legend(fontsize=8, loc="outside right upper")
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=120)
