from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tests.helpers import tiny_recipe
from typer.testing import CliRunner

from tnet.cli.main import app
from tnet.data.folder import LabelledImages
from tnet.data.transforms import named_transform
from tnet.errors import PassedOverWarning
from tnet.models.io import load_model
from tnet.scenes.reading import ReadOptions
from tnet.training.recipe import save_recipe


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    (folder / "more").mkdir(parents=True)
    for index, name in enumerate(("a.png", "b.png", "more/c.png")):
        noise = np.random.default_rng(index).integers(256, size=(64, 48 + index), dtype=np.uint8)
        Image.fromarray(noise).save(folder / name)
    return folder


def predict(*arguments: object) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ["predict", *map(str, arguments), "--device", "cpu"])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert "Traceback" not in result.output
    return result.exit_code, result.stdout, result.stderr


def test_a_line_a_picture_without_out(model: Path, pictures: Path) -> None:
    code, out, err = predict(model, pictures / "b.png", pictures, "--looks", 1)
    assert code == 0
    lines = [line.split("\t") for line in out.splitlines()]
    names = ["b.png", "a.png", "b.png", "more/c.png"]
    assert [line[0] for line in lines] == [str(pictures / name) for name in names]
    assert all(line[1] in {"ant", "bee", "cat", "dog", "elk"} and line[4].startswith("looked at 1:(") for line in lines)
    assert err == ""  # a line of progress a minute


