"""Cost of a model on this machine: multiply-adds, time and peak memory at several numbers of looks."""

from __future__ import annotations

import contextlib
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tnet.config import check_least, check_most
from tnet.cost import count_parameters, multiply_adds, time_per_image_ms
from tnet.errors import ConfigError
from tnet.evaluation.evaluator import NO_POLICY, Looks, settings
from tnet.evaluation.memory import peak_memory_bytes
from tnet.evaluation.report import looks_label
from tnet.geometry import total_looks
from tnet.inference.progress import progress_bar
from tnet.models.base import Model

_MAX_NOISE_BYTES = 2**31


@dataclass(frozen=True)
class CostsConfig:
    """How time and memory are measured, on random images of one size.

    Attributes:
        devices: devices to measure on; missing ones are skipped and listed in the notes.
        batch_sizes: batch sizes for time; empty to skip time.
        repeats: number of timed passes.
        warmup: number of passes before them.
        memory_batch_size: batch size for memory; 0 to skip memory.
        image_size_hw: height and width, pixels; ``null`` for the size of the first evaluated image.
        controls: measure time and memory for every policy instead of only the first.
    """

    devices: tuple[str, ...] = ("cpu", "cuda")
    batch_sizes: tuple[int, ...] = (1, 16)
    repeats: int = 5
    warmup: int = 2
    memory_batch_size: int = 1
    image_size_hw: tuple[int, int] | None = None
    controls: bool = False

    def __post_init__(self) -> None:
        check_least(self, "costs.", {"repeats": 1, "warmup": 1, "memory_batch_size": 0})
        most = dict.fromkeys(("repeats", "warmup", "memory_batch_size", "batch_sizes"), 10**5)
        check_most(self, "costs.", {**most, "image_size_hw": 2**24})
        if any(size < 1 for size in self.batch_sizes):
            raise ConfigError(f"costs.batch_sizes is {list(self.batch_sizes)}; give numbers of at least 1")
        if self.image_size_hw is not None and min(self.image_size_hw) < 1:
            raise ConfigError(f"costs.image_size_hw is {list(self.image_size_hw)}; give height and width in pixels")


@dataclass(frozen=True)
class TimeUse:
    """Milliseconds per image: median, fastest and slowest of ``repeats`` passes after warm-up."""

    device: str
    batch_size: int
    repeats: int
    median_ms: float
    min_ms: float
    max_ms: float


@dataclass(frozen=True)
class MemoryUse:
    """Peak memory of one pass; see :mod:`tnet.evaluation.memory`."""

    device: str
    batch_size: int
    peak_bytes: int


@dataclass(frozen=True)
class Cost:
    """Cost of a model at one number of looks and one policy."""

    looks: str  # as the command line writes them: 3, 2x1
    total_looks: int  # regions seen per image after the whole
    policy: str  # "none" for 0 looks
    macs: int  # multiply-adds per image
    parameters: int  # trainable
    total_parameters: int  # see tnet.cost.ParameterCount
    image_size_hw: tuple[int, int]
    times: tuple[TimeUse, ...]  # one per device and batch size; empty if not measured
    memory: tuple[MemoryUse, ...]  # one per device; empty if not measured


def machine() -> dict[str, str]:
    """Return what times depend on apart from the model: processor, threads, GPU and PyTorch version."""
    info = {"system": f"{platform.system()} {platform.machine()}", "cpu": _processor()}
    info |= {"threads": str(torch.get_num_threads()), "torch": torch.__version__}
    if torch.cuda.is_available():
        info["gpu"] = torch.cuda.get_device_name()
    return info


def _processor() -> str:
    with contextlib.suppress(OSError, UnicodeDecodeError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or "unknown"


def devices_here(devices: Sequence[str]) -> tuple[str, ...]:
    """Filter out devices that this machine does not have."""
    return tuple(device for device in devices if torch.device(device).type != "cuda" or torch.cuda.is_available())


def measure_costs(
    model: Model,
    source: str | Path,
    image_size_hw: tuple[int, int],
    *,
    looks: Sequence[Looks],
    policies: Sequence[str],
    config: CostsConfig,
    progress: bool = True,
) -> list[Cost]:
    """Measure the cost of a model on ``uint8`` noise in memory.

    Args:
        model: is moved between devices and left on the CPU in evaluation mode.
        source: the model's folder or registered name, from which another process loads it.
        image_size_hw: height and width, pixels.
        looks: numbers of looks; empty for the model's own.
        policies: how locations are chosen; time and memory are measured for the first only, unless
            ``config.controls``.
        config: what to measure.
        progress: show a progress bar on standard error.

    Raises:
        GeometryError: the model or the image does not allow these looks.
        ConfigError: the images do not fit into memory, or memory cannot be measured.
    """
    chosen, devices = settings(model, looks, policies), devices_here(config.devices)
    model.to("cpu").eval()
    height, width = image_size_hw
    batch_size = max(*config.batch_sizes, config.memory_batch_size, 0)
    if batch_size * model.config.in_channels * height * width > _MAX_NOISE_BYTES:
        images, remedy = f"images of {height} x {width} px", "give smaller costs.image_size_hw or batch sizes"
        needed = f"in batches of up to {batch_size} need more than {_MAX_NOISE_BYTES} bytes"
        raise ConfigError(f"{images} {needed}; {remedy}")
    count = count_parameters(model)
    costs = []
    with progress_bar(progress) as bar:
        for setting in bar.track(chosen, total=len(chosen), description="measuring costs"):
            options: dict[str, Any] = {"looks": setting.looks, "policy": setting.kind}
            macs = multiply_adds(model, image_size_hw=image_size_hw, **options)
            used = devices if config.controls or setting.policy in (policies[0], NO_POLICY) else ()
            times = _times(model, image_size_hw, options, config, used)
            options["batch_size"] = size = config.memory_batch_size
            measured = used if size else ()
            peaks = [peak_memory_bytes(source, image_size_hw, device=device, **options) for device in measured]
            memory = tuple(MemoryUse(device, size, peak) for device, peak in zip(measured, peaks, strict=True))
            label = looks_label(model.config.looks_at_each_level(setting.looks))
            how = label, total_looks(setting.looks), setting.policy
            costs.append(Cost(*how, macs, count.trainable, count.total, image_size_hw, times, memory))
    model.to("cpu")
    return costs


def _times(
    model: Model, size_hw: tuple[int, int], options: dict[str, Any], config: CostsConfig, devices: Sequence[str]
) -> tuple[TimeUse, ...]:
    times = []
    for device in devices:
        fast = model.to(device).prepare_for_inference()
        for batch_size in config.batch_sizes:
            shape = (batch_size, model.config.in_channels, *size_hw)
            images = torch.randint(256, shape, dtype=torch.uint8, device=device)
            timing = time_per_image_ms(fast, images, repeats=config.repeats, warmup=config.warmup, **options)
            times.append(TimeUse(device, batch_size, config.repeats, timing.median_ms, timing.min_ms, timing.max_ms))
    return tuple(times)
