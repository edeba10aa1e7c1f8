"""``tnet calibrate``, and predictions within a budget from the model's folder alone."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from tests.helpers import make_unsure, tiny_config
from typer.testing import CliRunner

from tnet.cli.main import app
from tnet.data.config import DataConfig
from tnet.data.digits import DigitsConfig, MegapixelDigits
from tnet.models.calibration import CALIBRATION_NAME
from tnet.models.io import save_model
from tnet.models.tnet import TNet
from tnet.training.recipe import Recipe, save_recipe

DIGITS = DigitsConfig(
    task="max", canvas_px=96, target_copies=1, other_digits=0, noise_patterns=2, images_train=4, images_val=10
)


def tnet(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, [*map(str, arguments), "--device", "cpu"])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert "Traceback" not in result.output
    return result.exit_code, result.output


def write_run(folder: Path) -> Path:
    torch.manual_seed(1)
    model = TNet(tiny_config(num_classes=10, levels=3, looks=(2, 1), class_names=tuple("0123456789"))).eval()
    save_model(make_unsure(model, torch.rand(1, 1, 96, 96)), folder / "model")
    save_recipe(Recipe(model=model.config, data=DataConfig(kind="digits", digits=DIGITS)), folder / "recipe.yaml")
    return folder


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_run(tmp_path / "run")


@pytest.fixture(scope="module")
def calibrated(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A run after ``tnet calibrate``, and what that printed."""
    folder = write_run(tmp_path_factory.mktemp("calibrated") / "run")
    code, out = tnet("calibrate", folder, "--looks", 6)
    assert code == 0
    return folder, out


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The images that the run is calibrated on."""
    digits, folder = MegapixelDigits(DIGITS, "val"), tmp_path_factory.mktemp("photos")
    for i in range(len(digits)):
        pixels = digits[i].image
        Image.fromarray(pixels[0].numpy()).save(folder / f"{i}.png")
    return folder


def looks_of(table: Path) -> list[int]:
    return [len(json.loads(line)["regions"]) for line in table.read_text(encoding="utf-8").splitlines()]


def test_from_calibration_to_budgets(calibrated: tuple[Path, str], photos: Path, tmp_path: Path) -> None:
    run, out = calibrated
    assert "measured on the other" in " ".join(out.split())
    with (run / "calibration" / "calibration.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["kind"] for row in rows] == ["best-first"] * 7 + ["stopping"] * 11
    assert (run / "calibration" / "calibration.png").is_file() and (run / "model" / CALIBRATION_NAME).is_file()
    mean = {}
    for name, options in {
        "few": ("--budget", 1.5),
        "many": ("--budget", 4.5),
        "all": ("--budget", 100),
        "sure": ("--at-least", 0.0001),
        "short": ("--max-ms", 0.001),
    }.items():
        code, out = tnet("predict", run, photos, "--out", tmp_path / f"{name}.jsonl", *options)
        assert code == 0, out
        looks = looks_of(tmp_path / f"{name}.jsonl")
        mean[name] = sum(looks) / len(looks)
    assert mean["few"] == pytest.approx(1.5, abs=0.5) and mean["many"] == pytest.approx(4.5, abs=0.5)
    assert (mean["all"], mean["short"]) == (6, 0)
    # The model moves without its run.
    code, out = tnet("predict", run / "model", photos, "--budget", 1.5)
    assert code == 0


def test_a_budget_in_multiply_adds(calibrated: tuple[Path, str], photos: Path, tmp_path: Path) -> None:
    run, _ = calibrated
    code, out = tnet("predict", run, photos, "--budget", "0.001M")
    assert code == 1 and "whole image alone" in out
    code, _ = tnet("predict", run, photos, "--budget", "1G", "--out", tmp_path / "all.jsonl")
    assert code == 0 and set(looks_of(tmp_path / "all.jsonl")) == {6}


def test_the_frontier_of_a_calibrated_run(calibrated: tuple[Path, str], tmp_path: Path) -> None:
    run, _ = calibrated
    code, out = tnet("evaluate", run, "--looks", 0, "--looks", "2x1", "--frontier", "--out", tmp_path)
    assert code == 0 and "stopping looks better than it is" in out
    with (tmp_path / "frontier.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    kinds = ["level by level"] * 2 + ["best-first"] * 7 + ["stopping"] * 11
    assert [row["kind"] for row in rows] == kinds
    assert [row["setting"] for row in rows[:2]] == ["0", "4"]
    with (tmp_path / "evaluation.csv").open(newline="", encoding="utf-8") as file:
        measured = list(csv.DictReader(file))
    assert [(row["accuracy"], row["mean_macs"]) for row in rows[:2]] == [
        (row["accuracy"], row["macs"]) for row in measured
    ]
    assert rows[0]["accuracy"] == rows[2]["accuracy"]  # nothing but the whole image in both
    assert (tmp_path / "frontier.png").is_file()
    assert "frontier.png" in (tmp_path / "evaluation.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--budget", "2"), "tnet calibrate"),
        (("--at-least", "0.5"), "tnet calibrate"),
        (("--budget", "2", "--looks", "2"), "omit --looks"),
        (("--max-ms", "20", "--policy", "random"), "omit --looks"),
        (("--max-ms", "0"), "0.0 ms"),
        (("--max-ms", "-3"), "-3.0 ms"),
    ],
)
def test_without_calibration(run: Path, photos: Path, options: tuple[str, ...], words: str) -> None:
    code, out = tnet("predict", run, photos, *options)
    assert code != 0 and words in " ".join(out.replace("\u2502", " ").split())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--budget", "0"), "budget is 0"),
        (("--budget", "-1"), "not a budget"),
        (("--budget", "many"), "not a budget"),
        (("--at-least", "1.1"), "at most 1"),
        (("--at-least", "0"), "more than 0"),
        (("--at-least", "0.9999"), "never reached"),
    ],
)
def test_impossible_budgets(calibrated: tuple[Path, str], photos: Path, options: tuple[str, ...], words: str) -> None:
    run, _ = calibrated
    code, out = tnet("predict", run, photos, *options)
    assert code != 0 and words in " ".join(out.replace("\u2502", " ").split())


def test_time_without_calibration(run: Path, photos: Path, tmp_path: Path) -> None:
    code, _ = tnet("predict", run, photos, "--max-ms", 100_000, "--out", tmp_path / "all.jsonl")
    assert code == 0 and set(looks_of(tmp_path / "all.jsonl")) == {8}


def test_a_damaged_image_among_others(run: Path, photos: Path, tmp_path: Path) -> None:
    photos = Path(shutil.copytree(photos, tmp_path / "photos"))
    (photos / "3.png").write_bytes(b"no image")
    options = ("--max-ms", 100_000, "--out", tmp_path / "p.jsonl")
    assert tnet("predict", run, photos, *options)[0] == 1
    code, out = tnet("predict", run, photos, *options, "--skip-unreadable")
    assert code == 0 and "3.png" in out
    rows = [json.loads(line) for line in (tmp_path / "p.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [Path(row["path"]).name for row in rows] == sorted(f"{i}.png" for i in range(10))


def test_results_of_before_are_replaced_and_nothing_else(run: Path) -> None:
    for _ in range(2):
        assert tnet("calibrate", run, "--looks", 1)[0] == 0
    (run / "calibration" / "calibration.md").write_text("mine")
    code, out = tnet("calibrate", run, "--looks", 1)
    assert code == 1 and "calibration.md exists" in out
    assert (run / "calibration" / "calibration.md").read_text() == "mine"
    assert tnet("calibrate", run, "--looks", 1, "--overwrite")[0] == 0


def test_an_older_file_is_replaced(run: Path, photos: Path) -> None:
    (run / "model" / CALIBRATION_NAME).write_text('{"measure": "confidence", "thresholds": [0.5]}')
    assert tnet("calibrate", run, "--looks", 2, "--least", 1)[0] == 0
    code, out = tnet("predict", run, photos, "--budget", "0.5")
    assert code == 1 and "below the 1" in out


def test_a_search_by_gain_needs_gains(run: Path) -> None:
    code, out = tnet("calibrate", run, "--looks", 2, "--score", "gain")
    assert code == 1 and "model.locator.value" in out


def test_more_looks_at_least_than_at_most(run: Path) -> None:
    code, out = tnet("calibrate", run, "--looks", 2, "--least", 2)
    assert code == 1 and "--least is 2 of at most 2" in out


def test_a_plain_network_cannot_be_calibrated(tmp_path: Path) -> None:
    save_model(TNet(tiny_config(levels=1, looks=())), tmp_path / "model")
    for verb, *options in (["calibrate"], ["evaluate", "--frontier"]):
        code, out = tnet(verb, tmp_path / "model", tmp_path, *options)
        assert code == 1 and "2 or more levels" in out
