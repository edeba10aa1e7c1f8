"""The Lightning module: training steps, and validation at several looks and policies."""

from __future__ import annotations

import math
import re
import warnings
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torchmetrics import Metric
from torchmetrics.classification import BinaryAUROC, MulticlassAccuracy, MulticlassRecall, MultilabelExactMatch

from tnet.backbones.timm_backbone import TimmBackbone
from tnet.data.sample import Batch
from tnet.errors import ConfigError, TrainingError
from tnet.losses import Loss, divergence
from tnet.models.base import Model, ModelConfig, ModelOutput
from tnet.models.config import TNetConfig
from tnet.models.kind import build_model
from tnet.models.tnet import TNet, TNetOutput
from tnet.objectives import Objective
from tnet.training.config import TrainConfig
from tnet.training.guide import Guide, load_teacher
from tnet.training.optimizers import build_optimizer, schedule_factor
from tnet.training.recipe import Recipe, build_objective
from tnet.traversal.policies import SampleWithoutReplacement

# Neighbouring seeds do not share the random numbers of a step.
_SEED_STRIDE = 1_000_000_007
_RANK_STRIDE = 2**16
_MOST_RECALLS = 20
_RANDOM = 1e6  # temperature at which all cells are equally likely; the locator still runs, and can learn


def accuracy_metric(classes: int, multilabel: bool) -> Metric:
    """Return top-1 accuracy, or the share of images with all labels right at a threshold of 0.5."""
    if multilabel:
        return MultilabelExactMatch(num_labels=classes)
    return MulticlassAccuracy(num_classes=classes, average="micro")


def class_metrics(config: ModelConfig) -> dict[str, Metric]:
    """Return further metrics of the setting that chooses the best model: by class, and without regard to frequency.

    ``auc`` is of two classes; ``recall``, of each class, is left out with more than 20; several labels have none.
    """
    count = config.num_classes
    if config.multilabel or count < 2:
        return {}
    metrics: dict[str, Metric] = {"balanced_accuracy": MulticlassAccuracy(num_classes=count, average="macro")}
    if count == 2:
        metrics["auc"] = BinaryAUROC()
    if count <= _MOST_RECALLS:
        metrics["recall"] = MulticlassRecall(num_classes=count, average=None)
    return metrics


def _metric_name(measured: str) -> str:
    """Return the logged name of the accuracy without looks (``0``) or by a policy."""
    return {"0": "val/accuracy_0_looks", "topk": "val/accuracy"}.get(measured, f"val/accuracy_{measured}")


def _freeze(model: Model, train: TrainConfig) -> list[nn.Module]:
    """Freeze what the configuration says of a model's backbones, and return all modules in it."""
    backbones = [part for part in model.modules() if isinstance(part, TimmBackbone)]
    for name, off in (("frozen_stages", "0"), ("frozen_overview", "false")):
        if (value := getattr(train, name)) and not backbones:
            problem = f"train.{name} is {str(value).lower()}, but the model has no backbone of timm"
            raise ConfigError(f"{problem}; set it to {off}")
    for backbone in backbones:
        is_overview = isinstance(model, TNet) and backbone is model.backbone
        if train.frozen_overview and is_overview:
            backbone.freeze(None)
        elif train.frozen_stages:
            backbone.freeze(train.frozen_stages)
    return [module for backbone in backbones for part in backbone.frozen for module in part.modules()]


