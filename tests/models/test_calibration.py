"""Thresholds by budget and accuracy, and the file in a model's folder."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tests.helpers import three_levels

from tnet.errors import CheckpointError, ConfigError
from tnet.models import TNet
from tnet.models.calibration import CALIBRATION_NAME, Calibration, read_calibration
from tnet.models.io import load_model, save_model
from tnet.traversal import Calibrated, LookGain, TimeLimit

GAINS = tuple(LookGain((0.0, 1.0), (1.0 - looks / 4, 0.75 - looks / 4)) for looks in range(4))
CALIBRATION = Calibration(
    "margin", 4, 3, "density", GAINS, (1.1, 0.75, 0.5, 0.0), (0.0, 1.0, 3.0, 4.0), (0.5, 0.8, 0.9, 0.88), 50,
    tuple("abcde"),
)  # fmt: skip


@pytest.mark.parametrize(
    ("looks", "price"), [(1, 0.75), (2, 0.625), (3, 0.5), (3.5, 0.25), (4, 0.0), (99, 0.0), (0.5, 0.925)]
)
def test_budgets_are_interpolated(looks: float, price: float) -> None:
    assert CALIBRATION.for_looks(looks) == pytest.approx(price)


@pytest.mark.parametrize("looks", [0, -1, float("nan")])
def test_budgets_are_positive(looks: float) -> None:
    with pytest.raises(ConfigError, match="budget"):
        CALIBRATION.for_looks(looks)


def test_budgets_below_the_fewest_looks() -> None:
    least = replace(CALIBRATION, mean_looks=(2.0, 2.5, 3.0, 4.0))
    assert least.for_looks(2) == 1.1
    with pytest.raises(ConfigError, match=r"1\.5 looks per image, below the 2 "):
        least.for_looks(1.5)


@pytest.mark.parametrize(("accuracy", "price"), [(0.3, 1.1), (0.8, 0.75), (0.85, 0.5)])
def test_accuracy(accuracy: float, price: float) -> None:
    assert CALIBRATION.for_accuracy(accuracy) == price


@pytest.mark.parametrize("accuracy", [0, -0.5, 1.01, float("nan")])
def test_accuracies_are_shares(accuracy: float) -> None:
    with pytest.raises(ConfigError, match="more than 0 and at most 1"):
        CALIBRATION.for_accuracy(accuracy)


def test_what_was_never_reached() -> None:
    with pytest.raises(ConfigError) as error:
        CALIBRATION.for_accuracy(0.95)
    assert "0.95" in str(error.value) and "at most 0.9," in str(error.value) and "50" in str(error.value)


def test_search() -> None:
    search = CALIBRATION.search(2, 0.9, 30.0)
    assert (search.looks, search.levels, search.score) == (4, 3, "density")
    assert search.stop == (
        Calibrated(0.625, GAINS, "margin"), Calibrated(0.5, GAINS, "margin"), TimeLimit(30.0),
    )  # fmt: skip


def test_a_model_keeps_its_calibration(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = TNet(three_levels(class_names=tuple("abcde")))
    save_model(model, tmp_path / "plain")
    assert load_model(tmp_path / "plain").calibration is None  # type: ignore[union-attr]
    model.calibration = CALIBRATION
    save_model(model, tmp_path / "model")
    loaded = load_model(tmp_path / "model")
    assert load_model(tmp_path / "model", calibrated=False).calibration is None  # type: ignore[union-attr]
    assert isinstance(loaded, TNet) and loaded.calibration == CALIBRATION


def test_other_classes(tmp_path: Path) -> None:
    (tmp_path / CALIBRATION_NAME).write_text(CALIBRATION.text())
    assert read_calibration(tmp_path, tuple("abcde")) == CALIBRATION
    with pytest.raises(CheckpointError, match="other classes"):
        read_calibration(tmp_path, tuple("abcdx"))


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{", "[" * 5000, '{"measure": 3}', '{"more": 3}', " " * 2**21]
    + [
        json.dumps(json.loads(replace(CALIBRATION).text()) | changes)
        for changes in (
            {"prices": [0.0]},
            {"prices": [1.1, 0.5, 0.75, 0.0]},
            {"mean_looks": [0, 3, 1, 4]},
            {"looks": "x"},
            {"looks": 3},
            {"score": "x"},
            {"gains": [{"certainty": [0.5, 0.5], "gain": [0, 0]}] * 4},
            {"gains": [{"certainty": [], "gain": []}] * 4},
            {"version": 1},
            {"version": None},
        )
    ],
)
def test_damaged_files(tmp_path: Path, text: str) -> None:
    (tmp_path / CALIBRATION_NAME).write_text(text)
    with pytest.raises(CheckpointError, match=CALIBRATION_NAME):
        read_calibration(tmp_path, tuple("abcde"))
