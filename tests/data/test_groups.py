"""Groups that no split tears apart, and folds of them."""

from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path, PurePath

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tnet.data.config import DataConfig
from tnet.data.folds import write_folds
from tnet.data.groups import check_pattern, group_in_path, make_folds, shared_groups
from tnet.data.loading import open_data, open_labelled
from tnet.data.repeats import find_repeats
from tnet.errors import ConfigError, DataError


@pytest.fixture
def eyes(tmp_path: Path) -> Path:
    """Two photographs of each of 12 patients; every third patient is ill."""
    for patient in range(12):
        for side in "LR":
            path = tmp_path / "train" / ("ill" if patient % 3 == 0 else "well") / f"P{patient:02}_{side}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((8, 8), patient * 9 + ord(side), dtype=np.uint8)).save(path)
    return tmp_path


def patients(paths: list[Path]) -> set[str]:
    return {path.name.split("_")[0] for path in paths}


@pytest.mark.parametrize(
    ("pattern", "group"),
    [("GROUP_*", "P12"), ("GROUP/*", "b"), ("*_GROUP.png", "left_2"), ("GROUP/*/*", "a"), ("PGROUP_*", "12")],
)
def test_group_in_path(pattern: str, group: str) -> None:
    assert group_in_path(PurePath("a/b/P12_left_2.png"), pattern) == group


@pytest.mark.parametrize("pattern", ["GROUP-*", "QGROUP_*", "x/GROUP_*", "1/2/3/GROUP_*"])
def test_paths_that_do_not_match(pattern: str) -> None:
    with pytest.raises(DataError, match="a/b/P12_left.png does not match the pattern"):
        group_in_path(PurePath("a/b/P12_left.png"), pattern)


@pytest.mark.parametrize("pattern", ["", "*", "GROUPGROUP", "**GROUP", "*GROUP*", "GROUP" + "a" * 300])
def test_patterns_that_are_refused(pattern: str) -> None:
    with pytest.raises(ConfigError, match=r"key is .*; give one GROUP and at most one \*"):
        check_pattern(pattern, "key")


def test_a_split_keeps_groups_whole(eyes: Path) -> None:
    config = DataConfig(root=str(eyes), val=None, val_fraction=0.3, group_pattern="GROUP_*")
    train, val = open_data(config, 1, 0)
    assert len(train) + len(val) == 24 and len(val) >= 2
    assert not patients(train.paths) & patients(val.paths)  # type: ignore[attr-defined]
    torn = open_data(DataConfig(root=str(eyes), val=None, val_fraction=0.3), 1, 0)
    assert patients(torn[0].paths) & patients(torn[1].paths)  # type: ignore[attr-defined]


def test_the_side_of_a_group_does_not_change_when_others_come(eyes: Path) -> None:
    config = DataConfig(root=str(eyes), val=None, val_fraction=0.4, group_pattern="GROUP_*")
    before = patients(open_data(config, 1, 0)[1].paths)  # type: ignore[attr-defined]
    for patient in range(50, 60):
        Image.new("L", (8, 8), patient).save(eyes / f"train/well/P{patient}_L.png")
    after = patients(open_data(config, 1, 0)[1].paths)  # type: ignore[attr-defined]
    assert before <= after


def test_every_class_keeps_a_group_to_train_on(eyes: Path) -> None:
    for fraction in (0.01, 0.5, 0.99):
        config = DataConfig(root=str(eyes), val=None, val_fraction=fraction, group_pattern="GROUP_*")
        train, val = open_data(config, 1, 0)
        assert len(val) and set(train.targets.tolist()) == {0, 1}  # type: ignore[attr-defined]


def test_groups_that_cannot_be_split(tmp_path: Path) -> None:
    for name in ("a", "b"):
        for index in range(3):
            (tmp_path / "train" / name).mkdir(parents=True, exist_ok=True)
            Image.new("L", (8, 8)).save(tmp_path / f"train/{name}/{name}_{index}.png")
    config = DataConfig(root=str(tmp_path), val=None, group_pattern="GROUP_*")
    with pytest.raises(DataError, match="each with all images of a class, cannot be split in two"):
        open_data(config, 1, 0)


