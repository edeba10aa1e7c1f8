"""The Lightning data module of a recipe."""

from __future__ import annotations

import math
from typing import Any

import lightning.pytorch as pl
from torch.utils.data import DataLoader

from tnet.data.folder import LabelledImages
from tnet.data.loading import ALONE, Share, check_sizes, eval_loader, open_data, train_loader
from tnet.errors import ConfigError
from tnet.training.recipe import Recipe


class TNetData(pl.LightningDataModule):
    """Training and validation loaders; each epoch has a new training loader, which depends on seed and epoch alone."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        self.recipe = recipe
        model, seed = recipe.model, recipe.seed
        self.train_data, self.val_data = open_data(recipe.data, model.in_channels, seed, base_px=model.needed_px)
        cap = recipe.data.unreadable_cap if recipe.data.unreadable == "skip" else 0.0
        self.most_unreadable = math.ceil(cap * (len(self.train_data) + len(self.val_data)))
        for data in (self.train_data, self.val_data):
            if isinstance(data, LabelledImages):
                data.most_unreadable = self.most_unreadable
        if model.default_looks:
            for data in (self.train_data, self.val_data):
                check_sizes(data, model.needed_px)
        # On more devices than there is work for, training would have no step.
        train = recipe.train
        images, step = train.images_per_epoch or len(self.train_data), train.batch_size * train.devices
        if train.devices > 1 and images < step:
            sizes = f"{train.devices} devices with train.batch_size {train.batch_size} take {step} images per step"
            raise ConfigError(f"{sizes}, but an epoch has {images}; lower train.batch_size or train.devices")
        if len(self.val_data) < train.devices > 1:
            counts = f"{train.devices} but there are {len(self.val_data)} validation image(s)"
            raise ConfigError(f"train.devices is {counts}; give at most one device per image")

    @property
    def share(self) -> Share:
        """This process among those of the trainer."""
        return ALONE if self.trainer is None else Share(self.trainer.global_rank, self.trainer.world_size)

    def train_dataloader(self) -> DataLoader[Any]:
        """Loader of the current epoch."""
        train, seed = self.recipe.train, self.recipe.seed
        epoch = self.trainer.current_epoch if self.trainer is not None else 0
        per_epoch = train.images_per_epoch
        balanced = train.balance == "classes"
        return train_loader(
            self.train_data, train.batch_size, train.workers, seed, epoch, per_epoch, self.share, balanced=balanced
        )

    def val_dataloader(self) -> DataLoader[Any]:
        """Loader of the validation images, in order."""
        return eval_loader(self.val_data, self.recipe.train.batch_size, self.recipe.train.workers, self.share)
