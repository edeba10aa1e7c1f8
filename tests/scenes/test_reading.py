"""Read options: which images are decoded, which become scenes, and what either shows."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image
from torch import Tensor

from tnet.errors import ConfigError, ImageError
from tnet.scenes import FileScene, OverviewScene, Scene, SceneOptions
from tnet.scenes.decode import load_image
from tnet.scenes.reading import ReadOptions

PIXELS = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def png(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("reading") / "a.png"
    Image.fromarray(PIXELS).save(path)
    return path


def halved(image: Tensor) -> Tensor:
    return image[:, ::2, ::2]


def test_decoded_images_are_downscaled_and_prepared(png: Path) -> None:
    image = ReadOptions().load(png)
    assert isinstance(image, Tensor) and torch.equal(image, torch.from_numpy(PIXELS).permute(2, 0, 1))
    options = ReadOptions("auto", channels=1, max_short_side_px=30, prepare=halved, lazy_above_px=10)
    assert options.changes_images and not options.is_lazy(png)
    image = pickle.loads(pickle.dumps(options)).load(png)
    assert torch.equal(image, halved(load_image(png, channels=1, max_short_side_px=30))) and image.shape == (1, 15, 20)
    assert options.size_hw(png) == (60, 80), "before downscaling"


def test_scenes_show_what_is_decoded(png: Path) -> None:
    options = ReadOptions("auto", lazy_above_px=60 * 80 - 1)
    assert options.is_lazy(png) and not replace(options, lazy_above_px=60 * 80).is_lazy(png)
    scene = options.load(png)
    assert isinstance(scene, FileScene) and options.size_hw(png) == scene.size_hw == (60, 80)
    pixels = scene.glimpse((0, 0, 60, 60), 60, channels=3, resize="antialias", fill=(0.0,))
    assert torch.equal(pixels * 255, torch.from_numpy(PIXELS[:, :60]).permute(2, 0, 1).float())
    overview = replace(options, overview_px=16, channels=5).load(png)
    assert isinstance(overview, OverviewScene) and (overview.px, overview.channels) == (16, 5)


def test_auto_decodes_only_what_loses_nothing_by_it(tmp_path: Path, png: Path) -> None:
    pixels = np.zeros((64, 64, 3), np.uint8)
    options: dict[str, dict[str, Any]] = {
        "tiled": {"tile": (32, 32), "photometric": "rgb"},
        "nodata": {"tile": (32, 32), "photometric": "rgb", "extratags": [(42113, 2, 0, "0", True)]},
        "geo": {"photometric": "rgb", "extratags": [(34735, 3, 4, (1, 1, 0, 0), True)]},
    }
    for name, each in options.items():
        tifffile.imwrite(tmp_path / f"{name}.tif", pixels, metadata=None, **each)
    tifffile.imwrite(tmp_path / "planes.ome.tif", pixels.transpose(2, 0, 1), metadata={"axes": "CYX"})
    (tmp_path / "a.zarr").mkdir()
    lazy = {path.name for path in tmp_path.iterdir() if ReadOptions("auto").is_lazy(path)}
    assert lazy == {"nodata.tif", "geo.tif", "planes.ome.tif", "a.zarr"}
    assert ReadOptions("lazy").is_lazy("a.png") and not ReadOptions("memory").is_lazy("a.svs")
    assert ReadOptions("auto", scene=SceneOptions(value_range=(0, 100))).is_lazy(png), "whatever the size"


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"overview_px": -1}, "overview_px is -1"),
        ({"lazy_above_px": -1}, "lazy_above_px is -1"),
        ({"max_side_px": 0}, "max_side_px is 0"),
        ({"scene": SceneOptions(bands=(0,))}, "bands"),
        ({"mode": "lazy", "max_side_px": 9}, "max_side_px"),
        ({"mode": "lazy", "prepare": halved}, "preprocess"),
        ({"mode": "auto", "scene": SceneOptions(bands=(0,)), "max_short_side_px": 9}, "max_short_side_px"),
    ],
)
def test_contradicting_options_are_refused(options: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        ReadOptions(**options)


def test_errors_of_loading(tmp_path: Path, png: Path) -> None:
    with pytest.raises(ConfigError, match="not 5"):
        ReadOptions(channels=5).load(png)
    with pytest.raises(ImageError, match="max_pixels=100"):
        ReadOptions(max_pixels=100).size_hw(png)
    missing = ReadOptions("auto").load(tmp_path / "missing.png")
    assert isinstance(missing, Scene)
    with pytest.raises(ImageError, match=r"missing\.png"):
        _ = missing.size_hw
