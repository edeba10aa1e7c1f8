from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from tests.helpers import tiny_recipe

from tnet.data.augment import AugmentConfig
from tnet.data.config import DataConfig
from tnet.data.digits import MegapixelDigits
from tnet.data.folder import LabelledImages
from tnet.data.loading import (
    EpochSampler,
    LabelledData,
    check_sizes,
    eval_loader,
    evenly,
    name_of_test_images,
    open_data,
    open_split,
    train_loader,
)
from tnet.data.sample import Batch
from tnet.errors import ConfigError, DataError, ImageError
from tnet.scenes.decode import shrunk_size

DIGITS = replace(tiny_recipe().data, digits=replace(tiny_recipe().data.digits, images_train=10, images_val=5))


def put_pictures(root: Path, count: int = 3, size: tuple[int, int] = (40, 36)) -> DataConfig:
    """Two classes of noise images, for training and validation, with strong augmentation."""
    noise = np.random.default_rng(0)
    for split in ("train", "val"):
        for name in ("a", "b"):
            (root / split / name).mkdir(parents=True)
            for index in range(count):
                levels = noise.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
                Image.fromarray(levels).save(root / split / name / f"{index}.png")
    return DataConfig(root=str(root), augment=AugmentConfig(horizontal_flip=True, brightness=0.5, crop_area=(0.5, 1)))


def batches_of(data: LabelledData, workers: int, epoch: int = 0, seed: int = 0) -> list[Batch]:
    return list(train_loader(data, 3, workers, seed, epoch, None))


def same(one: list[Batch], other: list[Batch]) -> bool:
    return len(one) == len(other) and all(
        a.names == b.names
        and torch.equal(a.targets, b.targets)
        and all(torch.equal(x, y) for x, y in zip(a.images, b.images, strict=True))
        for a, b in zip(one, other, strict=True)
    )


# --- the same batches, however they are loaded


@pytest.mark.parametrize("kind", ["digits", "folder"])
def test_workers_do_not_change_the_batches(kind: str, tmp_path: Path) -> None:
    config = DIGITS if kind == "digits" else put_pictures(tmp_path)
    data, _ = open_data(config, 1, seed=3)
    for epoch in range(2):
        assert same(batches_of(data, 0, epoch), batches_of(data, 2, epoch))
    assert not same(batches_of(data, 0, 0), batches_of(data, 0, 1))
    assert not same(batches_of(data, 0, 0), batches_of(data, 0, 0, seed=1))
    torch.manual_seed(99)
    first = batches_of(data, 0, 0)
    torch.manual_seed(5)
    assert same(first, batches_of(data, 0, 0)), "batches follow from seed and epoch, not from the global generator"


def test_augmentation_changes_with_the_epoch_and_validation_has_none(tmp_path: Path) -> None:
    train, val = open_data(put_pictures(tmp_path), 3, seed=0)

    def by_name(data: LabelledData, epoch: int) -> dict[str, torch.Tensor]:
        return {n: i for batch in batches_of(data, 0, epoch) for n, i in zip(batch.names, batch.images, strict=True)}

    zero, one = by_name(train, 0), by_name(train, 1)
    assert len(zero) == 6 and not any(torch.equal(zero[name], one[name]) for name in zero)
    for batch in eval_loader(val, 4, 0):
        for name, image in zip(batch.names, batch.images, strict=True):
            assert torch.equal(image, torch.from_numpy(np.array(Image.open(name))).permute(2, 0, 1))


def test_synthetic_digits_are_augmented_too() -> None:
    moved, val = open_data(replace(DIGITS, augment=AugmentConfig(translation=0.1)), 1, seed=0)
    plain, plain_val = open_data(DIGITS, 1, seed=0)
    zero, one, same_zero, unmoved = (
        batches_of(data, 0, epoch) for data, epoch in ((moved, 0), (moved, 1), (moved, 0), (plain, 0))
    )
    first = zero[0].images, unmoved[0].images
    assert zero[0].names == unmoved[0].names and not any(torch.equal(a, b) for a, b in zip(*first, strict=True))
    assert same(zero, same_zero) and not same(zero, one)
    assert all(torch.equal(val[i].image, plain_val[i].image) for i in range(len(val)))


