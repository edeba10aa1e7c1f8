"""Overviews: what they serve, that it does not depend on what is kept, and that what is kept is bounded."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.scenes.fakes import Shelf, noise
from torch import Tensor

from tnet.errors import ConfigError, ImageError, OutputError
from tnet.scenes import FileScene, Scene, SceneOptions, overview
from tnet.scenes.memory import MemoryScene
from tnet.scenes.overview import Overview, OverviewScene, OverviewStore

WHOLE = (0, 0, 200, 300)


@pytest.fixture(autouse=True)
def store(monkeypatch: pytest.MonkeyPatch) -> OverviewStore:
    """A process that keeps nothing yet."""
    made = OverviewStore()
    monkeypatch.setattr(overview, "overviews", made)
    return made


def look(scene: Scene, box: tuple[int, int, int, int] = WHOLE, size_px: int = 32, **how: Any) -> Tensor:
    return scene.glimpse(box, size_px, **({"channels": 3, "resize": "antialias", "fill": (0.5,)} | how))


def anew(path: Path, folder: Path | None = None, px: int = 64) -> OverviewScene:
    return OverviewScene(FileScene(path), px, 3, folder)


def smooth() -> Any:
    y, x = torch.meshgrid(torch.arange(200.0), torch.arange(300.0), indexing="ij")
    waves = torch.stack([torch.sin(x / 17 + y / 29), torch.cos(x / 23), torch.sin(y / 13)], dim=-1)
    return (127 + 120 * waves).round().to(torch.uint8).numpy()


# --- what is served


def test_coarse_looks_cost_one_read_in_all(shelf: Shelf) -> None:
    path = shelf.add("a", smooth())
    scene = anew(path)
    assert isinstance(scene, Scene) and scene.name == str(path)
    for box in (WHOLE, (0, 0, 100, 150), (90, 140, 200, 300), (-20, -30, 100, 150), (50, 0, 300, 300)):
        served, direct = look(scene, box), look(FileScene(path), box)
        difference = 255 * (served - direct).abs()
        assert scene.serves(box, 32) and float(difference.mean()) < 1
        # At edges, of the box or of the picture, a filter is cut off elsewhere; levels change by up to 9 a pixel here.
        assert float(difference.max()) < 9
        if box[0] >= 0 and box[2] <= 200:
            assert float(difference[:, 1:-1, 1:-1].max()) < 3
    assert scene.size_hw == (200, 300)
    _ = shelf.asked
    look(anew(path))
    look(anew(path), (0, 0, 120, 160))
    assert shelf.asked == [], "another scene of the same file"
    assert len(shelf.opened) == 1


def test_a_look_is_served_only_if_the_copy_is_as_fine_as_asked_for(shelf: Shelf) -> None:
    path = shelf.add("a", noise(200, 300))
    scene, direct = anew(path), FileScene(path)
    for box, size_px in (((0, 0, 90, 140), 32), (WHOLE, 66), ((0, 0, 200, 100), 32), ((7, 9, 23, 25), 16)):
        assert not scene.serves(box, size_px)
        assert torch.equal(look(scene, box, size_px), look(direct, box, size_px))
    for how in ({"resize": "bilinear"}, {"channels": 1}):
        assert torch.equal(look(scene, **how), look(direct, **how))
    assert scene.serves(WHOLE, 64)
    assert torch.equal(look(scene, WHOLE, 64), look(direct, WHOLE, 64)), "the copy itself"


def test_a_small_picture_gets_none(shelf: Shelf, store: OverviewStore) -> None:
    path = shelf.add("a", noise(63, 300))
    scene = anew(path)
    scene.warm()
    assert not scene.serves((0, 0, 63, 300), 1) and len(store) == 0
    assert torch.equal(look(scene, (0, 0, 63, 300)), look(FileScene(path), (0, 0, 63, 300)))


def test_what_is_kept_does_not_change_what_is_seen(shelf: Shelf, tmp_path: Path, store: OverviewStore) -> None:
    path = shelf.add("a", noise(200, 300))
    folder = tmp_path / "kept"
    first = look(anew(path, folder))
    from_memory = look(anew(path, folder))
    store._kept.clear()
    from_disk = look(anew(path, folder))
    store.budget_bytes = 0
    store._kept.clear()
    made_again = look(anew(path))
    assert all(torch.equal(first, other) for other in (from_memory, from_disk, made_again))


def test_more_than_8_bits_are_rounded(shelf: Shelf) -> None:
    path = shelf.add("a", noise(200, 300, dtype="uint16"))
    difference = look(anew(path), WHOLE, 64) - look(FileScene(path), WHOLE, 64)
    assert 0 < float(difference.abs().max()) <= 0.5001 / 255


# --- what is kept


def test_overviews_are_told_apart(shelf: Shelf, store: OverviewStore) -> None:
    path = shelf.add("a", noise(200, 300))
    other = OverviewScene(FileScene(path, SceneOptions(bands=(2, 1, 0))), 64, 3)
    scenes = [anew(path), anew(path, px=32), other, OverviewScene(FileScene(path), 64, 1)]
    for scene in scenes:
        scene.warm()
    assert len(store) == 4
    assert torch.equal(look(other), look(scenes[0]).flip(0))
    status = path.stat()
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    anew(path).warm()
    assert len(store) == 5, "the file was written again"


def test_the_store_is_bounded() -> None:
    store = OverviewStore(budget_bytes=3 * 48)
    copies = [Overview(torch.full((3, 4, 4), n, dtype=torch.uint8), ((9, 9),)) for n in range(5)]
    for number, copy in enumerate(copies[:4]):
        store.put(str(number), copy)
        store.get("0")
    assert store.nbytes == 144 and [key for key in "01234" if store.get(key) is not None] == ["0", "2", "3"]
    store.put("large", Overview(torch.zeros(3, 8, 8, dtype=torch.uint8), ((9, 9),)))
    assert len(store) == 3 and store.get("large") is None


def test_a_picture_in_memory_keeps_its_own(store: OverviewStore) -> None:
    image = torch.from_numpy(noise(200, 300)).permute(2, 0, 1)
    scene = OverviewScene(MemoryScene(image), 64, 3)
    assert torch.equal(look(scene), look(scene)) and len(store) == 0
    assert torch.equal(look(pickle.loads(pickle.dumps(scene))), look(scene))


def test_it_pickles_with_its_copy_which_the_other_process_then_keeps(shelf: Shelf, store: OverviewStore) -> None:
    path = shelf.add("a", noise(200, 300))
    scene = anew(path)
    assert len(pickle.dumps(scene)) < 1000
    expected = look(scene)
    sent = pickle.dumps(scene)
    store._kept.clear()
    _ = shelf.asked
    received = pickle.loads(sent)
    assert torch.equal(look(received), expected) and received.levels == ((200, 300),)
    assert torch.equal(look(anew(path)), expected)
    assert shelf.asked == [] and len(store) == 1 and len(shelf.opened) == 1


# --- on disk


def test_a_folder_keeps_them_between_runs(shelf: Shelf, tmp_path: Path, store: OverviewStore) -> None:
    path, folder = shelf.add("a", noise(200, 300), noise(100, 150)), tmp_path / "kept"
    expected = look(anew(path, folder))
    (file,) = (file for file in folder.rglob("*") if file.is_file())
    assert 3 * 64 * 64 < file.stat().st_size < 3 * 64 * 64 + 1000 and file.suffix == ".safetensors"
    store._kept.clear()
    _ = shelf.asked
    again = anew(path, folder)
    assert again.levels == ((200, 300), (100, 150)) and torch.equal(look(again), expected) and shelf.asked == []


@pytest.mark.parametrize("damage", [b"", b"{}", b"\xff" * 64, None, "cut", "large", "other"])
def test_a_damaged_copy_is_made_anew(shelf: Shelf, tmp_path: Path, store: OverviewStore, damage: Any) -> None:
    path, folder = shelf.add("a", noise(200, 300)), tmp_path / "kept"
    expected = look(anew(path, folder))
    (file,) = (file for file in folder.rglob("*") if file.is_file())
    sound = file.read_bytes()
    if damage == "other":
        store._kept.clear()
        anew(path, tmp_path / "small", px=32).warm()
        (small,) = (small for small in (tmp_path / "small").rglob("*") if small.is_file())
        file.write_bytes(small.read_bytes())
    elif damage is None:
        file.unlink()
        file.mkdir()
    else:
        file.write_bytes({"cut": sound[:-9], "large": sound + b"\0" * 2**17}.get(damage, damage))
    store._kept.clear()
    if damage is None:
        with pytest.raises(OutputError, match="cannot be written"):
            look(anew(path, folder))
        return
    assert torch.equal(look(anew(path, folder)), expected)
    assert file.read_bytes() == sound


def test_what_cannot_be(shelf: Shelf, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="0 px"):
        OverviewScene(FileScene(tmp_path), 0, 3)
    with pytest.raises(ImageError, match="nowhere"):
        anew(tmp_path / "nowhere").warm()
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot be written"):
        anew(shelf.add("a", noise(200, 300)), tmp_path / "file" / "kept").warm()
