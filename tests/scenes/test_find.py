"""Listing image files."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tnet.errors import DataError
from tnet.scenes.find import IMAGE_SUFFIXES, find_images, image_exists, is_image_folder, is_image_path


def test_suffixes_of_images() -> None:
    assert is_image_path("a/b.JPEG") and is_image_path(Path("x.tif"))
    assert not is_image_path("a.txt") and not is_image_path("jpg")
    assert all(suffix == suffix.lower() and suffix.startswith(".") for suffix in IMAGE_SUFFIXES)


def test_images_are_listed_in_order_at_any_depth_without_hidden_ones(tmp_path: Path) -> None:
    wanted = ["a.PNG", "b/a.jpg", "b/c/d/e.webp", "c.gif"]
    for name in [*wanted, ".hidden.png", ".thumbs/x.png", "b/._a.jpg", "notes.txt"]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    assert find_images(tmp_path) == [tmp_path / name for name in wanted]
    assert find_images(str(tmp_path / "c.gif")) == [tmp_path / "c.gif"]


def test_slides_and_image_folders_are_images(tmp_path: Path) -> None:
    for name in ("a.SVS", "b.ndpi", "c.mrxs", "c/Slidedat.ini", "c/Data0000.dat", "d.ome.zarr/0/0/0.png", "e/f.zarr/g"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    found = ["a.SVS", "b.ndpi", "c.mrxs", "d.ome.zarr", "e/f.zarr"]
    assert find_images(tmp_path) == [tmp_path / name for name in found]
    assert find_images(tmp_path / "d.ome.zarr") == [tmp_path / "d.ome.zarr"]
    (tmp_path / "file.zarr").touch()
    assert is_image_folder(tmp_path / "e/f.zarr") and not is_image_folder(tmp_path / "file.zarr")
    assert image_exists(tmp_path / "e/f.zarr") and image_exists(tmp_path / "a.SVS")
    assert not image_exists(tmp_path / "e") and not image_exists(tmp_path / "none.zarr")


def test_hidden_folder_can_be_listed_by_name(tmp_path: Path) -> None:
    path = tmp_path / ".cache" / "a.png"
    path.parent.mkdir()
    path.write_bytes(b"")
    assert find_images(tmp_path / ".cache") == [path]


def test_links_are_followed_once(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real/a.png").touch()
    (tmp_path / "real" / "back").symlink_to(tmp_path)
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "link").symlink_to(tmp_path / "real")
    found = find_images(tmp_path / "root")
    assert found == [tmp_path / "root/link/a.png"]


def test_folder_without_images_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    with pytest.raises(DataError, match=r"no images in .*\.jpeg"):
        find_images(tmp_path)
    with pytest.raises(DataError, match="does not exist"):
        find_images(tmp_path / "gone")
    with pytest.raises(DataError, match="neither a folder nor an image"):
        find_images(tmp_path / "notes.txt")


def test_folder_that_cannot_be_listed_is_not_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "locked").mkdir()
    (tmp_path / "a.png").touch()
    scandir = os.scandir

    def refuse(path: str) -> object:
        if str(path).endswith("locked"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(DataError, match=r"locked.*Permission denied"):
        find_images(tmp_path)
