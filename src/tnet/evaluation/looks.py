"""Accuracy against the number of looks, with what each look costs."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterable, Iterator, Sequence

import torch
from jaxtyping import Float, Num
from rich.console import Console
from rich.progress import track
from torch import Tensor
from torchmetrics import Metric, MetricCollection
from torchmetrics.classification import (
    BinaryAUROC,
    MulticlassAccuracy,
    MultilabelExactMatch,
    MultilabelJaccardIndex,
)

from tnet.data.folder import shorten
from tnet.data.loading import LabelledData, eval_loader
from tnet.data.sample import Batch
from tnet.errors import CheckpointError, ConfigError, DataError
from tnet.evaluation.cost import count_parameters, multiply_adds, synchronize, time_per_image_ms
from tnet.evaluation.report import NO_POLICY, LooksRow, wilson_interval
from tnet.geometry import total_looks
from tnet.models.base import Model, ModelConfig
from tnet.scenes.base import Scene

_SEED_STRIDE = 1_000_003
_TELL_SECONDS = 10.0  # between lines of progress where there is no terminal


def default_looks(config: ModelConfig) -> list[int | tuple[int, ...]]:
    """Numbers of looks that are measured unless others are asked for; see ``ModelConfig.listed_looks``."""
    return config.listed_looks()


def check_data_fits(config: ModelConfig, data: LabelledData) -> None:
    """Check that labelled images have the classes that a model tells apart.

    Raises:
        DataError: no images, other classes, or one label an image where the model gives several.
    """
    if len(data) == 0:
        raise DataError("there are no images to evaluate on; give a folder of class folders, or a table")
    if data.multilabel != config.multilabel:
        kinds = {True: "several labels an image", False: "one class an image"}
        raise DataError(
            f"the data have {kinds[data.multilabel]} but the model gives {kinds[config.multilabel]}; evaluate on data "
            "of the kind it was trained on (a table with a label separator has several labels an image)"
        )
    names = list(config.class_names)
    if names and list(data.classes) != names:
        missing = [name for name in names if name not in data.classes]
        extra = [name for name in data.classes if name not in names]
        what = f"missing {shorten(missing)}" if missing else f"unknown {shorten(extra)}" if extra else "another order"
        raise DataError(
            f"the {len(data.classes)} classes of the data are not the {len(names)} that the model tells apart "
            f"({what}); rename them, or evaluate on data with the classes it was trained on"
        )
    if len(data.classes) != config.num_classes:
        raise DataError(
            f"the data have {len(data.classes)} classes but the model tells {config.num_classes} apart; evaluate on "
            "data with the classes it was trained on"
        )


class _Setting:
    """One number of looks and one policy: what was found so far."""

    def __init__(self, model: Model, looks: tuple[int, ...], kind: str, seed: int, device: torch.device) -> None:
        config = model.config
        self.looks, self.kind, self.seed = looks, kind, seed
        self.policy = model.seeded_policy(kind, seed, device)
        self.metrics = MetricCollection(_metrics(config))
        self.auroc = BinaryAUROC() if config.num_classes == 2 and not config.multilabel else None
        self.multilabel = config.multilabel
        self.confidence = 0.0
        self.batches = 0
        self.classes_seen: set[int] = set()
        self.times_ms: list[float] = []

    def run(
        self, model: Model, images: Tensor | list[Tensor] | list[Scene], device: torch.device
    ) -> tuple[Tensor, float]:
        """Logits of a batch on the CPU, and milliseconds an image."""
        # A policy without a generator of its own draws what follows from the seed and the batch alone.
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            if isinstance(self.policy, str):
                torch.manual_seed(self.seed + _SEED_STRIDE * self.batches)
            synchronize(device)
            start = time.perf_counter()
            logits = model(images, looks=self.looks, policy=self.policy).logits
            synchronize(device)
            time_ms = 1000 * (time.perf_counter() - start) / len(images)
        self.batches += 1
        return logits.float().cpu(), time_ms

    def update(self, logits: Float[Tensor, "batch classes"], targets: Num[Tensor, "batch ..."]) -> None:
        """Add a batch to the metrics."""
        probs = logits.sigmoid() if self.multilabel else logits.softmax(dim=1)
        self.confidence += float(probs.max(dim=1).values.sum())
        self.metrics.update(probs, targets.long())
        if self.auroc is not None:
            self.auroc.update(probs[:, 1], targets)
            self.classes_seen |= set(targets.tolist())


def _metrics(config: ModelConfig) -> dict[str, Metric | MetricCollection]:
    classes = config.num_classes
    if config.multilabel:
        return {
            "accuracy": MultilabelExactMatch(classes),
            "jaccard": MultilabelJaccardIndex(classes, average="micro"),
        }
    metrics: dict[str, Metric | MetricCollection] = {"accuracy": MulticlassAccuracy(classes, average="micro")}
    if classes > 5:
        metrics["top5"] = MulticlassAccuracy(classes, top_k=5, average="micro")
    return metrics


def evaluate_looks(
    model: Model,
    data: LabelledData,
    *,
    looks: Sequence[int | tuple[int, ...]],
    policies: Sequence[str] | None = None,
    batch_size: int = 16,
    workers: int = 0,
    device: str = "cpu",
    progress: bool = True,
    seed: int = 0,
) -> list[LooksRow]:
    """Measure a model with several numbers of looks, in one pass over the images.

    Args:
        model: is moved to the device and left in evaluation mode.
        data: labelled images with the model's classes.
        looks: numbers of looks, each as for the model's ``forward``; those that come to the same are measured once.
        policies: how locations are chosen: each number of looks above 0 is measured with each; the
            model's own if ``None``.
        batch_size: images a batch.
        workers: processes that read images.
        device: to run on.
        progress: show a progress bar on standard error.
        seed: of random policies. With 2 levels, the cells drawn for 2 looks are among those drawn for 3.

    Returns:
        One row for each number of looks and policy, in the order asked for.

    Raises:
        DataError: images that do not fit the model, or that cannot be read.
        GeometryError: looks that the model does not allow.
        ConfigError: nothing to measure, or a model of one class.
        CheckpointError: the model's answers are not numbers.
    """
    config = model.config
    policies = (config.eval_policy,) if policies is None else policies
    if not looks or not policies or batch_size < 1 or workers < 0:
        raise ConfigError(
            f"looks {list(looks)}, policies {list(policies)}, batch size {batch_size} and workers {workers}: give at "
            "least one number of looks, one policy and a batch of 1, and no negative number of workers"
        )
    if config.num_classes < 2:
        raise ConfigError("the model has a single class, which is always right; there is nothing to evaluate")
    check_data_fits(config, data)
    place = torch.device(device)
    model.to(place).eval()
    settings = _settings(model, looks, policies, seed, place)
    loader = eval_loader(data, batch_size, workers)
    first: Tensor | list[Tensor] | list[Scene] | None = None
    with torch.inference_mode():
        for batch in _tracked(loader, len(data), progress):
            images = batch.to(place).images
            for setting in settings:
                logits, time_ms = setting.run(model, images, place)
                _check_finite(logits, batch)
                setting.update(logits, batch.targets)
                # The first batch warms up, and a last one of another size is not like the others.
                if first is not None and len(images) == len(first):
                    setting.times_ms.append(time_ms)
            first = images if first is None else first
    assert first is not None
    parameters = count_parameters(model).trainable
    return [_row(setting, model, first, len(data), parameters) for setting in settings]


def _settings(
    model: Model, looks: Sequence[int | tuple[int, ...]], policies: Sequence[str], seed: int, device: torch.device
) -> list[_Setting]:
    """What is to be measured, each once."""
    config = model.config
    chosen = [config.resolve_looks(item) for item in looks]
    pairs = [(item, kind if item else config.eval_policy) for item in chosen for kind in policies]
    return [_Setting(model, item, kind, seed, device) for item, kind in dict.fromkeys(pairs)]


def _tracked(loader: Iterable[Batch], images: int, progress: bool) -> Iterator[Batch]:
    """The batches, with progress on standard error: a bar in a terminal, else a line now and then."""
    console = Console(stderr=True)
    if not progress:
        yield from loader
    elif console.is_terminal:
        yield from track(loader, "evaluating", console=console, transient=True)
    else:
        done, told = 0, time.monotonic()
        for batch in loader:
            yield batch
            done += len(batch.names)
            if time.monotonic() - told > _TELL_SECONDS:
                told = time.monotonic()
                console.print(f"evaluating: {done} of {images} images", highlight=False)


def _check_finite(logits: Float[Tensor, "batch classes"], batch: Batch) -> None:
    bad = (~torch.isfinite(logits).all(dim=1)).nonzero().flatten().tolist()
    if bad:
        raise CheckpointError(
            f"the model's answer for {batch.names[bad[0]]} is not a number; its weights are damaged or training "
            "diverged, train anew or take an earlier model"
        )


def _row(
    setting: _Setting, model: Model, first: Tensor | list[Tensor] | list[Scene], images: int, parameters: int
) -> LooksRow:
    """Sum a setting up; time the first batch again if there was no other like it."""
    values = {name: float(value) for name, value in setting.metrics.compute().items()}
    low, high = wilson_interval(round(values["accuracy"] * images), images)
    times = setting.times_ms
    size_hw = model.scene(first).sizes_hw[0] if model.config.cost_depends_on_size else None
    if not times:
        timing = time_per_image_ms(model, first, setting.looks, policy=setting.policy, repeats=3, warmup=0)
        times = [timing.median_ms, timing.min_ms, timing.max_ms]
    auc = float(setting.auroc.compute()) if setting.auroc is not None and len(setting.classes_seen) == 2 else None
    return LooksRow(
        looks=model.config.looks_at_each_level(setting.looks),
        total_looks=total_looks(setting.looks),
        policy=setting.kind if setting.looks else NO_POLICY,
        images=images,
        accuracy=values["accuracy"],
        accuracy_low=low,
        accuracy_high=high,
        top5=values.get("top5"),
        auc=auc,
        jaccard=values.get("jaccard"),
        confidence=setting.confidence / images,
        macs=multiply_adds(model, setting.looks, size_hw, setting.kind),
        parameters=parameters,
        time_ms=statistics.median(times),
        time_ms_min=min(times),
        time_ms_max=max(times),
        batch_size=len(first),
        device=str(model.classifier.weight.device),
    )
