from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from tnet.data.table import read_columns
from tnet.errors import ImageError, OutputError
from tnet.inference.inputs import find_inputs
from tnet.inference.records import Prediction, RegionRecord, Unreadable
from tnet.inference.write import CSV_COLUMNS, check_output, prediction_line, write_predictions

REGION = RegionRecord("1", 1, (-2, 0, 30, 40), 4, -1, 0.25, 0.5, 'a "b", c', 0.75)
FOUND = Prediction(
    "folder/ä, 1.png", 'a "b", c', ('a "b", c',), 1, 0.8, (('a "b", c', 0.8), ("x", 0.2)), (64, 96), (REGION,)
)
LOST = Unreadable("lost.png", "The picture lost.png cannot be read: it is empty; remove it.")


def test_a_table_reads_back_as_what_was_predicted(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "predictions.csv"
    assert write_predictions(iter([FOUND, LOST]), path) == 2
    with path.open(newline="", encoding="utf-8") as file:
        first, second = list(csv.DictReader(file))
    assert tuple(first) == CSV_COLUMNS
    assert (first["path"], first["label"], float(first["probability"]), first["error"]) == (
        FOUND.path, FOUND.label, 0.8, "",
    )  # fmt: skip
    assert json.loads(first["top5"]) == [['a "b", c', 0.8], ["x", 0.2]]
    assert json.loads(first["regions"]) == [json.loads(json.dumps(asdict(REGION)))]
    assert (second["path"], second["error"], second["label"], second["regions"]) == (LOST.path, LOST.error, "", "")


def test_json_lines_read_back_as_what_was_predicted(tmp_path: Path) -> None:
    path = tmp_path / "predictions.JSONL"
    assert write_predictions([LOST, FOUND], path) == 2
    first, second = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert first == asdict(LOST)
    region = RegionRecord(**{**second["regions"][0], "box_l0_yxyx": tuple(second["regions"][0]["box_l0_yxyx"])})
    assert region == REGION
    assert second["size_hw"] == [64, 96] and second["path"] == FOUND.path


def test_a_name_that_is_not_utf8_comes_back_from_json(tmp_path: Path) -> None:
    name = b"caf\xe9.png".decode("utf-8", "surrogateescape")
    write_predictions([Unreadable(name, "gone")], tmp_path / "p.jsonl")
    assert json.loads((tmp_path / "p.jsonl").read_text(encoding="utf-8"))["path"] == name
    write_predictions([Unreadable(name, "gone")], tmp_path / "p.csv")
    assert "caf" in (tmp_path / "p.csv").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "name", ["a\rb.png", "a\nb.png", "a\r\nb.png", "=cmd|'C calc'!A0.png", "-1.png", "'=1.png", '",".png']
)
def test_any_name_is_one_row_that_we_read_back(tmp_path: Path, name: str) -> None:
    (tmp_path / name).touch()
    write_predictions([replace(FOUND, path=name, label="=1+1"), Unreadable(name, "gone")], tmp_path / "p.csv")
    assert find_inputs([tmp_path / "p.csv"]) == [tmp_path / name] * 2
    assert read_columns(tmp_path / "p.csv", ["label"])["label"] == ["=1+1", ""]
    with (tmp_path / "p.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file, strict=True))
    assert [row["error"] for row in rows] == ["", "gone"]
    assert not any(cell.startswith(("=", "-", "+", "@", "\r")) for row in rows for cell in row.values())


def test_a_printed_line_is_one_line_without_escapes() -> None:
    line = prediction_line(replace(FOUND, path="a\n\x1b[2J\tb", label="x\r", labels=("x\r",), top5=(("\x07", 0.1),)))
    assert line.split("\t")[:4] == [r"a\n\x1b[2J\tb", r"x\r", "80.0%", r"[\x07 10.0%]"]


@pytest.mark.parametrize("name", ["p.csv", "p.jsonl"])
def test_an_error_on_the_way_leaves_what_was_there(tmp_path: Path, name: str) -> None:
    def failing() -> Iterator[Prediction]:
        yield FOUND
        raise ImageError("broken")

    (tmp_path / name).write_text("of before")
    with pytest.raises(OutputError, match="exists"):
        write_predictions(failing(), tmp_path / name)
    with pytest.raises(ImageError, match="broken"):
        write_predictions(failing(), tmp_path / name, overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_text() == "of before"


@pytest.mark.parametrize("name", ["p.txt", "p", "p.json"])
def test_another_ending_is_refused_before_anything_is_predicted(tmp_path: Path, name: str) -> None:
    asked: list[int] = []

    def found() -> Iterator[Prediction]:
        asked.append(1)
        yield FOUND

    with pytest.raises(OutputError, match=r"\.jsonl"):
        write_predictions(found(), tmp_path / name)
    assert asked == [] and list(tmp_path.iterdir()) == []


def test_places_that_cannot_be_written_are_refused_before_anything_is_predicted(tmp_path: Path) -> None:
    def found() -> Iterator[Prediction]:
        pytest.fail("was asked")
        yield FOUND

    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(OutputError, match="is a folder"):
        check_output(tmp_path / "folder.csv")
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot be written"):
        write_predictions(found(), tmp_path / "file" / "p.csv")


def test_a_line_names_the_label_its_runners_up_and_the_boxes() -> None:
    line = prediction_line(FOUND)
    assert line == 'folder/ä, 1.png\ta "b", c\t80.0%\t[x 20.0%]\tlooked at 1:(-2, 0, 30, 40)'
    assert "looked at" not in prediction_line(Prediction("p", "", (), 0, 0.3, (("x", 0.3),), (9, 9), ()))
    assert "(none above 50%)" in prediction_line(Prediction("p", "", (), 0, 0.3, (("x", 0.3),), (9, 9), ()))