def table(eyes: Path, patient: str = "patient") -> Path:
    with (eyes / "all.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["path", "label", "patient"])
        for path in sorted((eyes / "train").rglob("*.png")):
            rows.writerow([path.relative_to(eyes), path.parent.name, f" {path.name.split('_')[0]} " if patient else ""])
    return eyes / "all.csv"


def test_groups_from_a_column(eyes: Path) -> None:
    config = DataConfig(kind="table", root=str(eyes), train=table(eyes).name, val=None, group_column="patient")
    train, val = open_data(config, 1, 0)
    assert not patients(train.paths) & patients(val.paths)  # type: ignore[attr-defined]
    assert train.groups == [path.name.split("_")[0] for path in train.paths]  # type: ignore[attr-defined]
    table(eyes, "")
    with pytest.raises(DataError, match="has no 'patient' in row 1; give each image a group"):
        open_data(config, 1, 0)


def test_configurations_of_groups_that_contradict(eyes: Path) -> None:
    with pytest.raises(ConfigError, match="data.group_column is 'patient', but data.kind is folder"):
        open_data(DataConfig(root=str(eyes), val=None, group_column="patient"), 1, 0)
    with pytest.raises(ConfigError, match="data.group_pattern is given too"):
        DataConfig(kind="table", group_column="patient", group_pattern="GROUP_*")
    with pytest.raises(ConfigError, match=r"data\.group_pattern is '\*'"):
        DataConfig(group_pattern="*")


def test_groups_on_both_sides_are_named(eyes: Path) -> None:
    (eyes / "val").mkdir()
    for name in ("ill", "well"):
        source = sorted((eyes / "train" / name).iterdir())
        (eyes / "val" / name).mkdir()
        for path in (source[0], source[-1]):
            path.rename(eyes / "val" / name / path.name)
    train, val = open_data(DataConfig(root=str(eyes), group_pattern="GROUP_*"), 1, 0)
    (shared, *others) = find_repeats(train, val)
    assert not others
    assert shared.startswith("4 group(s) have both training and validation images, such as 'P00'")
    assert shared_groups(["a"], ["b"]) == shared_groups(None, ["b"]) == ""


@settings(max_examples=40, deadline=None)
@given(st.data(), st.integers(2, 5), st.integers(0, 3))
def test_folds_keep_groups_whole(data: st.DataObject, folds: int, seed: int) -> None:
    groups = data.draw(st.lists(st.integers(0, 9), min_size=10, max_size=40))
    targets = torch.tensor([group % 2 for group in groups])
    try:
        found = make_folds(targets, groups, folds, seed)
    except DataError:
        counts = {target: len({g for g in groups if g % 2 == target}) for target in set(targets.tolist())}
        assert len(set(groups)) < folds or min(counts.values()) <= folds
        return
    assert all(len(set(found[np.array(groups) == group])) == 1 for group in set(groups))
    assert set(found.tolist()) <= set(range(folds))
    for fold in range(folds):
        assert set(targets[found != fold].tolist()) == set(targets.tolist())


def test_folds_are_stratified() -> None:
    targets = torch.tensor([0] * 50 + [1] * 25)
    found = make_folds(targets, None, 5, 0)
    assert Counter(zip(targets.tolist(), found.tolist(), strict=True)) == {
        (target, fold): (10, 5)[target] for target in (0, 1) for fold in range(5)
    }
    assert (make_folds(targets, None, 5, 0) == found).all() and (make_folds(targets, None, 5, 1) != found).any()
    several = torch.zeros(75, 3)
    assert Counter(make_folds(several, None, 3, 0).tolist()) == {0: 25, 1: 25, 2: 25}


@pytest.mark.parametrize(
    ("targets", "groups", "folds", "message"),
    [
        ([0, 1, 0, 1], None, 5, "5 folds of 4 images"),
        ([0, 1, 0, 1], [1, 1, 2, 2], 3, "3 folds of 2 groups"),
        ([0, 1, 0, 1], None, 1, "1 folds"),
        ([0, 0, 1, 1], [1, 2, 3, 3], 2, "class number 1 has all its images in one of the groups"),
        ([0, 0, 1], None, 2, "class number 1 has all its images in one of the images"),
    ],
)
def test_folds_that_cannot_be(targets: list[int], groups: list[int] | None, folds: int, message: str) -> None:
    with pytest.raises(DataError, match=message):
        make_folds(torch.tensor(targets), groups, folds, 0)


def test_tables_of_folds_are_read_back(eyes: Path, tmp_path: Path) -> None:
    images = open_labelled(DataConfig(root=str(eyes), group_pattern="GROUP_*"))
    numbers = write_folds(images, tmp_path / "folds", 3, seed=0)
    tested: list[Path] = []
    for fold in range(3):
        place = tmp_path / f"folds/fold-{fold}"
        config = DataConfig(
            kind="table", root=str(eyes), train=str(place / "train.csv"), val=str(place / "test.csv"),
            group_column="group",
        )  # fmt: skip
        train, test = open_data(config, 1, 0)
        assert not patients(train.paths) & patients(test.paths)  # type: ignore[attr-defined]
        tested += test.paths  # type: ignore[attr-defined]
    assert sorted(tested) == sorted(images.paths)
    with (tmp_path / "folds/folds.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["fold"]) for row in rows] == numbers.tolist()
    assert [row["group"] for row in rows] == images.groups
    with pytest.raises(ConfigError, match="data.kind is 'digits', but folds are made of images"):
        open_labelled(DataConfig(kind="digits"))
