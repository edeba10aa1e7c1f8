"""The evaluator: one pass over labelled images that measures a model at several numbers of looks and policies.

Everything that reports accuracy is built on it: ``tnet evaluate``, comparisons, the demo. Knows nothing of training.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Num
from torch import Tensor
from torchmetrics.classification import BinaryAUROC, MultilabelJaccardIndex

from tnet.backbones import Precision
from tnet.cost import count_parameters, multiply_adds, synchronize, time_per_image_ms
from tnet.data.folder import shorten
from tnet.data.loading import LabelledData, eval_loader
from tnet.data.sample import Batch
from tnet.errors import CheckpointError, ConfigError, DataError
from tnet.geometry import total_looks
from tnet.inference.progress import track_images
from tnet.inference.records import class_probs
from tnet.models.aggregation import Places
from tnet.models.base import Model, ModelConfig, ModelOutput
from tnet.models.tnet import TNet, TNetOutput
from tnet.scenes.base import Scene

Looks = int | tuple[int, ...]

NO_POLICY = "none"
"""The policy of a row with 0 looks, where there is nothing to choose."""

LEARNED = "learned"
"""The policy that a model's configuration names for evaluation."""

_SEED_STRIDE = 1_000_003
_Z_95 = 1.959964


@dataclass(frozen=True)
class LooksRow:
    """Accuracy and cost of a model with one number of looks and one policy; shares and probabilities are 0 to 1.

    Attributes:
        looks: locations per region for levels 1, 2, ...; empty for 0 looks.
        total_looks: regions seen per image after the whole.
        policy: the requested policy; ``none`` for 0 looks.
        images: number of images.
        accuracy: share of images whose most probable class is right, or, with several labels per image, whose labels
            are all right at a threshold of 0.5 (exact match).
        accuracy_low: lower end of the 95 % Wilson interval of the accuracy.
        accuracy_high: its upper end.
        top5: share of images whose class is among the five most probable; ``None`` with 5 classes or fewer.
        auc: area under the receiver operating characteristic; only with 2 classes, both of which must occur.
        jaccard: labels both predicted and true over labels either, over all images; only with several labels per image.
        confidence: mean of the largest probability.
        macs: multiply-adds per image; of the first image, if they depend on its size.
        parameters: trainable parameters of the model.
        time_ms: milliseconds per image, without reading and decoding: median over batches after the first.
        time_ms_min: fastest batch.
        time_ms_max: slowest batch.
        batch_size: images per timed batch.
        device: device it ran on.
        right: one ``1`` (right) or ``0`` per image, in the order of the data.
        right_top5: the same for the five most probable classes.
        right_without_context: the same for the attended regions alone, without the feature of the whole image; ``None``
            for models without such a feature, and for 0 looks.
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
    right: str = ""
    right_top5: str | None = None
    right_without_context: str | None = None


def wilson_interval(correct: int, total: int) -> tuple[float, float]:
    """Return the 95 % Wilson score interval of a share, which holds for few images and shares near 0 and 1 too."""
    share, z2 = correct / total, _Z_95**2
    middle = (share + z2 / (2 * total)) / (1 + z2 / total)
    half = _Z_95 / (1 + z2 / total) * math.sqrt(share * (1 - share) / total + z2 / (4 * total**2))
    # At 0 and 1 rounding could leave the share itself outside.
    return min(share, max(0.0, middle - half)), max(share, min(1.0, middle + half))


def check_data_fits(config: ModelConfig, data: LabelledData) -> None:
    """Raise a :class:`DataError` if there are no images, or if their classes or kind of label are not the model's."""
    if len(data) == 0:
        raise DataError("there are no images to evaluate on; give a folder of class folders, or a table")
    if data.multilabel != config.multilabel:
        task = {True: "several labels per image", False: "one class per image"}
        raise DataError(
            f"the data have {task[data.multilabel]} but the model predicts {task[config.multilabel]}; evaluate on "
            "data of the kind it was trained on (a table with a label separator has several labels per image)"
        )
    names = list(config.class_names)
    if names and list(data.classes) != names:
        missing = [name for name in names if name not in data.classes]
        extra = [name for name in data.classes if name not in names]
        what = f"missing {shorten(missing)}" if missing else f"unknown {shorten(extra)}" if extra else "another order"
        raise DataError(
            f"the {len(data.classes)} classes of the data are not the {len(names)} of the model ({what}); rename them, "
            "or evaluate on data with the classes it was trained on"
        )
    if len(data.classes) != config.num_classes:
        raise DataError(
            f"the data have {len(data.classes)} classes but the model has {config.num_classes}; evaluate on data with "
            "the classes it was trained on"
        )