def test_tables_and_json_lines_hold_the_same(model: Path, pictures: Path, tmp_path: Path) -> None:
    assert predict(model, pictures, "--out", tmp_path / "p.csv", "--looks", 2, "--batch-size", 2)[0] == 0
    code, out, err = predict(model, pictures, "--out", tmp_path / "p.jsonl", "--looks", 2, "--workers", 1)
    assert (code, out) == (0, "") and f"written: {tmp_path / 'p.jsonl'} (3 images, 0 skipped)" in err
    with (tmp_path / "p.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    objects = [json.loads(line) for line in (tmp_path / "p.jsonl").read_text(encoding="utf-8").splitlines()]
    assert (
        [row["path"] for row in rows]
        == [item["path"] for item in objects]
        == [str(pictures / name) for name in ("a.png", "b.png", "more/c.png")]
    )
    for row, item in zip(rows, objects, strict=True):
        assert row["label"] == item["label"]
        boxes = [region["box_l0_yxyx"] for region in json.loads(row["regions"])]
        assert boxes == [region["box_l0_yxyx"] for region in item["regions"]] and len(boxes) == 2


def test_a_manifest(model: Path, pictures: Path) -> None:
    (pictures / "list.csv").write_text("path\nmore/c.png\na.png\n")
    code, out, _ = predict(model, pictures / "list.csv", "--policy", "centre")
    assert code == 0
    assert [Path(line.split("\t")[0]).name for line in out.splitlines()] == ["c.png", "a.png"]


CHANGES: list[dict[str, Any]] = [{"max_side_px": 50}, {"max_short_side_px": 35}, {"preprocess": "reference_448"}]


@pytest.mark.parametrize("changes", CHANGES)
def test_pictures_are_prepared_as_they_were_in_training(
    model: Path, pictures: Path, tmp_path: Path, changes: dict[str, Any]
) -> None:
    save_recipe(tiny_recipe(data=changes), tmp_path / "recipe.yaml")  # of the run whose model/ this is
    changes = {"prepare": named_transform("reference_448")} if "preprocess" in changes else changes
    reading = ReadOptions(channels=1, **changes)
    images = LabelledImages([pictures / "a.png"], torch.zeros(1, dtype=torch.long), ["a"], reading=reading)
    with torch.inference_mode():
        expected = load_model(model)(images[0].image[None]).logits[0].softmax(0).sort(descending=True)
    answers = []
    for run in (model, tmp_path):
        code, _, _ = predict(run, pictures / "a.png", "--out", tmp_path / "p.jsonl", "--overwrite")
        assert code == 0
        answers.append(json.loads((tmp_path / "p.jsonl").read_text(encoding="utf-8")))
    assert answers[0] == answers[1]
    found = [probability for _, probability in answers[0]["top5"]]
    torch.testing.assert_close(torch.tensor(found), expected.values, atol=1e-5, rtol=0)
    # In the picture's own pixels, 64 x 48, which the prepared ones were not.
    assert all(y1 <= 64 + 4 and x1 <= 48 + 4 for _, _, y1, x1 in (r["box_l0_yxyx"] for r in answers[0]["regions"]))


def test_more_levels_and_strips(model: Path, tmp_path: Path) -> None:
    for name, size in {"large": (300, 320), "strip": (64, 256)}.items():
        noise = np.random.default_rng(0).integers(256, size=size, dtype=np.uint8)
        Image.fromarray(noise).save(tmp_path / f"{name}.png")
    out, images = tmp_path / "p.jsonl", (tmp_path / "large.png", tmp_path / "strip.png")
    options = ("--levels", 4, "--aspect", "keep", "--looks", 30, "--out", out)
    code, _, err = predict(model, *images, *options)
    assert code == 0, err
    large, strip = (json.loads(line)["regions"] for line in out.read_text(encoding="utf-8").splitlines())
    assert len(large) == len(strip) == 30
    assert all(2 * (y1 - y0) <= 64 and y1 - y0 == x1 - x0 for y0, x0, y1, x1 in (r["box_l0_yxyx"] for r in strip))
    code, _, err = predict(model, *images, "--levels", 3, "--looks", "2x1")
    assert code == 2 and "one number of looks" in err
    code, _, err = predict(model, *images, "--aspect", "keep", "--policy", "topk")
    assert code == 2
    code, _, err = predict(model, *images, "--levels", 1)
    assert code == 2


def test_what_is_given_comes_before_the_recipe(model: Path, pictures: Path, tmp_path: Path) -> None:
    save_recipe(tiny_recipe(data={"max_side_px": 50}), tmp_path / "recipe.yaml")
    own, given = (predict(model, pictures / "a.png", *more)[1] for more in ([], ["--max-side-px", 64]))
    (tmp_path / "recipe.yaml").unlink()
    assert given == predict(model, pictures / "a.png")[1] and own != given
    save_recipe(tiny_recipe(data={"max_short_side_px": 40}), tmp_path / "recipe.yaml")
    code, _, err = predict(model, pictures / "a.png", "--read", "lazy")
    assert code == 1 and "data.max_short_side_px" in err


def test_unreadable_pictures_stop_it_or_are_skipped(model: Path, pictures: Path, tmp_path: Path) -> None:
    (pictures / "a.png").write_bytes(b"nothing")
    out = tmp_path / "p.csv"
    code, _, err = predict(model, pictures, "--out", out)
    assert code == 1 and "error: " in err and "a.png" in err and not out.exists()
    code, _, err = predict(model, pictures, "--out", out, "--skip-unreadable")
    assert code == 0 and "skipped: " in err and "(3 images, 1 skipped)" in err
    with out.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [bool(row["error"]) for row in rows] == [True, False, False] and rows[0]["label"] == ""
    code, text, err = predict(model, pictures, pictures / "gone.png", "--skip-unreadable")
    assert code == 0 and len(text.splitlines()) == 2 and err.count("skipped: ") == 2


def test_other_files_of_a_folder_are_counted_by_kind(model: Path, pictures: Path, tmp_path: Path) -> None:
    for name in ("a.txt", "more/b.TXT", "more/c.xml", "NOTES", ".hidden", ".git/config"):
        (pictures / name).parent.mkdir(exist_ok=True)
        (pictures / name).touch()
    message = "5 file(s) in .*pictures without the suffix of an image are passed over: 2 .txt, 1 "
    for verb in (["predict"], ["explain", "--out", str(tmp_path / "out")]):
        with pytest.warns(PassedOverWarning, match=re.escape(message).replace(r"\.\*", ".*")) as caught:
            result = CliRunner().invoke(app, [*verb, str(model), str(pictures), "--device", "cpu"])
        assert result.exit_code == 0 and result.stdout.count("\n") == 3
        for kind in ("1 .xml", "1 hidden", "1 without suffix"):
            assert kind in str(caught[0].message)


@pytest.mark.filterwarnings("ignore::tnet.errors.PassedOverWarning")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{pictures}/gone.png"], "do not exist"),
        (["{pictures}/empty"], "empty"),
        (["{pictures}/bad.csv"], "'path'"),
        (["{pictures}", "--looks", "10"], "10"),
        (["{pictures}", "--looks", "1x1"], "2 levels"),
        (["{pictures}", "--max-side-px", "30"], "32 px"),
        (["{pictures}", "--precision", "fp16"], "precision is fp16, which this cpu does not compute in; use fp32"),
        (["{pictures}", "--out", "{pictures}/p.xlsx"], ".jsonl"),
        (["{pictures}", "--out", "{pictures}/a.png/p.csv"], "cannot be written"),
    ],
)
def test_bad_input_is_one_sentence_and_writes_nothing(
    model: Path, pictures: Path, arguments: list[str], message: str
) -> None:
    (pictures / "empty").mkdir()
    (pictures / "bad.csv").write_text("file\na.png\n")
    before = sorted(pictures.rglob("*"))
    code, out, err = predict(model, *[argument.format(pictures=pictures) for argument in arguments])
    assert (code, out) == (1, "")
    (line,) = [line for line in err.splitlines() if line.startswith("error: ")]
    assert message in line
    assert sorted(pictures.rglob("*")) == before


