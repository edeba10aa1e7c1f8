"""Runs on lazily read images: repeatability and resuming with any number of workers."""

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
    for number in range(12):
        levels = noise.integers(0, 60, (128 + 4 * number, 192), dtype=np.uint8)
        if number % 2:
            y, x = noise.integers(0, 90, 2)
            levels[y : y + 30, x : x + 30] = 250
        path = folder / ("train" if number < 8 else "val") / "ab"[number % 2] / f"{number}.tif"
        path.parent.mkdir(parents=True, exist_ok=True)
        tifffile.imwrite(path, levels, tile=(64, 64))
    return folder


def recipe(root: Path, workers: int = 0, epochs: int = 2, **data: Any) -> Recipe:
    base = tiny_recipe(train={"epochs": epochs, "batch_size": 4, "images_per_epoch": 8, "workers": workers})
    augment = AugmentConfig(
        horizontal_flip=True, quarter_turns=True, rotation=5.0, crop_area=(0.5, 1.0), brightness=0.2, contrast=0.2
    )
    return replace(base, data=replace(DataConfig(root=str(root), read="lazy", augment=augment), **data))


@pytest.mark.slow
def test_workers_and_resuming_do_not_change_a_run(root: Path, tmp_path: Path) -> None:
    """Losses, accuracies and weights, with recalibrated batch norm."""

    def with_workers(workers: int) -> Recipe:
        overview.overviews._kept.clear()
        asked = recipe(root, workers)
        return replace(asked, train=replace(asked.train, recalibrate_batches=1))

    whole = train(with_workers(0), tmp_path / "whole", progress=False)
    assert whole.metrics[0]["train/loss"] != whole.metrics[1]["train/loss"]
    with disturbed(1, 1, cut), pytest.raises(PowerCutError):
        train(with_workers(2), tmp_path / "cut", progress=False)
    assert_same_run(whole, train(with_workers(2), tmp_path / "cut", resume=True, progress=False))


@pytest.mark.slow
def test_what_a_lazy_run_keeps_and_leaves(root: Path, tmp_path: Path) -> None:
    """An overview of each picture, four times a glimpse for the crops and angles; and drawings of where it looks."""
    asked = recipe(root, epochs=2)
    result = train(replace(asked, train=replace(asked.train, overlays=1)), tmp_path / "run", progress=False)
    assert len(overview.overviews) == 12 and overview.overviews.nbytes == 12 * 128 * 128
    assert len(list((result.folder / "overlays").glob("*.png"))) == 1
    assert load_recipe(result.folder / "recipe.yaml").data == result.recipe.data


@pytest.mark.slow
def test_lazy_training_is_close_to_training_in_memory(root: Path, tmp_path: Path) -> None:
    """Without overviews and changes: what is looked at is the same to the last bit."""
    plain = {"augment": AugmentConfig(), "overview_px": 0}
    lazy = train(recipe(root, **plain), tmp_path / "lazy", progress=False)
    memory = train(recipe(root, **plain, read="memory"), tmp_path / "memory", progress=False)
    assert_same_run(lazy, memory)
