"""The report of a file of predictions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tests.report.reader import Reader, check_self_contained

from tnet.errors import DataError
from tnet.inference.records import Prediction, RegionRecord, Unreadable
from tnet.inference.write import write_predictions
from tnet.report.gallery import MOST_SHOTS
from tnet.report.predictions import write_predictions_report

EVIL = "<img src=x onerror=alert(1)>"


def prediction(path: str, label: str, probability: float) -> Prediction:
    region = RegionRecord("1", 1, (0, 0, 20, 30), 0, -1, 0.5, 0.5, label, 0.9)
    return Prediction(path, label, (label,), 0, probability, ((label, probability),), (40, 60), (region,))


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Images, and predictions of them and of one that is gone, as CSV and as JSON lines."""
    for index in range(3):
        Image.fromarray(np.full((40, 60, 3), 60 * index, dtype=np.uint8)).save(tmp_path / f"{index}.png")
    found: list[Prediction | Unreadable] = [
        prediction("0.png", "ant", 0.95),
        prediction(str(tmp_path / "1.png"), EVIL, 0.4),
        prediction("2.png", "ant", 0.55),
        prediction(f"gone/{EVIL}.png", "bee", 0.2),
        Unreadable("bad.png", "it is damaged"),
    ]
    for name in ("p.csv", "p.jsonl"):
        write_predictions(found, tmp_path / name)
    return tmp_path


@pytest.mark.parametrize("name", ["p.csv", "p.jsonl"])
def test_answers_and_unsure_images(photos: Path, name: str) -> None:
    assert write_predictions_report(photos / name, photos / "page.html", progress=False) == 4
    text = (photos / "page.html").read_text(encoding="utf-8")
    check_self_contained(text)
    page = Reader(text)
    assert "4 images were classified, and 1 could not be read" in page.text
    assert page.row("ant") == ["ant", "2", "50.0 %", "75.0 %"] and page.row(EVIL)[1:] == ["1", "25.0 %", "40.0 %"]
    assert "52.5 % mean probability" in page.text and "75.0 % of the answers have a probability below 60 %" in page.text
    assert page.row(f"gone/{EVIL}.png") == [f"gone/{EVIL}.png", "bee", "20.0 %"]
    assert page.tags.count("img") == 3 + 1  # photographs, least sure first, and a plot
    assert page.text.index(f"{EVIL}, 40.0 %") < page.text.index("ant, 55.0 %") < page.text.index("ant, 95.0 %")
    assert page.tags.count("svg") == 3 and 'width="160.0" height="106.5"' in text  # half of 320 x 213


def test_only_the_least_sure_are_read_and_shown(tmp_path: Path) -> None:
    Image.new("RGB", (40, 40)).save(tmp_path / "a.png")
    rows = "".join(f"a.png,c{n % 7},{n / 1000}\n" for n in range(1000))
    (tmp_path / "p.csv").write_text(f"path,label,probability\n{rows}")
    assert write_predictions_report(tmp_path / "p.csv", tmp_path / "page.html", progress=False) == 1000
    page = Reader((tmp_path / "page.html").read_text(encoding="utf-8"))
    assert page.tags.count("img") == MOST_SHOTS + 1 and "2.3 %" in page.text and "svg" not in page.tags


@pytest.mark.parametrize(
    "regions", ["[1", "{}", '[{"number": "1"}]', '[{"number":1,"level":1,"box_l0_yxyx":[1,2]}]', "7"]
)
def test_regions_that_are_not_ours_are_left_out(photos: Path, regions: str) -> None:
    quoted = regions.replace('"', '""')
    (photos / "q.csv").write_text(f'path,label,probability,regions\n0.png,ant,0.5,"{quoted}"\n')
    write_predictions_report(photos / "q.csv", photos / "page.html", progress=False)
    assert Reader((photos / "page.html").read_text(encoding="utf-8")).tags.count("svg") == 0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("path,label,probability\n", "no rows"),
        ("path,label,probability,error\na.png,,,damaged\n", "has no predictions"),
        ("path,label\na.png,ant\n", "'probability'"),
        ("path,label,probability\na.png,ant,sure\n", "probability 'sure' in prediction 1; it must be from 0 to 1"),
        ("path,label,probability\na.png,ant,0.5\na.png,ant,1.5\n", "in prediction 2"),
        ("path,label,probability\na.png,ant,nan\n", "'nan'"),
        ("path,label,probability\na.png,ant\n", "line 2"),
    ],
)
def test_tables_that_are_not_predictions(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "p.csv").write_text(text)
    with pytest.raises(DataError, match=message):
        write_predictions_report(tmp_path / "p.csv", tmp_path / "page.html", progress=False)
    assert not (tmp_path / "page.html").exists()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("", "no predictions"), ("not json", "not JSON lines"), ("[1]", "no path and label in line 1"),
        ('{"path": "a.png"}', "in line 1"), ('{"path": "a", "label": "b"}', "probability 'None'"),
        ('{"path": "a", "label": "b", "probability": [1]}', "must be from 0 to 1"), ("[" * 100_000, "JSON lines"),
    ],
)  # fmt: skip
def test_lines_that_are_not_predictions(tmp_path: Path, line: str, message: str) -> None:
    (tmp_path / "p.jsonl").write_text(line + "\n")
    with pytest.raises(DataError, match=message):
        write_predictions_report(tmp_path / "p.jsonl", tmp_path / "page.html", progress=False)


def test_a_label_of_none_and_names_of_any_kind(tmp_path: Path) -> None:
    record: dict[str, Any] = {"path": "x\x1b.png", "label": "", "probability": 0.25, "regions": []}
    others = [record | {"path": path} for path in ("a\0.png", "s3://bucket/a.png", "/dev/zero", "n" * 5000)]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(one) + "\n" for one in (record, *others)))
    write_predictions_report(tmp_path / "p.jsonl", tmp_path / "page.html", progress=False)
    page = Reader((tmp_path / "page.html").read_text(encoding="utf-8"))
    assert page.row("(none above 50 %)")[1] == "5" and page.tags.count("img") == 1
    assert "x\\x1b.png" in page.text
