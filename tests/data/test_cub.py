"""CUB-200-2011 in its own layout: the lists, and what is wrong with them."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from tnet.data.cub import check_cub, open_cub
from tnet.data.fakes import make_fake
from tnet.errors import DataError


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
    train, test = open_cub(root), open_cub(root.parent, "test")
    assert train.classes == ["001.Made_bird_1", "002.Made_bird_2", "003.Made_bird_3"] == test.classes
    assert train.targets.tolist() == [0] * 4 + [1] * 4 + [2] * 4 and test.targets.tolist() == [0, 0, 1, 1, 2, 2]
    assert not set(train.paths) & set(test.paths)
    line = (root / "bounding_boxes.txt").read_text().splitlines()[4]
    assert line.startswith("5 ")
    x, y, width, height = (float(value) for value in line.split()[1:])
    assert test.boxes[0].tolist() == [[y, x, y + height, x + width]]
    assert str(test.paths[0]).endswith("images/001.Made_bird_1/Made_bird_1_0005_4.jpg")
    assert test[0].image.shape[0] == 3 and open_cub(root, channels=1, max_side_px=20)[0].image.shape[0] == 1


def test_classes_without_pictures_stay_in_place(root: Path) -> None:
    (root / "classes.txt").write_text("3 c\n10 z\n2 b\n1 a\n")
    data = open_cub(root)
    assert data.classes == ["a", "b", "c", "z"] and data.targets.tolist() == [0] * 4 + [1] * 4 + [2] * 4


@pytest.mark.parametrize(
    ("name", "line", "text", "message"),
    [
        ("images.txt", 2, "2 ../../../etc/passwd", r"images\.txt names the path '\.\./\.\./\.\./etc/passwd' in line 2"),
        ("images.txt", 3, "2 again.jpg", r"images\.txt has '2' in lines 2 and 3"),
        ("images.txt", 2, "2", r"images\.txt has 1 values in line 2"),
        ("image_class_labels.txt", 4, "4 one", r"image_class_labels\.txt has 'one' in line 4 where a whole number"),
        (
            "image_class_labels.txt",
            4,
            "4 9",
            r"image_class_labels\.txt has class 9 in line 4, which .*classes\.txt lacks",
        ),
        ("image_class_labels.txt", 4, None, r"image_class_labels\.txt has no line for picture 4 of images\.txt"),
        ("train_test_split.txt", 5, "5 2", r"train_test_split\.txt has '2' in line 5; it must be 1 or 0"),
        ("bounding_boxes.txt", 6, "6 1 2 nan 4", r"Line 6 of .*bounding_boxes\.txt is no box"),
        ("bounding_boxes.txt", 6, "6 1 2 3", r"bounding_boxes\.txt has 4 values in line 6 .* needs 5"),
        ("classes.txt", 1, "x y", r"classes\.txt has 'x' in line 1"),
    ],
)
def test_damaged_lists(root: Path, name: str, line: int, text: str | None, message: str) -> None:
    edit(root / name, line, text)
    with pytest.raises(DataError, match=message):
        open_cub(root)


@pytest.mark.parametrize("name", ["images.txt", "classes.txt", "train_test_split.txt", "bounding_boxes.txt"])
def test_lists_that_are_missing(root: Path, name: str) -> None:
    (root / name).unlink()
    with pytest.raises(DataError, match=rf"{name} is missing; fetch it again"):
        open_cub(root)
    findings = check_cub(root).findings
    assert len(findings) == 2 and all(name in finding for finding in findings)


def test_a_split_without_pictures(root: Path) -> None:
    path = root / "train_test_split.txt"
    path.write_text("".join(f"{line.split()[0]} 1\n" for line in path.read_text().splitlines()))
    assert len(open_cub(root)) == 18
    with pytest.raises(DataError, match=r"train_test_split\.txt has no picture of the test split; fetch it again"):
        open_cub(root, "test")
    assert any(finding.startswith("test: ") and "no picture" in finding for finding in check_cub(root).findings)


def test_missing_pictures(root: Path) -> None:
    for path in open_cub(root).paths[:5]:
        path.unlink()
    with pytest.raises(DataError, match=r"5 pictures \(of 12\) .* and 2 more; restore them"):
        open_cub(root)
    assert len(open_cub(root, "test")) == 6


def test_check(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tnet.data.cub.OFFICIAL", {"train": 12, "test": 6})
    monkeypatch.setattr("tnet.data.cub.CLASSES", 3)
    summary = check_cub(root)
    assert summary.ok and summary.findings == () and summary.text().endswith("complete")
    assert [(split.name, split.images, split.classes, split.missing) for split in summary.splits] == [
        ("train", 12, 3, 0),
        ("test", 6, 3, 0),
    ]
    paths = open_cub(root).paths
    paths[0].unlink()
    paths[1].write_bytes(b"")
    edit(root / "images.txt", 18, None)
    summary = check_cub(root)
    assert not summary.ok and len(summary.findings) == 2
    assert "2 pictures are missing or empty: 'images/001.Made_bird_1/Made_bird_1_0001_0.jpg'" in summary.findings[0]
    assert summary.findings[1] == "test: there are 5 pictures, but 6 were published."
    assert summary.splits[0].missing == 2 and np.sum([split.images for split in summary.splits]) == 17


def test_counts_are_the_official_ones(root: Path) -> None:
    findings = check_cub(root).findings
    assert "train: there are 12 pictures, but 5,994 were published." in findings
    assert "test: there are 6 pictures, but 5,794 were published." in findings
    assert "test: there are 3 classes, but 200 were published." in findings
    with pytest.raises(DataError, match="does not exist"):
        check_cub(root / "nowhere")
