"""What a comparison measures of a model: which images it gets right, and what it costs."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Num
from torch import Tensor

from tnet.data.loading import LabelledData, eval_loader
from tnet.errors import CheckpointError, ConfigError
from tnet.evaluation.compare_suite import LEARNED, CostsConfig
from tnet.evaluation.cost import count_parameters, multiply_adds, time_per_image_ms
from tnet.evaluation.looks import check_data_fits
from tnet.evaluation.memory import peak_memory_bytes
from tnet.evaluation.report import NO_POLICY, looks_label
from tnet.geometry import total_looks
from tnet.inference.progress import progress_bar
from tnet.models.base import Model, ModelOutput
from tnet.models.tnet import TNet, TNetOutput

Looks = int | tuple[int, ...]

_MAX_NOISE_BYTES = 2**31
_SEED_STRIDE = 1_000_003


@dataclass(frozen=True)
class Setting:
    """One number of looks, chosen in one way.

    Attributes:
        looks: as the command line writes them.
        total_looks: regions looked at in one image.
        policy: how they are chosen; ``none`` where there is nothing to choose.
    """

    looks: str
    total_looks: int
    policy: str


@dataclass(frozen=True)
class Accuracy:
    """Which images a model gets right. One ``1`` (right) or ``0`` an image, in the order of the data.

    Attributes:
        setting: looks and policy.
        top1: the most probable class is the right one; with several labels an image, all of them are right at 0.5.
        top5: the right class is among the five most probable; ``None`` with 5 classes or fewer.
        without_context: as ``top1``, for the answer from the attended regions alone, the whole image's feature left
            out; ``None`` for models without such a feature, and for 0 looks.
    """

    setting: Setting
    top1: str
    top5: str | None
    without_context: str | None


@dataclass(frozen=True)
class TimeUse:
    """Milliseconds an image: median, fastest and slowest pass.

    Attributes:
        device: that it ran on: ``cpu`` or ``cuda``.
        batch_size: images a pass.
        repeats: passes, after those that warmed up.
        median_ms: an image, milliseconds.
        min_ms: likewise, of the fastest pass.
        max_ms: likewise, of the slowest pass.
    """

    device: str
    batch_size: int
    repeats: int
    median_ms: float
    min_ms: float
    max_ms: float


@dataclass(frozen=True)
class MemoryUse:
    """Peak memory of a pass; see :mod:`tnet.evaluation.memory`.

    Attributes:
        device: that it ran on.
        batch_size: images.
        peak_bytes: what was measured.
    """

    device: str
    batch_size: int
    peak_bytes: int


@dataclass(frozen=True)
class Cost:
    """What a model costs.

    Attributes:
        setting: looks and policy.
        macs: multiply-adds of one image.
        parameters: trainable ones.
        total_parameters: these, frozen ones, and the running statistics of batch norm.
        image_size_hw: of the images, pixels.
        times: for each device and batch size; empty where not measured.
        memory: for each device; empty where not measured.
    """

    setting: Setting
    macs: int
    parameters: int
    total_parameters: int
    image_size_hw: tuple[int, int]
    times: tuple[TimeUse, ...]
    memory: tuple[MemoryUse, ...]


def machine() -> dict[str, str]:
    """What times depend on beside the model: the processor, its threads, the GPU, and PyTorch."""
    found = {
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": _processor(),
        "threads": str(torch.get_num_threads()),
        "torch": torch.__version__,
    }
    if torch.cuda.is_available():
        found["gpu"] = torch.cuda.get_device_name()
    return found


def _processor() -> str:
    """The processor's name, as well as the system tells it."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except (OSError, UnicodeDecodeError):
        pass
    return platform.processor() or "unknown"


def devices_here(devices: Sequence[str]) -> tuple[str, ...]:
    """Those of the devices that can be used here."""
    return tuple(device for device in devices if torch.device(device).type != "cuda" or torch.cuda.is_available())


def settings(model: Model, looks: Sequence[Looks], policies: Sequence[str]) -> dict[Setting, dict[str, Any]]:
    """What is to be measured, each once, and the arguments that a model's ``forward`` takes for it.

    Args:
        model: any model.
        looks: numbers of looks; empty for the model's own.
        policies: how they are chosen.

    Raises:
        GeometryError: looks that the model does not allow.
        ConfigError: a policy that the model does not know.
    """
    found: dict[Setting, dict[str, Any]] = {}
    for item in looks or (None,):
        resolved = model.config.resolve_looks(item)
        for policy in policies if resolved else policies[:1]:
            name = looks_label(model.config.looks_at_each_level(resolved))
            setting = Setting(name, total_looks(resolved), policy if resolved else NO_POLICY)
            kind = policy if resolved and policy != LEARNED else model.config.eval_policy
            model.policy(kind)
            found.setdefault(setting, {"looks": resolved, "policy": kind})
    return found


def without_context(model: Model, output: ModelOutput) -> Float[Tensor, "batch classes"] | None:
    """Class logits from the attended regions alone, the feature of the whole image left out.

    The model's own aggregation and classifier are applied to what remains.

    Args:
        model: in evaluation mode.
        output: of its ``forward``.

    Returns:
        ``None`` for 0 looks, and for models without a feature of the whole image.
    """
    if not (isinstance(model, TNet) and isinstance(output, TNetOutput)) or output.features.shape[1] < 2:
        return None
    return model.classify(output.features[:, 1:])


def is_right(
    logits: Float[Tensor, "batch classes"], targets: Num[Tensor, "batch ..."], top: int = 1
) -> Bool[Tensor, " batch"]:
    """Which predictions are right: the class among the ``top`` most probable, or all labels at 0.5."""
    if targets.ndim == 2:
        return ((logits > 0) == (targets > 0.5)).all(dim=1)
    return (logits.topk(top, dim=1).indices == targets[:, None]).any(dim=1)


