"""CUB-200-2011 in its own layout: the lists, and what is wrong with them."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from tests.fakes import make_fake

from tnet.data.cub import CUB
from tnet.errors import DataError
from tnet.scenes.reading import ReadOptions


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_fake("cub", tmp_path_factory.mktemp("made") / "cub", classes=3, images_per_class=4, side_px=48)


@pytest.fixture
def root(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "CUB_200_2011"))


def edit(path: Path, line: int, text: str | None) -> None:
    lines = path.read_text().splitlines()
    lines[line - 1 : line] = [] if text is None else [text]
    path.write_text("\n".join(lines) + "\n")


def test_splits_labels_and_boxes(root: Path) -> None:
    train, test = CUB.read(root), CUB.read(root.parent, "test")
    assert train.classes == ["001.Made_bird_1", "002.Made_bird_2", "003.Made_bird_3"] == test.classes
    assert train.targets.tolist() == [0] * 4 + [1] * 4 + [2] * 4 and test.targets.tolist() == [0, 0, 1, 1, 2, 2]
    assert not set(train.paths) & set(test.paths)
    line = (root / "bounding_boxes.txt").read_text().splitlines()[4]
    assert line.startswith("5 ")
    x, y, width, height = (float(value) for value in line.split()[1:])
    assert test.boxes[0].tolist() == [[y, x, y + height, x + width]]
    assert str(test.paths[0]).endswith("images/001.Made_bird_1/Made_bird_1_0005_4.jpg")
    assert (
        test[0].image.shape[0] == 3
        and CUB.read(root, reading=ReadOptions(channels=1, max_side_px=20))[0].image.shape[0] == 1
    )


def test_classes_without_images_stay_in_place(root: Path) -> None:
    (root / "classes.txt").write_text("3 c\n10 z\n2 b\n1 a\n")
    data = CUB.read(root)
    assert data.classes == ["a", "b", "c", "z"] and data.targets.tolist() == [0] * 4 + [1] * 4 + [2] * 4


@pytest.mark.parametrize(
    ("name", "line", "text", "message"),
    [
        ("images.txt", 2, "2 ../../../etc/passwd", r"images\.txt names the path '\.\./\.\./\.\./etc/passwd' in line 2"),
        ("images.txt", 3, "2 again.jpg", r"images\.txt .*'2'.* 2 and 3"),
        ("images.txt", 2, "2", r"images\.txt .*line 2"),
        ("image_class_labels.txt", 4, "4 one", r"image_class_labels\.txt .*'one' in line 4"),
        ("image_class_labels.txt", 4, "4 9", r"image_class_labels\.txt .*class 9 in line 4.*classes\.txt"),
        ("image_class_labels.txt", 4, None, r"image_class_labels\.txt .*'4' of images\.txt"),
        ("train_test_split.txt", 5, "5 2", r"train_test_split\.txt .*'2' in line 5"),
        ("bounding_boxes.txt", 6, "6 1 2 nan 4", r"line 6 of .*bounding_boxes\.txt"),
        ("bounding_boxes.txt", 6, "6 1 2 3", r"bounding_boxes\.txt .* line 6"),
        ("classes.txt", 1, "x y", r"classes\.txt .*'x' in line 1"),
    ],
)
def test_damaged_lists(root: Path, name: str, line: int, text: str | None, message: str) -> None:
    edit(root / name, line, text)
    with pytest.raises(DataError, match=message):
        CUB.read(root)


@pytest.mark.parametrize("name", ["images.txt", "classes.txt", "train_test_split.txt", "bounding_boxes.txt"])
def test_lists_that_are_missing(root: Path, name: str) -> None:
    (root / name).unlink()
    with pytest.raises(DataError, match=name):
        CUB.read(root)
    findings = CUB.check(root).findings
    assert len(findings) == 2 and all(name in finding for finding in findings)


def test_a_split_without_images(root: Path) -> None:
    path = root / "train_test_split.txt"
    path.write_text("".join(f"{line.split()[0]} 1\n" for line in path.read_text().splitlines()))
    assert len(CUB.read(root)) == 18
    with pytest.raises(DataError, match=r"train_test_split\.txt .*test split"):
        CUB.read(root, "test")
    assert any(finding.startswith("test: ") and "no image" in finding for finding in CUB.check(root).findings)


def test_missing_images(root: Path) -> None:
    for path in CUB.read(root).paths[:5]:
        path.unlink()
    with pytest.raises(DataError, match="5 of the 12 .* and 2 more"):
        CUB.read(root)
    assert len(CUB.read(root, "test")) == 6


def test_check(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CUB, "images", {"train": 12, "test": 6})
    monkeypatch.setattr(CUB, "num_classes", 3)
    summary = CUB.check(root)
    assert summary.ok and summary.findings == () and summary.text().endswith("complete")
    assert [(split.name, split.images, split.classes, split.missing) for split in summary.splits] == [
        ("train", 12, 3, 0),
        ("test", 6, 3, 0),
    ]
    paths = CUB.read(root).paths
    paths[0].unlink()
    paths[1].write_bytes(b"")
    edit(root / "images.txt", 18, None)
    summary = CUB.check(root)
    assert not summary.ok and len(summary.findings) == 2
    assert "2 images are missing or empty: 'images/001.Made_bird_1/Made_bird_1_0001_0.jpg'" in summary.findings[0]
    assert summary.findings[1] == "test: 5 images found, 6 published"
    assert summary.splits[0].missing == 2 and np.sum([split.images for split in summary.splits]) == 17


def test_counts_are_the_official_ones(root: Path) -> None:
    findings = CUB.check(root).findings
    assert "train: 12 images found, 5,994 published" in findings
    assert "test: 6 images found, 5,794 published" in findings
    assert "test: 3 classes found, 200 published" in findings
    with pytest.raises(DataError, match="nowhere"):
        CUB.check(root / "nowhere")
