"""Looking at files: the right level, the right place, the right errors, and nothing read twice for nothing."""

from __future__ import annotations

import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from tests.helpers import regions
from tests.scenes.fakes import Shelf, noise
from tests.scenes.readers import make
from torch import Tensor

import tnet
from tnet.errors import ConfigError, GeometryError, ImageError, SlowImageWarning
from tnet.scenes import FileScene, Scene, SceneBatch, SceneOptions, TensorBatch, cache, open_scene
from tnet.scenes.base import Resize
from tnet.scenes.readers.base import GeoReference, ImageInfo, ReaderOptions, StoredLevel

RESIZES: tuple[Resize, ...] = ("antialias", "bilinear")
FILL = (0.2, 0.4, 1.0)


def look(scene: Scene, box: tuple[int, int, int, int], size_px: int = 8, **options: Any) -> Tensor:
    return scene.glimpse(box, size_px, **({"channels": 3, "resize": "antialias", "fill": FILL} | options))


def halves(pixels: NDArray[Any], count: int) -> list[NDArray[Any]]:
    """A pyramid of exact means of 2 x 2 pixels."""
    levels = [pixels]
    for _ in range(count - 1):
        last = levels[-1]
        levels.append(last.reshape(last.shape[0] // 2, 2, last.shape[1] // 2, 2, -1).mean((1, 3)).astype(last.dtype))
    return levels


# --- the same picture in memory and in a file


@pytest.mark.parametrize("resize", RESIZES)
@pytest.mark.parametrize("tile_hw", [(16, 16), None])
def test_a_flat_file_gives_what_a_tensor_gives(shelf: Shelf, resize: Resize, tile_hw: Any) -> None:
    pixels = noise(90, 70)
    scene = FileScene(shelf.add("a", pixels, tile_hw=tile_hw))
    tensor = TensorBatch(torch.from_numpy(pixels).permute(2, 0, 1)[None], resize, FILL)
    for box in [(0, 0, 90, 70), (-9, 5, 60, 80), (10, 10, 18, 18), (3, 2, 7, 60), (100, 0, 110, 10)]:
        for size_px in (1, 8, 31):
            expected = tensor.glimpse(regions([box]), size_px)[0]
            assert torch.equal(look(scene, box, size_px, resize=resize), expected), box


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P"])
def test_a_png_gives_what_load_image_gives(tmp_path: Path, mode: str) -> None:
    """With the real reader."""
    from tnet.scenes.decode import load_image

    image = Image.fromarray(noise(60, 50, 4)).convert(mode)
    image.save(tmp_path / "a.png")
    scene = open_scene(tmp_path / "a.png")
    for channels in (1, 3):
        tensor = TensorBatch([load_image(tmp_path / "a.png", channels=channels)], fill=0.25)
        for box in [(0, 0, 60, 50), (-9, 5, 40, 60)]:
            glimpse = look(scene, box, 16, channels=channels, fill=(0.25,))
            assert torch.equal(glimpse, tensor.glimpse(regions([box]), 16)[0])


# --- levels


@pytest.mark.parametrize(
    ("box", "size_px", "level"),
    [
        ((0, 0, 64, 64), 64, 0),
        ((0, 0, 64, 64), 33, 0),
        ((0, 0, 64, 64), 32, 1),
        ((0, 0, 64, 64), 17, 1),
        ((0, 0, 64, 64), 16, 2),
        ((0, 0, 64, 64), 3, 2),
        ((0, 0, 64, 32), 16, 1),  # the finer of the two directions
        ((0, 0, 8, 8), 20, 0),
        ((-64, -64, 128, 128), 32, 2),
    ],
)
def test_the_coarsest_level_that_is_fine_enough(
    shelf: Shelf, box: tuple[int, int, int, int], size_px: int, level: int
) -> None:
    scene = FileScene(shelf.add("a", *halves(noise(64, 64), 3)))
    assert scene.levels == ((64, 64), (32, 32), (16, 16)) and scene.size_hw == (64, 64)
    look(scene, box, size_px)
    assert {asked for asked, _ in shelf.asked} == {level} == {scene.level_for(box, size_px)}


def test_a_level_rounded_to_whole_pixels_is_fine_enough(shelf: Shelf) -> None:
    scene = FileScene(shelf.add("a", noise(2049, 2049, 1), noise(1024, 1024, 1)))
    assert scene.level_for((0, 0, 448, 448), 224) == 1  # 223.9 pixels of that level
    assert scene.level_for((0, 0, 440, 440), 224) == 0  # 219.9


def test_a_stored_picture_of_another_shape_is_not_a_level(shelf: Shelf) -> None:
    """A label or a square thumbnail among the levels: its place in the image is not what its size says."""
    downsamples = [(1.0, 1.0), (4.0, 4.0)]
    scene = FileScene(shelf.add("a", noise(64, 64), noise(8, 16), downsample_yx=downsamples))
    assert scene.level_for((0, 0, 64, 64), 4) == 0


@pytest.mark.parametrize("size_px", [4, 10])
def test_only_what_is_looked_at_is_read(shelf: Shelf, size_px: int) -> None:
    scene = FileScene(shelf.add("a", *halves(noise(256, 256), 4)))
    look(scene, (100, 60, 140, 100), size_px)
    (asked,) = shelf.asked
    assert asked == ((3, (12, 7, 18, 13)) if size_px == 4 else (2, (25, 15, 35, 25)))
    look(scene, (-40, -40, 8, 0))
    assert shelf.asked == []


# --- places: an analytic picture, linear in y and x, of which every level holds exact means


def ramp(height: int, width: int, down_y: float, down_x: float, full_hw: tuple[int, int]) -> NDArray[Any]:
    """Two channels, the place of each pixel's centre in level-0 pixels; the last pixels are cut off by the edge."""
    y0, x0 = np.arange(height) * down_y, np.arange(width) * down_x
    y = (y0 + np.minimum(y0 + down_y, full_hw[0])) / 2
    x = (x0 + np.minimum(x0 + down_x, full_hw[1])) / 2
    return np.stack(np.meshgrid(y, x, indexing="ij"), axis=-1).astype(np.float32)


PYRAMIDS = {  # full size; size and downsample of the coarse level
    "edges coincide": ((601, 403), (300, 134), (601 / 300, 403 / 134)),
    "rounded up": ((601, 403), (301, 202), (2.0, 2.0)),
    "cut off": ((601, 403), (300, 201), (2.0, 2.0)),
    "anisotropic": ((600, 400), (150, 125), (4.0, 3.2)),
}


@pytest.mark.parametrize("resize", RESIZES)
@pytest.mark.parametrize("pyramid", PYRAMIDS)
@pytest.mark.parametrize("box", [(0, 0, 601, 403), (37, 11, 298, 272), (101, 103, 150, 152), (400, 203, 600, 403)])
def test_a_glimpse_is_in_its_place_at_every_level(
    shelf: Shelf, resize: Resize, pyramid: str, box: tuple[int, int, int, int]
) -> None:
    full_hw, coarse_hw, down = PYRAMIDS[pyramid]
    full, coarse = ramp(*full_hw, 1, 1, full_hw), ramp(*coarse_hw, *down, full_hw)
    path = shelf.add("a", full, coarse, downsample_yx=[(1.0, 1.0), down])
    scene = FileScene(path, SceneOptions(value_range=(0, 1024)))
    y0, x0, y1, x1 = box = (box[0], box[1], min(box[2], full_hw[0]), min(box[3], full_hw[1]))
    size_px = 12
    assert scene.level_for(box, size_px) == 1
    glimpse = look(scene, box, size_px, channels=2, resize=resize, fill=(0.0,)).numpy() * 1024
    centres = np.arange(size_px) + 0.5
    true_y, true_x = y0 + centres * (y1 - y0) / size_px, x0 + centres * (x1 - x0) / size_px
    # Two taps are exact on a ramp; the triangle filter has no more than a tenth of a pixel of the level to go wrong,
    # because its taps are few. Half a pixel would be a shift. At the window's edge it is cut off, in memory as well.
    within = 1e-3 if resize == "bilinear" else 0.1
    inner = slice(1, -1)
    assert np.abs(glimpse[0] - true_y[:, None])[inner].max() < within * down[0]
    assert np.abs(glimpse[1] - true_x)[:, inner].max() < within * down[1]


@pytest.mark.parametrize("pyramid", PYRAMIDS)
def test_the_edge_of_the_image_is_in_its_place(shelf: Shelf, pyramid: str) -> None:
    """A white image on black: how much of a box is white is how much of it lies inside."""
    full_hw, coarse_hw, down = PYRAMIDS[pyramid]
    white = [np.full((*size, 1), 255, np.uint8) for size in (full_hw, coarse_hw)]
    scene = FileScene(shelf.add("a", *white, downsample_yx=[(1.0, 1.0), down]))
    height, width = full_hw
    for box, inside in {
        (0, 0, height, width): 1.0,
        (height - 60, 40, height + 60, 160): 0.5,
        (100, width - 30, 220, width + 90): 0.25,
        (-90, -60, 30, 60): 0.125,
        (height - 61, width - 61, height, width): 1.0,
    }.items():
        assert scene.level_for(box, 12) == 1
        glimpse = look(scene, box, 12, channels=1, fill=(0.0,))
        # The level's own pixels end with the image, or up to one of them beyond it.
        assert abs(float(glimpse.mean()) - inside) < 0.01 + 1.2 * max(down) / 120 * (inside < 1), box
        if inside == 1.0:
            assert glimpse.min() == 1.0


# --- channels, through and through


def test_transparency_types_and_bands_of_a_file(shelf: Shelf) -> None:
    clear = np.concatenate([noise(20, 20), np.zeros((20, 20, 1), np.uint8)], axis=2)
    path = shelf.add("clear", clear, color="rgb", has_alpha=True)
    assert look(FileScene(path), (2, 2, 10, 10)).eq(1).all()
    assert look(FileScene(path, SceneOptions(alpha="black")), (2, 2, 10, 10)).eq(0).all()
    deep = noise(20, 20, 3, np.uint16)
    path = shelf.add("deep", deep)
    expected = torch.from_numpy(deep[2:10, 2:10] / np.float32(65535)).permute(2, 0, 1)
    torch.testing.assert_close(look(FileScene(path), (2, 2, 10, 10)), expected)
    bands = noise(20, 20, 7)
    path = shelf.add("bands", bands)
    glimpse = look(FileScene(path, SceneOptions(bands=(6, 0, 3))), (2, 2, 10, 10))
    assert torch.equal(glimpse, torch.from_numpy(bands[2:10, 2:10, [6, 0, 3]]).permute(2, 0, 1) / 255)
    heights = FileScene(shelf.add("heights", noise(20, 20, 1, np.float32)))
    with pytest.raises(ImageError, match=r"heights holds float32 values.*value_range="):
        look(heights, (0, 0, 8, 8))


def test_what_the_file_says_is_passed_on(shelf: Shelf) -> None:
    where = GeoReference((0.5, 0, 10, 0, -0.5, 20), "EPSG:32632")
    known = {"spacing_m_yx": (5e-7, 2.5e-7), "georeference": where, "properties": {"stain": "H&E"}}
    scene = FileScene(shelf.add("a", noise(40, 40), **known))
    assert scene.spacing_m_yx == (5e-7, 2.5e-7) and scene.georeference == where
    assert scene.info.properties == {"stain": "H&E"} and scene.name == str(scene.path)


def test_it_is_a_scene(shelf: Shelf) -> None:
    scene = FileScene(shelf.add("a", noise(40, 40)))
    assert isinstance(scene, Scene) and not isinstance(scene, SceneBatch)
    assert "a" in repr(scene)
    assert shelf.opened == []  # to find out what it is
    with pytest.raises(GeometryError, match=r"box \(3, 3, 3, 9\) at 8 px is empty"):
        look(scene, (3, 3, 3, 9))


# --- what is kept, and what is not


def test_a_picture_decoded_as_a_whole_is_decoded_once(shelf: Shelf) -> None:
    scene = FileScene(shelf.add("a", *halves(noise(64, 64), 2), tile_hw=None))
    for box in [(0, 0, 40, 40), (3, 3, 20, 20), (-5, 3, 20, 20)]:
        look(scene, box, 16)
    assert shelf.asked == [(1, (0, 0, 32, 32)), (0, (0, 0, 64, 64))]
    scene.close()
    assert shelf.opened[0].closed and cache.decoded.nbytes == 0
    look(scene, (0, 0, 20, 20), 20)
    assert shelf.asked == [(0, (0, 0, 64, 64))]


def test_one_tile_is_a_picture_decoded_as_a_whole(shelf: Shelf) -> None:
    scene = FileScene(shelf.add("a", noise(64, 64), tile_hw=(64, 128)))
    look(scene, (0, 0, 8, 8)), look(scene, (8, 8, 16, 16))
    assert shelf.asked == [(0, (0, 0, 64, 64))]


def test_files_beyond_the_limit_are_closed_and_opened_again(shelf: Shelf) -> None:
    cache.readers.limit = 2
    scenes = [FileScene(shelf.add(str(index), noise(20, 20, seed=index))) for index in range(4)]
    first = [look(scene, (0, 0, 8, 8)) for scene in scenes]
    assert sum(not reader.closed for reader in shelf.opened) == 2
    assert all(torch.equal(look(scene, (0, 0, 8, 8)), seen) for scene, seen in zip(scenes, first, strict=True))
    assert len(shelf.opened) == 8


def test_stats_count_what_was_read(shelf: Shelf) -> None:
    scene = FileScene(shelf.add("a", noise(40, 40)))
    assert (scene.stats.bytes_read, scene.stats.tiles_read) == (0, 0)
    look(scene, (0, 0, 8, 8)), look(scene, (-4, -4, 4, 4))
    assert (scene.stats.bytes_read, scene.stats.tiles_read) == (64 + 16, 2)


def test_a_scene_pickles_as_its_path_and_options(shelf: Shelf) -> None:
    options = SceneOptions("pillow", ReaderOptions(series=2), (1,), "black", (0.0, 9.0))
    scene = FileScene(shelf.add("a", noise(40, 40, 1), color="grey"), SceneOptions(value_range=(0, 100)))
    seen = look(scene, (0, 0, 8, 8))
    written = pickle.dumps(scene)
    assert len(written) < 1000
    assert torch.equal(look(pickle.loads(written), (0, 0, 8, 8)), seen)
    assert pickle.loads(pickle.dumps(FileScene("b", options))).options == options


# --- what can be wrong


def test_a_file_that_vanishes_between_looks(shelf: Shelf) -> None:
    scene = FileScene(shelf.add("a", noise(40, 40), tile_hw=None))
    look(scene, (0, 0, 8, 8))
    scene.path.unlink()
    with pytest.raises(ImageError, match=r"/a cannot be read: no such file"):
        look(scene, (0, 0, 8, 8))


def test_a_file_that_is_replaced_between_looks(shelf: Shelf) -> None:
    """The picture's size, and with it all places, may be another."""
    scene = FileScene(shelf.add("a", noise(40, 40)))
    look(scene, (0, 0, 8, 8))
    shelf.add("b", noise(20, 20)).replace(scene.path)
    with pytest.raises(ImageError, match=r"/a cannot be read: it was replaced"):
        look(scene, (0, 0, 8, 8))


@pytest.mark.parametrize("wrong", [OSError("bad tile 7"), ImageError("the picture is damaged")])
def test_what_goes_wrong_deep_in_a_file_names_it(shelf: Shelf, wrong: Exception) -> None:
    scene = FileScene(shelf.add("a", noise(40, 40)))
    look(scene, (0, 0, 8, 8))
    shelf.opened[0].fails = wrong
    with pytest.raises(ImageError, match="damaged") as caught:
        look(scene, (0, 0, 8, 8))
    assert isinstance(wrong, ImageError) or str(scene.path) in str(caught.value)
    assert shelf.opened[0].closed
    look(scene, (0, 0, 8, 8))  # opened afresh, which may help where a network was the reason


@pytest.mark.parametrize("version", ["0.4", "0.5"])
@pytest.mark.parametrize("side", [64, 130])  # a level of one chunk is decoded once and kept
@pytest.mark.parametrize("only_level", [False, True])
def test_a_folder_that_is_written_again_is_another_image(
    tmp_path: Path, version: str, side: int, only_level: bool
) -> None:
    pytest.importorskip("zarr")
    path = make.ome_zarr(tmp_path / "a.zarr", [np.full((side, side, 3), 50, np.uint8)], version=version)
    old = [open_scene(path), open_scene(path)]
    assert (look(old[0], (0, 0, 8, 8)) == 50 / 255).all()
    (path / "note.txt").write_text("added beside it, which changes nothing")
    look(old[0], (0, 0, 8, 8))
    pixels = np.full((side - 20, side, 3), 90, np.uint8)
    if only_level:
        other = make.ome_zarr(tmp_path / "b.zarr", [pixels], version=version)
        shutil.rmtree(path / "0")
        shutil.copytree(other / "0", path / "0")
    else:
        make.ome_zarr(path, [pixels], version=version)
    new = open_scene(path)
    assert new.size_hw == (side - 20, side)
    assert (look(new, (0, 0, 8, 8)) == 90 / 255).all()
    for scene in old:
        with pytest.raises(ImageError, match=r"/a\.zarr cannot be read: it was replaced or modified"):
            look(scene, (0, 0, 8, 8))
    old[1].close()
    assert (look(old[1], (0, 0, 8, 8)) == 90 / 255).all()


def test_pixels_other_than_announced(shelf: Shelf) -> None:
    info = ImageInfo((StoredLevel((40, 40)),), 3, np.dtype(np.uint8), "rgb", tile_hw=(16, 16))
    scene = FileScene(shelf.add_as("a", info, [noise(40, 40, 4)]))
    with pytest.raises(ImageError, match=r"level 0 has pixels \(8, 8, 4\) of uint8 instead of \(8, 8, 3\)"):
        look(scene, (0, 0, 8, 8))


def test_missing_files_and_unsupported_formats(shelf: Shelf) -> None:
    with pytest.raises(ImageError, match="nowhere.tif cannot be read: no such file"):
        open_scene(shelf.folder / "nowhere.tif")
    (shelf.folder / "text.tif").write_text("no picture")
    with pytest.raises(ImageError, match="text.tif has an unsupported format"):
        open_scene(shelf.folder / "text.tif")
    with pytest.raises(ImageError, match="no such file"):
        _ = FileScene(shelf.folder / "nowhere.tif").size_hw
    with pytest.raises(ImageError, match="cannot be opened"):
        _ = FileScene("null\0character").size_hw


def test_a_huge_flat_picture_is_warned_about_once(shelf: Shelf) -> None:
    def huge(name: str, side: int, tile_hw: Any, *more: StoredLevel) -> FileScene:
        info = ImageInfo((StoredLevel((side, side)), *more), 1, np.dtype(np.uint8), "grey", tile_hw=tile_hw)
        return FileScene(shelf.add_as(name, info, [None]))

    scene = huge("flat", 7072, None)
    with pytest.warns(SlowImageWarning, match="7,072 x 7,072 pixels and can only be decoded as a whole.*tnet pyramid"):
        _ = scene.size_hw
    _ = scene.size_hw, scene.levels, scene.stats  # warnings are errors here
    with pytest.warns(SlowImageWarning, match="has no smaller versions"):
        _ = huge("tiled", 40_000, (256, 256)).size_hw
    _ = huge("small", 7071, None).size_hw, huge("small tiled", 31_000, (256, 256)).size_hw
    _ = huge("pyramid", 100_000, (256, 256), StoredLevel((10_000, 10_000), (10.0, 10.0))).size_hw


# --- options


def test_open_scene_takes_the_options_of_both(shelf: Shelf) -> None:
    path = shelf.add("a", noise(40, 40))
    scene = tnet.open_scene(path, alpha="black", series=1, max_pixels=10_000, value_range=(0, 9))
    assert len(shelf.opened) == 1 and isinstance(scene, tnet.FileScene)
    assert scene.options == SceneOptions(
        alpha="black", value_range=(0, 9), read=ReaderOptions(max_pixels=10_000, series=1)
    )
    both = open_scene(str(path), read=ReaderOptions(series=1), apply_icc=True)
    assert both.options.read == ReaderOptions(series=1, apply_icc=True)
    with pytest.raises(ConfigError, match="option alfa; give some of alpha, apply_icc, "):
        open_scene(path, alfa="black")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bands": ()}, r"bands is \(\)"),
        ({"bands": (0, -1)}, r"bands is \(0, -1\)"),
        ({"value_range": (1, 1)}, r"value_range is \(1, 1\)"),
        ({"value_range": (0, float("inf"))}, "value_range is"),
    ],
)
def test_invalid_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        SceneOptions(**options)


def test_opening_a_pipe_does_not_wait(tmp_path: Path) -> None:
    """With the real reader."""
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(ImageError, match="not a regular file"):
        open_scene(tmp_path / "pipe.png")
