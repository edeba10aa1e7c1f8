from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tests.helpers import tiny_recipe
from typer.testing import CliRunner

from tnet.cli.main import app
from tnet.models.io import load_model, save_model
from tnet.models.tnet import TNet
from tnet.training.recipe import save_recipe, with_classes


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run directory of the synthetic digits."""
    recipe = with_classes(tiny_recipe(), list("0123456789"), multilabel=False)
    torch.manual_seed(0)
    save_model(TNet(recipe.model), tmp_path / "run" / "model")
    save_recipe(recipe, tmp_path / "run" / "recipe.yaml")
    return tmp_path / "run"


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for index in range(2):
        noise = np.random.default_rng(index).integers(256, size=(64, 48), dtype=np.uint8)
        Image.fromarray(noise).save(folder / f"{index}.png")
    return folder


def explain(*arguments: object) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ["explain", *map(str, arguments), "--device", "cpu"])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert "Traceback" not in result.output
    return result.exit_code, result.stdout, result.stderr


def test_pictures_into_a_folder(run: Path, pictures: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    code, text, _ = explain(run, pictures, "--out", out, "--looks", 1)
    assert (code, text.splitlines()) == (0, [str(out / "0.png"), str(out / "1.png")])
    records = json.loads((out / "regions.json").read_text())
    assert [len(record["regions"]) for record in records] == [1, 1]


def test_a_model_whose_answers_are_not_finite(run: Path, pictures: Path, tmp_path: Path) -> None:
    """Huge weights are finite themselves; their products are not."""
    model = load_model(run)
    with torch.no_grad():
        model.classifier.weight.fill_(3e38)
    save_model(model, run / "model", overwrite=True)
    code, _, err = explain(run, pictures, "--out", tmp_path / "out")
    assert code == 1 and "infinite or NaN" in err and not list(tmp_path.glob("out/*.png"))


def test_the_folder_is_called_explained_unless_told(run: Path, pictures: Path, in_tmp_path: Path) -> None:
    assert explain(run, pictures / "0.png")[0] == 0
    assert sorted(path.name for path in (in_tmp_path / "explained").iterdir()) == ["0.png", "regions.json"]


def test_one_picture_into_a_file(run: Path, pictures: Path, tmp_path: Path) -> None:
    out = tmp_path / "why.png"
    assert explain(run / "model", pictures / "1.png", "--out", out, "--policy", "random", "--no-progress") == (
        0, f"{out}\n", "",
    )  # fmt: skip
    assert out.is_file() and (tmp_path / "why.regions.json").is_file()


def test_exports_are_beside_the_figures(run: Path, pictures: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    formats = ("--export", "cvat", "--export", "labelstudio", "--export", "fiftyone", "--export", "cvat")
    assert explain(run, pictures, "--out", out, "--looks", 2, *formats)[0] == 0
    assert sorted(path.name for path in out.iterdir()) == [
        "0.png", "1.png", "cvat.xml", "fiftyone.json", "labelstudio.json", "regions.json"
    ]  # fmt: skip
    tasks = json.loads((out / "labelstudio.json").read_text())
    records = json.loads((out / "regions.json").read_text())
    for task, record in zip(tasks, records, strict=True):
        (answer,) = task["predictions"]
        assert answer["model_version"] == "run" and len(answer["result"]) == 2
        y0, x0, *_ = record["regions"][0]["box_l0_yxyx"]
        value = answer["result"][0]["value"]
        assert (value["x"], value["y"]) == (pytest.approx(100 * max(x0, 0) / 48), pytest.approx(100 * max(y0, 0) / 64))
    assert explain(run, pictures / "0.png", "--out", tmp_path / "why.png", "--export", "fiftyone")[0] == 0
    assert len(json.loads((tmp_path / "why.fiftyone.json").read_text())) == 1
    code, _, err = explain(run, pictures, "--out", tmp_path / "other", "--export", "coco")
    assert code == 2 and "coco" in err and not (tmp_path / "other").exists()


def test_samples_of_the_run_itself(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    code, text, _ = explain(run / "model", "--samples", 2, "--out", out, "--export", "cvat")
    assert (code, text.splitlines()) == (0, [str(out / "000000.png"), str(out / "000008.png")])  # the half of 16
    assert (out / "cvat.xml").read_text().count("<image ") == 2
    assert all(record["true_label"] in "0123456789" for record in json.loads((out / "regions.json").read_text()))


def test_unreadable_pictures_stop_it_or_are_skipped(run: Path, pictures: Path, tmp_path: Path) -> None:
    (pictures / "0.png").write_bytes(b"nothing")
    out = tmp_path / "out"
    code, _, err = explain(run, pictures, "--out", out)
    assert code == 1 and "error: " in err and "0.png" in err and not out.exists()
    code, text, err = explain(run, pictures, "--out", out, "--skip-unreadable")
    assert (code, text) == (0, f"{out / '1.png'}\n") and "skipped: " in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "not neither"),
        (["{pictures}", "--samples", "1"], "not both"),
        (["{pictures}/gone.png"], "do not exist"),
        (["{pictures}", "--looks", "10"], "10"),
        (["{pictures}", "--out", "{pictures}/one.png"], "one.png"),
        (["{pictures}", "--out", "{pictures}/0.png/out"], "cannot be written"),
        (["{pictures}", "--max-side-px", "30"], "32 px"),
    ],
)
def test_bad_input_is_one_sentence_and_writes_nothing(
    run: Path, pictures: Path, in_tmp_path: Path, arguments: list[str], message: str
) -> None:
    before = sorted(in_tmp_path.rglob("*"))
    code, out, err = explain(run, *[argument.format(pictures=pictures) for argument in arguments])
    assert (code, out) == (1, "")
    (line,) = [line for line in err.splitlines() if line.startswith("error: ")]
    assert message in line
    assert sorted(in_tmp_path.rglob("*")) == before


def test_samples_need_a_recipe(run: Path, tmp_path: Path) -> None:
    (run / "recipe.yaml").unlink()
    code, _, err = explain(run, "--samples", 1, "--out", tmp_path / "out")
    assert code == 1 and "recipe.yaml" in err and not (tmp_path / "out").exists()
