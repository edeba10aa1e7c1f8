"""The Lightning data module of a recipe."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
from torch.utils.data import DataLoader

from tnet.data.loading import check_sizes, eval_loader, open_data, train_loader
from tnet.training.recipe import Recipe


class TNetData(pl.LightningDataModule):
    """Training and validation loaders; each epoch has a new training loader, which depends on seed and epoch alone."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        self.recipe = recipe
        model, seed = recipe.model, recipe.seed
        self.train_data, self.val_data = open_data(recipe.data, model.in_channels, seed, base_px=model.needed_px)
        if model.default_looks:
            for data in (self.train_data, self.val_data):
                check_sizes(data, model.look_px)

    @property
    def classes(self) -> list[str]:
        """Names of the classes, by index."""
        return self.train_data.classes

    @property
    def multilabel(self) -> bool:
        """Whether an image can have several labels."""
        return self.train_data.multilabel

    def train_dataloader(self) -> DataLoader[Any]:
        """Loader of the current epoch."""
        train, seed = self.recipe.train, self.recipe.seed
        epoch = self.trainer.current_epoch if self.trainer is not None else 0
        return train_loader(self.train_data, train.batch_size, train.workers, seed, epoch, train.images_per_epoch)

    def val_dataloader(self) -> DataLoader[Any]:
        """Loader of the validation images, in order."""
        return eval_loader(self.val_data, self.recipe.train.batch_size, self.recipe.train.workers)