def test_validation_is_whole_and_in_order() -> None:
    _, val = open_data(DIGITS, 1, seed=0)
    batches = list(eval_loader(val, 2, 0))
    assert [len(batch.names) for batch in batches] == [2, 2, 1]
    assert torch.cat([batch.targets for batch in batches]).tolist() == [int(val[i].target) for i in range(5)]


@pytest.mark.parametrize(
    ("batch_size", "per_epoch", "sizes"),
    [(3, None, [3, 3, 3]), (3, 7, [3, 3]), (16, None, [10]), (10, 10, [10]), (4, 21, [4] * 5)],
)
def test_a_last_small_batch_is_left_out_unless_it_is_the_only_one(
    batch_size: int, per_epoch: int | None, sizes: list[int]
) -> None:
    data, _ = open_data(DIGITS, 1, seed=0)
    assert [len(batch.names) for batch in train_loader(data, batch_size, 0, 0, 0, per_epoch)] == sizes


# --- the order


def seen(images: int, per_epoch: int, seed: int, epochs: int) -> list[int]:
    return [index for epoch in range(epochs) for index in EpochSampler(images, per_epoch, seed, epoch)]


@given(st.integers(1, 20), st.integers(1, 50), st.integers(0, 2**32 - 1), st.integers(1, 5))
def test_no_image_is_repeated_before_all_others(images: int, per_epoch: int, seed: int, epochs: int) -> None:
    order = seen(images, per_epoch, seed, epochs)
    assert len(order) == epochs * per_epoch == epochs * len(EpochSampler(images, per_epoch, seed, 0))
    for start in range(0, len(order), images):
        lap = order[start : start + images]
        assert len(set(lap)) == len(lap) and set(lap) <= set(range(images))


@settings(max_examples=10)
@given(st.integers(0, 2**32 - 1), st.integers(0, 1000))
def test_order_depends_on_seed_and_epoch_only(seed: int, epoch: int) -> None:
    order = list(EpochSampler(40, 40, seed, epoch))
    assert sorted(order) == list(range(40))
    torch.manual_seed(epoch)
    assert order == list(EpochSampler(40, 40, seed, epoch))
    assert order != list(EpochSampler(40, 40, seed, epoch + 1))
    assert order != list(EpochSampler(40, 40, seed + 1, epoch))


# --- opening


def test_synthetic_digits() -> None:
    train, val = open_data(DIGITS, 1, seed=0)
    assert isinstance(train, MegapixelDigits) and isinstance(val, MegapixelDigits)
    assert isinstance(train, LabelledData) and (len(train), len(val)) == (10, 5)
    assert not torch.equal(train[0].image, val[0].image)
    with pytest.raises(ConfigError, match=r"model\.in_channels is 3"):
        open_data(DIGITS, 3, seed=0)
    for none in (replace(DIGITS.digits, images_train=0), replace(DIGITS.digits, images_val=0)):
        with pytest.raises(ConfigError, match=r"images_(train|val) (is )?0\b"):
            open_data(replace(DIGITS, digits=none), 1, seed=0)


@pytest.mark.parametrize("channels", [1, 3])
def test_images_have_the_channels_of_the_model(tmp_path: Path, channels: int) -> None:
    train, val = open_data(put_pictures(tmp_path), channels, seed=0)
    assert isinstance(train, LabelledData)
    assert train[0].image.shape[0] == val[0].image.shape[0] == channels
    with pytest.raises(ConfigError, match=r"model\.in_channels is 4"):
        open_data(DataConfig(root=str(tmp_path)), 4, seed=0)


def test_validation_split_off_a_folder(tmp_path: Path) -> None:
    config = replace(put_pictures(tmp_path, count=4), val=None, val_fraction=0.25)
    train, val = open_data(config, 3, seed=0)
    assert (len(train), len(val)) == (6, 2)
    again, _ = open_data(config, 3, seed=1)
    assert isinstance(train, LabelledImages) and isinstance(again, LabelledImages) and isinstance(val, LabelledImages)
    assert train.paths == again.paths and not set(train.paths) & set(val.paths)
    assert train.augment is not None and val.augment is None


