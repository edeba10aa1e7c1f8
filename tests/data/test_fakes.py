"""Miniatures of the published datasets: that they can be learned from, repeated, and do no harm."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.fakes import make_fake

from tnet.data.published import PUBLISHED
from tnet.errors import ConfigError, OutputError

NAMES = ("imagenet", "fmow", "cub", "nabirds")


def digest(root: Path) -> str:
    """Of all files but MATLAB's, which carry the time of day."""
    files = sorted(path for path in root.rglob("*") if path.is_file() and path.suffix != ".mat")
    return hashlib.sha256(b"".join(str(p.relative_to(root)).encode() + p.read_bytes() for p in files)).hexdigest()


@pytest.mark.parametrize("name", NAMES)
def test_same_seed_same_files(name: str, tmp_path: Path) -> None:
    roots = [make_fake(name, tmp_path / str(n), seed=seed, classes=2, side_px=32) for n, seed in enumerate((0, 0, 1))]
    assert roots[0] == tmp_path / "0"
    assert digest(roots[0]) == digest(roots[1]) != digest(roots[2])


@pytest.mark.parametrize("name", NAMES)
def test_counts_and_sizes(name: str, tmp_path: Path) -> None:
    make_fake(name, tmp_path / "x", classes=3, images_per_class=5, side_px=40)
    for split in PUBLISHED[name].images:
        data = PUBLISHED[name].read(tmp_path / "x", split)
        assert torch.bincount(data.targets)[:3].tolist() == ([5] * 3 if split == "train" else [2] * 3)
        for sample in data:
            assert min(sample.image.shape[1:]) == 40 and max(sample.image.shape[1:]) <= 50


def test_classes_differ_inside_the_boxes_only(tmp_path: Path) -> None:
    make_fake("cub", tmp_path / "cub", classes=8, images_per_class=6, side_px=64)

    def means(split: str, inside: bool) -> tuple[np.ndarray, np.ndarray]:
        data, found = PUBLISHED["cub"].read(tmp_path / "cub", split), []
        for index, sample in enumerate(data):
            y0, x0, y1, x1 = data.boxes[index][0].astype(int)
            mask = np.zeros(sample.image.shape[1:], dtype=bool)
            mask[y0:y1, x0:x1] = True
            found.append(sample.image.numpy()[:, mask == inside].mean(1))
        return np.array(found), data.targets.numpy()

    right = {}
    for inside in (True, False):
        (train, labels), (test, truth) = means("train", inside), means("test", inside)
        centres = np.array([train[labels == label].mean(0) for label in range(8)])
        nearest = np.abs(test[:, None] - centres[None]).sum(2).argmin(1)
        right[inside] = (nearest == truth).mean()
    assert right[True] > 0.9 and right[False] < 0.5


@pytest.mark.slow
def test_all_classes_of_a_dataset(tmp_path: Path) -> None:
    make_fake("nabirds", tmp_path / "nabirds", images_per_class=1, side_px=16)
    data = PUBLISHED["nabirds"].read(tmp_path / "nabirds", "train")
    assert len(data.classes) == len(data) == 555
    assert len((tmp_path / "nabirds" / "classes.txt").read_text().splitlines()) == 1011
    assert PUBLISHED["nabirds"].check(tmp_path / "nabirds").findings == (
        "train: 555 images found, 23,929 published",
        "test: 555 images found, 24,633 published",
    )


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    make_fake("cub", tmp_path / "mine", classes=2, side_px=16)
    with pytest.raises(OutputError, match=r"mine is there already, and is not replaced"):
        make_fake("cub", tmp_path / "mine", classes=2)
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="is there already"):
        make_fake("cub", tmp_path / "file", classes=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "mine"]


def test_numbers_out_of_range(tmp_path: Path) -> None:
    for change, limits in (({"classes": 1}, "2 to 200"), ({"classes": 201}, "2 to 200"),
                           ({"images_per_class": 0}, "1 to"), ({"side_px": 8}, "16 to")):  # fmt: skip
        with pytest.raises(ConfigError, match=rf"{next(iter(change))} \d+; give {limits}"):
            make_fake("cub", tmp_path / "x", **change)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="mnist"):
        make_fake("mnist", tmp_path / "x")
    assert not (tmp_path / "x").exists()
