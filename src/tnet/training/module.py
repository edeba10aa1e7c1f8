"""The Lightning module: objective, optimiser, validation at several looks and policies."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, cast

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torchmetrics import Metric
from torchmetrics.classification import MulticlassAccuracy, MultilabelExactMatch

from tnet.data.sample import Batch
from tnet.errors import ConfigError, TrainingError
from tnet.geometry import total_looks
from tnet.losses import Loss
from tnet.models.base import Model, ModelOutput
from tnet.models.io import load_model
from tnet.models.kind import build_model
from tnet.objectives import Objective
from tnet.training.optimizers import KerasAdam
from tnet.training.recipe import OptimConfig, Recipe, build_objective

# Steps of neighbouring seeds do not share random numbers.
_SEED_STRIDE = 1_000_000_007

_REWARDS = ("reward", "reward_per_feature")


def accuracy_metric(classes: int, multilabel: bool) -> Metric:
    """Share of images whose prediction is right: top-1, or all labels at 0.5 for several labels."""
    if multilabel:
        return MultilabelExactMatch(num_labels=classes)
    return MulticlassAccuracy(num_classes=classes, average="micro")


def _metric_name(measured: str) -> str:
    """Name in the logs of an accuracy: without looks (``0``), or with those that a policy chose."""
    return {"0": "val/accuracy_0_looks", "topk": "val/accuracy"}.get(measured, f"val/accuracy_{measured}")


def schedule_factor(config: OptimConfig, progress: float) -> float:
    """What the learning rate is multiplied by after a share of the training."""
    if config.warmup and progress < config.warmup:
        return max(progress / config.warmup, 0.01)
    if config.schedule == "step":
        return config.drop_factor if progress > config.drop_at else 1.0
    if config.schedule == "cosine":
        share = (progress - config.warmup) / (1 - config.warmup)
        return 0.5 * (1 + math.cos(math.pi * min(1.0, share)))
    return 1.0


def parameter_groups(model: nn.Module, config: OptimConfig) -> list[dict[str, Any]]:
    """Parameters by learning rate (backbone, new layers) and by whether weight decay applies (not to biases, norms)."""
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups.setdefault((name.startswith("backbone."), parameter.ndim >= 2), []).append(parameter)
    decay = config.weight_decay if config.name == "adamw" else 0.0
    backbone_lr = config.lr if config.backbone_lr is None else config.backbone_lr
    return [
        {
            "params": parameters,
            "lr": backbone_lr if is_backbone else config.lr,
            "weight_decay": decay if is_matrix else 0.0,
            "name": f"{'backbone' if is_backbone else 'new'}{'' if is_matrix else '_bias'}",
        }
        for (is_backbone, is_matrix), parameters in groups.items()
    ]


class TNetModule(pl.LightningModule):
    """Trains a model of any kind by a recipe.

    Args:
        recipe: with the data's classes filled in.
        model: a model to go on from; built from the recipe if ``None``.
    """

    def __init__(self, recipe: Recipe, model: Model | None = None) -> None:
        super().__init__()
        self.recipe = recipe
        self.model = build_model(recipe.model) if model is None else model
        self.objective = build_objective(recipe.objective)
        trained = self.objective.trained(self.model)
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(parameter.requires_grad and name in trained)
        # In a list, so that it is neither saved nor trained with the model.
        self.teacher = [self._teacher(recipe.train.teacher)] if recipe.train.teacher is not None else []
        self.elapsed_share = 0.0  # of the time limit; set by the time-limit callback
        config = recipe.model
        names = [*(["0"] if config.allows_no_looks else []), *self.eval_policies]
        for policy in self.eval_policies:
            self.model.policy(policy)  # one that is not known is said at once
        self.accuracy = nn.ModuleDict({name: accuracy_metric(config.num_classes, config.multilabel) for name in names})

    def _teacher(self, folder: str) -> Model:
        """The model to learn from, which does not learn itself."""
        teacher = load_model(folder).requires_grad_(False)
        own = self.recipe.model
        theirs, ours = (
            (item.num_classes, item.class_names, item.multilabel, item.in_channels) for item in (teacher.config, own)
        )
        if theirs != ours:
            raise ConfigError(
                f"the teacher {folder} tells {teacher.config.num_classes} classes apart in images of "
                f"{teacher.config.in_channels} channel(s), and they are not the {own.num_classes} in "
                f"{own.in_channels} of this recipe; give a model trained on the same classes as train.teacher"
            )
        return teacher

    @property
    def eval_policies(self) -> tuple[str, ...]:
        """Policies measured in validation; none for a model that never looks, its own for one that always does."""
        config = self.recipe.model
        if not config.default_looks:
            return ()
        return self.recipe.train.eval_policies or (() if config.allows_no_looks else (config.eval_policy,))

    @property
    def monitor(self) -> str:
        """Name of the metric by which the best checkpoint is chosen."""
        measured = ("topk",) if "topk" in self.eval_policies else (*self.eval_policies, "0")
        return _metric_name(measured[0])

    def on_train_batch_start(self, batch: Batch, batch_index: int) -> None:
        """Seed dropout and sampling by the step, so that a resumed run repeats the uninterrupted one.

        Not once an epoch: the data loader draws a number too, before or after that depending on whether it resumes.
        """
        torch.manual_seed(self.recipe.seed * _SEED_STRIDE + self.global_step)

    def training_step(self, batch: Batch, batch_index: int) -> Tensor:
        """One step's loss."""
        output, loss = self._mixed_step(batch) if self.recipe.train.mixup_alpha else self._plain_step(batch)
        if not torch.isfinite(loss.total):
            bad = [name for name, term in loss.terms.items() if not torch.isfinite(term)] or ["total"]
            raise TrainingError(
                f"the loss became {float(loss.total.detach())} at step {self.global_step} (in {', '.join(bad)}); the "
                "last good checkpoint and model/ are kept, train anew with a lower optim.lr or optim.clip_norm"
            )
        size = len(batch.names)
        logged = {f"train/{name}": term.detach() for name, term in loss.terms.items()}
        logged |= {"train/loss": loss.total.detach(), "train/accuracy": loss.reward}
        if output.has_looks and output.region_logits is not None:
            logged["train/region_accuracy"] = loss.reward_per_feature
        if output.has_looks and isinstance(self.objective, Objective):
            logged["train/baseline"] = self.objective.baseline
        entropy = output.location_entropy
        if entropy is not None:
            logged["train/location_entropy"] = entropy
        self.log_dict(logged, on_step=False, on_epoch=True, batch_size=size)
        self.log("loss", loss.total.detach(), prog_bar=True, logger=False, batch_size=size)
        return loss.total

    def _plain_step(self, batch: Batch) -> tuple[ModelOutput, Loss]:
        output: ModelOutput = self.model(batch.images, **self.objective.forward_options)
        loss = self.objective(output, batch.targets, self.model)
        if self.teacher:
            term = self.recipe.train.teacher_weight * self._divergence(output, batch)
            loss = Loss.of({**loss.terms, "teacher": term}, loss.reward, loss.reward_per_feature)
        return output, loss

    def _divergence(self, output: ModelOutput, batch: Batch) -> Tensor:
        """How far the answers are from the teacher's, in nats, averaged over several labels."""
        temperature = self.recipe.train.teacher_temperature
        with torch.no_grad():
            taught = self.teacher[0].to(output.logits.device)(batch.images).logits.to(output.logits) / temperature
        logits = output.logits / temperature
        if self.recipe.model.multilabel:
            taught, logits = (torch.stack([item, -item], dim=-1).flatten(0, 1) / 2 for item in (taught, logits))
        divergence = F.kl_div(logits.log_softmax(-1), taught.log_softmax(-1), reduction="none", log_target=True)
        return divergence.sum(dim=-1).mean() * temperature**2

    def _mixed_step(self, batch: Batch) -> tuple[ModelOutput, Loss]:
        """Each picture mixed with the one before it; the loss is linear in the target, and so is mixed likewise."""
        if not isinstance(batch.images, Tensor):
            raise ConfigError(
                f"train.mixup_alpha is {self.recipe.train.mixup_alpha}, but pictures of different sizes, or read "
                "lazily, cannot be mixed; set data.augment.resize_px, or mixup_alpha to 0"
            )
        alpha = torch.tensor(float(self.recipe.train.mixup_alpha))
        share = float(torch.distributions.Beta(alpha, alpha).sample())
        # Levels stay 8-bit: the model takes floating point for pixels that are normalised already.
        mixed = torch.lerp(batch.images.roll(1, 0).float(), batch.images.float(), share).round().to(torch.uint8)
        output: ModelOutput = self.model(mixed, **self.objective.forward_options)
        own, other = (
            self.objective(output, target, self.model) for target in (batch.targets, batch.targets.roll(1, 0))
        )
        terms = {name: torch.lerp(other.terms[name], term, share) for name, term in own.terms.items()}
        rewards = (torch.lerp(getattr(other, name), getattr(own, name), share) for name in _REWARDS)
        return output, Loss.of(terms, *rewards)

    def validation_step(self, batch: Batch, batch_index: int) -> None:
        """Accuracy at 0 looks and at the recipe's looks, for each policy."""
        size, last = len(batch.names), self.recipe.model.multilabel
        # Random locations are the same at every epoch and in every run, so that curves can be compared.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(batch_index)
            for name, metric in cast("Iterable[tuple[str, Metric]]", self.accuracy.items()):
                output = self.model(batch.images, looks=0) if name == "0" else self.model(batch.images, policy=name)
                metric.update(output.logits.sigmoid() if last else output.logits, batch.targets.long())
                self.log(_metric_name(name), metric, on_epoch=True, prog_bar=name in ("0", "topk"), batch_size=size)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Stop on gradients that are not numbers before they reach the weights."""
        # With 16-mixed precision the scaler finds and skips such steps itself.
        if self.trainer.precision == "16-mixed":
            return
        norms = torch.stack([p.grad.norm() for p in self.model.parameters() if p.grad is not None])
        if not torch.isfinite(norms).all():
            raise TrainingError(
                f"a gradient became infinite or NaN at step {self.global_step}; the last good checkpoint and "
                "model/ are kept, train anew with a lower optim.lr"
            )

    def progress(self, step: int) -> float:
        """Share of the training that is done: of the steps, or of the time limit if that comes first."""
        total = self.trainer.estimated_stepping_batches
        return min(1.0, max(step / total if math.isfinite(total) and total else 0.0, self.elapsed_share))

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Adam or AdamW over parameter groups, with the recipe's schedule."""
        config = self.recipe.optim
        kind = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam, "keras_adam": KerasAdam}[config.name]
        optimizer = kind(parameter_groups(self.model, config), lr=config.lr, eps=config.eps)
        scheduler = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: schedule_factor(config, self.progress(step))
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def description(self) -> str:
        """One line for logs."""
        config = self.recipe.model
        looks = f"{total_looks(config.default_looks)} look(s)" if config.default_looks else "the whole image only"
        return f"{config.network} at {config.look_px} px, {looks}, {config.num_classes} classes"