def test_tables(tmp_path: Path) -> None:
    put_pictures(tmp_path, count=2)
    names = [f"{split}/{name}/{index}.png" for split in ("train", "val") for name in "ab" for index in range(2)]
    for table, rows in (("train.csv", names[:4]), ("val.csv", names[5:])):
        lines = ["file,what", *(f"{row},{'x;y' if '/a/' in row else 'y'}" for row in rows)]
        (tmp_path / table).write_text("\n".join(lines) + "\n")
    config = DataConfig(
        kind="table", root=str(tmp_path), train="train.csv", val="val.csv", path_column="file", label_column="what"
    )
    several = replace(config, label_separator=";", augment=AugmentConfig(vertical_flip=True))
    train, val = open_data(several, 1, seed=0)
    assert train.multilabel and train.classes == val.classes == ["x", "y"] and (len(train), len(val)) == (4, 3)
    assert train[0].target.tolist() == [1, 1] and train[3].target.tolist() == [0, 1]
    assert isinstance(train, LabelledImages) and isinstance(val, LabelledImages)
    assert train.augment is not None and val.augment is None
    train, val = open_data(replace(config, val=None, val_fraction=0.5), 1, seed=0)
    assert (len(train), len(val)) == (3, 1) and train.classes == ["x;y", "y"]
    with pytest.raises(DataError, match=r"none\.csv"):
        open_data(replace(config, train="none.csv"), 1, seed=0)


def test_single_class_is_rejected_but_a_single_label_is_not(tmp_path: Path) -> None:
    config = replace(put_pictures(tmp_path), kind="table", train="all.csv", val=None, val_fraction=0.5)
    paths = sorted(path.relative_to(tmp_path) for path in (tmp_path / "train").rglob("*.png"))
    (tmp_path / "all.csv").write_text("path,label\n" + "".join(f"{path},cat\n" for path in paths))
    with pytest.raises(DataError, match=r"all\.csv .*'cat'"):
        open_data(config, 1, seed=0)
    train, _ = open_data(replace(config, label_separator=";"), 1, seed=0)
    assert train.multilabel and train.classes == ["cat"]


def test_test_images_lie_beside_the_training_images(tmp_path: Path) -> None:
    config = put_pictures(tmp_path)
    (tmp_path / "val").rename(tmp_path / "test")
    (tmp_path / "test" / "b" / "0.png").unlink()
    test = open_split(config, 3, 0, "test")
    assert isinstance(test, LabelledImages) and len(test) == 5 and test.augment is None
    assert {path.parent.parent for path in test.paths} == {tmp_path / "test"}
    with pytest.raises(DataError, match="val is missing"):
        open_split(config, 3, 0, "val")
    for name, rows in (("list.csv", ["train/a/0.png,x", "train/b/0.png,y"]), ("test.csv", ["test/b/1.png,y"])):
        (tmp_path / name).write_text("\n".join(["path,label", *rows]))
    table = DataConfig(kind="table", root=str(tmp_path), train="list.csv", val=None, val_fraction=0.5)
    assert name_of_test_images(table) == "test.csv"
    test = open_split(table, 3, 0, "test")
    assert len(test) == 1 and test[0].target == 1, "with the classes of the training images"


def test_synthetic_test_images() -> None:
    config = replace(DIGITS, digits=replace(DIGITS.digits, images_test=4))
    assert len(open_split(config, 1, 0, "val")) == 5 and len(open_split(config, 1, 0, "test")) == 4
    for split in ("val", "test"):
        with pytest.raises(ConfigError, match=r"model\.in_channels is 3"):
            open_split(config, 3, 0, split)  # type: ignore[arg-type]


# --- sizes


