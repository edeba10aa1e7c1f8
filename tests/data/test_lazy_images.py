"""Images read lazily: which, that they are the same images, and that workers change nothing."""

from __future__ import annotations

import multiprocessing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from tests.helpers import tiny_config
from torch import Tensor
from torch.utils.data import DataLoader

from tnet.data.augment import AugmentConfig
from tnet.data.config import DataConfig
from tnet.data.folder import LabelledImages
from tnet.data.loading import check_sizes, eval_loader, open_data, read_options, train_loader
from tnet.data.sample import Batch, Sample, collate
from tnet.errors import ConfigError, ImageError
from tnet.evaluation.evaluator import evaluate
from tnet.models.tnet import TNet
from tnet.scenes import FileScene, Scene, SceneOptions, overview
from tnet.scenes.memory import MemoryScene
from tnet.scenes.overview import OverviewScene, OverviewStore
from tnet.scenes.transform import TransformedScene

CHANGES = AugmentConfig(horizontal_flip=True, quarter_turns=True, crop_area=(0.4, 1.0), contrast=0.3)


@pytest.fixture(autouse=True)
def store(monkeypatch: pytest.MonkeyPatch) -> OverviewStore:
    """A process that keeps no overviews yet."""
    made = OverviewStore()
    monkeypatch.setattr(overview, "overviews", made)
    return made


