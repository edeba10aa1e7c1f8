"""Summary of a comparison over seeds: Markdown tables, CSV and plots."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float

from tnet.evaluation.comparison.work import Effort
from tnet.evaluation.evaluator import LEARNED, NO_POLICY, LooksRow
from tnet.evaluation.plots import Curve, Point, plot_curves
from tnet.evaluation.report import looks_label, macs_unit, markdown_table, short_number, write_csv
from tnet.evaluation.resources import Cost, MemoryUse, TimeUse
from tnet.text import markdown

_MARKERS = {"random": "x", "centre": "^"}


@dataclass(frozen=True)
class Share:
    """A share of images, between 0 and 1, over the seeds of a row."""

    mean: float
    low: float  # ends of the 95 % bootstrap interval of the mean over images
    high: float
    std: float | None  # over seeds; None for a single seed
    min: float  # share of the worst seed
    max: float
    images: int  # per seed


@dataclass(frozen=True)
class Line:
    """One line of the comparison: a row at one number of looks and one policy."""

    row: str
    looks: str  # as the command line writes them
    total_looks: int  # regions seen per image after the whole
    policy: str
    seeds: int
    top1: Share | None  # None if the model was not trained
    top5: Share | None  # None with 5 classes or fewer
    without_context: Share | None  # accuracy from the attended regions alone
    cost: Cost | None
    effort: Effort | None  # mean per seed; None if the model was not trained here

    def time(self, key: tuple[str, int]) -> TimeUse | None:
        """Return the time on a device with a batch size, if measured."""
        times = self.cost.times if self.cost else ()
        return next((time for time in times if (time.device, time.batch_size) == key), None)

    def memory(self, key: tuple[str, int]) -> MemoryUse | None:
        """Return the peak memory on a device with a batch size, if measured."""
        memory = self.cost.memory if self.cost else ()
        return next((use for use in memory if (use.device, use.batch_size) == key), None)


def bootstrap_interval(
    values: Float[np.ndarray, " images"], resamples: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """Return the 95 % percentile bootstrap interval of a mean over images."""
    # How often each of the few distinct values is drawn is multinomial: no need to draw image by image.
    distinct, counts = np.unique(values, return_counts=True)
    drawn = np.random.default_rng(seed).multinomial(len(values), counts / len(values), size=resamples)
    low, high = np.percentile(drawn @ distinct / len(values), [2.5, 97.5])
    return float(low), float(high)


def share(right: Sequence[str], resamples: int = 2000) -> Share:
    """Summarise which images were right: per seed, one ``1`` or ``0`` per image."""
    table = np.array([[float(bit) for bit in bits] for bits in right])
    means = table.mean(axis=1)
    low, high = bootstrap_interval(table.mean(axis=0), resamples)
    std = float(means.std(ddof=1)) if len(right) > 1 else None
    return Share(float(means.mean()), low, high, std, float(means.min()), float(means.max()), table.shape[1])


def lines_of(
    row: str,
    accuracies: Sequence[Sequence[LooksRow]],
    costs: Sequence[Cost],
    efforts: Sequence[Effort],
    resamples: int,
) -> list[Line]:
    """Join the measurements of a row: accuracies per seed, costs, and the efforts of seeds that were trained here."""
    by_setting = {(cost.looks, cost.total_looks, cost.policy): cost for cost in costs}
    measured: dict[tuple[str, int, str], list[LooksRow]] = {setting: [] for setting in by_setting}
    for seed in accuracies:
        for item in seed:
            measured.setdefault((looks_label(item.looks), item.total_looks, item.policy), []).append(item)

    def over_seeds(items: list[LooksRow], name: str) -> Share | None:
        bits = [text for item in items if (text := getattr(item, name)) is not None]
        return share(bits, resamples) if bits else None

    effort = None
    if efforts:
        columns = zip(*((e.steps, e.images, e.minutes) for e in efforts), strict=True)
        steps, images, minutes = (statistics.mean(values) for values in columns)
        effort = Effort(round(steps), round(images), float(minutes))
    return [
        Line(
            row, *setting, max(1, len(accuracies)), over_seeds(items, "right"), over_seeds(items, "right_top5"),
            over_seeds(items, "right_without_context"), by_setting.get(setting), effort,
        )
        for setting, items in measured.items()
    ]  # fmt: skip


def _percent(value: Share | None) -> str:
    if value is None:
        return "-"
    text = f"{100 * value.mean:.1f} ({100 * value.low:.1f} to {100 * value.high:.1f})"
    if value.std is not None:
        text += f" ± {100 * value.std:.1f} [{100 * value.min:.1f} to {100 * value.max:.1f}]"
    return text


def _keys(lines: Sequence[Line], name: str) -> list[tuple[str, int]]:
    """Return the devices and batch sizes with any ``times`` or ``memory``."""
    uses = [use for line in lines if line.cost for use in getattr(line.cost, name)]
    return list(dict.fromkeys((use.device, use.batch_size) for use in uses))


def _largest_macs(lines: Sequence[Line]) -> int:
    return max((line.cost.macs for line in lines if line.cost), default=0)


def comparison_table(lines: Sequence[Line]) -> str:
    """Return the lines (at least one) as a Markdown table."""
    unit, letter = macs_unit(_largest_macs(lines))
    times, memories = _keys(lines, "times"), _keys(lines, "memory")
    header = ["row", "#locs", "policy", "top-1 %", "top-5 %", "without context %", f"FLOPs ({letter})"]
    header += ["parameters (M)", *(f"ms/image, {device}, batch {size}" for device, size in times)]
    header += [f"peak MB, {device}, batch {size}" for device, size in memories]
    body = []
    for line in lines:
        cells = [markdown(line.row), line.looks, line.policy]
        cells += [_percent(value) for value in (line.top1, line.top5, line.without_context)]
        cost = line.cost
        cells += ["-", "-"] if cost is None else [short_number(cost.macs / unit), f"{cost.parameters / 1e6:.3f}"]
        for key in times:
            time = line.time(key)
            cells.append("-" if time is None else f"{time.median_ms:.2f} ({time.min_ms:.2f} to {time.max_ms:.2f})")
        for key in memories:
            memory = line.memory(key)
            cells.append("-" if memory is None else f"{memory.peak_bytes / 1e6:.1f}")
        body.append(cells)
    return markdown_table(header, body)


def effort_table(lines: Sequence[Line]) -> str:
    """Return the training effort, one line per row; empty if nothing was trained."""
    trained = {line.row: (str(line.seeds), line.effort) for line in lines if line.effort is not None}
    body = []
    for name, (seeds, effort) in trained.items():
        body.append([markdown(name), seeds, f"{effort.steps:,}", f"{effort.images:,}", f"{effort.minutes:.1f}"])
    return markdown_table(["row", "seeds", "steps", "images seen", "minutes"], body) if body else ""


def comparison_notes(lines: Sequence[Line], skipped: Sequence[str], machine: dict[str, str]) -> str:
    """Return sentences that explain the columns of the tables, and name devices that were skipped and the machine."""
    images = sorted({line.top1.images for line in lines if line.top1})
    sizes = sorted({line.cost.image_size_hw for line in lines if line.cost})
    seeds = max((line.seeds for line in lines), default=1)
    notes = []
    if images:
        over = f"; ± standard deviation over up to {seeds} seeds [least to most]" if seeds > 1 else ""
        interval = "with its 95 % bootstrap interval (images resampled, fixed seed)"
        notes.append(f"Accuracy on {' or '.join(map(str, images))} images, {interval}{over}.")
        alone = "the prediction from the attended regions alone, without the whole image's feature"
        notes.append(f"Without context: {alone}, for models that have such a feature.")
    macs = "multiply-adds per image, as in the published tables; 1 multiply-add is 2 operations"
    notes.append(f"FLOPs: {macs}. Parameters: trainable.")
    if sizes:
        notes += [
            f"Costs at {' and '.join(f'{height} x {width}' for height, width in sizes)} px, images in memory. Time: "
            "after warm-up; median (fastest to slowest pass). Peak memory, CPU: rise of a fresh process's resident "
            "memory over the loaded model; CUDA: peak allocation, weights included.",
            f"Measured on {', '.join(f'{key} {value}' for key, value in machine.items())}.",
        ]
    if skipped:
        notes.append(f"Not on this machine, so not measured: {', '.join(map(markdown, skipped))}.")
    return "\n".join(notes) + "\n"


def write_comparison_csv(lines: Sequence[Line], path: str | Path) -> None:
    """Write the lines as CSV, atomically; shares are from 0 to 1, and missing values are empty fields."""

    def columns(source: object, **attributes: str) -> dict[str, object]:
        return {column: getattr(source, name, None) for column, name in attributes.items()}

    rows = []
    for line in lines:
        cost = line.cost
        row = {name: getattr(line, name) for name in ("row", "looks", "total_looks", "policy", "seeds")}
        row |= columns(line.top1, images="images")
        for name in ("top1", "top5", "without_context"):
            spread = {f"{name}_{value}": value for value in ("low", "high", "std", "min", "max")}
            row |= columns(getattr(line, name), **{name: "mean"}, **spread)
        row |= {"macs": cost and cost.macs, "flops": cost and 2 * cost.macs}
        row |= columns(cost, parameters="parameters", total_parameters="total_parameters")
        row |= {f"image_{side}_px": cost and cost.image_size_hw[axis] for axis, side in enumerate(("height", "width"))}
        for key in _keys(lines, "times"):
            name = f"ms_per_image_{key[0]}_batch{key[1]}"
            row |= columns(line.time(key), **{name: "median_ms", f"{name}_min": "min_ms", f"{name}_max": "max_ms"})
        for key in _keys(lines, "memory"):
            row |= columns(line.memory(key), **{f"peak_bytes_{key[0]}_batch{key[1]}": "peak_bytes"})
        row |= columns(line.effort, steps="steps", images_seen="images", train_minutes="minutes")
        rows.append(row)
    write_csv(rows, path)


def plot_comparison(lines: Sequence[Line], folder: Path) -> list[Path]:
    """Plot accuracy, if measured, against multiply-adds, time and number of looks; return the files written.

    Error bars are 95 % bootstrap intervals; controls are dashed.
    """
    unit, letter = macs_unit(_largest_macs(lines))
    device, batch_size = first = next(iter(_keys(lines, "times")), ("", 0))

    def macs(line: Line) -> float | None:
        return None if line.cost is None else line.cost.macs / unit

    def time_ms(line: Line) -> float | None:
        time = line.time(first)
        return None if time is None else time.median_ms

    quantities: tuple[tuple[str, str, Callable[[Line], float | None], bool], ...] = (
        ("accuracy_macs.png", f"multiply-adds per image ({letter})", macs, True),
        ("accuracy_time.png", f"ms per image ({device}, batch {batch_size})", time_ms, True),
        ("accuracy_looks.png", "looks (regions per image)", lambda line: float(line.total_looks), False),
    )
    drawn = []
    for name, label, x_of, differs_by_factors in quantities:
        if curves := _curves(lines, x_of):
            plot_curves(curves, label, folder / name, logarithmic=differs_by_factors)
            drawn.append(folder / name)
    return drawn


def _curves(lines: Sequence[Line], x_of: Callable[[Line], float | None]) -> list[Curve]:
    """Return a curve per row and policy; the point without looks belongs to every curve of its row."""
    names = list(dict.fromkeys(line.row for line in lines))
    curves = []
    for name, policy in dict.fromkeys((line.row, line.policy) for line in lines):
        own = [line for line in lines if line.row == name]
        if policy == NO_POLICY and {line.policy for line in own} != {NO_POLICY}:
            continue
        shown = [(x_of(line), line.top1) for line in own if line.policy in (policy, NO_POLICY)]
        points = [Point(x, top1.mean, top1.low, top1.high) for x, top1 in shown if x is not None and top1 is not None]
        if points:
            control = policy not in (LEARNED, NO_POLICY)
            marker = _MARKERS.get(policy, "s" if control else "o")
            label = f"{name}, {policy}" if control else name
            curves.append(Curve(label, points, names.index(name), marker, control))
    return curves
