"""Configuration of the optimizer, and of the length, hardware and outputs of a run."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal, cast

from tnet.config import check_most
from tnet.errors import ConfigError
from tnet.training.guide import GuideConfig

_MOST: dict[str, float] = {
    "epochs": 10**6, "batch_size": 10**5, "images_per_epoch": 10**9, "max_minutes": 10**7, "max_gmacs": 10**15,
    "workers": 256, "devices": 1024, "recalibrate_batches": 10**5, "overlays": 10**4, "teacher_weight": 10**6,
    "teacher_temperature": 10**6, "mixup_alpha": 10**6, "random_looks_epochs": 10**6, "no_looks_epochs": 10**6,
    "frozen_stages": 1000,
}  # fmt: skip

FIRST_EPOCHS = ("no_looks_epochs", "random_looks_epochs")
"""Settings of a TNet with looks alone."""
Keep = Literal["best", "last"]  # the epoch whose model a run keeps


@dataclass(frozen=True)
class OptimConfig:
    """Optimizer and learning rate schedule.

    Attributes:
        name: ``adamw``, ``adam``, or ``keras_adam``: Adam as Keras computes it (published), with ``eps: 1.0e-7``.
        lr: learning rate of the new layers.
        backbone_lr: learning rate of the backbone; ``null`` for ``lr``.
        weight_decay: weight decay of ``adamw``, for weights of two and more dimensions.
        eps: epsilon of Adam.
        schedule: ``constant``, ``step`` (published: one drop) or ``cosine`` to zero.
        drop_at: share of the training after which ``step`` drops.
        drop_factor: factor by which ``step`` drops.
        warmup: share of the training over which the rate rises linearly from zero.
        clip_norm: largest gradient norm; ``null`` for no limit.
    """

    name: Literal["adamw", "adam", "keras_adam"] = "adamw"
    lr: float = 1e-3
    backbone_lr: float | None = None
    weight_decay: float = 1e-2
    eps: float = 1e-8
    schedule: Literal["constant", "step", "cosine"] = "cosine"
    drop_at: float = 0.8
    drop_factor: float = 0.1
    warmup: float = 0.03
    clip_norm: float | None = 5.0

    def __post_init__(self) -> None:
        _require(self, "optim", ("lr", "eps", "clip_norm"), lambda value: value > 0, "a number above 0")
        _require(self, "optim", ("backbone_lr", "weight_decay", "drop_factor"), lambda value: value >= 0, "0 or more")
        _require(self, "optim", ("warmup",), lambda value: 0 <= value < 1, "a share in [0, 1)")
        _require(self, "optim", ("drop_at",), lambda value: 0 < value <= 1, "a share in (0, 1]")
        rates = dict.fromkeys(("lr", "backbone_lr", "weight_decay", "drop_factor", "eps"), 1000)
        check_most(self, "optim.", {**rates, "clip_norm": 10**12})


@dataclass(frozen=True)
class TrainConfig:
    """Length, hardware and outputs of a run.

    Attributes:
        epochs: epochs; each ends with validation and a checkpoint.
        batch_size: images per step and device.
        images_per_epoch: length of an epoch; ``null`` for all training images.
        max_minutes: time limit, validation included; the schedule follows it if it ends the run. ``null`` for none.
            Time also depends on what else the machine does; to compare models use ``max_gmacs``.
        max_gmacs: limit of multiply-adds, in 10^9: images seen times the cost of one at the recipe's looks (the mean
            of the first 16, if it depends on their size; without looks in ``no_looks_epochs``), without gradients and
            validation. Fewer epochs, of equal length, keep it; there is at least one step. ``null`` for none.
        workers: processes that load images; 0 loads them in the main process.
        precision: ``32-true``, ``bf16-mixed`` or ``16-mixed``.
        compile: compile the backbones (``torch.compile``): some minutes at the start, then faster steps.
        accelerator: ``auto``, ``cpu`` or ``gpu``.
        devices: processes or GPUs to train on.
        eval_policies: policies measured in validation, at the recipe's looks: ``topk``, ``sample``, ``random``,
            ``centre``, and a Saccader's others. ``topk`` selects the best model, else the first, else 0 looks.
        recalibrate_batches: training batches over which batch norm statistics are recomputed before each validation; 0
            keeps the running averages (published), which lag behind weights that change fast.
        keep: epoch whose model is kept in ``model/``: the ``best`` in validation, or the ``last`` (published). If
            results are reported on the validation images, the best of many epochs flatters them.
        overlays: number of validation images on which the regions are drawn at the end.
        start_from: folder of a run or saved model with the initial weights, matched by name and shape; the rest starts
            at random. ``null`` for none.
        ema_decay: decay per step (0.999, say; less in early steps) of an exponential moving average of weights and
            running statistics, which is validated and kept. ``null`` for none.
        teacher: folder of a run or saved model of any type and the same classes, for distillation (Hinton et al. 2015)
            on the same augmented images. ``null`` for none.
        teacher_weight: weight of the divergence from the teacher's probabilities.
        teacher_temperature: divisor of both models' logits; the term is multiplied by its square.
        frozen_stages: first stages of a timm backbone, the stem included, that are not trained, which saves time.
        frozen_overview: with separate weights for looks, the timm backbone of the overview is not trained at all, which
            saves most of the time if the overview is large; start from a model that has learned it.
        guide: what teaches a TNet where to look.
        no_looks_epochs: epochs at the start in which a TNet sees whole images only, as a plain network does; then
            separate weights for looks start from theirs.
        random_looks_epochs: epochs at the start in which a TNet's looks are random, so that it learns to classify
            regions of all kinds before it chooses; the locator learns meanwhile from the guide and the worth of looks.
        patience: end training after this many epochs without a better validation accuracy; ``null`` for never. The
            schedule of the learning rate still assumes all epochs.
        balance: ``classes`` draws the images of an epoch with replacement, as many of each class; ``none`` takes each
            image equally often.
        logger: a further log beside CSV: ``tensorboard``; ``wandb`` or ``mlflow``, whose packages must be installed; or
            ``none``.
        mixup_alpha: parameter of the Beta distribution for mixup (0.2, say); 0 for none. Only for models without looks
            and images of one size and one label: a region of a mixture has no single right class to reward.
    """

    epochs: int = 20
    batch_size: int = 32
    images_per_epoch: int | None = None
    max_minutes: float | None = None
    max_gmacs: float | None = None
    workers: int = 0
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = "32-true"
    compile: bool = False
    accelerator: Literal["auto", "cpu", "gpu"] = "auto"
    devices: int = 1
    eval_policies: tuple[str, ...] = ("topk", "random")
    recalibrate_batches: int = 12
    keep: Keep = "best"
    overlays: int = 4
    start_from: str | None = None
    ema_decay: float | None = None
    teacher: str | None = None
    teacher_weight: float = 1.0
    teacher_temperature: float = 2.0
    frozen_stages: int = 0
    frozen_overview: bool = False
    guide: GuideConfig = field(default_factory=GuideConfig)
    no_looks_epochs: int = 0
    random_looks_epochs: int = 0
    patience: int | None = None
    balance: Literal["none", "classes"] = "none"
    logger: Literal["tensorboard", "wandb", "mlflow", "none"] = "tensorboard"
    mixup_alpha: float = 0.0

    def __post_init__(self) -> None:
        counts = ("epochs", "batch_size", "devices", "images_per_epoch", "patience")
        _require(self, "train", counts, lambda value: value >= 1, "at least 1")
        numbers = ("workers", "overlays", "recalibrate_batches", "frozen_stages")
        _require(self, "train", (*numbers, *FIRST_EPOCHS), lambda value: value >= 0, "0 or more")
        _require(self, "train", ("max_minutes", "max_gmacs"), lambda value: value > 0, "a number above 0")
        _require(self, "train", ("ema_decay",), lambda value: 0 < value < 1, "a number between 0 and 1")
        _require(self, "train", ("mixup_alpha",), lambda value: 0 <= value < math.inf, "0 (none) or more")
        scales = ("teacher_weight", "teacher_temperature")
        _require(self, "train", scales, lambda value: 0 < value < math.inf, "a number above 0")
        check_most(self, "train.", _MOST)
        if self.no_looks_epochs >= self.epochs:
            problem = f"train.no_looks_epochs is {self.no_looks_epochs} and train.epochs {self.epochs}"
            raise ConfigError(f"{problem}, which leaves no epoch with looks; lower the one, or raise the other")
        if self.teacher is not None and self.mixup_alpha:
            raise ConfigError("train.teacher and train.mixup_alpha cannot be combined; set mixup_alpha to 0")


def _require(config: object, section: str, names: Sequence[str], allowed: Callable[[float], bool], remedy: str) -> None:
    """Raise a ConfigError for values that are not allowed; fields that can be None may be None."""
    for item in fields(cast(Any, config)):
        value = getattr(config, item.name)
        if item.name in names and value is not None and not allowed(value):
            optional = ", or null" if "None" in str(item.type) else ""
            raise ConfigError(f"{section}.{item.name} is {value}; give {remedy}{optional}")
