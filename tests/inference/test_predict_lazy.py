"""Predictions and explanations of files that are read only where they are looked at."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image
from tests.helpers import tiny_config
from typer.testing import CliRunner

from tnet.cli.main import app
from tnet.errors import ConfigError, ImageError, ResourceError
from tnet.explain.batch import explain_paths
from tnet.inference.predictor import iter_predictions
from tnet.inference.records import Prediction, Unreadable
from tnet.models.io import save_model
from tnet.models.tnet import TNet
from tnet.scenes.reading import ReadMode, ReadOptions

SIDE_PX = 300


@pytest.fixture
def model() -> TNet:
    torch.manual_seed(0)
    return TNet(tiny_config()).eval()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Pictures of one size: two as PNG and as tiled TIFF of the same pixels, and an OME-TIFF of 16 bits."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for index in range(2):
        pixels = np.random.default_rng(index).integers(0, 256, (SIDE_PX, SIDE_PX + 10), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{index}.png")
        tifffile.imwrite(folder / f"{index}.tif", pixels, tile=(128, 128), compression="adobe_deflate")
    wide = np.random.default_rng(7).integers(0, 2**16, (SIDE_PX, SIDE_PX), dtype=np.uint16)
    tifffile.imwrite(folder / "wide.ome.tif", wide, tile=(128, 128))
    return folder


def predictions(model: TNet, paths: list[Path], **options: object) -> list[Prediction]:
    found = list(iter_predictions(model, paths, progress=False, **options))
    assert all(isinstance(item, Prediction) for item in found)
    return found


def test_a_file_read_lazily_is_predicted_as_its_pixels(model: TNet, folder: Path) -> None:
    paths = [folder / "0.png", folder / "0.tif", folder / "1.png", folder / "1.tif"]
    decoded = predictions(model, paths, read=ReadOptions("memory"))
    for mode in ("lazy", "auto"):
        lazy = predictions(model, paths, read=ReadOptions(mode, lazy_above_px=1000))
        assert [p.regions for p in lazy] == [p.regions for p in decoded]
        assert [p.probability for p in lazy] == pytest.approx([p.probability for p in decoded], abs=1e-5)


def test_decoded_and_lazy_pictures_share_a_batch(model: TNet, folder: Path, tmp_path: Path) -> None:
    small = tmp_path / "small.png"
    Image.fromarray(np.random.default_rng(3).integers(0, 256, (80, 90), dtype=np.uint8)).save(small)
    paths = [small, folder / "0.tif", folder / "wide.ome.tif"]
    mixed = predictions(model, paths, read=ReadOptions("auto", lazy_above_px=10_000), batch_size=3)
    alone = [predictions(model, [path], read=ReadOptions("lazy"))[0] for path in paths]
    assert [p.regions for p in mixed] == [p.regions for p in alone]
    assert [p.size_hw for p in mixed] == [(80, 90), (SIDE_PX, SIDE_PX + 10), (SIDE_PX, SIDE_PX)]


@pytest.mark.filterwarnings(
    "ignore:This process .* is multi-threaded:DeprecationWarning", "ignore:This DataLoader will create:UserWarning"
)
def test_workers_change_nothing(model: TNet, folder: Path) -> None:
    paths = sorted(folder.iterdir())
    runs = [predictions(model, paths, read=ReadOptions("lazy"), workers=workers) for workers in (0, 1, 4)]
    assert runs[0] == runs[1] == runs[2]


def test_a_file_that_cannot_be_read(model: TNet, folder: Path) -> None:
    broken = folder / "broken.tif"
    broken.write_bytes((folder / "0.tif").read_bytes()[:300])
    read = ReadOptions("auto", lazy_above_px=1000)
    with pytest.raises(ImageError, match="broken.tif"):
        predictions(model, [folder / "0.tif", broken], read=read)
    found = list(iter_predictions(model, [broken, folder / "0.tif"], progress=False, read=read, skip_unreadable=True))
    assert isinstance(found[0], Unreadable) and isinstance(found[1], Prediction)


def test_a_file_damaged_where_it_is_looked_at(model: TNet, folder: Path, tmp_path: Path) -> None:
    """Its header is sound: only the look finds out. Others of its batch are not lost."""
    damaged = folder / "damaged.tif"
    data = bytearray((folder / "0.tif").read_bytes())
    with tifffile.TiffFile(folder / "0.tif") as file:
        start, size = file.pages[0].dataoffsets[4], file.pages[0].databytecounts[4]
    data[start : start + size] = bytes(size)
    damaged.write_bytes(data)
    paths = [folder / "0.tif", damaged, folder / "1.tif"]
    with pytest.raises(ImageError, match="damaged.tif"):
        predictions(model, paths, read=ReadOptions("lazy"))
    found = list(iter_predictions(model, paths, progress=False, read=ReadOptions("lazy"), skip_unreadable=True))
    assert [type(item) for item in found] == [Prediction, Unreadable, Prediction]
    kept = predictions(model, [paths[0], paths[2]], read=ReadOptions("lazy"))
    assert [found[0].regions, found[2].regions] == [p.regions for p in kept]
    figures = explain_paths(
        model, paths, tmp_path / "out", progress=False, read=ReadOptions("lazy"), skip_unreadable=True
    )
    assert [type(item).__name__ for item in figures] == ["PosixPath", "Unreadable", "PosixPath"]


@pytest.mark.parametrize("mode", ["memory", "lazy"])
def test_images_are_not_skipped_for_want_of_memory(
    model: TNet, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: ReadMode
) -> None:
    def fail(image: Image.Image) -> None:
        raise MemoryError

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", fail)
    paths, options = [folder / "0.png"], {"read": ReadOptions(mode), "skip_unreadable": True, "progress": False}
    for work in (
        lambda: list(iter_predictions(model, paths, **options)),
        lambda: explain_paths(model, paths, tmp_path / "out", **options),
    ):
        with pytest.raises(ResourceError, match=r"0\.png cannot be read: there is not enough memory"):
            work()
    arguments = [save_model(model, tmp_path / "model"), *paths, "--skip-unreadable", "--read", mode, "--device", "cpu"]
    result = CliRunner().invoke(app, ["predict", *map(str, arguments)])
    assert result.exit_code == 1 and "not enough memory" in result.stderr and "skipped: " not in result.stderr


_LITTLE_MEMORY = """
import json, resource, sys
from pathlib import Path
import tnet
from tnet.scenes.reading import ReadOptions
from tnet.inference import iter_predictions
model = tnet.load_model(sys.argv[1])
read = ReadOptions("memory")
list(iter_predictions(model, [Path(sys.argv[2])], progress=False, read=read))
for path in sys.argv[3:]:
    for spare in (40, 180):
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + spare * 2**20, -1))
        try:
            outcomes = iter_predictions(model, [Path(path)], skip_unreadable=True, progress=False, read=read)
            outcome = [type(each).__name__ for each in outcomes][0]
        except (tnet.ResourceError, MemoryError, RuntimeError) as error:
            outcome = type(error).__name__
        resource.setrlimit(resource.RLIMIT_AS, (-1, -1))
        print(Path(path).name, outcome)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux")
