"""Short trainings with each way of teaching where to look."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from tests.helpers import tiny_config, tiny_recipe

from tnet.geometry import Grid
from tnet.models import LocatorConfig, TNet
from tnet.models.io import save_model
from tnet.training.guide import GuideConfig
from tnet.training.recipe import Recipe, load_recipe, save_recipe
from tnet.training.run import train

VALUED: dict[str, Any] = {"model": {"locator": LocatorConfig("squeeze", value=True)}}
GAINS: dict[str, Any] = {"reward": "gain", "gain_weight": 1.0}
LATER: dict[str, Any] = {"every_look_weight": 0.5, "distil_weight": 0.5}
ALL = {"cross_entropy", "reinforce", "gain", "every_look", "distil", "guide", "worth"}


@pytest.fixture
def guided(tmp_path: Path) -> dict[str, Any]:
    names = tuple(map(str, range(10)))
    save_model(TNet(tiny_config(levels=1, looks=(), num_classes=10, class_names=names)), tmp_path / "teacher")
    return {"guide": GuideConfig(teacher=str(tmp_path / "teacher"))}


def check(recipe: Recipe, folder: Path, terms: set[str]) -> list[dict[str, float]]:
    metrics = train(recipe, folder, progress=False).metrics
    for row in metrics:
        assert all(math.isfinite(row[f"train/{name}"]) for name in terms)
    return metrics


def test_everything_together(tmp_path: Path, guided: dict[str, Any]) -> None:
    objective = GAINS | LATER | {"worth_weight": 1.0}
    changes = {"epochs": 2, "images_per_epoch": 16, "random_looks_epochs": 1, **guided}
    recipe = tiny_recipe(**VALUED, objective=objective, train=changes)
    metrics = check(recipe, tmp_path / "run", ALL)
    assert metrics[0]["train/guide"] > metrics[1]["train/guide"] > 0, "it fades"
    saved = load_recipe(tmp_path / "run/recipe.yaml")
    assert saved.train.guide == recipe.train.guide and saved.objective == recipe.objective
    save_recipe(saved, tmp_path / "again.yaml")
    assert load_recipe(
        tmp_path / "again.yaml", ["train.guide.by=cells", "train.guide.share=[2.0, 1.0]"]
    ).train.guide == (GuideConfig(teacher=guided["guide"].teacher, by="cells", share=(2.0, 1.0)))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "terms"),
    [
        ({"objective": {"reward": "gain"}}, {"reinforce", "reinforce_per_feature", "baseline"}),
        ({**VALUED, "objective": GAINS}, {"reinforce", "gain"}),
        ({"objective": {"every_look_weight": 0.5}}, {"every_look"}),
        ({"objective": {"distil_weight": 0.5}}, {"distil"}),
        ({"train": {"random_looks_epochs": 1}, "objective": {"worth_weight": 1.0}}, {"worth", "location_entropy"}),
    ],
)
def test_each_alone(tmp_path: Path, changes: dict[str, Any], terms: set[str]) -> None:
    short = {"epochs": 2, "images_per_epoch": 16}
    recipe = tiny_recipe(**{**changes, "train": short | changes.get("train", {})})
    check(recipe, tmp_path / "run", terms)


@pytest.mark.slow
def test_large_cells_first_and_then_small_are_two_stages(tmp_path: Path) -> None:
    short: dict[str, Any] = {"epochs": 1, "images_per_epoch": 16}
    train(tiny_recipe(model={"grid": Grid(3, 3, 0.6)}, train=short), tmp_path / "large", progress=False)
    small = tiny_recipe(train={**short, "start_from": str(tmp_path / "large")}, model={"grid": Grid(3, 3, 0.4)})
    result = train(small, tmp_path / "small", progress=False)
    assert result.not_started == () and result.model.config.grid == Grid(3, 3, 0.4)  # type: ignore[attr-defined]
