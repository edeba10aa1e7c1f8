"""Maps in a file: measured once, resumed, refused for other images or teachers, and moved as images are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tests.helpers import pictures, tiny_config, tiny_recipe
from torch import Tensor

from tnet.data.augment import Augment, AugmentConfig
from tnet.data.digits import MegapixelDigits
from tnet.data.folder import LabelledImages
from tnet.data.loading import train_loader
from tnet.data.sample import Batch
from tnet.errors import CheckpointError, ConfigError, OutputError
from tnet.geometry import Grid
from tnet.models import TNet
from tnet.models.io import save_model
from tnet.scenes.reading import ReadOptions
from tnet.training.guide import GuideConfig
from tnet.training.run import train
from tnet.training.worth_maps import WorthMaps, fingerprint

GRID = Grid(2, 2, 0.5)
TURNED = AugmentConfig(horizontal_flip=True, vertical_flip=True, quarter_turns=True, brightness=0.1)


def mean_levels(images: Tensor | Sequence[Tensor]) -> Tensor:
    """Mean of each quarter of images, which stands for what a teacher measures."""
    quarters = torch.stack(
        [item.float().unflatten(1, (2, -1)).unflatten(3, (2, -1)).mean((0, 2, 4)) for item in images]
    )
    return quarters.flatten(1)


def measure(batch: Batch) -> Tensor:
    assert isinstance(batch.images, Tensor)
    return mean_levels(batch.images)


@pytest.fixture
def images(tmp_path: Path) -> LabelledImages:
    paths = []
    for number, pixels in enumerate(pictures(*[(8, 8)] * 6)):
        paths.append(tmp_path / f"images/{number}.png")
        paths[-1].parent.mkdir(exist_ok=True)
        Image.fromarray(pixels[0].numpy()).save(paths[-1])
    targets, reading = torch.tensor([0, 1, 0, 1, 0, 1]), ReadOptions(channels=1)
    return LabelledImages(paths, targets, ["a", "b"], augment=Augment(TURNED), seed=7, reading=reading)


def maps_of(data: Any, path: Path, **made: str) -> WorthMaps:
    return WorthMaps(path / "maps.safetensors", data, {"teacher": "one", **made}, GRID)


def test_maps_move_with_the_images(tmp_path: Path, images: LabelledImages) -> None:
    """Stored maps, flipped and turned, equal those measured on the augmented images (of the same levels)."""
    images.augment = Augment(replace(TURNED, brightness=0.0))
    maps = maps_of(images, tmp_path)
    maps.complete(measure, 4, 0, progress=False)
    changed = 0
    for epoch in range(3):
        for batch in train_loader(images, 3, 0, seed=1, epoch=epoch, per_epoch=None):
            found = maps.of(batch.names)
            torch.testing.assert_close(found, measure(batch))
            places = [maps.places[name] for name in batch.names]
            changed += int((found != maps.maps[places]).any(1).sum())
    assert changed > 9, "most of 18 images were changed"


def test_images_are_measured_without_augmentation_and_once(tmp_path: Path, images: LabelledImages) -> None:
    seen: list[str] = []

    def counted(batch: Batch) -> Tensor:
        seen.extend(batch.names)
        return measure(batch)

    maps = maps_of(images, tmp_path)
    maps.complete(counted, 4, 0, progress=False)
    stored = [torch.from_numpy(np.array(Image.open(path)))[None] for path in images.paths]
    torch.testing.assert_close(maps.maps, mean_levels(stored))
    assert images.augment is not None and len(seen) == 6
    again = maps_of(images, tmp_path)
    again.complete(counted, 4, 0, progress=False)
    assert torch.equal(again.maps, maps.maps) and len(seen) == 6
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["maps.safetensors"]


def test_what_is_done_is_kept_when_measuring_is_stopped(tmp_path: Path, images: LabelledImages) -> None:
    seen: list[str] = []

    def stopped(batch: Batch) -> Tensor:
        if len(seen) >= 4:
            raise KeyboardInterrupt
        seen.extend(batch.names)
        return measure(batch)

    with pytest.raises(KeyboardInterrupt):
        maps_of(images, tmp_path).complete(stopped, 2, 0, progress=False)
    resumed = maps_of(images, tmp_path)
    assert int(resumed.maps.isnan().any(1).sum()) == 2
    seen.clear()
    resumed.complete(stopped, 2, 0, progress=False)
    assert seen == [str(path) for path in images.paths[4:]] and not resumed.maps.isnan().any()


def test_digits_are_known_by_their_number(tmp_path: Path) -> None:
    data = MegapixelDigits(tiny_recipe().data.digits, "train")
    maps = maps_of(data, tmp_path)
    maps.complete(measure, 16, 0, progress=False)
    torch.testing.assert_close(maps.of([data[3].name, data[0].name]), mean_levels([data[3].image, data[0].image]))  # type: ignore


# --- what is refused


def test_maps_of_other_images_or_another_teacher_are_refused(tmp_path: Path, images: LabelledImages) -> None:
    maps_of(images, tmp_path).complete(measure, 4, 0, progress=False)
    before = (tmp_path / "maps.safetensors").read_bytes()
    with pytest.raises(
        CheckpointError, match=r"maps with other teacher, one instead of two; give another train\.guide"
    ):
        maps_of(images, tmp_path, teacher="two")
    with pytest.raises(CheckpointError, match="maps with other images"):
        maps_of(images.subset([0, 1], augment=None), tmp_path)
    relabelled = images.subset(range(6), augment=None)
    relabelled.targets = 1 - relabelled.targets
    with pytest.raises(CheckpointError, match="maps with other images"):
        maps_of(relabelled, tmp_path)
    assert (tmp_path / "maps.safetensors").read_bytes() == before


def test_damaged_and_foreign_files_are_refused_and_left_alone(tmp_path: Path, images: LabelledImages) -> None:
    path = tmp_path / "maps.safetensors"
    path.write_bytes(b"text")
    with pytest.raises(CheckpointError, match=r"maps\.safetensors is damaged, or no file of maps"):
        maps_of(images, tmp_path)
    assert path.read_bytes() == b"text"
    save_file({"weight": torch.zeros(2)}, path)
    with pytest.raises(CheckpointError, match="no file of maps"):
        maps_of(images, tmp_path)
    made = {"form": "tnet worth maps, 1", "images": fingerprint(images), "teacher": "one"}
    save_file({"maps": torch.zeros(5, 4)}, path, metadata=made)
    with pytest.raises(CheckpointError, match=r"shape \[5, 4\] instead of \[6, 4\]"):
        maps_of(images, tmp_path)


def test_a_file_that_cannot_be_written_is_known_before_the_work(tmp_path: Path, images: LabelledImages) -> None:
    def unasked(batch: Batch) -> Tensor:
        raise AssertionError

    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError):
        maps_of(images, tmp_path / "file").complete(unasked, 4, 0, progress=False)
    (tmp_path / "folder/maps.safetensors").mkdir(parents=True)
    with pytest.raises(CheckpointError, match="no file of maps"):
        maps_of(images, tmp_path / "folder")


def test_images_that_are_listed_twice_cannot_be_told_apart(tmp_path: Path, images: LabelledImages) -> None:
    with pytest.raises(ConfigError, match="several training images have the same file"):
        maps_of(images.subset([0, 1, 1], augment=None), tmp_path)


# --- training


@pytest.mark.slow
def test_a_run_measures_its_maps_once(tmp_path: Path) -> None:
    """The second run, with another seed, reads the first one's file; a run with another teacher is refused."""
    classes: dict[str, Any] = {"num_classes": 10, "class_names": tuple(map(str, range(10)))}
    save_model(TNet(tiny_config(levels=1, looks=(), **classes)), tmp_path / "teacher")
    path = tmp_path / "kept/maps.safetensors"
    guide = GuideConfig(teacher=str(tmp_path / "teacher"), by="cells", maps=str(path))
    recipe = tiny_recipe(train={"epochs": 1, "guide": guide})
    result = train(recipe, tmp_path / "one", progress=False)
    assert result.metrics[0]["train/guide"] > 0
    maps = load_file(path)["maps"]
    assert maps.shape == (40, 9) and not maps.isnan().any()
    torch.testing.assert_close(maps.sum(1), torch.zeros(40), rtol=0, atol=1e-4)
    changed = path.stat().st_mtime_ns
    train(replace(recipe, seed=1), tmp_path / "two", progress=False)
    assert path.stat().st_mtime_ns == changed
    save_model(TNet(tiny_config(levels=1, looks=(), **classes)), tmp_path / "teacher", overwrite=True)
    with pytest.raises(CheckpointError, match="maps with other teacher"):
        train(recipe, tmp_path / "three", progress=False)
    assert not (tmp_path / "three").exists() or not list((tmp_path / "three").iterdir())


def test_a_run_without_a_teacher_to_find_or_with_maps_among_the_images(tmp_path: Path) -> None:
    guide = GuideConfig(teacher=str(tmp_path / "none"))
    with pytest.raises(CheckpointError, match=r"train\.guide\.teacher is .*none, which does not exist"):
        train(tiny_recipe(train={"guide": guide}), tmp_path / "run", progress=False)
    data = {"kind": "folder", "root": str(tmp_path), "train": "images", "val": None}
    inside = replace(guide, maps=str(tmp_path / "images/maps.safetensors"))
    with pytest.raises(OutputError, match=r"give another train\.guide\.maps"):
        train(tiny_recipe(train={"guide": inside}, data=data), tmp_path / "run", progress=False)
