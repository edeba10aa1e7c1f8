"""Smoke runs: a recipe with its full-size model for two steps on synthetic images, leaving nothing behind."""

from __future__ import annotations

import csv
import tempfile
from dataclasses import replace
from pathlib import Path

import torch
from PIL import Image

from tnet.data.config import DataConfig
from tnet.errors import ConfigError
from tnet.models.base import ModelConfig
from tnet.training.recipe import Recipe
from tnet.training.run import RunResult, train

_BATCH = 2
_STEPS = 2
_CLASSES = ("first", "second")


def smoke(recipe: Recipe, *, progress: bool = True) -> RunResult:
    """Train two steps by a recipe on synthetic images, validate, and save and load the model, in a temporary folder.

    Everything else is the recipe's: model (but for the number of classes), objective, optimizer and augmentation. It
    starts from random weights and reads none of the recipe's files.

    Args:
        recipe: the recipe to try.
        progress: show a progress bar.

    Returns:
        As for :func:`tnet.training.run.train`; the run directory is deleted.

    Raises:
        ConfigError: images with this number of channels cannot be generated, or the recipe cannot be built.
        TrainingError: the loss became NaN, or the accelerator is missing.
    """
    with tempfile.TemporaryDirectory(prefix="tnet-smoke-") as folder:
        small = smoke_recipe(recipe, Path(folder) / "data")
        return train(small, Path(folder) / "run", progress=progress, val_batches=1)


def smoke_recipe(recipe: Recipe, root: Path) -> Recipe:
    """Return the recipe on synthetic images, cut to two steps.

    Args:
        recipe: the recipe to try.
        root: folder that the images are written to.

    Raises:
        ConfigError: images with this number of channels cannot be generated.
    """
    small = replace(
        recipe.train,
        epochs=1,
        batch_size=_BATCH,
        images_per_epoch=_BATCH * _STEPS,
        max_minutes=None,
        workers=0,
        devices=1,
        recalibrate_batches=min(recipe.train.recalibrate_batches, 1),
        overlays=0,
        start_from=None,
        teacher=None,
    )
    data = _synthetic(replace(recipe.data, overview_folder=None), recipe.model, root)
    return replace(recipe, model=recipe.model.without_weights(), data=data, train=small)


def _synthetic(data: DataConfig, model: ModelConfig, root: Path) -> DataConfig:
    """Return the data section with synthetic images instead of its own."""
    if data.kind == "digits":
        return replace(data, digits=replace(data.digits, images_train=_BATCH * _STEPS, images_val=_BATCH))
    if model.in_channels not in (1, 3):
        raise ConfigError(
            f"model.in_channels is {model.in_channels}, but synthetic images have 1 or 3 channels; try the recipe on a "
            "few images of your own: train.epochs=1 train.images_per_epoch=4"
        )
    if data.kind not in ("folder", "table"):
        from tnet.data.published import PUBLISHED

        PUBLISHED[data.kind].write_miniature(root)
        return replace(data, root=str(root))
    size_hw = model.typical_size_hw
    if data.kind == "folder":
        for split in ("train", "val"):
            _write_images(root / split, size_hw)
        return replace(data, root=str(root), train="train", val="val")
    for split in ("train", "val"):
        names = _write_images(root / split, size_hw)
        with (root / f"{split}.csv").open("w", newline="", encoding="utf-8") as file:
            rows = csv.writer(file)
            rows.writerow([data.path_column, data.label_column])
            rows.writerows([f"{split}/{name}/{image}", name] for name, image in names)
    return replace(data, root=str(root), train="train.csv", val="val.csv")


def _write_images(folder: Path, size_hw: tuple[int, int]) -> list[tuple[str, str]]:
    """Write two images of noise per class; return their classes and names."""
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
