"""Runs on pictures that are read lazily: that they train, repeat and resume, with any number of workers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from tests.helpers import tiny_recipe
from tests.training.test_run import PowerCutError, assert_same_run, cut, disturbed

from tnet.data.augment import AugmentConfig
from tnet.data.config import DataConfig
from tnet.scenes import cache, overview
from tnet.training.recipe import Recipe, load_recipe
from tnet.training.run import train

pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")


@pytest.fixture(autouse=True)
def nothing_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that has neither overviews nor open files yet."""
    monkeypatch.setattr(overview, "overviews", overview.OverviewStore())
    monkeypatch.setattr(cache, "readers", cache.ReaderPool())


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of tiled TIFFs of different sizes: dark ones, and dark ones with a bright square."""
    folder = tmp_path_factory.mktemp("tiled")
    noise = np.random.default_rng(0)
    for number in range(16):
        levels = noise.integers(0, 60, (128 + 4 * number, 192), dtype=np.uint8)
        if number % 2:
            y, x = noise.integers(0, 90, 2)
            levels[y : y + 30, x : x + 30] = 250
        path = folder / ("train" if number < 12 else "val") / "ab"[number % 2] / f"{number}.tif"
        path.parent.mkdir(parents=True, exist_ok=True)
        tifffile.imwrite(path, levels, tile=(64, 64))
    return folder


def recipe(root: Path, workers: int = 0, epochs: int = 2, **data: Any) -> Recipe:
    base = tiny_recipe(train={"epochs": epochs, "batch_size": 4, "images_per_epoch": 12, "workers": workers})
    augment = AugmentConfig(
        horizontal_flip=True, quarter_turns=True, rotation=5.0, crop_area=(0.5, 1.0), brightness=0.2, contrast=0.2
    )
    return replace(base, data=replace(DataConfig(root=str(root), read="lazy", augment=augment), **data))


def test_workers_do_not_change_a_run(root: Path, tmp_path: Path) -> None:
    """Losses, accuracies and weights, with batch norm measured anew."""
    runs = []
    for workers in (0, 1, 2):
        overview.overviews._kept.clear()
        asked = recipe(root, workers)
        asked = replace(asked, train=replace(asked.train, recalibrate_batches=1))
        runs.append(train(asked, tmp_path / f"{workers}", progress=False))
    assert runs[0].metrics[0]["train/loss"] != runs[0].metrics[1]["train/loss"]
    for other in runs[1:]:
        assert_same_run(runs[0], other)


def test_a_resumed_run_is_the_uninterrupted_one(root: Path, tmp_path: Path) -> None:
    whole = train(recipe(root, epochs=3), tmp_path / "whole", progress=False)
    with disturbed(1, 1, cut), pytest.raises(PowerCutError):
        train(recipe(root, epochs=3), tmp_path / "cut", progress=False)
    overview.overviews._kept.clear()
    resumed = train(recipe(root, epochs=3), tmp_path / "cut", resume=True, progress=False)
    assert_same_run(whole, resumed)


def test_what_a_lazy_run_keeps_and_leaves(root: Path, tmp_path: Path) -> None:
    """An overview of each picture, four times a glimpse for the crops and angles; and drawings of where it looks."""
    asked = recipe(root, epochs=2)
    result = train(replace(asked, train=replace(asked.train, overlays=1)), tmp_path / "run", progress=False)
    assert len(overview.overviews) == 16 and overview.overviews.nbytes == 16 * 128 * 128
    assert len(list((result.folder / "overlays").glob("*.png"))) == 1
    assert load_recipe(result.folder / "recipe.yaml").data == result.recipe.data


def test_lazy_training_is_close_to_training_in_memory(root: Path, tmp_path: Path) -> None:
    """Without overviews and changes: what is looked at is the same to the last bit."""
    plain = {"augment": AugmentConfig(), "overview_px": 0}
    lazy = train(recipe(root, **plain), tmp_path / "lazy", progress=False)
    memory = train(recipe(root, **plain, read="memory"), tmp_path / "memory", progress=False)
    assert_same_run(lazy, memory)