class _Bits:
    """Collects which images are right."""

    def __init__(self) -> None:
        self.parts: list[str] = []

    def add(self, right: Bool[Tensor, " batch"]) -> None:
        """Add a batch."""
        self.parts.append("".join("1" if one else "0" for one in right.tolist()))

    def text(self) -> str | None:
        """All of them; ``None`` if none were added."""
        return "".join(self.parts) or None


def measure_accuracy(
    model: Model,
    data: LabelledData,
    *,
    looks: Sequence[Looks],
    policies: Sequence[str],
    batch_size: int = 16,
    workers: int = 0,
    device: str = "cpu",
    seed: int = 0,
    progress: bool = True,
) -> list[Accuracy]:
    """Find out which images a model gets right, with several numbers of looks, in one pass over the images.

    Args:
        model: is moved to the device and left in evaluation mode.
        data: labelled images with the model's classes.
        looks: numbers of looks; empty for the model's own.
        policies: how they are chosen.
        batch_size: images a batch.
        workers: processes that read images.
        device: to run on.
        seed: of policies that draw: what they draw depends on it, and on the batch.
        progress: show a progress bar on standard error.

    Raises:
        DataError: images that do not fit the model, or that cannot be read.
        GeometryError: looks that the model does not allow.
        CheckpointError: the model's answers are not numbers.
    """
    check_data_fits(model.config, data)
    place = torch.device(device)
    model.to(place).eval()
    chosen = settings(model, looks, policies)
    found = {setting: (_Bits(), _Bits(), _Bits()) for setting in chosen}
    loader = eval_loader(data, batch_size, workers)
    with torch.inference_mode(), progress_bar(progress) as bar:
        for index, batch in enumerate(bar.track(loader, total=len(loader), description="evaluating")):
            images, targets = batch.to(place).images, batch.targets
            for setting, options in chosen.items():
                with torch.random.fork_rng():
                    torch.manual_seed(seed * _SEED_STRIDE + index)
                    output = model(images, **options)
                logits = output.logits.float().cpu()
                if not torch.isfinite(logits).all():
                    raise CheckpointError(
                        f"the model's answer for {batch.names[0]}, or another image of its batch, is not a number; its "
                        "weights are damaged or training diverged, train anew"
                    )
                top1, top5, attended = found[setting]
                top1.add(is_right(logits, targets))
                if logits.shape[1] > 5 and targets.ndim == 1:
                    top5.add(is_right(logits, targets, 5))
                alone = without_context(model, output)
                if alone is not None:
                    attended.add(is_right(alone.float().cpu(), targets))
    return [
        Accuracy(setting, top1.text() or "", top5.text(), attended.text())
        for setting, (top1, top5, attended) in found.items()
    ]


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
    """Measure what a model costs, on ``uint8`` noise in memory.

    Args:
        model: is moved between devices and left on the CPU in evaluation mode.
        source: where another process finds the model: its folder, or the name of a registered one.
        image_size_hw: height and width, pixels.
        looks: numbers of looks; empty for the model's own.
        policies: how they are chosen; unless ``config.controls``, time and memory are measured for the first alone.
        config: what to measure.
        progress: show a progress bar on standard error.

    Raises:
        GeometryError: looks that the model or the image does not allow.
        ConfigError: images too large for memory, or memory that cannot be measured.
    """
    chosen, devices = settings(model, looks, policies), devices_here(config.devices)
    model.to("cpu").eval()
    largest = max((*config.batch_sizes, config.memory_batch_size)) * model.config.in_channels
    if largest * image_size_hw[0] * image_size_hw[1] > _MAX_NOISE_BYTES:
        raise ConfigError(
            f"images of {image_size_hw[0]} x {image_size_hw[1]} px in batches of up to "
            f"{max((*config.batch_sizes, config.memory_batch_size))} need more than {_MAX_NOISE_BYTES} bytes; give "
            "smaller costs.image_size_hw or batch sizes"
        )
    count = count_parameters(model)
    costs = []
    with progress_bar(progress) as bar:
        for setting, options in bar.track(chosen.items(), total=len(chosen), description="measuring costs"):
            macs = multiply_adds(model, image_size_hw=image_size_hw, **options)
            whole = config.controls or setting.policy in (policies[0], NO_POLICY)
            times = _times(model, image_size_hw, options, config, devices) if whole else ()
            memory = _memory(source, image_size_hw, options, config, devices) if whole else ()
            costs.append(Cost(setting, macs, count.trainable, count.total, image_size_hw, times, memory))
    model.to("cpu")
    return costs


def _times(
    model: Model, size_hw: tuple[int, int], options: dict[str, Any], config: CostsConfig, devices: Sequence[str]
) -> tuple[TimeUse, ...]:
    """Time for each device and batch size."""
    found = []
    for device in devices:
        model.to(device)
        for batch_size in config.batch_sizes:
            shape = (batch_size, model.config.in_channels, *size_hw)
            images = torch.randint(256, shape, dtype=torch.uint8, device=device)
            timing = time_per_image_ms(model, images, repeats=config.repeats, warmup=config.warmup, **options)
            found.append(
                TimeUse(device, batch_size, config.repeats, timing.median_ms, timing.min_ms, timing.max_ms)
            )  # fmt: skip
    return tuple(found)


def _memory(
    source: str | Path, size_hw: tuple[int, int], options: dict[str, Any], config: CostsConfig, devices: Sequence[str]
) -> tuple[MemoryUse, ...]:
    """Peak memory on each device."""
    size = config.memory_batch_size
    return tuple(
        MemoryUse(device, size, peak_memory_bytes(source, size_hw, batch_size=size, device=device, **options))
        for device in (devices if size else ())
    )