def put_tiled(path: Path, seed: int, size_hw: tuple[int, int] = (160, 208), channels: int = 3) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    levels = np.random.default_rng(seed).integers(0, 256, (*size_hw, channels), dtype=np.uint8)
    kind = {1: "minisblack", 3: "rgb"}.get(channels, "minisblack")
    tifffile.imwrite(path, levels, tile=(64, 64), photometric=kind, planarconfig="contig")
    return path


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of tiled TIFFs, for training and validation; not to be written to."""
    folder = tmp_path_factory.mktemp("tiled")
    for number in range(12):
        name = f"{'train' if number < 8 else 'val'}/{'ab'[number % 2]}/{number}.tif"
        put_tiled(folder / name, number, (160 + number, 208 - 3 * number))
    return folder


def lazily(root: Path, **changes: Any) -> DataConfig:
    return replace(DataConfig(root=str(root), read="lazy"), **changes)


def opened(config: DataConfig, channels: int = 3, base_px: int | None = 32) -> tuple[LabelledImages, LabelledImages]:
    train, val = open_data(config, channels, 0, base_px=base_px)
    assert isinstance(train, LabelledImages) and isinstance(val, LabelledImages)
    return train, val


def whole(scene: Scene, size_px: int = 24) -> Tensor:
    return scene.glimpse((0, 0, *scene.size_hw), size_px, channels=3, resize="antialias", fill=(0.0,))


# --- what is handed out


def test_lazy_dataset_returns_scenes(root: Path) -> None:
    train, val = opened(lazily(root, augment=CHANGES))
    assert isinstance(train[0].image, TransformedScene) and isinstance(val[0].image, OverviewScene)
    assert train[0].name == str(train.paths[0]) == train[0].image.name
    plain, _ = opened(lazily(root), base_px=None)
    assert isinstance(plain[0].image, FileScene)
    for batch in eval_loader(val, 4, 0):
        assert isinstance(batch.images, list) and all(isinstance(image, Scene) for image in batch.images)


def test_scenes_are_augmented_like_tensors(root: Path) -> None:
    """The same numbers are drawn; only how pixels are reduced and rounded differs."""
    lazy, _ = opened(lazily(root, augment=replace(CHANGES, contrast=0.0)), base_px=None)
    memory, _ = opened(lazily(root, augment=replace(CHANGES, contrast=0.0), read="memory"), base_px=None)
    for index in range(8):
        for data in (lazy, memory):
            data.set_epoch(index)
        scene, image = lazy[index].image, memory[index].image
        assert isinstance(image, Tensor) and not isinstance(scene, Tensor)
        assert scene.size_hw == tuple(image.shape[1:])
        assert float((whole(scene) - whole(MemoryScene(image))).abs().max()) <= 1.001 / 255


def test_auto_reads_large_images_lazily(root: Path) -> None:
    train, _ = opened(lazily(root, read="auto", lazy_above_px=163 * 199))
    lazy = [not isinstance(sample.image, Tensor) for sample in map(train.__getitem__, range(8))]
    sizes = [int(path.stem) for path in train.paths]
    assert lazy == [(160 + n) * (208 - 3 * n) > 163 * 199 for n in sizes] and 0 < sum(lazy) < 8
    assert not any(isinstance(s.image, Scene) for s in map(opened(DataConfig(root=str(root)))[0].__getitem__, range(8)))


def test_tensors_among_scenes_become_scenes(root: Path) -> None:
    train, _ = opened(lazily(root, read="auto", lazy_above_px=163 * 199), base_px=None)
    batch = collate([train[index] for index in range(8)])
    assert isinstance(batch.images, list) and len({type(image) for image in batch.images}) == 2
    model = TNet(tiny_config(in_channels=3, mean=(0.5,), std=(0.25,))).eval()
    memory, _ = opened(lazily(root, read="memory"))
    expected = model(collate([memory[index] for index in range(8)]).images)
    assert torch.equal(model(batch.images).feature_logits, expected.feature_logits)


def test_a_table_lists_any_files(tmp_path: Path) -> None:
    zarr = pytest.importorskip("zarr")
    put_tiled(tmp_path / "a.tif", 0)
    levels = np.random.default_rng(1).integers(0, 256, (3, 96, 120), dtype=np.uint8)
    group = zarr.open_group(tmp_path / "b.ome.zarr", mode="w", zarr_format=2)
    array = group.create_array("0", shape=levels.shape, chunks=(3, 64, 64), dtype="uint8")
    array[:] = levels
    axes = [{"name": "c", "type": "channel"}, {"name": "y", "type": "space"}, {"name": "x", "type": "space"}]
    scale = [{"type": "scale", "scale": [1.0, 1.0, 1.0]}]
    group.attrs["multiscales"] = [
        {"version": "0.4", "axes": axes, "datasets": [{"path": "0", "coordinateTransformations": scale}]}
    ]
    (tmp_path / "all.csv").write_text("path,label\na.tif,x\nb.ome.zarr,y\n")
    config = DataConfig(kind="table", root=str(tmp_path), train="all.csv", val="all.csv", lazy_above_px=10)
    train, val = opened(config)
    assert len(train) == 2 and not isinstance(train[1].image, Tensor) and train[1].image.size_hw == (96, 120)
    check_sizes(train, 96)
    with pytest.raises(ImageError, match="zarr has 120 x 96 px"):
        check_sizes(train, 97)
    found = val[1].image.glimpse((0, 0, 16, 16), 16, channels=3, resize="antialias", fill=(0.0,))  # type: ignore[union-attr]
    assert torch.equal(found, torch.from_numpy(levels[:, :16, :16]) / 255)


def test_splitting_keeps_how_images_are_read(root: Path) -> None:
    config = lazily(root, val=None, val_fraction=0.25)
    assert [type(data[0].image) for data in opened(config)] == [OverviewScene, OverviewScene]


def test_images_of_any_number_of_channels(tmp_path: Path) -> None:
    for number in range(4):
        put_tiled(tmp_path / f"{'train' if number < 2 else 'val'}/{'ab'[number % 2]}/{number}.tif", number, channels=5)
    with pytest.raises(ConfigError, match=r"model\.in_channels is 5"):
        open_data(lazily(tmp_path, read="auto"), 5, 0)
    with pytest.raises(ConfigError, match="5 channels"):
        open_data(lazily(tmp_path, augment=AugmentConfig(hue=0.1)), 5, 0)
    train, _ = opened(lazily(tmp_path, augment=AugmentConfig(vertical_flip=True)), channels=5)
    model = TNet(tiny_config(in_channels=5)).eval()
    assert model(collate([train[0], train[1]]).images).logits.shape == (2, 5)
    two, _ = opened(lazily(tmp_path, scene=SceneOptions(bands=(4, 0, 2))), base_px=None)
    expected = torch.from_numpy(tifffile.imread(two.paths[0])[:16, :16, [4, 0, 2]]).permute(2, 0, 1) / 255
    look = two[0].image.glimpse((0, 0, 16, 16), 16, channels=3, resize="antialias", fill=(0.0,))  # type: ignore[union-attr]
    assert torch.equal(look, expected)


# --- workers


def logits_of(batches: Any, model: TNet) -> list[Tensor]:
    with torch.inference_mode():
        return [model(batch.images).feature_logits for batch in batches]


@pytest.mark.parametrize("workers", [pytest.param(1, marks=pytest.mark.slow), 2])
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_workers_do_not_change_what_is_seen(root: Path, store: OverviewStore, workers: int) -> None:
    train, _ = opened(lazily(root, augment=replace(CHANGES, rotation=10.0)))
    model = TNet(tiny_config(in_channels=3)).eval()
    for epoch in range(2):
        alone = list(train_loader(train, 3, 0, 5, epoch, None))
        expected = logits_of(alone, model)
        if epoch == 0:
            store._kept.clear()
        batches = list(train_loader(train, 3, workers, 5, epoch, None))
        assert [batch.names for batch in batches] == [batch.names for batch in alone]
        assert [torch.equal(a.targets, b.targets) for a, b in zip(alone, batches, strict=True)] == [True] * 2
        if epoch == 0:
            assert len(store) == 6, "what workers have read is kept here"
        assert all(map(torch.equal, logits_of(batches, model), expected))


@pytest.mark.parametrize(
    "method",
    ["fork", pytest.param("forkserver", marks=pytest.mark.slow), pytest.param("spawn", marks=pytest.mark.slow)],
)
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_every_way_to_start_a_worker(root: Path, store: OverviewStore, method: str) -> None:
    if method not in multiprocessing.get_all_start_methods():
        pytest.skip(f"{method} is not there")
    train, _ = opened(lazily(root, augment=CHANGES))
    load = partial(DataLoader, train, 4, collate_fn=collate)  # type: ignore[arg-type]
    expected = [whole(image) for batch in load() for image in batch.images]
    store._kept.clear()
    for batch in load(num_workers=1, multiprocessing_context=method):
        for image in batch.images:
            assert torch.equal(whole(image), expected.pop(0))
    assert not expected and len(store) == 8


def test_an_unreadable_file_is_named(root: Path, tmp_path: Path) -> None:
    for name in ("train/a/0.tif", "train/b/0.tif", "val/a/1.tif", "val/b/1.tif"):
        put_tiled(tmp_path / name, 0)
    (tmp_path / "train/a/1.tif").write_bytes(b"nothing of the kind")
    train, _ = opened(lazily(tmp_path))
    with pytest.raises(ImageError, match=r"1\.tif"):
        check_sizes(train, 8)
    with pytest.raises(ImageError, match=r"1\.tif"):
        for batch in train_loader(train, 3, 0, 0, 0, None):
            TNet(tiny_config(in_channels=3))(batch.images)


# --- options, batches, evaluation


def test_options_of_reading(root: Path, tmp_path: Path) -> None:
    for wrong, message in (
        ({"max_side_px": 100}, r"data\.max_side_px is 100"),
        ({"kind": "digits"}, "data.read is lazy"),
        ({"lazy_above_px": -1}, r"data\.lazy_above_px is -1"),
        ({"overview_px": -1}, r"data\.overview_px is -1"),
    ):
        with pytest.raises(ConfigError, match=message):
            lazily(root, **wrong)
    assert read_options(lazily(root), 3).overview_px == 0, "none unless training"
    for augment, factor in (
        (AugmentConfig(), 2),
        (AugmentConfig(crop_area=(0.16, 1)), 2.5),
        (AugmentConfig(crop_area=(0.16, 1), crop_aspect=(0.64, 1)), 3.125),
        (AugmentConfig(crop_area=(0.001, 1), crop_aspect=(0.1, 9)), 4),
        (AugmentConfig(rotation=5), 3),
    ):
        assert read_options(lazily(root, augment=augment), 3, base_px=200).overview_px == 200 * factor
    assert read_options(lazily(root, overview_px=0), 3, base_px=224).overview_px == 0
    assert read_options(lazily(root, overview_px=99), 3).overview_px == 99
    assert read_options(lazily(root, read="auto", max_side_px=99), 3).mode == "memory"
    train, _ = opened(lazily(root, overview_folder=str(tmp_path / "kept")))
    list(eval_loader(train, 4, 1))
    assert len(list((tmp_path / "kept").rglob("*.safetensors"))) == 8


def test_batches_move_their_tensors_and_leave_scenes() -> None:
    image, target = torch.zeros(3, 8, 8, dtype=torch.uint8), torch.tensor(1)
    scene = MemoryScene(image)
    mixed = collate([Sample(scene, target, "a"), Sample(image, target, "b")])
    assert mixed.images[0] is scene and isinstance(mixed.images[1], MemoryScene) and mixed.images[1].name == "b"
    moved = mixed.to("meta")
    assert isinstance(moved, Batch) and moved.images[0] is scene and moved.targets.device.type == "meta"
    lists = collate([Sample(image, target, "a"), Sample(image[:, :4], target, "b")]).to(torch.device("meta"))
    assert [image.device.type for image in lists.images] == ["meta"] * 2  # type: ignore[union-attr]
    stacked = collate([Sample(image, target, "a")] * 2).to("meta")
    assert isinstance(stacked.images, Tensor) and stacked.images.device.type == "meta" and stacked.names == ["a", "a"]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_batches_are_pinned() -> None:
    image, target = torch.zeros(3, 8, 8, dtype=torch.uint8), torch.tensor(1)
    mixed = collate([Sample(MemoryScene(image), target, "a"), Sample(image, target, "b")]).pin_memory()
    assert mixed.targets.is_pinned() and isinstance(mixed.images[0], MemoryScene)
    assert collate([Sample(image, target, "a")]).pin_memory().images.is_pinned()  # type: ignore[union-attr]


def test_evaluation_on_scenes(root: Path) -> None:
    model = TNet(tiny_config(in_channels=3, num_classes=2)).eval()
    lazy, memory = (opened(lazily(root, read=read), base_px=None)[1] for read in ("lazy", "memory"))
    rows = [evaluate(model, data, looks=[0, 2], batch_size=3, progress=False) for data in (lazy, memory)]
    for one, other in zip(*rows, strict=True):
        assert one.accuracy == other.accuracy and one.confidence == pytest.approx(other.confidence, abs=1e-5)


def test_the_first_look_at_any_change_is_served(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    changes = AugmentConfig(quarter_turns=True, rotation=15, crop_area=(0.6, 1.0), crop_aspect=(0.9, 1.1), contrast=0.4)
    train, _ = opened(lazily(root, augment=changes), base_px=32)
    for image in (train[index].image for index in range(8)):
        assert not isinstance(image, Tensor)
        whole(image)
    monkeypatch.setattr(FileScene, "glimpse", lambda *_, **__: pytest.fail("the file was read"))
    for epoch in range(4):
        train.set_epoch(epoch)
        for index in range(8):
            image = train[index].image
            assert isinstance(image, TransformedScene)
            whole(image)
