"""Exported parts: under tnet's own traversal, and in the example, which runs without tnet."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest
import torch
from PIL import Image
from tests.export.conftest import small, tnet
from tests.export.forms import noise
from typer.testing import Result

from tnet.errors import ExportError
from tnet.export import EngineTNet, export_model
from tnet.geometry import Grid, axis_cells, covered_shares
from tnet.inference import predict
from tnet.models.io import load_model
from tnet.traversal import BestFirst

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "onnx_traversal.py"


def records(*arguments: object) -> list[dict[str, Any]]:
    out = Path(str(arguments[-1]))
    result = tnet("predict", *arguments[:-1], "--out", out, "--no-progress")
    assert result.exit_code == 0, result.stderr
    return [json.loads(line) for line in out.read_text().splitlines()]


@pytest.fixture(scope="session")
def example() -> ModuleType:
    spec = importlib.util.spec_from_file_location("onnx_traversal", EXAMPLE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# --- tnet predict


@pytest.mark.slow
@pytest.mark.parametrize("engine", [[], ["--engine", "openvino"]])
def test_records_are_those_of_the_model(
    engine: list[str], parts: Path, saved_deep: Path, pictures: list[Path], tmp_path: Path
) -> None:
    expected = records(saved_deep, *pictures, "--looks", "2x2", tmp_path / "a.jsonl")
    actual = records(parts, *pictures, "--looks", "2x2", *engine, tmp_path / "b.jsonl")
    for mine, theirs in zip(actual, expected, strict=True):
        assert [r["box_l0_yxyx"] for r in mine["regions"]] == [r["box_l0_yxyx"] for r in theirs["regions"]]
        assert mine["label"] == theirs["label"] and mine["probability"] == pytest.approx(
            theirs["probability"], abs=1e-5
        )
        assert [r["weight"] for r in mine["regions"]] == pytest.approx(
            [r["weight"] for r in theirs["regions"]], abs=1e-5
        )


@pytest.mark.slow
def test_a_job_runs_an_export(parts: Path, pictures: list[Path], tmp_path: Path) -> None:
    (expected,) = records(parts, pictures[0], tmp_path / "a.jsonl")
    result = tnet("predict", parts, pictures[0], "--out", tmp_path / "job", "--no-progress")
    assert result.exit_code == 0, result.stderr
    (row,) = pyarrow.parquet.read_table(tmp_path / "job/parts").to_pylist()
    assert (row["label"], json.loads(row["regions"])) == (expected["label"], expected["regions"])
    result = tnet("predict", parts, pictures[0], "--out", tmp_path / "job", "--engine", "openvino")
    assert result.exit_code == 1 and "holds another job (engine" in result.stderr


@pytest.mark.slow
def test_searches_work_too(parts: Path, saved_deep: Path, pictures: list[Path]) -> None:
    search = BestFirst(5, 3)
    expected = predict(load_model(saved_deep), pictures[:2], search=search)
    actual = predict(EngineTNet(parts), pictures[:2], search=search)
    assert [[r.box_l0_yxyx for r in item.regions] for item in actual] == [
        [r.box_l0_yxyx for r in item.regions] for item in expected
    ]


@pytest.mark.slow
@pytest.mark.skipif(not os.environ.get("TNET_EXPORTS"), reason="slow; set TNET_EXPORTS=tiny")
def test_a_canvas_in_parts(tmp_path: Path) -> None:
    model = small(aggregation="canvas", in_channels=1)
    export_model(model, tmp_path / "out", parts=True)
    images = noise(1, (80, 99))
    with torch.no_grad():
        expected, actual = model(images, 3), EngineTNet(tmp_path / "out")(images, 3)
    torch.testing.assert_close(actual.logits, expected.logits, rtol=1e-4, atol=1e-4)
    assert torch.equal(actual.regions.box_l0_yxyx, expected.regions.box_l0_yxyx)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "has no export.json; give a folder written by tnet export --parts"),
        ("{", "is damaged"),
        ('{"model": {"levels": -1}, "kind": "parts"}', "is damaged .*model.levels is -1"),
        ('{"model": {"num_classes": 2}}', "holds a whole model, which needs no loop; tnet runs parts"),
        ('{"model": {"num_classes": 2}, "kind": "parts"}', "see_whole.onnx does not exist"),
    ],
)
def test_damaged_folders(text: str | None, message: str, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / "export.json").write_text(text)
    with pytest.raises(ExportError, match=message):
        EngineTNet(tmp_path)


def test_engines_run_on_the_cpu(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"")
    result = tnet("predict", tmp_path, tmp_path / "a.png", "--engine", "onnx", "--device", "cuda")
    assert result.exit_code == 1 and "other engines than PyTorch run on the CPU; omit --device" in result.stderr


# --- the example


def test_the_geometry_of_the_example_is_that_of_tnet(example: ModuleType) -> None:
    for size in (9, 90, 131, 450, 1001):
        for count, extent in ((1, 0.4), (3, 0.5), (5, 0.35), (4, 0.34375)):
            starts, cell, _ = example.cells(size, count, extent)
            assert (tuple(starts), cell) == axis_cells(size, count, extent)
    grid = Grid(3, 4, 0.4)
    model = object.__new__(example.Exported)
    model.geometry = {"rows": 3, "cols": 4, "cell_extent": 0.4}
    np.testing.assert_allclose(model.overlaps(), covered_shares(grid).numpy(), atol=1e-6)


_CLEAN = """
import sys
allowed = {"numpy", "onnxruntime", "PIL", *sys.stdlib_module_names}
class Forbid:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] not in allowed:
            raise ModuleNotFoundError(f"No module named {name!r} in this environment", name=name)
sys.meta_path.insert(0, Forbid())
import runpy
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
assert "torch" not in sys.modules and "tnet" not in sys.modules
"""


@pytest.mark.slow
def test_the_example_runs_in_a_clean_environment(
    parts: Path, saved_deep: Path, pictures: list[Path], tmp_path: Path
) -> None:
    """With numpy, onnxruntime and Pillow alone, the same regions and answers as tnet's own."""
    folder = shutil.copytree(parts, tmp_path / "shipped")
    command = [sys.executable, "-c", _CLEAN, EXAMPLE, folder, *pictures[:2]]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    for item, expected in zip(found, predict(saved_deep, pictures[:2], device="cpu"), strict=True):
        assert [tuple(box) for box in item["boxes"]] == [region.box_l0_yxyx for region in expected.regions]
        assert item["label"] == expected.label
        assert item["probability"] == pytest.approx(expected.probability, abs=1e-3)


def test_the_example_runs_a_whole_model(
    example: ModuleType, whole: tuple[Path, Result], saved: Path, tmp_path: Path
) -> None:
    pixels = np.random.default_rng(0).integers(256, size=(90, 70, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "fits.png")
    Image.fromarray(pixels[:80]).save(tmp_path / "small.png")
    exported = example.Exported(whole[0])
    (expected,) = predict(saved, tmp_path / "fits.png", looks=1, device="cpu")
    item = exported.classify(tmp_path / "fits.png")
    assert [tuple(box) for box in item["boxes"]] == [region.box_l0_yxyx for region in expected.regions]
    assert item["label"] == expected.label and item["probability"] == pytest.approx(expected.probability, abs=1e-5)
    with pytest.raises(
        SystemExit, match=r"small.png has 80 x 70 px, but the model was exported for 90 x 70 .*resize it"
    ):
        exported.classify(tmp_path / "small.png")
