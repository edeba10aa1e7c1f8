from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tests.helpers import pictures, tiny_config

from tnet.data.sample import Sample
from tnet.errors import DataError, GeometryError, ImageError, OutputError
from tnet.explain.batch import explain_paths, explain_samples
from tnet.inference.predictor import iter_predictions
from tnet.inference.records import Prediction, Unreadable
from tnet.models.tnet import TNet
from tnet.scenes.reading import ReadOptions


@pytest.fixture(scope="module")
def model() -> TNet:
    torch.manual_seed(0)
    return TNet(tiny_config()).eval()


@pytest.fixture
def paths(tmp_path: Path) -> list[Path]:
    found = []
    for index, name in enumerate(("a/1.png", "b/1.png", "b/B.png")):
        path = tmp_path / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(index).integers(256, size=(64, 48), dtype=np.uint8)).save(path)
        found.append(path)
    return found


class Samples:
    """Labelled noise."""

    def __init__(self, multilabel: bool = False, sizes: tuple[int, ...] = (64, 48)) -> None:
        self.classes = ["v", "w", "x", "y", "z"]
        self.multilabel = multilabel
        self.images = pictures(*[(size, size) for size in sizes])

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Sample:
        target = torch.tensor([0.0, 1.0, 0.0, 0.0, 1.0]) if self.multilabel else torch.tensor(index)
        return Sample(self.images[index], target, f"made/val/{index:06d}")


def records(folder: Path, name: str = "regions.json") -> list[dict[str, Any]]:
    return json.loads((folder / name).read_text(encoding="utf-8"))