def test_a_missing_model_is_reported(pictures: Path, tmp_path: Path) -> None:
    code, _, err = predict(tmp_path / "none", pictures)
    assert code == 1 and "config.json" in err


def test_looks_that_are_no_number_are_a_usage_error(model: Path, pictures: Path) -> None:
    assert predict(model, pictures, "--looks", "many")[0] == 2


def test_precision_is_for_pytorch(model: Path, pictures: Path) -> None:
    code, _, err = predict(model, pictures, "--engine", "onnx", "--precision", "bf16")
    assert code == 2 and "--precision and --compile are for PyTorch" in " ".join(err.split())


def test_another_precision_is_another_job(
    model: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tnet.models.base.check_precision", lambda *_: None)  # the processor may lack it
    assert predict(model, pictures, "--out", tmp_path / "job", "--precision", "bf16")[0] == 0
    code, _, err = predict(model, pictures, "--out", tmp_path / "job")
    assert code == 1 and "holds another job (precision" in err
    probabilities = []
    for precision in ("bf16", "fp32"):
        out = tmp_path / f"{precision}.jsonl"
        assert predict(model, pictures, "--out", out, "--precision", precision)[0] == 0
        probabilities.append([json.loads(line)["probability"] for line in out.read_text().splitlines()])
    assert probabilities[0] != probabilities[1] and probabilities[0] == pytest.approx(probabilities[1], abs=0.05)


def test_a_folder_as_output_is_a_job(model: Path, pictures: Path, tmp_path: Path, monkeypatch: Any) -> None:
    (pictures / "more/c.png").write_bytes(b"no image")
    out = tmp_path / "job"
    code, _, err = predict(model, pictures, "--out", out, "--part-rows", 2, "--shard", "2/2")
    assert code == 0 and "0 of 3 images predicted, 1 failed (1 unreadable), 2 not yet written by other shards" in err
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    code, _, err = predict(model, pictures, "--out", out, "--part-rows", 2)
    assert code == 0 and "2 of 3 images predicted, 1 failed (1 unreadable); 2 now" in err
    monkeypatch.undo()
    table = read_parts(out / "parts")
    assert [Path(row["path"]).name for row in table] == ["a.png", "b.png", "c.png"]
    assert predict(model, pictures, "--out", tmp_path / "p.csv", "--skip-unreadable")[0] == 0
    with (tmp_path / "p.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["label"] or None for row in rows] == [row["label"] for row in table]
    assert [row["regions"] or None for row in rows] == [row["regions"] for row in table]
    code, _, err = predict(model, pictures, "--out", out, "--part-rows", 2, "--looks", 1)
    assert code == 1 and 'holds another job (looks "None" -> "1"); give another --out' in err


def read_parts(folder: Path) -> list[dict[str, Any]]:
    import pyarrow.parquet

    rows: list[dict[str, Any]] = pyarrow.parquet.read_table(folder).to_pylist()
    return rows


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--out", "job", "--overwrite"], "--overwrite does not apply"),
        (["--shard", "1/2"], "are for jobs; give a folder as --out"),
        (["--out", "p.csv", "--retry-failed"], "are for jobs; give a folder as --out"),
        (["--out", "job", "--shard", "2"], "'2' is not a shard"),
        (["--out", "job", "--shard", "3/2"], "shard 3/2"),
    ],
)
def test_options_of_jobs(options: list[str], message: str, model: Path, pictures: Path, tmp_path: Path) -> None:
    options = [str(tmp_path / option) if option in ("job", "p.csv") else option for option in options]
    code, _, err = predict(model, pictures, *options)
    assert code != 0 and message in " ".join(err.split())
    assert not (tmp_path / "job").exists()
