"""Teaching where to look: what a teacher finds in each cell of a training image, which the locator learns."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from tnet.backbones.base import Backbone
from tnet.config import check_most, shown
from tnet.data.augment import AugmentConfig
from tnet.data.loading import LabelledData
from tnet.data.sample import Batch
from tnet.errors import ConfigError
from tnet.geometry import Grid, cell_spans, choose_cells, whole_images
from tnet.losses import Target, classification_loss, divergence
from tnet.models.base import Images, Model, ModelConfig
from tnet.models.config import TNetConfig
from tnet.models.io import load_model, model_digest
from tnet.models.parts import pool_cells
from tnet.models.tnet import TNet, TNetOutput
from tnet.objectives import Objective
from tnet.training.worth_maps import WorthMaps
from tnet.traversal import POLICIES

SELF = "self"
"""Teacher of a model that teaches itself."""

_CHUNK = 64  # cells that a teacher sees at a time


@dataclass(frozen=True)
class GuideConfig:
    """What teaches the locator where to look in the whole image.

    Attributes:
        teacher: folder of a run or saved model of the same classes, best a plain network at full resolution; ``self``
            for the model that is trained, as it is at each step; ``null`` for none.
        by: what the teacher measures of each cell: ``evidence``, how much the cell adds to the log-odds of the right
            class in its view of the whole image (gradient times activation, HiResCAM, Draelos and Carin 2020), in one
            pass; or ``cells``, the log-likelihood of the right class given the cell alone, at the size of a look, above
            the mean of the cells. A teacher with looks is given the whole image and the cell, as in
            :meth:`tnet.objectives.Objective.worth`.
        temperature: divisor of these maps, in nats; the locator learns their softmax.
        share: weight of the divergence from it at the start (of the epochs with looks) and at the end of training,
            linear in between.
        maps: file in which the maps of all training images are kept, measured once before training and without
            augmentation; flips and quarter turns then move the cells. ``null`` measures every batch as augmented, which
            fits any augmentation and takes the teacher's time at every step.
    """

    teacher: str | None = None
    by: Literal["evidence", "cells"] = "evidence"
    temperature: float = 1.0
    share: tuple[float, float] = (1.0, 0.0)
    maps: str | None = None

    def __post_init__(self) -> None:
        if not 0 < self.temperature < math.inf:
            raise ConfigError(f"train.guide.temperature is {self.temperature}; give a finite number above 0")
        if not all(0 <= share < math.inf for share in self.share):
            raise ConfigError(f"train.guide.share is {shown(self.share)}; give two weights of at least 0")
        check_most(self, "train.guide.", {"temperature": 1e6, "share": 1e6})
        if self.maps is not None and self.teacher is None:
            raise ConfigError(f"train.guide.maps is {self.maps}, but train.guide.teacher is null; give both")

    def weight(self, progress: float) -> float:
        """Return the weight after a share of the training."""
        return self.share[0] + (self.share[1] - self.share[0]) * progress

    def check(self, model: ModelConfig, augment: AugmentConfig) -> None:
        """Raise ConfigError unless the model has a locator to teach, and maps can follow the augmentation."""
        if self.teacher is None:
            return
        if self.teacher == SELF and (self.by != "evidence" or self.maps is not None):
            problem = f"train.guide.teacher is {SELF}, which changes with every step"
            raise ConfigError(f"{problem}; set by to evidence and maps to null, or give a trained model")
        problem = f"train.guide.teacher is {self.teacher}"
        if not isinstance(model, TNetConfig) or not model.default_looks:
            looks = f"model.looks is {list(model.default_looks)}" if isinstance(model, TNetConfig) else model.title
            raise ConfigError(f"{problem}, but there is no locator to teach ({looks}); set it to null, or use looks")
        if not POLICIES[model.policy.train].needs_logits:
            policy = f"model.policy.train is {model.policy.train}, which does not run the locator"
            raise ConfigError(f"{problem}, but {policy}; set it to sample or topk")
        if self.maps is None:
            return
        geometric = {"crop_area": (1.0, 1.0), "rotation": 0.0, "translation": 0.0, "rand_augment": 0}
        moving = [name for name, off in geometric.items() if getattr(augment, name) != off]
        if augment.quarter_turns and model.grid.rows != model.grid.cols:
            moving.append("quarter_turns")
        if moving:
            value = f"data.augment.{moving[0]} is {shown(getattr(augment, moving[0]))}"
            why = "which moves what the cells of a stored map show"
            raise ConfigError(
                f"train.guide.maps is {self.maps}, but {value}, {why}; set maps to null, or leave that out"
            )


def load_teacher(folder: str, ours: ModelConfig, key: str) -> Model:
    """Load a teacher for a model.

    Raises:
        CheckpointError: there is no such model, or it is damaged.
        ConfigError: its classes or channels are others; the message names ``key``.
    """
    teacher = load_model(folder)
    theirs = teacher.config
    compared = ("num_classes", "class_names", "multilabel", "in_channels")
    if any(getattr(theirs, name) != getattr(ours, name) for name in compared):
        forms = [f"{config.num_classes} classes and {config.in_channels} channel(s)" for config in (theirs, ours)]
        raise ConfigError(f"{key} {folder} has {forms[0]}, the recipe {forms[1]}; give a model of the same classes")
    return teacher


class Guide:
    """The term of a loss by which the locator learns from a teacher."""

    def __init__(self, config: GuideConfig, trained: TNet) -> None:
        assert config.teacher is not None
        model = trained.config
        self.config, self.grid, self.look_px = config, model.grid, model.region_px
        is_own = config.teacher == SELF
        self.teacher = trained if is_own else load_teacher(config.teacher, model, "train.guide.teacher")
        self.maps: WorthMaps | None = None
        key = f"train.guide.teacher {config.teacher}"
        if config.by == "evidence" and not isinstance(self.teacher, TNet):
            problem = f"{key} is a {self.teacher.config.title}, which has no evidence map of the whole image"
            raise ConfigError(f"{problem}; give a plain network, or set train.guide.by to cells")
        if config.by == "cells" and isinstance(self.teacher, TNet):
            if self.teacher.levels == 1:
                self.teacher.backbone.check_px(self.look_px)
            elif self.teacher.grid != model.grid:
                grids = f"{key} has {_cells(self.teacher.grid)}, the model {_cells(model.grid)}"
                raise ConfigError(f"{grids}; give a teacher with the same grid, or a plain network")
        if config.by == "cells":
            self.teacher = self.teacher.prepare_for_inference()  # faster, and no gradients are needed

    def open_maps(
        self, data: LabelledData, batch_size: int, workers: int, device: torch.device, progress: bool
    ) -> None:
        """Measure the maps of all training images, unless their file has them; nothing if maps are not kept.

        Raises:
            CheckpointError: the file is damaged, or holds maps of other images or by another teacher.
            OutputError: the file cannot be written.
        """
        config = self.config
        if config.maps is None or config.teacher is None:
            return
        look = f" at {self.look_px} px" if config.by == "cells" else ""
        made = {"teacher": model_digest(config.teacher), "grid": _cells(self.grid), "measure": config.by + look}
        self.maps = WorthMaps(Path(config.maps), data, made, self.grid)
        self.teacher.to(device)
        self.maps.complete(lambda batch: self.measure(batch.to(device)), batch_size, workers, progress)

    def divergence(self, output: TNetOutput, batch: Batch) -> Float[Tensor, ""]:
        """Return the mean divergence of the locator's choice in the whole images from the guide's, in nats."""
        logits = output.location_logits
        logits = logits[(output.regions.level[output.divided] == 0).to(logits.device)]
        if self.maps is None:
            self.teacher.to(logits.device)
            training = self.teacher.training
            self.teacher.eval()
            maps = self.measure(batch)
            self.teacher.train(training)
        else:
            maps = self.maps.of(batch.names)
        return divergence(maps.to(logits) / self.config.temperature, logits, multilabel=False)

    def measure(self, batch: Batch) -> Float[Tensor, "images cells"]:
        """Return what the teacher finds in each cell of the images, in nats."""
        if self.config.by == "evidence":
            assert isinstance(self.teacher, TNet)
            return evidence_in_cells(self.teacher, batch.images, batch.targets, self.grid)
        return worth_of_cells(self.teacher, batch.images, batch.targets, self.grid, self.look_px)


def _cells(grid: Grid) -> str:
    return f"{grid.rows} x {grid.cols} cells of extent {grid.cell_extent}"


def evidence_in_cells(teacher: TNet, images: Images, targets: Target, grid: Grid) -> Float[Tensor, "images cells"]:
    """Return what each cell adds to the log-odds of the right class, as if the whole image were like the cell.

    With several labels these are the log-odds of all that are present. The map is the one that the teacher's locator
    would see (``model.backbone.tap``), averaged over cells.

    Raises:
        ConfigError: the answer of the network does not depend on that map, as in some transformers, or it is frozen.
    """
    maps: list[Tensor] = []

    def keep(backbone: Backbone, inputs: Any, output: Any) -> None:
        maps.append(output.cell_map)

    handle = teacher.backbone.register_forward_hook(keep)
    try:
        with torch.enable_grad():
            scene = teacher.scene(images)
            odds = _log_odds(teacher(scene, looks=0).logits, targets).sum()
            if not maps[0].requires_grad:
                problem = "train.frozen_overview or train.frozen_stages freezes the map that the guide must explain"
                raise ConfigError(f"{problem}; train it, or set train.guide.teacher to another model or null")
            (slope,) = torch.autograd.grad(odds, maps, allow_unused=True)
    finally:
        handle.remove()
    if slope is None:
        network = f"{teacher.config.network} (tap {teacher.config.backbone.tap})"
        problem = f"the answer of the guide's teacher {network} does not depend on its map of the image"
        raise ConfigError(f"{problem}; give a convolutional network, or set train.guide.by to cells")
    evidence = (slope * maps[0]).sum(dim=1, keepdim=True).detach() * slope[0, 0].numel()
    return pool_cells(evidence, *cell_spans(whole_images(scene.sizes_hw), grid)).flatten(1)


def _log_odds(logits: Float[Tensor, "images classes"], targets: Target) -> Float[Tensor, " images"]:
    if targets.is_floating_point():
        return (logits * targets).sum(dim=1)
    right = logits.gather(1, targets[:, None].long())
    others = logits.scatter(1, targets[:, None].long(), -torch.inf)
    return right[:, 0] - others.logsumexp(dim=1)


@torch.no_grad()
def worth_of_cells(
    teacher: Model, images: Images, targets: Target, grid: Grid, look_px: int
) -> Float[Tensor, "images cells"]:
    """Return the log-likelihood of the right class given each cell, above the mean of the image's cells, in nats.

    A plain network, or a model other than a TNet, is given the cell alone, at ``look_px``; a TNet with looks is given
    the whole image and the cell.
    """
    scene = teacher.scene(images)
    if isinstance(teacher, TNet) and teacher.levels > 1:
        output = teacher(scene, looks=(grid.cells,), policy="centre")  # all cells, in raster order
        worth = Objective.worth(output, targets, teacher)
    else:
        wholes = whole_images(scene.sizes_hw)
        cells = choose_cells(wholes, grid, torch.arange(grid.cells).expand(len(wholes), -1))
        found = []
        for rows in torch.arange(len(cells)).split(_CHUNK):
            part = cells.take(rows)
            logits = _alone(teacher, teacher.pixels(scene, part, look_px))
            found.append(-classification_loss(logits, targets[part.image.to(targets.device)]))
        worth = torch.cat(found).unflatten(0, (-1, grid.cells))
    return worth - worth.mean(dim=1, keepdim=True)


def _alone(teacher: Model, pixels: Float[Tensor, "cells channels side side"]) -> Float[Tensor, "cells classes"]:
    """Return the answers to cells, each as an image; a plain network sees them at their own size."""
    if not isinstance(teacher, TNet):
        logits: Tensor = teacher(pixels).logits
        return logits
    sizes: Sequence[tuple[int, int]] = [(pixels.shape[2], pixels.shape[3])] * len(pixels)
    return teacher.classify(teacher.encode(pixels, whole_images(sizes)).feature[:, None])