class Setting(NamedTuple):
    """One number of looks and one policy."""

    looks: tuple[int, ...]  # locations per region for levels 1, 2, ...; empty for 0 looks
    policy: str  # as requested; "none" for 0 looks
    kind: str  # the policy that the model is called with


Observer = Callable[[Setting, Batch, ModelOutput], None]
"""Is called with every output of an evaluation, such as to keep single answers."""


def settings(model: Model, looks: Sequence[Looks | None], policies: Sequence[str]) -> list[Setting]:
    """Return every combination of looks (empty for the model's own) and policies, each once.

    Raises:
        GeometryError: the model does not allow these looks.
        ConfigError: the model does not have a policy of that name.
    """
    combinations = []
    for item in looks or (None,):
        resolved = model.config.resolve_looks(item)
        for policy in policies if resolved else (NO_POLICY,):
            kind = model.config.eval_policy if policy in (LEARNED, NO_POLICY) else policy
            model.policy(kind)
            combinations.append(Setting(resolved, policy, kind))
    return list(dict.fromkeys(combinations))


def without_context(model: Model, output: ModelOutput) -> Float[Tensor, "batch classes"] | None:
    """Classify the features of the attended regions alone, without the feature of the whole image.

    ``None`` for 0 looks, and for models without a feature of the whole image.
    """
    if not (isinstance(model, TNet) and isinstance(output, TNetOutput)) or output.features.shape[1] < 2:
        return None
    seen = None if output.seen is None else output.seen[:, 1:].to(output.features.device)
    places = None if output.places is None else Places(output.places.boxes[:, 1:], None)
    return model.classify(output.features[:, 1:], seen, places)


def is_right(
    logits: Float[Tensor, "batch classes"], targets: Num[Tensor, "batch ..."], top: int = 1
) -> Bool[Tensor, " batch"]:
    """Return which predictions are right: the class is among the ``top`` most probable, or all labels are at 0.5."""
    if targets.ndim == 2:
        return ((logits > 0) == (targets > 0.5)).all(dim=1)
    return (logits.topk(top, dim=1).indices == targets[:, None]).any(dim=1)


def evaluate(
    model: Model,
    data: LabelledData,
    *,
    looks: Sequence[Looks] = (),
    policies: Sequence[str] | None = None,
    batch_size: int = 16,
    workers: int = 0,
    device: str = "cpu",
    precision: Precision = "fp32",
    progress: bool = True,
    seed: int = 0,
    observe: Observer | None = None,
) -> list[LooksRow]:
    """Measure a model with several numbers of looks, in one pass over the images.

    Args:
        model: is moved to the device and left in evaluation mode.
        data: labelled images with the model's classes.
        looks: numbers of looks, see the model's ``forward``; empty for the model's own.
        policies: policies to measure each number of looks above 0 with; ``None`` for the model's own.
        batch_size: images per batch.
        workers: processes that read images.
        device: device to run on.
        precision: in which backbones compute.
        progress: show progress on standard error.
        seed: seed of random policies. With 2 levels, the cells drawn for 2 looks are among those drawn for 3.
        observe: is called with the output of every batch and setting.

    Returns:
        One row per distinct number of looks and policy, in the order given.

    Raises:
        DataError: the images do not fit the model, or cannot be read.
        GeometryError: the model does not allow these looks.
        ConfigError: there is nothing to measure, or the model has a single class.
        CheckpointError: the model's output is not finite.
    """
    config = model.config
    policies = (config.eval_policy,) if policies is None else policies
    if not policies or batch_size < 1 or workers < 0:
        raise ConfigError(
            f"policies {list(policies)}, batch size {batch_size} and workers {workers}; give at least one policy and a "
            "batch of 1, and no negative number of workers"
        )
    if config.num_classes < 2:
        raise ConfigError("the model has a single class, which is always right; there is nothing to evaluate")
    check_data_fits(config, data)
    place = torch.device(device)
    model.to(place).eval()
    fast = model.prepare_for_inference(precision)
    runs = [_Run(model, setting, seed, place) for setting in settings(model, looks, policies)]
    first: Tensor | list[Tensor] | list[Scene] | None = None
    with torch.inference_mode():
        for batch in track_images(eval_loader(data, batch_size, workers), len(data), "evaluating", progress):
            images = batch.to(place).images
            for run in runs:
                time_ms = run.add(fast, batch, images, observe)
                # The first batch warms up, and a last one of another size is not like the others.
                if first is not None and len(images) == len(first):
                    run.times_ms.append(time_ms)
            first = images if first is None else first
    assert first is not None
    parameters = count_parameters(model).trainable
    return [run.row(model, fast, first, parameters) for run in runs]