def test_downscaling_the_shorter_side(tmp_path: Path) -> None:
    config = replace(put_pictures(tmp_path), max_short_side_px=18, augment=AugmentConfig())  # 40 x 36
    for aside in (config, replace(config, val=None)):
        for images in open_data(aside, 3, seed=0):
            assert isinstance(images, LabelledImages) and images.reading.mode == "memory"
            assert all(sample.image.shape == (3, 18, 20) for sample in images)
            assert images.subset([0], augment=None)[0].image.shape == (3, 18, 20)
            check_sizes(images, 18)
            with pytest.raises(ImageError, match=r"20 x 18 px.* 19 px.*data\.max_short_side_px"):
                check_sizes(images, 19)
    whole, _ = open_data(replace(config, max_short_side_px=36), 3, seed=0)
    assert whole[0].image.shape == (3, 36, 40)
    with pytest.raises(ConfigError, match=r"data\.max_short_side_px is 0"):
        replace(config, max_short_side_px=0)
    with pytest.raises(ConfigError, match=r"data\.max_short_side_px is 18"):
        replace(config, read="lazy")


@given(st.integers(1, 300), st.integers(1, 300), st.integers(1, 300))
def test_downscaled_shorter_side(height: int, width: int, short_px: int) -> None:
    shown = shrunk_size((height, width), None, short_px)
    scale = min(1, short_px / min(height, width))
    assert min(shown) == min(short_px, height, width) and abs(max(shown) - max(height, width) * scale) <= 0.5
    assert shrunk_size((width, height), None, short_px) == shown[::-1]


@given(st.integers(1, 300), st.integers(1, 300), st.integers(1, 300), st.integers(1, 300))
def test_the_tighter_of_two_limits_counts(height: int, width: int, side_px: int, short_px: int) -> None:
    one = shrunk_size((height, width), side_px), shrunk_size((height, width), None, short_px)
    assert shrunk_size((height, width), side_px, short_px) == min(one)


def test_images_below_the_base_resolution_are_rejected(tmp_path: Path) -> None:
    config = put_pictures(tmp_path)  # 40 x 36
    train, _ = open_data(config, 1, seed=0)
    check_sizes(train, 36)
    with pytest.raises(ImageError, match=r"0\.png has 40 x 36 px.* 37 px.*model\.base_px"):
        check_sizes(train, 37)
    shrunk, _ = open_data(replace(config, max_side_px=20), 1, seed=0)
    check_sizes(shrunk, 18)
    with pytest.raises(ImageError, match=r"40 x 36 px.*20 x 18 px.* 19 px.*data\.max_side_px"):
        check_sizes(shrunk, 19)


def test_a_image_that_is_damaged_is_found_before_training(tmp_path: Path) -> None:
    train, _ = open_data(put_pictures(tmp_path), 1, seed=0)
    (tmp_path / "train" / "a" / "1.png").write_bytes(b"no picture")
    with pytest.raises(ImageError, match=r"1\.png"):
        check_sizes(train, 8)


def test_synthetic_images_are_not_checked() -> None:
    check_sizes(open_data(DIGITS, 1, seed=0)[0], 10**6)


def test_balanced_epochs_draw_as_many_of_each_class() -> None:
    classes = torch.tensor([0] * 90 + [1] * 9 + [2])
    drawn = [list(EpochSampler(100, 3000, 0, epoch, classes=classes)) for epoch in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    counts = classes[torch.tensor(drawn[0])].bincount()
    assert counts.sum() == 3000 and all(900 < count < 1100 for count in counts.tolist())
    assert set(drawn[0]) == set(range(100))


def test_synthetic_images_cannot_be_balanced() -> None:
    data = MegapixelDigits(tiny_recipe().data.digits, "train")
    with pytest.raises(ConfigError, match="train.balance is classes, but the images are synthetic"):
        train_loader(data, 2, 0, 0, 0, None, balanced=True)


def test_some_images_are_spread_evenly_over_all() -> None:
    data = MegapixelDigits(tiny_recipe().data.digits, "val")
    part = evenly(data, 5)
    assert len(part) == 5 and part.classes == data.classes and part.multilabel == data.multilabel
    assert [part[index].name for index in range(5)] == [data[index].name for index in (0, 3, 6, 9, 12)]
    assert isinstance(part, LabelledData) and len(evenly(data, 99)) == len(data)
    with pytest.raises(IndexError):
        part[5]
