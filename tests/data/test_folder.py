"""Folders of class folders: what is listed, in which order, how it is split, and what is rejected."""

from __future__ import annotations

import hashlib
import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch.utils.data import DataLoader

from tnet.data.augment import Augment, AugmentConfig
from tnet.data.config import DataConfig
from tnet.data.folder import ImageFolder, LabelledImages, check_classes, shorten
from tnet.data.loading import number_classes_as, open_data
from tnet.data.sample import collate
from tnet.errors import ConfigError, DataError, ImageError, PassedOverWarning
from tnet.scenes.reading import ReadOptions


def put_picture(path: Path, level: int = 0, size: tuple[int, int] = (8, 6)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    levels = np.random.default_rng(level).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(levels).save(path)
    return path


def make_folder(root: Path, **counts: int) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    for name, count in counts.items():
        (root / name).mkdir()
        for index in range(count):
            put_picture(root / name / f"{index:03}.png", index)
    return root


def listed(count: int, classes: int) -> LabelledImages:
    """Without any files: for what does not open images."""
    paths = [Path(f"root/{index % classes}/{index}.png") for index in range(count)]
    return LabelledImages(paths, torch.arange(count) % classes, [str(index) for index in range(classes)])


def below(paths: list[Path], fraction: float, root: Path, split_seed: int = 0) -> set[Path]:
    """The paths whose hash, as a share of the largest possible, is below a fraction."""

    def share(path: Path) -> float:
        text = f"{split_seed}/{path.relative_to(root).as_posix()}"
        return int(hashlib.sha256(text.encode()).hexdigest()[:12], 16) / 16**12

    return {path for path in paths if share(path) < fraction}


# --- one folder


def test_folders_that_are_images(tmp_path: Path) -> None:
    for name in ("b/b.zarr/0/x", "a/deep/a.ome.zarr/x", "stray.zarr/x"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).touch()
    data = ImageFolder(tmp_path)
    assert data.classes == ["a", "b"]
    assert data.paths == [tmp_path / "a/deep/a.ome.zarr", tmp_path / "b/b.zarr"]
    with pytest.raises(DataError, match="has images but no class folders"):
        ImageFolder(tmp_path / "b")


def test_classes_targets_and_paths(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "root", zebra=1, ant=2)
    put_picture(root / "ant" / "deep" / "er" / "a.png")
    put_picture(root / "ant" / ".hidden.png")
    put_picture(root / ".thumbnails" / "a.png")
    put_picture(root / "stray.png")
    data = ImageFolder(root)
    assert data.classes == ["ant", "zebra"] and not data.multilabel and len(data) == 4
    assert data.targets.tolist() == [0, 0, 0, 1] and data.targets.dtype == torch.int64
    names = ["ant/000.png", "ant/001.png", "ant/deep/er/a.png", "zebra/000.png"]
    assert data.paths == [root / name for name in names]


SYSTEM = ["__MACOSX", "@eaDir", "$RECYCLE.BIN", "System Volume Information", "lost+found", "#recycle", "FOUND.000"]


def put_run(folder: Path) -> None:
    for name in ("overlays/a.png", "evaluation/evaluation.png", "curves.png"):
        put_picture(folder / name)
    (folder / "logs").mkdir()
    (folder / "recipe.yaml").touch()


@pytest.mark.parametrize("name", SYSTEM)
def test_folders_that_systems_make_are_no_classes(name: str, tmp_path: Path) -> None:
    for path in ("a/1.png", "b/2.png", f"{name}/3.png", f"a/{name.lower()}/4.png", ".ipynb_checkpoints/5.png"):
        put_picture(tmp_path / path)
    (tmp_path / "Thumbs.db").touch()
    with pytest.warns(PassedOverWarning, match="2 folder"):
        data = ImageFolder(tmp_path)
    assert data.classes == ["a", "b"] and data.paths == [tmp_path / "a/1.png", tmp_path / "b/2.png"]


def test_what_tnet_wrote_is_no_class(tmp_path: Path) -> None:
    for path in ("cat/1.png", "dog/2.png", "dog/3.png", "found/x.png", "found/y.png"):
        put_picture(tmp_path / path)
    put_run(tmp_path / "runs" / "pets")
    put_run(tmp_path / "one run")
    put_run(tmp_path / "dog" / "runs" / "again" / "run")
    put_run(tmp_path / "started")
    (tmp_path / "started" / "recipe.yaml").rename(tmp_path / "started" / ".tnet-claim")
    put_picture(tmp_path / "compared" / "accuracy_macs.png")
    (tmp_path / "compared" / "cache").mkdir()
    (tmp_path / "compared" / "comparison.md").touch()
    put_picture(tmp_path / "model" / "evaluation" / "evaluation.png")
    for name in ("model/config.json", "model/model.safetensors"):
        (tmp_path / name).touch()
    (tmp_path / "found" / "regions.json").write_text('[{"figure": "x.png"}, {"figure": "y.png"}]')
    (tmp_path / "dog" / "3.regions.json").write_text('[{"figure": "3.png"}]')
    for classes in (None, ["dog", "cat"]):
        with pytest.warns(PassedOverWarning, match=r"9 folder.*compared.*\.\.\."):
            data = ImageFolder(tmp_path, classes=classes)
        assert sorted(data.classes) == ["cat", "dog"]
        assert sorted(data.paths) == [tmp_path / "cat/1.png", tmp_path / "dog/2.png"]
    for name in ("cat", "dog"):
        shutil.rmtree(tmp_path / name)
    with pytest.raises(DataError, match="written by tnet or the system"):
        ImageFolder(tmp_path)


def test_a_class_with_a_file_that_looks_like_one_of_ours_is_a_class(tmp_path: Path) -> None:
    for name in ("recipe.yaml", "config.json", "comparison.md", "evaluation.csv", "results.json"):
        put_picture(tmp_path / name.split(".")[0] / "1.png")
        (tmp_path / name.split(".")[0] / name).touch()
    put_picture(tmp_path / "regions" / "1.png")
    (tmp_path / "regions" / "regions.json").write_text('{"a": [1]}')
    assert len(ImageFolder(tmp_path).classes) == 6


def test_sample_holds_image_target_and_path(tmp_path: Path) -> None:
    root = make_folder(tmp_path, a=2, b=1)
    data = ImageFolder(root)
    image, target, name = data[1]
    assert name == str(root / "a" / "001.png")
    assert target.item() == 0 and target.dtype == torch.int64 and target.shape == ()
    np.testing.assert_array_equal(image.permute(1, 2, 0).numpy(), np.asarray(Image.open(name)))
    assert data[-1].name == data[2].name == str(root / "b" / "000.png") and data[-1].target == 1
    for index in (3, -4):
        with pytest.raises(IndexError, match=f"sample {index} .*3"):
            data[index]


def test_read_options_are_used(tmp_path: Path) -> None:
    put_picture(tmp_path / "a" / "a.png", size=(40, 20))
    assert ImageFolder(tmp_path, reading=ReadOptions(channels=1, max_side_px=10))[0].image.shape == (1, 5, 10)
    with pytest.raises(ImageError, match="max_pixels=100"):
        ImageFolder(tmp_path, reading=ReadOptions(max_pixels=100))[0]


def test_given_classes_decide_the_order(tmp_path: Path) -> None:
    data = ImageFolder(make_folder(tmp_path, a=1, b=2), classes=["b", "a"])
    assert data.classes == ["b", "a"] and data.targets.tolist() == [0, 0, 1]


def test_classes_can_be_renumbered(tmp_path: Path) -> None:
    data = ImageFolder(make_folder(tmp_path, a=1, b=2, c=3))
    number_classes_as([], data)
    number_classes_as(["a", "b"], data)
    assert data.classes == ["a", "b", "c"]
    number_classes_as(["c", "a", "b"], data)
    assert data.classes == ["c", "a", "b"] and data.targets.tolist() == [1, 2, 2, 0, 0, 0]
    several = LabelledImages(data.paths[:2], torch.tensor([[1.0, 0, 0], [0, 1, 1]]), ["a", "b", "c"])
    several.order_classes(["c", "a", "b"])
    assert several.targets.tolist() == [[0, 1, 0], [1, 0, 1]]
    with pytest.raises(DataError, match="'d'"):
        several.order_classes(["c", "a", "d"])


def test_class_folders_that_are_not_those_given(tmp_path: Path) -> None:
    make_folder(tmp_path, cat=1, dog=1)
    with pytest.raises(DataError, match="2 expected .*missing: 'cow'; extra: 'dog'"):
        ImageFolder(tmp_path, classes=["cat", "cow"])
    with pytest.raises(DataError, match=r"missing: 'cow'\)"):
        ImageFolder(tmp_path, classes=["cat", "cow", "dog"])
    with pytest.raises(DataError, match=r"\(extra: 'dog'\)"):
        ImageFolder(tmp_path, classes=["cat"])


def test_folders_without_classes(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is empty"):
        ImageFolder(tmp_path)
    put_picture(tmp_path / "a.png")
    with pytest.raises(DataError, match="has images but no class folders"):
        ImageFolder(tmp_path)
    with pytest.raises(DataError, match=r"a\.png is a file"):
        ImageFolder(tmp_path / "a.png")
    with pytest.raises(DataError, match="gone"):
        ImageFolder(tmp_path / "gone")


def test_class_without_images(tmp_path: Path) -> None:
    make_folder(tmp_path, full=1, void=0)
    with pytest.raises(DataError, match="class 'void' "):
        ImageFolder(tmp_path)


def test_folder_that_may_not_be_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "iterdir", refuse)
    with pytest.raises(DataError, match="Permission denied"):
        ImageFolder(tmp_path)


@pytest.mark.parametrize(
    ("classes", "message"), [([], "is empty"), (["a", ""], "empty name at index 1"), (["a", "b", "a"], "'a' more than")]
)
def test_invalid_lists_of_classes(classes: list[str], message: str) -> None:
    with pytest.raises(DataError, match=message):
        check_classes(classes)


def test_negative_seed_is_rejected() -> None:
    with pytest.raises(ConfigError, match="seed is -1"):
        LabelledImages([], torch.zeros(0, dtype=torch.int64), ["a"], seed=-1)


def test_shorten_counts_what_it_leaves_out() -> None:
    assert shorten(["a", "b", "c"]) == "'a', 'b', 'c'"
    assert shorten(["a", "b", "c", "d", "e"], 2) == "'a', 'b' and 3 more"


# --- augmentation


def augmented(root: Path, seed: int = 0) -> ImageFolder:
    config = AugmentConfig(horizontal_flip=True, brightness=0.5, hue=0.2)
    return ImageFolder(root, augment=Augment(config), seed=seed)


def test_augmentation_depends_on_seed_epoch_and_index_only(tmp_path: Path) -> None:
    root = make_folder(tmp_path, a=1)
    for index in range(1, 4):  # the same image again
        os.link(root / "a" / "000.png", root / "a" / f"{index:03}.png")
    data = augmented(root)
    first = [data[index].image for index in range(4)]
    assert all(torch.equal(data[index].image, first[index]) for index in (3, 1, 0, 2))
    assert len({tuple(image.flatten().tolist()) for image in first}) == 4
    data.set_epoch(1)
    assert not any(torch.equal(data[index].image, first[index]) for index in range(4))
    data.set_epoch(0)
    assert torch.equal(data[-1].image, first[3])
    assert not torch.equal(augmented(root, seed=1)[0].image, first[0])


def test_workers_give_the_batches_that_the_process_itself_gives(tmp_path: Path) -> None:
    data = augmented(make_folder(tmp_path, a=3, b=4))
    for epoch in range(2):
        data.set_epoch(epoch)
        here, there = (list(DataLoader(data, 2, num_workers=workers, collate_fn=collate)) for workers in (0, 2))
        for one, other in zip(here, there, strict=True):
            assert isinstance(one.images, torch.Tensor) and isinstance(other.images, torch.Tensor)
            assert torch.equal(one.images, other.images)
            assert torch.equal(one.targets, other.targets) and one.names == other.names


def test_unreadable_image_is_named_by_a_worker(tmp_path: Path) -> None:
    data = ImageFolder(make_folder(tmp_path, a=1))
    (tmp_path / "a" / "000.png").write_bytes(b"no picture")
    batches = iter(DataLoader(data, num_workers=1, collate_fn=collate))
    with pytest.raises(ImageError, match=r"000\.png"):
        next(batches)
    batches._shutdown_workers()  # left to the garbage collector after an error, this takes PyTorch 5 seconds


def test_dataset_pickles_small_and_whole(tmp_path: Path) -> None:
    data = augmented(make_folder(tmp_path, a=2))
    again = pickle.loads(pickle.dumps(data))
    assert torch.equal(again[1].image, data[1].image) and again.classes == data.classes


# --- training and validation


def open_folders(root: Path, channels: int = 3, **options: Any) -> tuple[LabelledImages, LabelledImages]:
    config = DataConfig(root=str(root), augment=AugmentConfig(vertical_flip=True), **options)
    train, val = open_data(config, channels, seed=3)
    assert isinstance(train, LabelledImages) and isinstance(val, LabelledImages)
    return train, val


def test_split_folders_share_the_training_classes_and_only_training_is_augmented(tmp_path: Path) -> None:
    make_folder(tmp_path / "train", b=2, a=1)
    make_folder(tmp_path / "val_imagenet_val", a=1, b=1)
    train, val = open_folders(tmp_path, channels=1, val="val_imagenet_val")
    assert train.classes == val.classes == ["a", "b"]
    assert train.targets.tolist() == [0, 1, 1] and val.targets.tolist() == [0, 1]
    assert train.augment is not None and val.augment is None
    assert val[0].image.shape == train[0].image.shape == (1, 6, 8)


def test_missing_split_folder_lists_existing_ones(tmp_path: Path) -> None:
    make_folder(tmp_path / "train", a=2)
    make_folder(tmp_path / "val_imagenet_val", a=1)
    with pytest.raises(DataError, match=r"/val is missing.* \(train, val_imagenet_val\), or set val to null"):
        open_folders(tmp_path)
    with pytest.raises(DataError, match="nope is missing"):
        open_folders(tmp_path, train="nope", val="val_imagenet_val")
    with pytest.raises(DataError, match="gone"):
        open_folders(tmp_path / "gone")
    (tmp_path / "void").mkdir()
    with pytest.raises(DataError, match=r"\(none\)"):
        open_folders(tmp_path / "void")


def test_validation_classes_must_be_the_training_classes(tmp_path: Path) -> None:
    make_folder(tmp_path / "train", a=1, b=1)
    make_folder(tmp_path / "val", a=1, c=1)
    with pytest.raises(DataError, match="val .*missing: 'b'; extra: 'c'"):
        open_folders(tmp_path)


def test_validation_images_split_off_the_training_folder(tmp_path: Path) -> None:
    make_folder(tmp_path / "train", a=10, b=5)
    train, val = open_folders(tmp_path, val=None, val_fraction=0.4, max_side_px=4)
    assert set(val.paths) == below(val.paths + train.paths, 0.4, tmp_path / "train") and len(train) + len(val) == 15
    assert train.augment is not None and val.augment is None
    assert train.seed == val.seed == 3 and val[0].image.shape == (3, 3, 4)
    for part in (train, val):
        assert part.paths == sorted(part.paths)
        assert [path.parent.name for path in part.paths] == ["ab"[target] for target in part.targets.tolist()]


@given(
    counts=st.lists(st.integers(2, 30), min_size=1, max_size=5),
    fraction=st.floats(0.01, 0.99),
    split_seed=st.integers(0, 1000),
)
def test_split_is_stratified_disjoint_and_repeatable(counts: list[int], fraction: float, split_seed: int) -> None:
    targets = torch.tensor([index for index, count in enumerate(counts) for _ in range(count)])
    paths = [Path(f"r/{target}/{place}.png") for place, target in enumerate(targets.tolist())]
    data = LabelledImages(paths, targets, [str(index) for index in range(len(counts))])
    train, val = data.split_off(fraction, split_seed=split_seed)
    assert sorted(train.paths + val.paths) == sorted(paths)
    root = Path("r") if len(counts) > 1 else Path("r/0")
    wanted = below(paths, fraction, root, split_seed)
    for index, count in enumerate(counts):
        own = {path for path, target in zip(paths, targets.tolist(), strict=True) if target == index}
        held = set(val.paths) & own
        assert held == wanted & own or len(held) == count - 1 or not wanted & own
    assert val.paths and all((train.targets == index).any() for index in range(len(counts)))
    # The order of files and the place of the folder do not matter.
    order = torch.randperm(len(paths)).tolist()
    moved = LabelledImages([Path("/else/where") / paths[index] for index in order], targets[order], data.classes)
    assert {Path("/else/where") / path for path in val.paths} == set(
        moved.split_off(fraction, split_seed=split_seed)[1].paths
    )


def test_a_folder_that_grows_keeps_its_split() -> None:
    """About the fraction is split off, and what was on one side stays there when images and classes are added."""
    many = [Path(f"/data/photos/{label}/{place}.png") for label in "abc" for place in range(200)]

    def split(paths: list[Path]) -> tuple[set[Path], set[Path]]:
        targets = torch.tensor(["abc".index(path.parent.name) for path in paths])
        parts = LabelledImages(paths, targets, ["a", "b", "c"]).split_off(0.2, root=Path("/data/photos"))
        return set(parts[0].paths), set(parts[1].paths)

    train, val = split(many)
    for label in "abc":  # within three standard deviations of 40
        assert abs(sum(path.parent.name == label for path in val) - 40) < 17
    for part in (many[:40], many[:310], many[::3]):
        first_train, first_val = split(part)
        assert first_train <= train and first_val <= val


def test_another_split_seed_gives_another_split_and_the_training_seed_does_not() -> None:
    data = listed(60, 3)
    splits = [data.split_off(0.3, split_seed=seed)[1].paths for seed in range(5)]
    assert len({tuple(split) for split in splits}) == 5
    data.seed = 9
    assert data.split_off(0.3)[1].paths == splits[0]


def test_split_is_the_same_on_every_machine() -> None:
    _, val = listed(12, 2).split_off(0.34)
    assert [path.stem for path in val.paths] == ["0", "9", "10"]


def test_invalid_splits() -> None:
    for fraction in (0.0, 1.0, float("nan")):
        with pytest.raises(ConfigError, match="fraction"):
            listed(4, 1).split_off(fraction)
    with pytest.raises(DataError, match=r"class '1' .*root/1/1\.png"):
        listed(3, 2).split_off(0.5)
    with pytest.raises(DataError, match="1 images"):
        listed(1, 1).split_off(0.5)


def test_a_class_folder_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    for name in ("a", b"caf\xe9".decode("utf-8", "surrogateescape")):
        (tmp_path / name).mkdir()
        Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(tmp_path / name / "1.png")
    with pytest.raises(DataError, match=r"class 'caf\\udce9' is not UTF-8; rename"):
        ImageFolder(tmp_path)
