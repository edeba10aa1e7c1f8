"""NABirds in its own layout: classes are those nodes of the tree that have images."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from tests.fakes import make_fake

from tnet.data.nabirds import NABIRDS, read_parents
from tnet.errors import DataError


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_fake("nabirds", tmp_path_factory.mktemp("made") / "nabirds", classes=5, images_per_class=2, side_px=48)


@pytest.fixture
def root(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(NABIRDS, "images", {"train": 10, "test": 5})
    monkeypatch.setattr(NABIRDS, "num_classes", 5)
    return Path(shutil.copytree(made, tmp_path / "nabirds"))


def test_classes_are_nodes_with_images(root: Path) -> None:
    train, test = NABIRDS.read(root), NABIRDS.read(root.parent, "test")
    assert len(train) == 10 and len(test) == 5 and sorted(test.targets.tolist()) == [0, 1, 2, 3, 4]
    assert train.classes == [f"Made bird {index} (Adult)" for index in range(5)] == test.classes
    assert len((root / "classes.txt").read_text().splitlines()) == 8  # the root and two families besides
    for path, target in zip(train.paths, train.targets.tolist(), strict=True):
        assert path.parent.name == f"{3 + target:04}" and path.is_file()
    assert test.boxes is not None and test.boxes[0].shape == (1, 4)
    assert read_parents(root / "hierarchy.txt") == {1: 0, 2: 0, 3: 1, 4: 2, 5: 1, 6: 2, 7: 1}


def test_the_reference_numbers_classes_as_they_first_come(root: Path) -> None:
    path = root / "images.txt"
    path.write_text("\n".join(reversed(path.read_text().splitlines())))
    labels = dict(line.split() for line in (root / "image_class_labels.txt").read_text().splitlines())
    in_turn = [labels[line.split()[0]] for line in path.read_text().splitlines()]
    names = dict(line.split(maxsplit=1) for line in (root / "classes.txt").read_text().splitlines())
    expected = [names[label] for label in dict.fromkeys(in_turn)]
    train = NABIRDS.read(root)
    assert NABIRDS.author_classes(root) == expected != train.classes and sorted(expected) == sorted(train.classes)
    before = [train.class_names[target] for target in train.targets]
    train.order_classes(expected)
    assert [train.class_names[target] for target in train.targets] == before


def test_both_splits_have_all_classes(root: Path) -> None:
    path = root / "train_test_split.txt"
    first = NABIRDS.read(root, "test").targets[0]
    keys = [line.split()[0] for line in (root / "image_class_labels.txt").read_text().splitlines()
            if line.endswith(f" {3 + int(first)}")]  # fmt: skip
    lines = [f"{key} {0 if key in keys else split}" for key, split in map(str.split, path.read_text().splitlines())]
    path.write_text("\n".join(lines))
    assert int(first) not in NABIRDS.read(root).targets.tolist()
    assert NABIRDS.read(root).classes == NABIRDS.read(root, "test").classes


def test_repeated_names(root: Path) -> None:
    path = root / "classes.txt"
    path.write_text(path.read_text().replace("Made bird 3 (Adult)", "Made bird 1 (Adult)"))
    assert NABIRDS.read(root).classes[:4] == [
        "Made bird 0 (Adult)",
        "Made bird 1 (Adult) (4)",
        "Made bird 2 (Adult)",
        "Made bird 1 (Adult) (6)",
    ]


def test_check(root: Path) -> None:
    assert NABIRDS.check(root).ok
    with (root / "hierarchy.txt").open("a") as stream:
        stream.write("0 7\n")  # a circle
    findings = NABIRDS.check(root).findings
    lost = "hierarchy.txt does not connect 5 classes to the root: '3', '4', '5' and 2 more"
    assert [finding.endswith(lost) for finding in findings] == [True]
    (root / "hierarchy.txt").write_text("3 99\n")
    (root / "sizes.txt").write_text("")
    findings = NABIRDS.check(root).findings
    assert len(findings) == 2 and "not connect 5 classes" in findings[0]
    assert any("sizes.txt lists 0 images, but images.txt 15" in finding for finding in findings)
    (root / "hierarchy.txt").write_text("3 x\n")
    assert all("hierarchy.txt has 'x' in line 1" in finding for finding in NABIRDS.check(root).findings)


def test_damaged_lists_and_missing_images(root: Path) -> None:
    NABIRDS.read(root).paths[0].unlink()
    with pytest.raises(DataError, match="1 of the 10"):
        NABIRDS.read(root)
    text = (root / "images.txt").read_text()
    (root / "images.txt").write_text(text.replace(" 0003/", " /0003/", 1))
    with pytest.raises(DataError, match=r"names the path '/0003/"):
        NABIRDS.read(root)


def test_counts_are_the_official_ones(made: Path) -> None:
    findings = NABIRDS.check(made).findings
    assert "train: 10 images found, 23,929 published" in findings
    assert "test: 5 images found, 24,633 published" in findings
    assert "train: 5 classes found, 555 published" in findings