def test_a_folder_of_figures_and_their_regions(model: TNet, paths: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    figures = explain_paths(model, paths, out, progress=False)
    assert figures == [out / "1.png", out / "1-2.png", out / "B.png"]
    assert sorted(path.name for path in out.iterdir()) == ["1-2.png", "1.png", "B.png", "regions.json"]
    found = records(out)
    told = [item for item in iter_predictions(model, paths, progress=False) if isinstance(item, Prediction)]
    assert [record["figure"] for record in found] == ["1.png", "1-2.png", "B.png"]
    for record, prediction in zip(found, told, strict=True):
        assert (record["path"], record["label"], record["true_label"]) == (prediction.path, prediction.label, None)
        boxes = [tuple(region["box_l0_yxyx"]) for region in record["regions"]]
        assert boxes == [region.box_l0_yxyx for region in prediction.regions]


def test_other_files_in_the_folder_are_left_alone(model: TNet, paths: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("keep")
    (out / "1.png").write_text("of before")
    with pytest.raises(OutputError, match=r"1\.png exists.*--overwrite"):
        explain_paths(model, paths[:1], out, progress=False)
    assert (out / "1.png").read_text() == "of before" and len(list(out.iterdir())) == 2
    explain_paths(model, paths[:1], out, progress=False, overwrite=True)
    assert (out / "mine.txt").read_text() == "keep"
    with Image.open(out / "1.png") as figure:
        assert figure.format == "PNG"


def test_one_picture_into_one_file(model: TNet, paths: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "out" / "why.png"
    assert explain_paths(model, paths[2:], out, looks=0, progress=False) == [out]
    assert sorted(path.name for path in out.parent.iterdir()) == ["why.png", "why.regions.json"]
    (record,) = records(out.parent, "why.regions.json")
    assert (record["figure"], record["regions"]) == ("why.png", [])


def test_a_bad_picture_leaves_nothing_or_is_skipped(model: TNet, paths: list[Path], tmp_path: Path) -> None:
    paths[1].write_bytes(paths[0].read_bytes()[:99])
    out = tmp_path / "out"
    with pytest.raises(ImageError, match=r"b/1\.png"):
        explain_paths(model, paths, out, progress=False)
    assert not out.exists()
    figures = explain_paths(model, paths, out, progress=False, skip_unreadable=True)
    assert [isinstance(figure, Unreadable) for figure in figures] == [False, True, False]
    assert set(records(out)[1]) == {"path", "error", "kind"} and records(out)[1]["path"] == str(paths[1])
    before = {path: path.read_bytes() for path in out.iterdir()}
    with pytest.raises(ImageError):
        explain_paths(model, paths, out, progress=False, overwrite=True)
    assert {path: path.read_bytes() for path in out.iterdir()} == before


def test_boxes_are_in_the_pixels_of_the_picture_as_stored(model: TNet, paths: list[Path], tmp_path: Path) -> None:
    Image.fromarray(np.zeros((320, 160), dtype=np.uint8)).save(paths[0])
    explain_paths(model, paths[:1], tmp_path / "out", read=ReadOptions("auto", max_side_px=80), progress=False)
    (record,) = records(tmp_path / "out")
    assert record["size_hw"] == [320, 160]
    assert all(region["box_l0_yxyx"][2] - region["box_l0_yxyx"][0] == 160 for region in record["regions"])


def test_what_cannot_be_is_refused_before_anything_is_written(model: TNet, paths: list[Path], tmp_path: Path) -> None:
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(OutputError, match=r"one\.png"):
        explain_paths(model, paths, tmp_path / "one.png", progress=False)
    with pytest.raises(DataError, match="no images"):
        explain_paths(model, [], tmp_path / "out", progress=False)
    with pytest.raises(GeometryError, match="10"):
        explain_paths(model, paths, tmp_path / "out", looks=10, progress=False)
    with pytest.raises(ImageError, match="32 px"):
        explain_paths(model, paths, tmp_path / "out", read=ReadOptions("auto", max_side_px=40), progress=False)
    with pytest.raises(OutputError, match="cannot be written"):
        explain_paths(model, paths, paths[0] / "out", progress=False)
    assert sorted(tmp_path.rglob("*")) == before
    explain_paths(
        model, paths[:1], tmp_path / "out", read=ReadOptions("auto", max_side_px=40), allow_small=True, progress=False
    )
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(OutputError, match="is a folder"):
        explain_paths(model, paths[:1], tmp_path / "folder.png", progress=False)


def test_samples_are_explained_with_their_true_labels(model: TNet, tmp_path: Path) -> None:
    figures = explain_samples(model, Samples(), 5, tmp_path / "out", progress=False)
    assert [path.name for path in figures if isinstance(path, Path)] == ["000000.png", "000001.png"]
    assert [record["true_label"] for record in records(tmp_path / "out")] == ["v", "w"]
    assert [record["path"] for record in records(tmp_path / "out")] == ["made/val/000000", "made/val/000001"]
    explain_samples(model, Samples(multilabel=True), 1, tmp_path / "multi", progress=False)
    assert [record["true_label"] for record in records(tmp_path / "multi")] == ["w|z"]


def test_samples_that_cannot_be_looked_at_leave_nothing(model: TNet, tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"made/val/000001 has 20 x 20"):
        explain_samples(model, Samples(sizes=(64, 20)), 2, tmp_path / "out", progress=False)
    with pytest.raises(DataError, match="no images"):
        explain_samples(model, Samples(sizes=()), 2, tmp_path / "out", progress=False)
    assert list(tmp_path.iterdir()) == []


def test_regions_of_a_slide_are_in_micrometres_too(model: TNet, tmp_path: Path) -> None:
    tifffile = pytest.importorskip("tifffile")
    pixels = np.random.default_rng(0).integers(256, size=(64, 48), dtype=np.uint8)
    tifffile.imwrite(tmp_path / "slide.ome.tif", pixels, tile=(16, 16), metadata={
        "axes": "YX", "PhysicalSizeX": 0.5, "PhysicalSizeXUnit": "µm", "PhysicalSizeY": 0.25, "PhysicalSizeYUnit": "µm",
    })  # fmt: skip
    explain_paths(
        model, [tmp_path / "slide.ome.tif"], tmp_path / "out", read=ReadOptions("lazy"), exports=["labelstudio"],
        model_name="mine", progress=False,
    )  # fmt: skip
    (record,) = records(tmp_path / "out")
    for region in record["regions"]:
        y0, x0, y1, x1 = region["box_l0_yxyx"]
        assert region["box_um_yxyx"] == [y0 / 4, x0 / 2, y1 / 4, x1 / 2]
    (task,) = records(tmp_path / "out", "labelstudio.json")
    assert task["predictions"][0]["model_version"] == "mine"
