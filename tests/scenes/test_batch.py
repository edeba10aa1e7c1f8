"""Scenes looked at together: the same whatever the number of threads and processes."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tests.helpers import pictures, regions, tiny_config
from tests.scenes.fakes import Shelf, noise
from torch import Tensor
from torch.utils.data import DataLoader

from tnet.errors import GeometryError, ImageError
from tnet.geometry import Regions, whole_images
from tnet.models.tnet import TNet
from tnet.scenes import FileScene, LazyBatch, Scene, SceneBatch, SceneOptions, TensorBatch, cache

SIZES = ((40, 60), (64, 32), (33, 33), (90, 20))
BOXES = [(0, 0, 40, 60), (-3, 5, 20, 20), (10, 0, 26, 16), (5, 5, 6, 90), (0, 0, 33, 33), (50, 2, 90, 20)]
IMAGES = [0, 0, 1, 1, 2, 3]


def scenes_on(shelf: Shelf, **info: Any) -> list[FileScene]:
    return [FileScene(shelf.add(f"{n}", noise(*size, seed=n), **info)) for n, size in enumerate(SIZES)]


def in_memory(shelf: Shelf) -> list[Tensor]:
    return [torch.from_numpy(levels[0]).permute(2, 0, 1) for _, levels, _ in shelf.pictures.values()]


@pytest.mark.parametrize("tile_hw", [(16, 16), None])
@pytest.mark.parametrize("thread_safe", [True, False])
@pytest.mark.parametrize("threads", [0, 1, 4])
def test_any_number_of_threads_gives_what_tensors_give(
    shelf: Shelf, threads: int, thread_safe: bool, tile_hw: Any
) -> None:
    scenes = scenes_on(shelf, thread_safe=thread_safe, tile_hw=tile_hw)
    batch = LazyBatch(scenes, 3, fill=(0.5,), threads=threads)
    assert isinstance(batch, SceneBatch) and batch.device == torch.device("cpu") and not batch.is_normalized
    assert batch.sizes_hw == list(SIZES)
    expected = TensorBatch(in_memory(shelf), fill=0.5)
    for where in (whole_images(SIZES), regions(BOXES, IMAGES), regions(BOXES[::-1] * 5, IMAGES[::-1] * 5)):
        assert torch.equal(batch.glimpse(where, 12), expected.glimpse(where, 12))


def test_regions_are_read_at_the_same_time(shelf: Shelf) -> None:
    together = threading.Barrier(4)

    def wait_for_the_others(window: tuple[int, int, int, int]) -> np.ndarray:
        together.wait(10)  # else: BrokenBarrierError
        return np.zeros((window[2] - window[0], window[3] - window[1], 3), np.uint8)

    path = shelf.add("a", noise(40, 40))
    shelf.pictures[path] = (shelf.pictures[path][0], [wait_for_the_others], True)
    batch = LazyBatch([FileScene(path)], 3, threads=4)
    assert not batch.glimpse(regions([(n, 0, n + 8, 8) for n in range(4)]), 8).any()


@pytest.mark.parametrize("threads", [0, 4])
def test_the_error_is_that_of_the_first_region_that_fails(shelf: Shelf, threads: int) -> None:
    scenes = scenes_on(shelf)
    batch = LazyBatch(scenes, 3, threads=threads)
    _ = batch.sizes_hw
    for reader in shelf.opened:
        if reader.path.name in "13":
            reader.fails = OSError(f"bad tile in {reader.path.name}")
    with pytest.raises(ImageError, match=r"/1 cannot be read: .*bad tile in 1"):
        batch.glimpse(regions(BOXES, IMAGES), 8)
    missing = LazyBatch([*scenes, FileScene(shelf.folder / "nowhere")], 3, threads=threads)
    with pytest.raises(ImageError, match="nowhere"):
        _ = missing.sizes_hw


def test_invalid_batches(shelf: Shelf) -> None:
    with pytest.raises(GeometryError, match="at least one scene"):
        LazyBatch([], 3)
    with pytest.raises(GeometryError, match="threads is -1"):
        LazyBatch(scenes_on(shelf), 3, threads=-1)


# --- models


def tiny(**changes: Any) -> TNet:
    torch.manual_seed(3)
    return TNet(tiny_config(**({"in_channels": 3, "mean": (0.4, 0.5, 0.6), "std": (0.2,) * 3} | changes))).eval()


@pytest.mark.parametrize("resize", ["antialias", "bilinear"])
def test_a_model_sees_in_files_what_it_sees_in_tensors(shelf: Shelf, resize: Any) -> None:
    model, scenes = tiny(resize=resize), scenes_on(shelf)
    with torch.inference_mode():
        expected = model(in_memory(shelf), looks=3)
        for asked in (scenes, LazyBatch(scenes, 3, resize, (0.4, 0.5, 0.6), threads=0)):
            output = model(asked, looks=3)
            assert torch.equal(output.logits, expected.logits)
            assert torch.equal(output.regions.at_level(1).box_l0_yxyx, expected.regions.at_level(1).box_l0_yxyx)
        single = model(scenes[1], looks=3)
    torch.testing.assert_close(single.logits, expected.logits[1:2])
    assert len(cache.readers) == len(scenes)


def test_models_wrap_scenes(shelf: Shelf) -> None:
    model, scenes = tiny(in_channels=1, mean=(0.25,), std=(0.5,), resize="bilinear"), scenes_on(shelf)
    batch = model.scene(scenes)
    assert isinstance(batch, LazyBatch)
    assert (batch.channels, batch.resize, batch.fill) == (1, "bilinear", (0.25,))
    assert model.scene(batch) is batch
    assert model.scene(scenes[0]).sizes_hw == [SIZES[0]]
    assert isinstance(model.scene(pictures((8, 8))), TensorBatch)
    with pytest.raises(ImageError, match="2 bands"):
        model(FileScene(shelf.add("two", noise(40, 40, 2))))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_glimpses_are_returned_on_the_gpu(shelf: Shelf) -> None:
    scenes, where = scenes_on(shelf), regions(BOXES, IMAGES)
    there, here = LazyBatch(scenes, 3, device="cuda"), LazyBatch(scenes, 3)
    assert there.glimpse(where, 8).device.type == "cuda"
    for _ in range(20):  # a pinned buffer that were used again too early would show
        assert torch.equal(there.glimpse(where, 8).cpu(), here.glimpse(where, 8))
    model = tiny().cuda()
    assert model.scene(scenes).device.type == "cuda" and model(scenes, looks=2).logits.device.type == "cuda"


# --- processes


def collate(scenes: Sequence[Scene], threads: int, where: Regions) -> Tensor:
    return LazyBatch(scenes, 3, threads=threads).glimpse(where, 12)


@pytest.mark.parametrize("method", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
@pytest.mark.timeout(120)
def test_workers_read_the_same_pixels(tmp_path: Path, method: str) -> None:
    """With the real reader, and with files and threads that this process has open already."""
    if method not in multiprocessing.get_all_start_methods():
        pytest.skip(f"{method} is not there")
    scenes = []
    for number in range(4):
        Image.fromarray(noise(40, 50, seed=number)).save(tmp_path / f"{number}.png")
        scenes.append(FileScene(tmp_path / f"{number}.png", SceneOptions(alpha="black")))
    where = regions([(0, 0, 40, 50), (-3, 5, 20, 20), (10, 0, 26, 16)], [0, 1, 0])
    look = partial(collate, threads=2, where=where)
    expected = [look(scenes[:2]), look(scenes[2:])]
    loader: DataLoader[Any] = DataLoader(
        scenes,  # type: ignore[arg-type]
        batch_size=2,
        num_workers=2,
        collate_fn=look,
        multiprocessing_context=method,
    )
    for seen, true in zip(loader, expected, strict=True):
        assert torch.equal(seen, true)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="nothing forks here")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_worker_opens_its_own_readers(shelf: Shelf) -> None:
    """A fake reader fails when it is used in another process than its own."""
    scenes = scenes_on(shelf)
    look = partial(collate, threads=2, where=regions(BOXES, IMAGES))
    expected = look(scenes)
    loader: DataLoader[Any] = DataLoader(
        scenes,  # type: ignore[arg-type]
        batch_size=4,
        num_workers=1,
        collate_fn=look,
        multiprocessing_context="fork",
    )
    assert torch.equal(next(iter(loader)), expected)
    assert not any(reader.closed for reader in shelf.opened)
