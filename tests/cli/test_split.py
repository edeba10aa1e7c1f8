"""``tnet split``, ``tnet crossval`` and ``tnet calibrate --probabilities`` from the command line."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.helpers import tiny_recipe
from typer.testing import CliRunner

from tnet.cli.main import app
from tnet.evaluation import crossval
from tnet.models.io import load_model, read_config
from tnet.training.recipe import save_recipe


def run(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, [*map(str, arguments)])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.output


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for patient in range(6):
        for side in "LR":
            path = tmp_path / "photos" / ("ill" if patient % 2 else "well") / f"P{patient}_{side}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            noise = np.random.default_rng(patient).integers(100 if patient % 2 else 256, size=(64, 64), dtype=np.uint8)
            Image.fromarray(noise).save(path)
    return tmp_path / "photos"


def test_folds_of_a_folder_and_of_a_table(photos: Path, tmp_path: Path) -> None:
    code, text = run("split", photos, "--folds", 3, "--group-pattern", "GROUP_*", "--out", tmp_path / "folds")
    assert code == 0 and "fold 2: 4 images of 2 groups" in text
    with (tmp_path / "folds/folds.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert all(row["group"] == Path(row["path"]).name[:2] for row in rows) and len(rows) == 12
    code, text = run(
        "split", tmp_path / "folds/folds.csv", "--folds", 3, "--group-column", "group", "--out", tmp_path / "again"
    )
    assert code == 0
    assert (tmp_path / "again/folds.csv").read_text() == (tmp_path / "folds/folds.csv").read_text()
    code, text = run("split", photos, "--out", tmp_path / "folds")
    assert code == 1 and "exists and is not empty" in text
    code, text = run("split", photos, "--folds", 40, "--out", tmp_path / "more")
    assert code == 1 and "40 folds of 12 images are asked for; give 2 to 12" in text


def test_cross_validation_and_probabilities(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crossval, "_RESAMPLES", 20)
    recipe = tiny_recipe(train={"epochs": 1, "images_per_epoch": 8}, model={"num_classes": 2})
    save_recipe(recipe, tmp_path / "recipe.yaml")
    given = ["data.kind=folder", f"data.root={photos.parent}", "data.train=photos", "data.group_pattern=GROUP_*"]
    out = tmp_path / "out"
    code, text = run("crossval", tmp_path / "recipe.yaml", *given, "--folds", 2, "--out", out, "--no-progress")
    assert code == 0 and "| accuracy %" in text and "fold 2 of 2" in text, text
    code, text = run("calibrate", out / "fold-0", out / "folds/fold-0/test.csv", "--probabilities", "--no-progress")
    assert code == 0 and "6 images, temperature " in text, text
    temperature = read_config(out / "fold-0/model").temperature
    assert f"temperature {temperature:.3f}" in text
    assert load_model(out / "fold-0").config.temperature == temperature
