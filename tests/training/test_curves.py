from __future__ import annotations

import csv
import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tnet.errors import OutputError
from tnet.training.curves import curves_figure, plot_curves, read_metrics, read_run, write_metrics

ROWS = [
    {
        "epoch": float(epoch),
        "step": 10.0 * epoch + 9,
        "train/loss": 1 / (epoch + 1),
        "train/location_entropy": 2.0,
        "val/accuracy": 0.1 * epoch,
    }
    for epoch in range(3)
]


def put_version(root: Path, number: int, text: str) -> None:
    folder = root / f"version_{number}"
    folder.mkdir(parents=True)
    (folder / "metrics.csv").write_text(text)


def test_rows_of_an_epoch_are_one_and_a_later_version_replaces_what_it_repeats(tmp_path: Path) -> None:
    head = "epoch,step,train/loss,val/accuracy\n"
    put_version(tmp_path, 0, head + "0,9,,0.5\n0,9,3.0,\n1,19,,0.6\n1,19,2.0,\n2,29,,0.7\n")
    put_version(tmp_path, 2, head + "2,29,,0.75\n2,29,1.5,\n")
    put_version(tmp_path, 10, "epoch,step,val/accuracy\n2,29,0.8\n3,39,0.9\n")  # after 2, though not as a text
    assert read_metrics(tmp_path) == [
        {"epoch": 0, "step": 9, "train/loss": 3.0, "val/accuracy": 0.5},
        {"epoch": 1, "step": 19, "train/loss": 2.0, "val/accuracy": 0.6},
        {"epoch": 2, "step": 29, "val/accuracy": 0.8},
        {"epoch": 3, "step": 39, "val/accuracy": 0.9},
    ]


def test_no_logs_are_no_rows(tmp_path: Path) -> None:
    assert read_metrics(tmp_path / "missing") == []
    put_version(tmp_path, 0, "")
    put_version(tmp_path, 1, "epoch,step\n,3\n")
    assert read_metrics(tmp_path) == []


def test_the_table_of_a_run_is_read_as_written(tmp_path: Path) -> None:
    write_metrics(ROWS, tmp_path / "metrics.csv")
    assert read_run(tmp_path) == [pytest.approx(row) for row in ROWS]


@pytest.mark.parametrize(
    "text", [None, "", "epoch,step\n", "epoch,val/accuracy\n0,much\n", "a,b\n1,2\n", "epoch\nnan\n", "epoch\ninf\n"]
)
def test_a_run_without_a_readable_table_has_no_rows(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "metrics.csv").write_text(text)
    assert read_run(tmp_path) == []


def test_the_table_holds_every_value(tmp_path: Path) -> None:
    rows = [*ROWS, {"epoch": 3.0, "step": 1234567890.0, "val/accuracy": math.nan}]
    write_metrics(rows, tmp_path / "metrics.csv")
    with (tmp_path / "metrics.csv").open(newline="") as file:
        found = list(csv.DictReader(file))
    assert list(found[0])[:2] == ["epoch", "step"]
    assert [row["epoch"] for row in found] == ["0", "1", "2", "3"]
    assert found[1]["train/loss"] == "0.5" and float(found[2]["train/loss"]) == pytest.approx(1 / 3, rel=1e-5)
    assert found[3]["step"] == "1234567890" and found[3]["train/loss"] == "" and found[3]["val/accuracy"] == "nan"


@pytest.mark.figures
@pytest.mark.parametrize("rows", [ROWS, [{"epoch": 0.0, "step": 1.0, "val/accuracy": 0.5}]])
def test_curves_are_a_picture(tmp_path: Path, rows: list[dict[str, float]]) -> None:
    plot_curves(rows, tmp_path / "curves.png")
    with Image.open(tmp_path / "curves.png") as picture:
        assert len(np.unique(np.asarray(picture.convert("L")))) > 10, "something is drawn"
    assert [path.name for path in tmp_path.iterdir()] == ["curves.png"]


@pytest.mark.figures
def test_a_panel_for_each_kind_of_metric(tmp_path: Path) -> None:
    plot_curves(ROWS, tmp_path / "three.png")
    plot_curves([{"epoch": 0.0, "val/accuracy": 0.5}], tmp_path / "one.png")
    with Image.open(tmp_path / "three.png") as three, Image.open(tmp_path / "one.png") as one:
        assert three.width == 3 * one.width and three.height == one.height


def test_places_that_cannot_be_written_are_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError):
        write_metrics(ROWS, tmp_path / "file" / "metrics.csv")
    with pytest.raises(OutputError):
        plot_curves(ROWS, tmp_path / "file" / "curves.png")


def test_metrics_have_words_where_there_are_some() -> None:
    figure = curves_figure(ROWS, {"val/accuracy": "validation images"})
    words = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]  # type: ignore[union-attr]
    assert words == ["validation images"]
