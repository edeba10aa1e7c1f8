"""Training on images of which some cannot be read."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tests.helpers import tiny_config

from tnet.data.config import DataConfig
from tnet.data.folder import ImageFolder
from tnet.data.loading import Share, eval_loader, train_loader
from tnet.data.sample import Batch
from tnet.errors import ConfigError, DataError, ImageError, UnreadableWarning
from tnet.training.config import TrainConfig
from tnet.training.recipe import Recipe
from tnet.training.run import RunResult, train

CLASSES = ("ant", "bee")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Eight training and four validation images of each of two classes."""
    for split, count in (("train", 8), ("val", 4)):
        for label, name in enumerate(CLASSES):
            folder = tmp_path / "photos" / split / name
            folder.mkdir(parents=True)
            for index in range(count):
                draw = np.random.default_rng([index, label, count])
                Image.fromarray(draw.integers(256, size=(64, 64), dtype=np.uint8)).save(folder / f"{index}.png")
    return tmp_path / "photos"


def spoil(*paths: Path) -> None:
    for path in paths:
        path.write_text(f"no image: {path}")  # each another, as repeated images are warned of


def opened(photos: Path, most: int, split: str = "train") -> ImageFolder:
    data = ImageFolder(photos / split)
    data.most_unreadable = most
    return data


def names(batches: Any) -> list[list[str]]:
    return [[f"{Path(name).parent.name}/{Path(name).stem}" for name in batch.names] for batch in batches]


def run(photos: Path, out: Path, resume: bool = False, **changes: Any) -> RunResult:
    data = {"root": str(photos), "unreadable": "skip", "unreadable_cap": 0.2} | changes.pop("data", {})
    given = {"epochs": 2, "batch_size": 4, "accelerator": "cpu", "overlays": 1, "logger": "none"} | changes
    recipe = Recipe(model=tiny_config(num_classes=2), data=DataConfig(**data), train=TrainConfig(**given))
    return train(recipe, out, resume=resume, progress=False)


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_the_next_image_takes_the_place_in_training(workers: int, photos: Path) -> None:
    sound = names(train_loader(opened(photos, 0), 4, workers, 0, 0, None))
    spoil(photos / "train/ant/2.png", photos / "train/ant/3.png", photos / "train/bee/7.png")
    data = opened(photos, 3)
    (photos / "train/ant/3.png").unlink()
    batches = list(train_loader(data, 4, workers, 0, 0, None))
    place = {"ant/2": "ant/4", "ant/3": "ant/4", "bee/7": "ant/0"}
    assert names(batches) == [[place.get(name, name) for name in batch] for batch in sound]
    left_out = {path: error for batch in batches for path, error in batch.unreadable}
    assert {Path(path).name for path in left_out} == {"2.png", "3.png", "7.png"}
    assert all(path in error for path, error in left_out.items())
    targets = torch.cat([batch.targets for batch in batches])
    assert targets.tolist() == [CLASSES.index(name.split("/")[0]) for batch in names(batches) for name in batch]


def test_validation_counts_no_image_twice(photos: Path) -> None:
    spoil(*(photos / f"val/ant/{index}.png" for index in (0, 1, 3)))
    batches: list[Batch] = list(eval_loader(opened(photos, 3, "val"), 2, 0))
    assert names(batches) == [[], ["ant/2"], ["bee/0", "bee/1"], ["bee/2", "bee/3"]]
    assert [len(batch.unreadable) for batch in batches] == [2, 1, 0, 0]
    two = [names(eval_loader(opened(photos, 3, "val"), 2, 0, Share(rank, 2))) for rank in range(2)]
    assert two == [[["ant/2"], ["bee/0", "bee/2"]], [[], ["bee/1", "bee/3"]]]


def test_more_in_a_row_than_are_allowed_raise_their_error(photos: Path) -> None:
    spoil(*(photos / f"train/ant/{index}.png" for index in range(3)))
    with pytest.raises(ImageError, match="ant/2.png"):
        list(train_loader(opened(photos, 2), 4, 0, 0, 0, None))
    spoil(*(photos / "train").rglob("*.png"))
    with pytest.raises(ImageError, match=r"\.png"):
        list(train_loader(opened(photos, 100), 4, 0, 0, 0, None))


def test_a_run_leaves_them_out_and_lists_them_once(photos: Path, tmp_path: Path) -> None:
    bad = [photos / "train/ant/2.png", photos / "val/ant/0.png", photos / "val/bee/3.png"]
    spoil(*bad)
    out = tmp_path / "run"
    with pytest.warns(UnreadableWarning) as caught:
        result = run(photos, out, epochs=1)
    assert str(caught[0].message).startswith("3 image(s) cannot be read and are left out: ") and len(caught) == 1
    with (out / "unreadable.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["path"] for row in rows] == sorted(map(str, bad))
    assert all(row["path"] in row["error"] for row in rows)
    assert result.metrics[0]["val/accuracy"] * 6 == pytest.approx(round(result.metrics[0]["val/accuracy"] * 6))
    written = (out / "unreadable.csv").read_bytes()
    run(photos, out, resume=True)  # warns of nothing: they are listed
    assert (out / "unreadable.csv").read_bytes() == written


def test_too_many_end_the_run(photos: Path, tmp_path: Path) -> None:
    spoil(*(photos / f"train/bee/{index}.png" for index in (0, 2, 4)))
    with pytest.raises(
        DataError, match=r"3 images cannot be read, more than data.unreadable_cap allows \(2\): .*raise"
    ):
        run(photos, tmp_path / "run", data={"unreadable_cap": 0.08})  # of 24 images: 1.92, rounded up


def test_without_the_option_the_first_one_ends_the_run(photos: Path, tmp_path: Path) -> None:
    spoil(photos / "train/ant/2.png")
    with pytest.raises(ImageError, match="ant/2.png") as caught:
        run(photos, tmp_path / "run", data={"unreadable": "raise"})
    assert caught.value.__notes__ == ["data.unreadable=skip leaves such images out"]


def test_a_small_image_is_not_an_unreadable_one(photos: Path, tmp_path: Path) -> None:
    Image.new("L", (8, 8)).save(photos / "train/ant/0.png")
    with pytest.raises(ImageError, match="8 x 8 px, below the base resolution"):
        run(photos, tmp_path / "run")


@pytest.mark.parametrize("cap", [-0.1, 1.1, float("nan")])
def test_the_cap_is_a_share(cap: float) -> None:
    with pytest.raises(ConfigError, match=r"data\.unreadable_cap"):
        DataConfig(unreadable_cap=cap)
