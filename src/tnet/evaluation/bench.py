"""Time of a model on this machine, beside plain networks with its backbone, in every engine that is installed."""

from __future__ import annotations

import math
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from matplotlib.figure import Figure
from torch import Tensor

from tnet.backbones import Precision
from tnet.backbones.precision import check_precision
from tnet.cost import multiply_adds, synchronize
from tnet.errors import ConfigError, ExportError, TnetError
from tnet.evaluation.report import looks_label, macs_unit, markdown_table, short_number
from tnet.export import export_model
from tnet.export.runtime import Run, open_session
from tnet.export.write import default_size
from tnet.files import atomic_path
from tnet.inference.predictor import check_image_size
from tnet.inference.progress import progress_bar
from tnet.models.base import Model
from tnet.models.kind import build_model
from tnet.models.tnet import TNet

BenchEngine = Literal["eager", "torch", "onnx", "openvino"]
ENGINES: dict[BenchEngine, str] = {
    "eager": "PyTorch, unprepared", "torch": "PyTorch", "onnx": "ONNX Runtime", "openvino": "OpenVINO",
}  # fmt: skip
FILES: dict[BenchEngine, str] = {"onnx": "model.onnx", "openvino": "model.xml"}
"""The file of an exported model that an engine opens."""
_STEP_PX = 32  # sides of plain networks are multiples


@dataclass(frozen=True)
class BenchRow:
    """Time of one system, at one number of looks, in one engine and one size of batch.

    Attributes:
        system: what is timed, such as ``3 looks`` or ``plain network, 224 px``.
        looks: looks per image; ``None`` for a plain network.
        engine: key of :data:`ENGINES`.
        macs: multiply-adds per image.
        batch_size: images per batch.
        median_ms, low_ms, high_ms: median and quartiles of the rounds, milliseconds per image.
    """

    system: str
    looks: int | None
    engine: BenchEngine
    macs: int
    batch_size: int
    median_ms: float
    low_ms: float
    high_ms: float


@dataclass(frozen=True)
class _System:
    name: str
    model: Model
    looks: tuple[int, ...]
    is_plain: bool
    macs: int


def bench(
    model: Model,
    *,
    size_hw: tuple[int, int] | None = None,
    looks: Sequence[int | Sequence[int]] = (),
    batch_sizes: Sequence[int] = (1, 16),
    engines: Sequence[BenchEngine] = ("torch",),
    rounds: int = 5,
    device: str = "cpu",
    precision: Precision = "fp32",
    compiled: bool = False,
    progress: bool = True,
) -> tuple[list[BenchRow], list[str]]:
    """Time a model at each number of looks, and plain networks, on random ``uint8`` images in memory.

    Rounds are interleaved within an engine: each times every system once, so that a machine that slows down slows all.
    A pass that is not timed comes before each, so that caches hold the system's own weights, as when it runs alone.
    Plain networks have the model's backbone, with new weights: at the model's base resolution, at the resolution at
    which they cost as much as the model, and at full resolution.

    Args:
        model: any model; is moved to ``device``.
        size_hw: height and width of the images, pixels; ``None`` for the size at which the last level shows them at
            full resolution.
        looks: numbers of looks; empty for those up to the model's own.
        batch_sizes: images per batch.
        engines: keys of :data:`ENGINES`; ``onnx`` and ``openvino`` export every system first, and run on the CPU.
        rounds: timed passes of each.
        device: of PyTorch.
        precision: in which the engine ``torch`` computes.
        compiled: compile the backbones for the engine ``torch``.
        progress: show a progress bar on standard error.

    Returns:
        The rows, and notes about systems and engines that could not be timed.

    Raises:
        GeometryError: the model does not support these looks.
        ConfigError: an argument is out of range, or the device does not support the precision.
    """
    if rounds < 1 or not batch_sizes or min(batch_sizes) < 1:
        raise ConfigError(f"rounds is {rounds} and batch_sizes {list(batch_sizes)}; give at least 1 of each")
    check_precision(precision, torch.device(device))
    size_hw = size_hw or default_size(model.config)
    check_image_size(size_hw, model.config, "of this size")
    systems, notes = _systems(model.to(device).eval(), size_hw, looks)
    rows: list[BenchRow] = []
    with progress_bar(progress) as bar, torch.inference_mode():
        task = bar.add_task("timing", total=len(engines) * len(systems) * (1 + len(batch_sizes) * rounds))
        for engine in engines:  # one by one, as engines keep the memory that a batch needed
            with tempfile.TemporaryDirectory() as folder:
                ready: list[tuple[_System, Callable[[Tensor], object]]] = []
                for index, system in enumerate(systems):
                    try:
                        place = Path(folder) / str(index)
                        ready.append((system, _runner(system, engine, size_hw, place, precision, compiled)))
                    except (ExportError, ConfigError) as error:
                        notes.append(f"{system.name} in {ENGINES[engine]}: {error}")
                    bar.advance(task)
                for batch_size in batch_sizes:
                    shape = (batch_size, model.config.in_channels, *size_hw)
                    images = torch.randint(256, shape, dtype=torch.uint8)
                    images = images if engine in FILES else images.to(device)
                    times = interleaved([run for _, run in ready], images, rounds, lambda: bar.advance(task))
                    for (system, _), mine in zip(ready, times, strict=True):
                        count = None if system.is_plain else sum(system.looks)
                        rows.append(BenchRow(system.name, count, engine, system.macs, batch_size, *_quartiles(mine)))
    return rows, notes


