"""The published datasets by name, and from a recipe's data section."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from tests.fakes import make_fake

from tnet.data.annotated import AnnotatedImages
from tnet.data.augment import AugmentConfig
from tnet.data.config import DataConfig
from tnet.data.loading import eval_loader, open_data, open_split, train_loader
from tnet.data.published import PUBLISHED
from tnet.errors import ConfigError, DataError

PLACES = {"imagenet": "val", "fmow": "test", "cub": "test", "nabirds": "test"}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    for name in PUBLISHED:
        make_fake(name, folder / name, classes=3, images_per_class=4, side_px=48)
    return folder


def config(made: Path, name: str, **changes: object) -> DataConfig:
    return DataConfig(kind=name, root=str(made / name), val=PLACES[name], **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", PUBLISHED)
def test_classes_as_checkpoints_number_them(made: Path, name: str) -> None:
    numbered, ours = PUBLISHED[name].author_classes(made / name), PUBLISHED[name].read(made / name, "train").classes
    assert sorted(numbered) == sorted(ours) and (list(numbered) == ours or name == "nabirds")


@pytest.mark.parametrize("name", PUBLISHED)
def test_from_a_recipe(made: Path, name: str) -> None:
    augment = AugmentConfig(horizontal_flip=True, crop_area=(0.85, 1.0), crop_box_share=0.1)
    train, val = open_data(config(made, name, augment=augment, boxes="cover", max_side_px=40), 3, seed=1)
    assert isinstance(train, AnnotatedImages) and isinstance(val, AnnotatedImages)
    assert train.cover and not val.cover and val.augment is None and train.seed == 1
    assert (len(train), len(val)) == (12, 6) and train.classes == val.classes
    for loader in (train_loader(train, 4, 2, 0, 0, None), eval_loader(val, 4, 0)):
        for batch in loader:
            assert all(max(image.shape[1:]) <= 40 for image in batch.images)
    grey, _ = open_data(config(made, name), 1, seed=0)
    assert grey[0].image.shape[0] == 1 and not grey.cover


@pytest.mark.parametrize("name", PUBLISHED)
def test_each_box_is_a_sample(made: Path, name: str) -> None:
    train, val = open_data(config(made, name, boxes="crop", box_context=0.0), 3, seed=0)
    assert isinstance(train, AnnotatedImages) and isinstance(val, AnnotatedImages) and train.crop and val.crop
    whole, _ = open_data(config(made, name), 3, seed=0)
    assert len(train) == sum(len(boxes) for boxes in whole.boxes)
    y0, x0, y1, x1 = train.boxes[0][0].astype(int)
    image = whole[whole.paths.index(train.paths[0])].image
    assert (train[0].image == image[:, y0:y1, x0:x1]).all()


@pytest.mark.parametrize("boxes", ["none", "cover", "crop"])
def test_validation_split_off(made: Path, boxes: str) -> None:
    aside = replace(config(made, "fmow", boxes=boxes), val=None, val_fraction=0.25)
    train, val = open_data(aside, 3, seed=0)
    assert isinstance(train, AnnotatedImages) and isinstance(val, AnnotatedImages)
    assert not set(train.paths) & set(val.paths), "all boxes of an image are on one side"
    assert len(set(train.paths)) == 10 and len(set(val.paths)) == 2
    assert (train.cover, train.crop, val.crop) == (boxes == "cover", boxes == "crop", boxes == "crop")
    assert train[0].target == 0 and val[0].image.shape[0] == 3


def test_splits_by_name(made: Path) -> None:
    with pytest.raises(ConfigError, match="cub .*'val'.* train, test"):
        open_data(replace(config(made, "cub"), val="val"), 3, seed=0)
    for name, dataset in PUBLISHED.items():
        for split in {"val", "test", "Train", ""} - set(dataset.images):
            with pytest.raises(ConfigError, match=f"{name} .*'{split}'.* train, "):
                dataset.read(made / name, split)
    with pytest.raises(ConfigError, match="imagenet .*'../train'"):
        PUBLISHED["imagenet"].read(made / "imagenet", "../train")
    with pytest.raises(ConfigError, match="'mnist'"):
        PUBLISHED["mnist"]
    with pytest.raises(DataError, match=r"nowhere/cub .*data\.root"):
        open_data(config(made / "nowhere", "cub"), 3, seed=0)


@pytest.mark.parametrize("name", PUBLISHED)
def test_test_images(made: Path, name: str) -> None:
    data = replace(config(made, name), val="val" if name == "fmow" else PLACES[name])
    if name == "imagenet":
        with pytest.raises(ConfigError, match="imagenet .*'test'.* train, val"):
            open_split(data, 3, 0, "test")
    else:
        test = open_split(data, 3, 0, "test")
        others = [PUBLISHED[name].read(made / name, split).paths for split in ("test", "train")]
        assert isinstance(test, AnnotatedImages) and test.paths == others[0] != others[1]
    val = open_split(data, 3, 0, "val")
    assert isinstance(val, AnnotatedImages) and val.paths == PUBLISHED[name].read(made / name, data.val or "").paths


@pytest.mark.parametrize("name", PUBLISHED)
def test_miniatures_have_images_and_boxes_in_every_split(tmp_path: Path, name: str) -> None:
    PUBLISHED[name].write_miniature(tmp_path)
    for split in PUBLISHED[name].images:
        data = PUBLISHED[name].read(tmp_path, split)
        assert set(data.targets.tolist()) == {0, 1} and all(len(boxes) for boxes in data.boxes)
        assert data[0].image.shape == (3, 240, 300)


def test_boxes_that_do_not_fit_the_data() -> None:
    for kind in ("folder", "table", "digits"):
        with pytest.raises(ConfigError, match=rf"data\.boxes is cover.* {kind} "):
            DataConfig(kind=kind, boxes="cover")  # type: ignore[arg-type]
    for boxes, context in (("none", 0.5), ("cover", 0.5), ("crop", -0.1), ("crop", float("nan")), ("crop", 1e6)):
        with pytest.raises(ConfigError, match=r"data\.box_context"):
            DataConfig(kind="fmow", boxes=boxes, box_context=context)  # type: ignore[arg-type]


def test_registered_datasets() -> None:
    assert [(name, dataset.num_classes, sum(dataset.images.values())) for name, dataset in PUBLISHED.items()] == [
        ("imagenet", 1000, 1_331_167),
        ("fmow", 62, 470_086),
        ("cub", 200, 11_788),
        ("nabirds", 555, 48_562),
    ]
    assert all(dataset.name == name for name, dataset in PUBLISHED.items())
    with pytest.raises(ConfigError, match=r"data\.kind is 'mnist'"):
        DataConfig(kind="mnist")
