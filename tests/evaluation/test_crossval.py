"""Cross-validation: folds, out-of-fold predictions, and the table."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.helpers import tiny_recipe

from tnet.data.config import DataConfig
from tnet.errors import ConfigError, OutputError
from tnet.evaluation import crossval
from tnet.evaluation.crossval import MEASURES, Pooled, cross_validate, summary
from tnet.models.io import read_config
from tnet.training.recipe import Recipe


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    for patient in range(12):
        for side in "LR":
            path = tmp_path / "photos/train" / ("ill" if patient % 2 else "well") / f"P{patient:02}_{side}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            noise = np.random.default_rng(patient).integers(100 if patient % 2 else 256, size=(64, 64), dtype=np.uint8)
            Image.fromarray(noise).save(path)
    data = DataConfig(root=str(tmp_path / "photos"), group_pattern="GROUP_*", val_fraction=0.3)
    short = tiny_recipe(train={"epochs": 1, "images_per_epoch": 16}, model={"num_classes": 2})
    return replace(short, data=data)


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crossval, "_RESAMPLES", 40)


def rows_in(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_every_image_is_predicted_once_by_a_model_that_has_not_seen_its_group(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    table = cross_validate(recipe, out, 2, progress=False)
    rows = rows_in(out / "out_of_fold.csv")
    assert len({row["path"] for row in rows}) == len(rows) == 24
    for fold in range(2):
        trained = {row["group"] for row in rows_in(out / f"folds/fold-{fold}/train.csv")}
        tested = {row["path"] for row in rows_in(out / f"folds/fold-{fold}/test.csv")}
        groups = {row["group"] for row in rows if row["path"] in tested}
        assert groups and not trained & groups
        assert rows_in(out / f"fold-{fold}/out_of_fold.csv") == [row for row in rows if row["path"] in tested]
        assert read_config(out / f"fold-{fold}/model").temperature != 1.0
    probs = np.array([[float(row["p_0"]), float(row["p_1"])] for row in rows])
    np.testing.assert_allclose(probs.sum(1), 1, atol=1e-5)
    right = np.mean([row["label"] == row["predicted"] for row in rows])
    assert f"{100 * right:.1f} (" in table.splitlines()[2]
    assert table in (out / "crossval.md").read_text()

    monkeypatch.setattr(crossval, "train", None)  # finished folds are not trained again
    assert cross_validate(recipe, out, 2, progress=False) == table
    assert rows_in(out / "out_of_fold.csv") == rows
    with pytest.raises(OutputError, match="holds 2 folds of seed 0, not 3 folds of seed 0"):
        cross_validate(recipe, out, 3, progress=False)


def test_measures_by_hand() -> None:
    probs = np.array([[0.9, 0.1], [0.4, 0.6], [0.3, 0.7], [0.2, 0.8]])
    pooled = Pooled(np.array([0, 0, 1, 1]), probs, probs, list("aabb"))
    values = {name: measure(pooled) for name, measure in MEASURES.items()}
    assert values["accuracy %"] == 0.75 and values["AUC %"] == 1.0
    assert values["ECE %"] == pytest.approx((abs(0.9 - 1) + abs(0.6 - 0) + abs(0.7 - 1) + abs(0.8 - 1)) / 4)
    row = summary(pooled, [pooled, pooled.of(np.array([0, 2]))]).splitlines()[2]
    cells = [cell.strip() for cell in row.split("|")]
    assert cells[1:5] == ["accuracy %", "75.0, 100.0", "87.5 ± 17.7", "75.0 (50.0 to 100.0)"]  # a pair is the unit


def test_images_without_folds(recipe: Recipe, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="data.kind is 'digits'"):
        cross_validate(tiny_recipe(), tmp_path / "out", 2, progress=False)
    assert not (tmp_path / "out").exists()
