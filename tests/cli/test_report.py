from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image
from tests.helpers import tiny_config, tiny_recipe
from tests.report.reader import Reader, check_self_contained
from typer.testing import CliRunner

from tnet.cli.main import app
from tnet.models.io import save_model
from tnet.models.tnet import TNet
from tnet.training.recipe import save_recipe


def report(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["report", *map(str, arguments), "--no-progress"])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.output


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run of an untrained model on synthetic digits."""
    recipe = tiny_recipe()
    save_model(TNet(tiny_config(num_classes=10)), tmp_path / "run" / "model")
    save_recipe(recipe, tmp_path / "run" / "recipe.yaml")
    (tmp_path / "run" / "metrics.csv").write_text("epoch,step,val/accuracy\n0,2,0.25\n1,5,0.5\n")
    return tmp_path / "run"


def test_a_run_is_reported_beside_itself(run: Path) -> None:
    code, output = report(run, "--max-images", 5, "--looks", 0)
    assert code == 0 and output.startswith(f"written: {run / 'report.html'} (") and "of 5 images right)" in output
    text = (run / "report.html").read_text(encoding="utf-8")
    check_self_contained(text)
    page = Reader(text)
    assert "Report: run" in page.text and "Over 2 epochs" in page.text
    assert "5 labelled images: synthetic digits (max), val images (5 of 16, evenly spread)" in page.text
    code, output = report(run, "--max-images", 5, "--looks", 0)
    assert code == 1 and "--overwrite" in output and output.count("\n") == 1
    assert report(run / "model", "--out", run / "report.html", "--max-images", 2, "--looks", 0, "--overwrite")[0] == 0
    assert "Over 2 epochs" in Reader((run / "report.html").read_text(encoding="utf-8")).text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "nowhere"),
        (["."], "model"),
        (["gone.csv"], "gone.csv does not exist"),
        (["RUN", "--data", "nowhere"], "the folder nowhere does not exist"),
        (["RUN", "--data", "nowhere.csv"], "nowhere.csv"),
        (["RUN/../saved"], "has no recipe.yaml"),
        (["RUN", "--looks", "99"], "99"),
        (["RUN", "--compare", "nowhere"], "nowhere"),
        (["p.csv", "--looks", "1"], "p.csv holds predictions"),
        (["p.csv", "--data", "photos"], "--data"),
        (["p.csv", "--boxes", "boxes.csv"], "--boxes have no meaning"),
        (["RUN", "--boxes", "boxes.csv"], "these are synthetic"),
        (["RUN", "--out", "."], "is a folder"),
    ],
)
def test_what_is_wrong_is_one_sentence(
    run: Path, arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(run.parent)
    (run / "model").rename(run.parent / "saved") if "saved" in arguments[0] else None
    before = sorted(run.parent.rglob("*"))
    code, output = report(*(argument.replace("RUN", str(run)) for argument in arguments))
    assert code == 1 and message in output and output.strip().count("\n") == 0
    assert sorted(run.parent.rglob("*")) == before


def test_boxes_show_whether_it_looks_there(run: Path, tmp_path: Path) -> None:
    for label in range(10):
        path = tmp_path / "photos" / str(label) / "0.png"
        path.parent.mkdir(parents=True)
        Image.new("L", (64, 64), 25 * label).save(path)
    boxes = tmp_path / "boxes.csv"
    boxes.write_text("path,x,y,w,h\n" + "".join(f"{label}/0.png,8,8,16,16\n" for label in range(8)))
    arguments = (run, "--data", tmp_path / "photos", "--looks", 2, "--boxes", boxes)
    assert report(*arguments, "--max-images", 4)[0] == 0
    assert "4 of the images have places marked" in Reader((run / "report.html").read_text(encoding="utf-8")).text
    code, output = report(*arguments, "--out", boxes, "--overwrite")
    assert code == 1 and "is an input" in output


def test_numbers_of_images_start_at_one(run: Path) -> None:
    assert report(run, "--max-images", 0)[0] == 2
