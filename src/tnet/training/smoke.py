"""Trying a recipe out: its model in full size, two steps of training, made pictures, and nothing left behind."""

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
    """Train two steps by a recipe on made pictures, validate, and keep and load the model, in a temporary folder.

    All else is the recipe's own: model (but for the number of classes), objective, optimiser, augmentation. It starts
    from random weights and reads none of the recipe's files.

    Args:
        recipe: what to try.
        progress: show a progress bar.

    Returns:
        As for :func:`tnet.training.run.train`; its folder is gone.

    Raises:
        ConfigError: there are no made pictures of that kind, or the recipe cannot be built.
        TrainingError: the loss became NaN, or the accelerator is not there.
    """
    with tempfile.TemporaryDirectory(prefix="tnet-smoke-") as folder:
        small = smoke_recipe(recipe, Path(folder) / "data")
        return train(small, Path(folder) / "run", progress=progress, val_batches=1)


def smoke_recipe(recipe: Recipe, root: Path) -> Recipe:
    """The recipe on made pictures, cut to two steps.

    Args:
        recipe: what to try.
        root: folder that the pictures are written to.

    Raises:
        ConfigError: there are no made pictures of that kind.
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
    data = _made(replace(recipe.data, overview_folder=None), recipe.model, root)
    return replace(recipe, model=recipe.model.without_weights(), data=data, train=small)


def _made(data: DataConfig, model: ModelConfig, root: Path) -> DataConfig:
    """The data section, with made pictures in the place of its own."""
    if data.kind == "digits":
        return replace(data, digits=replace(data.digits, images_train=_BATCH * _STEPS, images_val=_BATCH))
    if model.in_channels not in (1, 3):
        raise ConfigError(
            f"there are no made pictures of {model.in_channels} channels (model.in_channels) to try a recipe with; "
            "train on a few of your own: train.epochs=1 train.images_per_epoch=4"
        )
    if data.kind not in ("folder", "table"):
        from tnet.data.published import PUBLISHED

        PUBLISHED[data.kind].write_miniature(root)
        return replace(data, root=str(root))
    size_hw = model.typical_size_hw
    if data.kind == "folder":
        for split in ("train", "val"):
            _write_pictures(root / split, size_hw)
        return replace(data, root=str(root), train="train", val="val")
    for split in ("train", "val"):
        names = _write_pictures(root / split, size_hw)
        with (root / f"{split}.csv").open("w", newline="", encoding="utf-8") as file:
            rows = csv.writer(file)
            rows.writerow([data.path_column, data.label_column])
            rows.writerows([f"{split}/{name}/{picture}", name] for name, picture in names)
    return replace(data, root=str(root), train="train.csv", val="val.csv")


def _write_pictures(folder: Path, size_hw: tuple[int, int]) -> list[tuple[str, str]]:
    """Two pictures a class, of noise; their classes and names."""
    generator = torch.Generator().manual_seed(0)
    written = []
    for name in _CLASSES:
        (folder / name).mkdir(parents=True)
        for number in range(_BATCH):
            # Noise of 8 px a grain compresses well, so that large pictures are written quickly.
            grains = torch.randint(256, (-(-size_hw[0] // 8), -(-size_hw[1] // 8), 3), generator=generator)
            picture = Image.fromarray(grains.byte().numpy()).resize((size_hw[1], size_hw[0]), Image.Resampling.NEAREST)
            picture.save(folder / name / f"{number}.png", compress_level=1)
            written.append((name, f"{number}.png"))
    return written