class TNetModule(pl.LightningModule):
    """Trains a model of any kind by a recipe with the dataset's classes; builds the model unless it is given."""

    def __init__(self, recipe: Recipe, model: Model | None = None) -> None:
        super().__init__()
        self.recipe = recipe
        self.model = build_model(recipe.model) if model is None else model
        self.objective = build_objective(recipe.objective)
        trained = self.objective.trained(self.model)
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(parameter.requires_grad and name in trained)
        self.frozen = frozenset(_freeze(self.model, recipe.train))
        # In a list, so that it is neither saved nor trained.
        self.teacher: list[Model] = []
        if recipe.train.teacher is not None:
            teacher = load_teacher(recipe.train.teacher, recipe.model, "train.teacher")
            self.teacher.append(teacher.requires_grad_(False))
        self.guide: Guide | None = None
        if recipe.train.guide.teacher is not None and isinstance(recipe.model, TNetConfig):
            assert isinstance(self.model, TNet)
            self.guide = Guide(recipe.train.guide, self.model)
        self.elapsed_share = 0.0  # of the time limit; set by TimeLimit
        config = recipe.model
        names = [*(["0"] if config.allows_no_looks else []), *self.eval_policies]
        for policy in self.eval_policies:
            self.model.policy(policy)  # raises if unknown
        self.accuracy = nn.ModuleDict({name: accuracy_metric(config.num_classes, config.multilabel) for name in names})
        self.by_class = nn.ModuleDict(class_metrics(config))

    @property
    def eval_policies(self) -> tuple[str, ...]:
        """Policies measured in validation: none for a model without looks, its own for one that always looks."""
        config = self.recipe.model
        policies = self.recipe.train.eval_policies or (() if config.allows_no_looks else (config.eval_policy,))
        return policies if config.default_looks else ()

    @property
    def monitor(self) -> str:
        """Metric that chooses the best checkpoint."""
        measured = ("topk",) if "topk" in self.eval_policies else (*self.eval_policies, "0")
        return _metric_name(measured[0])

    def on_train_batch_start(self, batch: Batch, batch_index: int) -> None:
        """Seed dropout and sampling by the step, so that a resumed run repeats the uninterrupted one."""
        # Not per epoch, as the data loader draws a number too, at a time that depends on resuming.
        torch.manual_seed((self.recipe.seed + self.global_rank * _RANK_STRIDE) * _SEED_STRIDE + self.global_step)
        # The first batch, not the start of the epoch, which a training resumed within the epoch repeats.
        if batch_index == 0 and self.current_epoch == self.recipe.train.no_looks_epochs > 0:
            self._start_looks()

    def _start_looks(self) -> None:
        """Give separate weights for looks what whole images have taught; their running statistics stay their own."""
        model = self.model
        if isinstance(model, TNet) and model.look_backbone is not None:
            with torch.no_grad():
                for own, taught in zip(model.look_backbone.parameters(), model.backbone.parameters(), strict=True):
                    own.copy_(taught)

    def training_step(self, batch: Batch, batch_index: int) -> Tensor:
        """Return the loss of one step."""
        output, loss = self._mixed_step(batch) if self.recipe.train.mixup_alpha else self._plain_step(batch)
        if not torch.isfinite(loss.total):
            bad = [name for name, term in loss.terms.items() if not torch.isfinite(term)] or ["total"]
            problem = f"the loss became {float(loss.total.detach())} at step {self.global_step} (in {', '.join(bad)})"
            remedy = "lower optim.lr or optim.clip_norm and train again; the last good checkpoint and model/ are kept"
            raise TrainingError(f"{problem}; {remedy}")
        logged = {f"train/{name}": term.detach() for name, term in loss.terms.items()}
        logged |= {"train/loss": loss.total.detach(), "train/accuracy": loss.reward}
        if output.has_looks and output.region_logits is not None:
            logged["train/region_accuracy"] = loss.reward_per_feature
        if output.has_looks and isinstance(self.objective, Objective):
            logged["train/baseline"] = self.objective.baseline
        if output.location_entropy is not None:
            logged["train/location_entropy"] = output.location_entropy
        size = len(batch.names)
        self.log_dict(logged, on_step=False, on_epoch=True, batch_size=size, sync_dist=True)
        self.log("loss", loss.total.detach(), prog_bar=True, logger=False, batch_size=size)
        return loss.total

    def _plain_step(self, batch: Batch) -> tuple[ModelOutput, Loss]:
        train = self.recipe.train
        options: dict[str, Any] = {}
        if self.current_epoch < train.no_looks_epochs:
            options = {"looks": 0}
        elif self.current_epoch < train.random_looks_epochs:
            options = {"policy": SampleWithoutReplacement(temperature=_RANDOM)}
        output: ModelOutput = self.model(batch.images, **self.objective.forward_options, **options)
        loss = self.objective(output, batch.targets, self.model)
        terms = dict(loss.terms)
        if self.teacher:
            terms["teacher"] = train.teacher_weight * self._divergence(output, batch)
        if self.guide is not None and output.has_looks:
            assert isinstance(output, TNetOutput)
            begin = train.no_looks_epochs / train.epochs
            weight = train.guide.weight(max(0.0, self.progress(self.global_step) - begin) / (1 - begin))
            if weight:
                terms["guide"] = weight * self.guide.divergence(output, batch)
        return output, Loss.of(terms, loss.reward, loss.reward_per_feature)

    def _divergence(self, output: ModelOutput, batch: Batch) -> Tensor:
        """Return the divergence from the teacher's probabilities, in nats."""
        temperature = self.recipe.train.teacher_temperature
        with torch.no_grad():
            taught = self.teacher[0].to(output.logits.device)(batch.images).logits.to(output.logits) / temperature
        found = divergence(taught, output.logits / temperature, self.recipe.model.multilabel)
        return found * temperature**2

    def _mixed_step(self, batch: Batch) -> tuple[ModelOutput, Loss]:
        """Mix each image with the one before it; the loss is linear in the target, so losses are mixed likewise."""
        if not isinstance(batch.images, Tensor):
            problem = (
                f"train.mixup_alpha is {self.recipe.train.mixup_alpha}, but images are lazily read or differ in size"
            )
            raise ConfigError(f"{problem}; set data.augment.resize_px, or mixup_alpha to 0")
        alpha = torch.tensor(float(self.recipe.train.mixup_alpha))
        share = float(torch.distributions.Beta(alpha, alpha).sample())
        # Rounded to 8 bits, as floating point means normalized pixels.
        mixed = torch.lerp(batch.images.roll(1, 0).float(), batch.images.float(), share).round().to(torch.uint8)
        output: ModelOutput = self.model(mixed, **self.objective.forward_options)
        own = self.objective(output, batch.targets, self.model)
        other = self.objective(output, batch.targets.roll(1, 0), self.model)
        terms = {name: torch.lerp(other.terms[name], term, share) for name, term in own.terms.items()}
        reward = torch.lerp(other.reward, own.reward, share)
        return output, Loss.of(terms, reward, torch.lerp(other.reward_per_feature, own.reward_per_feature, share))

    def validation_step(self, batch: Batch, batch_index: int) -> None:
        """Measure accuracy at 0 looks, and at the recipe's looks for each policy."""
        size, multilabel = len(batch.names), self.recipe.model.multilabel
        if not size:  # none of its images can be read
            return
        # Random locations are the same at every epoch and in every run, so that curves can be compared.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(batch_index)
            for name, metric in self.accuracy.items():
                assert isinstance(metric, Metric)
                output = self.model(batch.images, looks=0) if name == "0" else self.model(batch.images, policy=name)
                metric.update(output.logits.sigmoid() if multilabel else output.logits, batch.targets.long())
                self.log(_metric_name(name), metric, on_epoch=True, prog_bar=name in ("0", "topk"), batch_size=size)
                for kind, detail in self.by_class.items() if _metric_name(name) == self.monitor else ():
                    assert isinstance(detail, Metric)
                    probs = output.logits.softmax(dim=1)
                    detail.update(probs[:, 1] if kind == "auc" else probs, batch.targets)

    def on_validation_epoch_end(self) -> None:
        """Log the metrics by class."""
        for kind, metric in self.by_class.items():
            assert isinstance(metric, Metric)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # few validation images may lack a class
                values = metric.compute()
            metric.reset()
            if kind != "recall":
                self.log(f"val/{kind}", values)
                continue
            classes = self.recipe.model.class_names or tuple(map(str, range(len(values))))
            for index, (name, value) in enumerate(zip(classes, values, strict=True)):
                self.log(f"val/recall_{index}_{re.sub(r'[^A-Za-z0-9-]+', '_', name)[:40]}", value)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Stop on infinite or NaN gradients before they reach the weights."""
        if self.trainer.precision == "16-mixed":  # its gradient scaler skips such steps
            return
        norms = torch.stack([p.grad.norm() for p in self.model.parameters() if p.grad is not None])
        if not torch.isfinite(norms).all():
            remedy = "lower optim.lr and train again; the last good checkpoint and model/ are kept"
            raise TrainingError(f"a gradient became infinite or NaN at step {self.global_step}; {remedy}")

    def progress(self, step: int) -> float:
        """Return the share of the training that is done, by steps or by the time limit, if that comes first."""
        total = self.trainer.estimated_stepping_batches
        return min(1.0, max(step / total if math.isfinite(total) and total else 0.0, self.elapsed_share))

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Build the optimizer and the recipe's schedule."""
        config = self.recipe.optim
        optimizer = build_optimizer(self.model, config)
        scheduler = LambdaLR(optimizer, lambda step: schedule_factor(config, self.progress(step)))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}
