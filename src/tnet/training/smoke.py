"""Smoke runs: a recipe with its full-size model for two steps on synthetic images, leaving nothing behind."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

import torch
from PIL import Image

from tnet.data.config import DataConfig
from tnet.errors import ConfigError
from tnet.files import write_text
from tnet.models.base import ModelConfig
from tnet.text import csv_row
from tnet.training.guide import GuideConfig
from tnet.training.recipe import Recipe
from tnet.training.run import RunResult, train

_BATCH = 2
_STEPS = 2
_MAX_PIXELS = 2**28
_CLASSES = ("first", "second")


def smoke(recipe: Recipe, *, progress: bool = True) -> RunResult:
    """Train two steps by a recipe on synthetic images, validate, and save and load the model, in a temporary folder.

    Model (but for the number of classes), objective, optimizer and augmentation are the recipe's. Weights start at
    random, and none of the recipe's files are read. Errors are those of :func:`tnet.training.run.train`.
    """
    with tempfile.TemporaryDirectory(prefix="tnet-smoke-") as folder:
        small = smoke_recipe(recipe, Path(folder) / "data")
        return train(small, Path(folder) / "run", progress=progress, val_batches=1)


def smoke_recipe(recipe: Recipe, root: Path) -> Recipe:
    """Return the recipe cut to two steps on synthetic images, which are written to ``root``."""
    small = replace(recipe.train, no_looks_epochs=0, guide=GuideConfig(), workers=0, devices=1)
    small = replace(small, epochs=1, batch_size=_BATCH, images_per_epoch=_BATCH * _STEPS)
    small = replace(small, max_minutes=None, max_gmacs=None, overlays=0, start_from=None, teacher=None)
    small = replace(small, recalibrate_batches=min(small.recalibrate_batches, 1))
    data = _synthetic(replace(recipe.data, overview_folder=None), recipe.model, root)
    return replace(recipe, model=recipe.model.without_weights(), data=data, train=small)


def _synthetic(data: DataConfig, model: ModelConfig, root: Path) -> DataConfig:
    """Return the data section with synthetic images instead of its own."""
    if data.kind == "digits":
        return replace(data, digits=replace(data.digits, images_train=_BATCH * _STEPS, images_val=_BATCH))
    if model.in_channels not in (1, 3):
        remedy = "try images of your own: train.epochs=1 train.images_per_epoch=4"
        raise ConfigError(f"model.in_channels is {model.in_channels}, but synthetic images have 1 or 3; {remedy}")
    if data.kind not in ("folder", "table"):
        from tnet.data.published import PUBLISHED

        PUBLISHED[data.kind].write_miniature(root)
        return replace(data, root=str(root))
    suffix = ".csv" if data.kind == "table" else ""
    for split in ("train", "val"):
        names = _write_images(root / split, model.typical_size_hw)
        if suffix:
            lines = [csv_row((data.path_column, data.label_column))]
            lines += [csv_row((f"{split}/{name}/{image}", name)) for name, image in names]
            write_text(root / f"{split}{suffix}", "".join(lines))
    return replace(data, root=str(root), train=f"train{suffix}", val=f"val{suffix}")


def _write_images(folder: Path, size_hw: tuple[int, int]) -> list[tuple[str, str]]:
    if size_hw[0] * size_hw[1] > _MAX_PIXELS:
        images = f"{size_hw[1]:,} x {size_hw[0]:,} px, which suit the model"
        raise ConfigError(f"synthetic images of {images}, are too large; use fewer model.levels or larger cells")
    generator = torch.Generator().manual_seed(0)
    written = []
    for name in _CLASSES:
        (folder / name).mkdir(parents=True)
        for number in range(_BATCH):
            # Noise in blocks of 8 px compresses well, so that large images are written quickly.
            blocks = torch.randint(256, (-(-size_hw[0] // 8), -(-size_hw[1] // 8), 3), generator=generator)
            image = Image.fromarray(blocks.byte().numpy()).resize((size_hw[1], size_hw[0]), Image.Resampling.NEAREST)
            image.save(folder / name / f"{number}.png", compress_level=1)
            written.append((name, f"{number}.png"))
    return written
