"""Smoke runs, on any kind of data."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.helpers import tiny_config, tiny_recipe
from typer.testing import CliRunner

from tnet.cli.main import app
from tnet.data.augment import AugmentConfig
from tnet.data.config import DataConfig
from tnet.errors import ConfigError
from tnet.training.guide import GuideConfig
from tnet.training.recipe import Recipe, save_recipe
from tnet.training.smoke import smoke, smoke_recipe

AUGMENT = AugmentConfig(
    crop_area=(0.85, 1.0), crop_aspect=(0.5, 2.0), crop_aspect_absolute=True, crop_box_share=0.1, resize_px=80,
    resize_methods="eight", colour_cases=True, brightness=0.1, rand_augment=1,
)  # fmt: skip


def a_recipe(**data: Any) -> Recipe:
    recipe = tiny_recipe(
        train={"max_minutes": 60.0, "max_gmacs": 1e6, "workers": 3, "start_from": "none", "recalibrate_batches": 9}
    )
    return replace(recipe, model=tiny_config(in_channels=3), data=DataConfig(**data))


@pytest.mark.parametrize(
    "data",
    [
        {"kind": "folder", "val": None},
        {"kind": "table", "train": "a.parquet", "label_separator": ";"},
        {"kind": "fmow", "boxes": "crop", "preprocess": "reference_80", "augment": AUGMENT},
        pytest.param(
            {"kind": "cub", "val": "test", "preprocess": "reference_80", "augment": AUGMENT}, marks=pytest.mark.slow
        ),
        pytest.param(
            {"kind": "imagenet", "boxes": "cover", "preprocess": "reference_80", "augment": AUGMENT},
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_recipe_of_any_data_is_tried_and_nothing_is_left(data: dict[str, Any], in_tmp_path: Path) -> None:
    result = smoke(a_recipe(**data), progress=False)
    assert not result.folder.exists() and not any(in_tmp_path.iterdir())
    (row,) = result.metrics
    assert row["step"] == 1 and "val/accuracy" in row  # counted from 0


def test_what_a_recipe_says_stays_but_its_size(tmp_path: Path) -> None:
    recipe = replace(a_recipe(kind="folder", augment=AUGMENT), seed=5)
    small = smoke_recipe(recipe, tmp_path)
    assert (small.objective, small.optim, small.seed) == (recipe.objective, recipe.optim, 5)
    assert small.data.augment == AUGMENT and small.model == recipe.model
    assert (small.train.start_from, small.train.max_minutes, small.train.max_gmacs) == (None, None, None)
    assert small.train.workers == 0


def test_looks_are_tried_even_if_the_first_epochs_have_none(tmp_path: Path) -> None:
    train = {"no_looks_epochs": 4, "epochs": 8, "guide": GuideConfig(teacher="self")}
    recipe = replace(tiny_recipe(train=train), data=DataConfig(kind="folder"))
    small = smoke_recipe(recipe, tmp_path).train
    assert (small.epochs, small.no_looks_epochs, small.guide) == (1, 0, GuideConfig())


def test_pictures_of_other_channels_cannot_be_made(tmp_path: Path) -> None:
    recipe = replace(a_recipe(kind="folder", read="lazy"), model=tiny_config(in_channels=5))
    with pytest.raises(ConfigError, match="in_channels is 5"):
        smoke(recipe, progress=False)


def test_the_command_line_tries_a_recipe_out(in_tmp_path: Path) -> None:
    save_recipe(tiny_recipe(), in_tmp_path / "a.yaml")
    result = CliRunner().invoke(app, ["train", "a.yaml", "--smoke", "--no-progress"])
    assert result.exit_code == 0, result.output
    assert "a.yaml works: two steps" in result.output
    assert [path.name for path in in_tmp_path.iterdir()] == ["a.yaml"]
    for option in (["--resume"], ["--out", "here"]):
        result = CliRunner().invoke(app, ["train", "a.yaml", "--smoke", *option])
        assert result.exit_code == 2 and option[0] in result.output