def test_a_process_with_little_memory_does_not_skip_sound_images(model: TNet, folder: Path, tmp_path: Path) -> None:
    image = Image.fromarray(np.zeros((4000, 6000, 3), np.uint8))
    for name, options in {"a.jpg": {}, "b.jpg": {"progressive": True}, "c.png": {}, "d.webp": {}}.items():
        image.save(tmp_path / name, **options)
    paths = sorted(tmp_path.glob("?.*"))
    command = [sys.executable, "-c", _LITTLE_MEMORY, save_model(model, tmp_path / "model"), folder / "0.png", *paths]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert len(lines) == 2 * len(paths)
    assert not [line for line in lines if "Unreadable" in line]
    assert {line for line in lines if "ResourceError" in line} >= {f"{path.name} ResourceError" for path in paths}


def test_lazily_read_images_are_not_changed() -> None:
    with pytest.raises(ConfigError, match="max_side_px"):
        ReadOptions("lazy", max_side_px=100)


def test_the_commands(model: TNet, folder: Path, tmp_path: Path) -> None:
    saved = save_model(model, tmp_path / "model")

    def tnet(*arguments: object) -> str:
        result = CliRunner().invoke(app, [*map(str, arguments), "--device", "cpu", "--no-progress"])
        assert result.exit_code == 0, result.output
        return result.output

    plain = tnet("predict", saved, folder / "wide.ome.tif", "--read", "lazy")
    brighter = tnet("predict", saved, folder / "wide.ome.tif", "--read", "lazy", "--value-range", "0,30000")
    assert "wide.ome.tif" in plain and plain != brighter
    out = tmp_path / "out"
    tnet("explain", saved, folder / "wide.ome.tif", folder / "0.tif", "--out", out, "--geojson", out / "geo",
         "--read", "lazy")  # fmt: skip
    assert {path.name for path in out.iterdir()} == {"wide.ome.png", "0.png", "regions.json", "geo"}
    regions = json.loads((out / "geo" / "0.geojson").read_text())
    record = next(entry for entry in json.loads((out / "regions.json").read_text()) if entry["path"].endswith("0.tif"))
    assert len(regions["features"]) == len(record["regions"])
    y0, x0, _, _ = record["regions"][0]["box_l0_yxyx"]
    assert [x0, y0] in regions["features"][0]["geometry"]["coordinates"][0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--bands", "a"], "bands such as"),
        (["--value-range", "1"], "two numbers"),
        (["--value-range", "5,1"], "value_range"),
    ],
)
def test_options_that_cannot_be(options: list[str], message: str, model: TNet, folder: Path, tmp_path: Path) -> None:
    saved = save_model(model, tmp_path / "model")
    result = CliRunner().invoke(app, ["predict", str(saved), str(folder / "0.tif"), "--read", "lazy", *options])
    assert result.exit_code in (1, 2) and message in result.output
