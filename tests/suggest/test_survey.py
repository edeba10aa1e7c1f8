from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tnet.data.config import DataConfig
from tnet.data.loading import check_sizes, open_data
from tnet.errors import ConfigError, DataError, ImageError
from tnet.suggest.survey import Survey, find_layout, survey_images


def put(folder: Path, count: int, size: tuple[int, int] = (40, 30), mode: str = "RGB", kind: str = "png") -> None:
    """Blank pictures of a width and a height."""
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(count):
        Image.new(mode, size).save(folder / f"{mode}{index}.{kind}")


def look(path: Path) -> Survey:
    return survey_images(find_layout(path))


def put_split(root: Path, splits: Sequence[str] = ("train", "val")) -> None:
    for split in splits:
        put(root / split / "a", 3)
        put(root / split / "b", 2, (60, 50), "L")


# --- where pictures are


@pytest.mark.parametrize(
    ("names", "val"), [(("train",), None), (("train", "val"), "val"), (("train", "valid"), "valid")]
)
def test_split_folders(tmp_path: Path, names: tuple[str, ...], val: str | None) -> None:
    put_split(tmp_path, names)
    assert find_layout(tmp_path) == DataConfig(root=str(tmp_path), train="train", val=val)


def test_one_folder_a_class(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put_split(tmp_path / "photos", ("",))
    assert find_layout(tmp_path / "photos") == DataConfig(root=str(tmp_path), train="photos", val=None)
    monkeypatch.chdir(tmp_path / "photos")
    assert find_layout(".") == DataConfig(root=str(tmp_path), train="photos", val=None)
    found = look(tmp_path / "photos")
    assert (found.train_images, found.val_images, found.place) == (4, 1, str(tmp_path / "photos"))


def test_tables(tmp_path: Path) -> None:
    put(tmp_path, 4)
    (tmp_path / "train.csv").write_text("path,label\nRGB0.png,a\nRGB1.png,a\nRGB2.png,b\n")
    assert find_layout(tmp_path) == DataConfig(kind="table", root=str(tmp_path), train="train.csv", val=None)
    (tmp_path / "val.csv").write_text("path,label\nRGB3.png,a\n")
    assert find_layout(tmp_path / "train.csv").val == "val.csv"
    found = look(tmp_path)
    assert (found.classes, found.train_counts, found.val_images) == (("a", "b"), (2, 1), 1)


def test_a_table_of_several_labels(tmp_path: Path) -> None:
    put(tmp_path, 4)
    (tmp_path / "train.csv").write_text("path,label\nRGB0.png,a|b\nRGB1.png,a\nRGB2.png,b|c\nRGB3.png,a\n")
    data = find_layout(tmp_path)
    found = survey_images(DataConfig(kind="table", root=data.root, train=data.train, val=None, label_separator="|"))
    assert found.multilabel and found.train_images == 3 and sum(found.train_counts) >= 3


# --- what they are


def test_counts_sizes_and_colour(tmp_path: Path) -> None:
    put_split(tmp_path)
    found = look(tmp_path)
    assert (found.classes, found.train_counts, found.train_images, found.val_images) == (("a", "b"), (3, 2), 5, 5)
    assert len(found.images) == 10 and found.count("is_grey") == 4 and not found.count("is_lazy")
    assert found.median_hw == (30, 40) and found.smallest.size_hw == (30, 40)
    assert [found.longer_side_px(share) for share in (0, 0.5, 1)] == [40, 40, 60]
    assert found.place == str(tmp_path)


def test_pyramids_are_read_where_they_are_looked_at(tmp_path: Path) -> None:
    tifffile = pytest.importorskip("tifffile")
    put(tmp_path / "a", 1)
    (tmp_path / "b").mkdir()
    for index, bands in enumerate((5, 5)):
        levels = np.zeros((64, 96, bands), np.uint16)
        path = tmp_path / "b" / f"{index}.tif"
        tifffile.imwrite(path, levels, tile=(32, 32), photometric="minisblack", planarconfig="contig")
    put(tmp_path / "a", 2)
    found = look(tmp_path)
    facts = {picture.path.suffix: picture for picture in found.images}
    assert facts[".tif"].is_lazy and facts[".tif"].bands == 5 and facts[".tif"].size_hw == (64, 96)
    assert not facts[".tif"].is_flat and not facts[".png"].is_lazy


def test_many_pictures_are_sampled_as_training_samples_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tnet.suggest.survey._HEADERS_PER_SPLIT", 4)
    monkeypatch.setattr("tnet.data.loading._SIZES_CHECKED", 4)
    put(tmp_path / "train" / "a", 9)
    put(tmp_path / "train" / "b", 9)
    put(tmp_path / "train" / "b", 1, (10, 20), "L")
    put(tmp_path / "val" / "a", 1)
    put(tmp_path / "val" / "b", 1)
    found = look(tmp_path)
    assert len(found.images) == 5 + 2 and look(tmp_path) == found
    train, _ = open_data(found.data, 3, 0)
    base_px = min(found.smallest.size_hw)
    check_sizes(train, base_px)
    with pytest.raises(ImageError):
        check_sizes(train, base_px + 1)


# --- what is refused


def test_no_pictures(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere"):
        find_layout(tmp_path / "nowhere")
    with pytest.raises(DataError, match=re.escape(str(tmp_path))):
        look(tmp_path)
    put(tmp_path / "a", 2)
    with pytest.raises(DataError, match="'a'"):
        look(tmp_path)
    (tmp_path / "b").mkdir()
    with pytest.raises(DataError, match="'b'"):
        look(tmp_path)
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(DataError, match="notes.txt"):
        find_layout(tmp_path / "notes.txt")


def test_a_split_without_training_pictures(tmp_path: Path) -> None:
    put_split(tmp_path, ("val", "test"))
    with pytest.raises(DataError, match="'val'.*'train'"):
        find_layout(tmp_path)


def test_pictures_without_class_folders(tmp_path: Path) -> None:
    put(tmp_path, 2)
    with pytest.raises(DataError, match=re.escape(str(tmp_path))):
        look(tmp_path)


def test_pictures_that_cannot_be_read(tmp_path: Path) -> None:
    put_split(tmp_path)
    (tmp_path / "train" / "a" / "bad.jpg").write_bytes(b"no picture")
    (tmp_path / "val" / "b" / "empty.png").touch()
    with pytest.raises(DataError, match=r"2 of 12 .*bad\.jpg"):
        look(tmp_path)


def test_values_without_black_and_white(tmp_path: Path) -> None:
    put_split(tmp_path)
    Image.fromarray(np.zeros((40, 40), np.float32)).save(tmp_path / "train" / "a" / "height.tif")
    with pytest.raises(DataError, match=r"1 of 11 .*height\.tif.*float32.*data\.scene\.value_range"):
        look(tmp_path)


def test_pictures_of_kinds_that_are_not_read_are_counted(tmp_path: Path) -> None:
    put_split(tmp_path)
    assert look(tmp_path).left_out == ()
    for name in ("train/a/a.HEIC", "val/b/b.heic", "train/b/c.cr2", "train/a/notes.txt", "train/a/._d.heic"):
        (tmp_path / name).touch()
    assert look(tmp_path).left_out == ((".cr2", 1), (".heic", 2))


def test_made_images_are_not_looked_at() -> None:
    with pytest.raises(ConfigError, match=r"data\.kind is digits"):
        survey_images(DataConfig(kind="digits"))