class _Run:
    """Metrics of one setting so far."""

    def __init__(self, model: Model, setting: Setting, seed: int, device: torch.device) -> None:
        config = model.config
        self.setting, self.seed, self.device = setting, seed, device
        self.policy = model.seeded_policy(setting.kind, seed, device)
        self.config, self.multilabel = config, config.multilabel
        self.jaccard = MultilabelJaccardIndex(config.num_classes, average="micro") if config.multilabel else None
        self.auroc = BinaryAUROC() if config.num_classes == 2 and not config.multilabel else None
        self.right: dict[str, list[str]] = {"top1": [], "top5": [], "without_context": []}
        self.confidence, self.batches = 0.0, 0
        self.classes_seen: set[int] = set()
        self.times_ms: list[float] = []

    def add(
        self, model: Model, batch: Batch, images: Tensor | list[Tensor] | list[Scene], observe: Observer | None
    ) -> float:
        """Run a batch and add it to the metrics; returns milliseconds per image."""
        # A policy without its own generator draws from the global one, seeded by seed and batch alone.
        with torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []):
            if isinstance(self.policy, str):
                torch.manual_seed(self.seed + _SEED_STRIDE * self.batches)
            synchronize(self.device)
            start = time.perf_counter()
            output = model(images, looks=self.setting.looks, policy=self.policy)
            synchronize(self.device)
            time_ms = 1000 * (time.perf_counter() - start) / len(images)
        self.batches += 1
        self._update(output.logits.float().cpu(), batch)
        alone = without_context(model, output)
        if alone is not None:
            self._keep("without_context", is_right(alone.float().cpu(), batch.targets))
        if observe is not None:
            observe(self.setting, batch, output)
        return time_ms

    def _update(self, logits: Float[Tensor, "batch classes"], batch: Batch) -> None:
        bad = (~torch.isfinite(logits).all(dim=1)).nonzero().flatten().tolist()
        if bad:
            raise CheckpointError(
                f"the model's output for {batch.names[bad[0]]} is not finite; its weights are damaged or training "
                "diverged, train again or take an earlier model"
            )
        targets = batch.targets
        probs = class_probs(logits, self.config)
        self.confidence += float(probs.max(dim=1).values.sum())
        self._keep("top1", is_right(logits, targets))
        if logits.shape[1] > 5 and not self.multilabel:
            self._keep("top5", is_right(logits, targets, 5))
        if self.jaccard is not None:
            self.jaccard.update(probs, targets.long())
        if self.auroc is not None:
            self.auroc.update(probs[:, 1], targets)
            self.classes_seen |= set(targets.tolist())

    def _keep(self, name: str, right: Bool[Tensor, " batch"]) -> None:
        self.right[name].append("".join("1" if one else "0" for one in right.tolist()))

    def row(self, model: Model, fast: Model, first: Tensor | list[Tensor] | list[Scene], parameters: int) -> LooksRow:
        """Compute the metrics; the first batch is timed again if there was no other like it."""
        config, setting = model.config, self.setting
        bits = {name: "".join(parts) or None for name, parts in self.right.items()}
        right = bits["top1"] or ""
        low, high = wilson_interval(right.count("1"), len(right))
        times = self.times_ms
        if not times:
            timing = time_per_image_ms(fast, first, setting.looks, policy=self.policy, repeats=3, warmup=0)
            times = [timing.median_ms, timing.min_ms, timing.max_ms]
        size_hw = model.scene(first).sizes_hw[0] if config.cost_depends_on_size else None
        return LooksRow(
            looks=config.looks_at_each_level(setting.looks),
            total_looks=total_looks(setting.looks),
            policy=setting.policy,
            images=len(right),
            accuracy=right.count("1") / len(right),
            accuracy_low=low,
            accuracy_high=high,
            top5=None if bits["top5"] is None else bits["top5"].count("1") / len(right),
            auc=float(self.auroc.compute()) if self.auroc is not None and len(self.classes_seen) == 2 else None,
            jaccard=None if self.jaccard is None else float(self.jaccard.compute()),
            confidence=self.confidence / len(right),
            macs=multiply_adds(model, setting.looks, size_hw, setting.kind),
            parameters=parameters,
            time_ms=statistics.median(times),
            time_ms_min=min(times),
            time_ms_max=max(times),
            batch_size=len(first),
            device=str(model.classifier.weight.device),
            right=right,
            right_top5=bits["top5"],
            right_without_context=bits["without_context"],
        )
