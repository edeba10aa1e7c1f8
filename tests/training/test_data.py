"""Preparation of training and validation images."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from tests.helpers import tiny_config, tiny_recipe

from tnet.data.augment import AugmentConfig
from tnet.data.config import DataConfig
from tnet.data.folder import LabelledImages
from tnet.training.data import TNetData
from tnet.training.smoke import smoke_recipe


def test_crops_are_taken_from_stored_images_if_the_augmentation_resizes(tmp_path: Path) -> None:
    for name, augment, prepared in (("a", AugmentConfig(resize_px=48), False), ("b", AugmentConfig(), True)):
        data = DataConfig(kind="folder", preprocess="reference_40", augment=augment)
        recipe = replace(tiny_recipe(), model=tiny_config(in_channels=3), data=data)
        opened = TNetData(smoke_recipe(recipe, tmp_path / name))
        assert isinstance(opened.train_data, LabelledImages) and isinstance(opened.val_data, LabelledImages)
        assert (
            opened.train_data.reading.prepare is not None
        ) == prepared and opened.val_data.reading.prepare is not None
        side = 40 if prepared else 48
        assert tuple(opened.train_data[0].image.shape) == (3, side, side)  # type: ignore[union-attr]
        assert tuple(opened.val_data[0].image.shape) == (3, 40, 40)  # type: ignore[union-attr]
