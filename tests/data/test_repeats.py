"""Images that occur twice, by name, link or content."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tnet.data import repeats
from tnet.data.config import DataConfig
from tnet.data.digits import MegapixelDigits
from tnet.data.loading import open_data
from tnet.data.repeats import find_repeats
from tnet.suggest.survey import survey_images


def put(path: Path, seed: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (40, 40, 3), np.uint8)).save(path)
    return path


@pytest.fixture
def config(tmp_path: Path) -> DataConfig:
    """Twelve different images of one size, without compression, so that all files have one size."""
    for number in range(12):
        put(tmp_path / ("train" if number < 8 else "val") / "ab"[number % 2] / f"{number}.bmp", number)
    return DataConfig(root=str(tmp_path))


def found(config: DataConfig) -> list[str]:
    return find_repeats(*open_data(config, 3, seed=0))


def test_different_images_of_one_size_are_no_repeats(config: DataConfig) -> None:
    assert found(config) == []
    assert survey_images(config).repeats == ()


@pytest.mark.parametrize("how", ["copy", "hard link", "symlink"])
def test_an_image_on_both_sides_is_named(config: DataConfig, how: str) -> None:
    root = Path(config.root)
    for number in (0, 2, 4):
        source, copy = root / f"train/a/{number}.bmp", root / f"val/a/again{number}.bmp"
        if how == "copy":
            copy.write_bytes(source.read_bytes())
        else:
            (os.link if how == "hard link" else os.symlink)(source, copy)
    (text,) = found(config)
    assert text.startswith("3 image(s) are both training and validation images, such as ")
    assert f"{root}/train/a/0.bmp (train) and {root}/val/a/again0.bmp (val)" in text
    assert "2.bmp" in text and "4.bmp" not in text
    assert survey_images(config).repeats == (text,)


def test_files_that_differ_only_at_the_end_are_different(config: DataConfig) -> None:
    root = Path(config.root)
    large = bytes(2**17)
    (root / "train/a/x.bmp").write_bytes(large + b"1")
    (root / "val/a/y.bmp").write_bytes(large + b"2")
    assert found(config) == []
    (root / "val/b/z.bmp").write_bytes(large + b"1")
    both, other = found(config)
    assert both.startswith("1 image(s) are both") and "x.bmp (train) and " in both
    assert other.startswith("1 image(s) are labelled differently") and "x.bmp (a) and " in other


def test_a_path_with_two_labels_in_a_table_is_named(config: DataConfig) -> None:
    root = Path(config.root)
    rows = ["train/a/0.bmp,a", "train/a/2.bmp,a", "train/b/1.bmp,b", "train/a/0.bmp,b", "train/a/2.bmp,a"]
    (root / "train.csv").write_text("\n".join(["path,label", *rows]))
    (root / "val.csv").write_text("path,label\nval/a/8.bmp,a\n")
    table = replace(config, kind="table", train="train.csv", val="val.csv")
    (text,) = found(table)
    assert text.startswith("1 image(s) are labelled differently")
    assert f"{root}/train/a/0.bmp (a) and {root}/train/a/0.bmp (b); correct" in text


def test_the_time_is_limited(config: DataConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    root = Path(config.root)
    (root / "val/a/copy.bmp").write_bytes((root / "train/a/0.bmp").read_bytes())
    os.link(root / "train/a/2.bmp", root / "val/a/link.bmp")
    monkeypatch.setattr(repeats, "_MAX_SECONDS", -1.0)
    (text,) = found(config)
    assert text.startswith("1 image(s) are both") and "link.bmp" in text and "s only)" in text


def test_synthetic_images_are_not_compared() -> None:
    digits = MegapixelDigits(DataConfig(kind="digits").digits, "val")
    assert find_repeats(digits, digits) == []