def interleaved(
    runs: Sequence[Callable[[Tensor], object]], images: Tensor, rounds: int, advance: Callable[[], None]
) -> list[list[float]]:
    """Return the times of functions, which take turns, milliseconds per image; the second of two passes is timed."""
    times: list[list[float]] = [[] for _ in runs]
    for _ in range(rounds):
        for run, mine in zip(runs, times, strict=True):
            run(images)
            synchronize(images.device)
            start = time.perf_counter()
            run(images)
            synchronize(images.device)
            mine.append(1000 * (time.perf_counter() - start) / len(images))
            advance()
    return times


def _quartiles(times: Sequence[float]) -> tuple[float, float, float]:
    if len(times) == 1:
        return times[0], times[0], times[0]
    low, middle, high = statistics.quantiles(times, n=4, method="inclusive")
    return middle, low, high


def _systems(
    model: Model, size_hw: tuple[int, int], looks: Sequence[int | Sequence[int]]
) -> tuple[list[_System], list[str]]:
    config = model.config
    chosen = [config.resolve_looks(item) for item in looks or config.listed_looks()]
    systems = []
    for item in dict.fromkeys(chosen):
        name = f"{looks_label(config.looks_at_each_level(item)) if item else 0} looks"
        systems.append(_System(name, model, item, False, multiply_adds(model, item, size_hw)))
    if not isinstance(model, TNet) or model.config.levels == 1:
        return systems, []
    notes: list[str] = []
    for side, why in _plain_sides(model, size_hw, systems[-1].macs):
        plain = model.config.plain(side).without_weights()
        name = f"plain network, {side} px ({why})"
        try:
            network = build_model(plain).to(model.get_buffer("mean").device).eval()
        except TnetError as error:
            notes.append(f"{name}: {error}")
            continue
        systems.append(_System(name, network, (), True, multiply_adds(network, 0)))
    return systems, notes


def _plain_sides(model: TNet, size_hw: tuple[int, int], macs: int) -> Iterator[tuple[int, str]]:
    """Yield the sides of plain networks, each once, and why: cost grows with the area."""
    base, full = model.config.base_px, round(math.sqrt(size_hw[0] * size_hw[1]))
    whole = multiply_adds(model, 0)
    equal = round(base * math.sqrt(macs / whole) / _STEP_PX) * _STEP_PX
    sides = {base: "base resolution"}
    if base < equal < full:
        sides[equal] = "equal cost"
    sides.setdefault(full, "full resolution")
    yield from sides.items()


def export_and_open(model: Model, folder: Path, engine: BenchEngine, **options: Any) -> Run:
    """Export a model for an engine of :data:`FILES`, and open it there; options are those of ``export_model``."""
    form: Any = engine
    export_model(model, folder, form, **options)
    return open_session(folder / FILES[engine], form)


def _runner(
    system: _System,
    engine: BenchEngine,
    size_hw: tuple[int, int],
    folder: Path,
    precision: Precision,
    compiled: bool,
) -> Callable[[Tensor], object]:
    """Return what runs a batch of raw images through a system."""
    if engine in FILES:
        session = export_and_open(system.model, folder, engine, looks=system.looks, size_hw=size_hw)
        return lambda images: session(image=images)
    model = system.model.prepare_for_inference(precision, compiled=compiled) if engine == "torch" else system.model
    return lambda images: model(images, looks=system.looks)


def bench_table(rows: Sequence[BenchRow]) -> str:
    """Return a Markdown table: a line per system and engine, a column per size of batch."""
    unit, letter = macs_unit(max(row.macs for row in rows))
    batches = list(dict.fromkeys(row.batch_size for row in rows))
    lines = []
    for system, engine in dict.fromkeys((row.system, row.engine) for row in rows):
        mine = [row for row in rows if (row.system, row.engine) == (system, engine)]
        times = [f"{row.median_ms:.1f} ({row.low_ms:.1f} to {row.high_ms:.1f})" for row in mine]
        lines.append([system, short_number(mine[0].macs / unit), ENGINES[engine], *times])
    return markdown_table(
        ["system", f"multiply-adds ({letter})", "engine", *(f"ms/image, batch {size}" for size in batches)], lines
    )


def plot_bench(rows: Sequence[BenchRow], path: str | Path) -> None:
    """Write a figure: time per image of every system and engine, one panel per size of batch.

    Raises:
        OutputError: the file cannot be written.
    """
    batches = list(dict.fromkeys(row.batch_size for row in rows))
    names = list(dict.fromkeys((row.system, row.engine) for row in rows))
    figure = Figure(figsize=(4 + 4 * len(batches), 1 + 0.3 * len(names)), layout="constrained")
    panels = figure.subplots(1, len(batches), sharey=True, squeeze=False)[0]
    for axis, batch_size in zip(panels, batches, strict=True):
        mine = [row for row in rows if row.batch_size == batch_size]
        errors = [[row.median_ms - row.low_ms for row in mine], [row.high_ms - row.median_ms for row in mine]]
        colors = ["tab:gray" if row.looks is None else "tab:blue" for row in mine]
        axis.barh(range(len(mine)), [row.median_ms for row in mine], xerr=errors, color=colors)
        axis.set_yticks(range(len(mine)), [f"{row.system}, {ENGINES[row.engine]}" for row in mine], fontsize=8)
        axis.set_xlabel(f"ms per image, batch of {batch_size}")
        axis.grid(axis="x", alpha=0.3)
    panels[0].invert_yaxis()
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=120)
