"""Tiles, thumbnails and descriptions of images."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image
from tests.view.conftest import HOSTILE, Viewer, noise

from tnet.models import TNet
from tnet.scenes import FileScene, SceneOptions
from tnet.scenes.reading import ReadOptions
from tnet.view.tiles import level_size, max_level


def picture(viewer: Viewer, address: str, **query: object) -> np.ndarray:
    answer = viewer.client.get(address, params=query)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "image/jpeg"
    return np.asarray(Image.open(io.BytesIO(answer.content)).convert("RGB")).astype(float)


@pytest.mark.parametrize(
    ("size_hw", "level", "sizes"),
    [((1, 1), 0, {0: (1, 1)}), ((700, 1100), 11, {11: (700, 1100), 10: (350, 550), 9: (175, 275), 0: (1, 1)})],
)
def test_levels(size_hw: tuple[int, int], level: int, sizes: dict[int, tuple[int, int]]) -> None:
    assert max_level(size_hw) == level
    assert {at: level_size(size_hw, at) for at in sizes} == sizes


@pytest.mark.parametrize("level", [11, 10, 8])
def test_tiles_are_the_image(shared: Viewer, pixels: np.ndarray, level: int) -> None:
    scale = 2 ** (11 - level)
    height, width = -(-700 // scale), -(-1100 // scale)
    whole = np.zeros((height, width, 3))
    for row in range(-(-height // 256)):
        for col in range(-(-width // 256)):
            tile = picture(shared, "/api/tile", path="slide.tif", level=level, col=col, row=row)
            assert tile.shape[:2] == (min(256, height - 256 * row), min(256, width - 256 * col))
            whole[256 * row : 256 * row + 256, 256 * col : 256 * col + 256] = tile
    expected = Image.fromarray(pixels).resize((width, height), Image.Resampling.BILINEAR)
    difference = np.abs(whole - saved(expected))
    assert difference.mean() < 2.5 and difference.max() < 40


def saved(image: Image.Image) -> np.ndarray:
    """An image as it comes out of a JPEG."""
    file = io.BytesIO()
    image.save(file, "JPEG", quality=85)
    return np.asarray(Image.open(file)).astype(float)


def test_a_narrow_image(shared: Viewer) -> None:
    tall = noise(300, 80, 5).astype(float)
    full = picture(shared, "/api/tile", path="bee/tall.png", level=9, col=0, row=0)
    assert full.shape == (256, 80, 3) and np.abs(full - tall[:256]).mean() < 2
    half = picture(shared, "/api/tile", path="bee/tall.png", level=8, col=0, row=0)
    assert half.shape == (150, 40, 3)
    assert np.abs(half - tall.reshape(150, 2, 40, 2, 3).mean((1, 3))).mean() < 3
    assert picture(shared, "/api/tile", path="bee/tall.png", level=0, col=0, row=0).shape == (1, 1, 3)


def test_thumbnails(shared: Viewer, pixels: np.ndarray) -> None:
    thumb = picture(shared, "/api/thumb", path="slide.tif")
    assert thumb.shape == (102, 160, 3)
    assert np.abs(thumb.mean((0, 1)) - pixels.mean((0, 1))).max() < 2
    assert picture(shared, "/api/thumb", path="bee/tall.png").shape == (160, 43, 3)
    assert picture(shared, "/api/thumb", path=HOSTILE).shape == (90, 120, 3)


def test_pictures_are_cached_by_the_browser(shared: Viewer, root: Path) -> None:
    file = root / "cached.png"
    file.write_bytes((root / "ant" / "image1.png").read_bytes())
    query = {"path": "cached.png", "level": 0, "col": 0, "row": 0}
    first = shared.client.get("/api/tile", params=query)
    assert first.headers["cache-control"] == "private, max-age=3600"
    tag = {"if-none-match": first.headers["etag"]}
    assert shared.client.get("/api/tile", params=query, headers=tag).status_code == 304
    assert shared.client.get("/api/tile", params={**query, "level": 1}, headers=tag).status_code == 200
    file.write_bytes((root / "ant" / "image2.png").read_bytes())
    assert shared.client.get("/api/tile", params=query, headers=tag).status_code == 200
    file.unlink()
    assert shared.client.get("/api/tile", params=query, headers=tag).status_code == 404


@pytest.mark.parametrize(
    ("query", "status"),
    [
        ({"level": 12}, 404), ({"level": 11, "col": 5}, 404), ({"level": 11, "row": 3}, 404), ({"level": -1}, 400),
        ({"col": -1}, 400), ({"row": "x"}, 400), ({"level": 1.5}, 400), ({"level": 2**63}, 400), ({"col": 2**200}, 400),
        ({"row": ""}, 400), ({"level": "\u0661"}, 400),
    ],
)  # fmt: skip
def test_tiles_out_of_range(shared: Viewer, query: dict[str, object], status: int) -> None:
    answer = shared.client.get("/api/tile", params={"path": "slide.tif", "level": 0, "col": 0, "row": 0} | query)
    assert answer.status_code == status
    assert answer.json()["error"]


def test_descriptions(shared: Viewer) -> None:
    about = shared.get("/api/image", path="slide.tif")
    assert (about["width"], about["height"], about["max_level"], about["tile_px"]) == (1100, 700, 11, 256)
    assert about["spacing"] is None and about["geo"] is None
    assert about["label"] is None and about["typed_label"] is None
    assert shared.get("/api/image", path="ant/image1.png")["format"] == "PNG"


def test_scales_and_maps(model: TNet, root: Path, tmp_path: Path) -> None:
    rasterio = pytest.importorskip("rasterio")
    from rasterio.transform import Affine

    tifffile.imwrite(tmp_path / "cells.tif", noise(64, 64), resolution=(20000, 10000), resolutionunit="CENTIMETER")
    for name, crs, size in (("field", "EPSG:32618", 10.0), ("world", "EPSG:4326", 0.01)):
        form = {"driver": "GTiff", "height": 64, "width": 64, "count": 3, "dtype": "uint8", "crs": crs}
        with rasterio.open(tmp_path / f"{name}.tif", "w", transform=Affine(size, 0, 5, 0, -size, 9), **form) as file:
            file.write(np.moveaxis(noise(64, 64), 2, 0))
    viewer = Viewer(model, tmp_path)
    assert viewer.get("/api/image", path="cells.tif")["spacing"] == pytest.approx({"y": 1.0, "x": 0.5, "unit": "um"})
    field = viewer.get("/api/image", path="field.tif")
    assert field["spacing"] == {"y": 10.0, "x": 10.0, "unit": "m"}
    assert field["geo"] == {"crs": "EPSG:32618", "transform": [10.0, 0, 5, 0, -10.0, 9]}
    world = viewer.get("/api/image", path="world.tif")
    assert world["spacing"] == {"y": 0.01, "x": 0.01, "unit": "deg"}


def test_bands_and_ranges(model: TNet, tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 4000, (2, 64, 64), np.uint16)
    tifffile.imwrite(tmp_path / "two.tif", values, planarconfig="separate", photometric="minisblack")
    tifffile.imwrite(tmp_path / "real.tif", values[0].astype(np.float32))
    query = {"level": 6, "col": 0, "row": 0}
    plain = Viewer(model, tmp_path)
    assert picture(plain, "/api/tile", path="two.tif", **query).mean() < 10  # the first band, in 16 bits
    answer = plain.client.get("/api/tile", params={"path": "real.tif", **query})
    assert answer.status_code == 422 and "--value-range" in answer.json()["error"]
    options = SceneOptions(value_range=(0, 4000), bands=(0,))
    ranged = Viewer(model, tmp_path, read=ReadOptions("lazy", scene=options))
    for name in ("two.tif", "real.tif"):
        shown = picture(ranged, "/api/tile", path=name, **query)
        assert np.abs(shown - (values[0] / 4000 * 255)[..., None]).mean() < 12


def test_a_corrupt_image(shared: Viewer, root: Path) -> None:
    for address in ("/api/thumb", "/api/tile"):
        answer = shared.client.get(address, params={"path": "bee/broken.png", "level": 0, "col": 0, "row": 0})
        assert answer.status_code == 422
        message = answer.json()["error"]
        assert message.startswith("image bee/broken.png cannot be read") and str(root) not in message
    garbage = root / "garbage.png"
    garbage.write_bytes(b"<script>" * 100)
    answer = shared.client.get("/api/image", params={"path": "garbage.png"})
    garbage.unlink()
    assert answer.status_code == 422 and answer.json()["error"].startswith("image garbage.png cannot be read")
    assert shared.client.get("/api/thumb", params={"path": "slide.tif"}).status_code == 200


def test_coarse_tiles_do_not_read_a_large_image_again(
    model: TNet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels, reads, read = noise(2600, 2300), [], FileScene._read
    tifffile.imwrite(tmp_path / "flat.tif", pixels, tile=(256, 256), photometric="rgb")

    def counting(self: FileScene, key: object, level: int, window: tuple[int, int, int, int]) -> np.ndarray:
        reads.append((window[2] - window[0]) * (window[3] - window[1]))
        return read(self, key, level, window)

    monkeypatch.setattr(FileScene, "_read", counting)
    viewer = Viewer(model, tmp_path)
    whole = picture(viewer, "/api/tile", path="flat.tif", level=8, col=0, row=0)
    assert sum(reads) == 2600 * 2300
    expected = Image.fromarray(pixels).resize((144, 163), Image.Resampling.BILINEAR)
    assert np.abs(whole - saved(expected)).mean() < 4
    reads.clear()
    assert picture(viewer, "/api/thumb", path="flat.tif").shape == (160, 142, 3)
    for level in range(11):
        picture(viewer, "/api/tile", path="flat.tif", level=level, col=0, row=0)
    assert not reads
    picture(viewer, "/api/tile", path="flat.tif", level=12, col=3, row=2)
    assert sum(reads) == 256 * 256


def test_few_images_stay_open(model: TNet, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tnet.view import tiles

    monkeypatch.setattr(tiles, "_MAX_SCENES", 2)
    store = tiles.Tiles(SceneOptions())
    names = ("slide.tif", "inner.png", HOSTILE, "ant/image1.png")
    assert [len(store.thumb(root / name)) > 100 for name in names] == [True] * 4
    assert len(store._scenes) == 2
