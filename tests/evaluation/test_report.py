from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from scipy.stats import binomtest

from tnet.errors import OutputError
from tnet.evaluation.evaluator import LooksRow, wilson_interval
from tnet.evaluation.plots import plot_looks
from tnet.evaluation.report import looks_label, looks_notes, looks_table, short_number, write_rows_csv

ZERO = LooksRow(
    looks=(), total_looks=0, policy="none", images=200, accuracy=0.25, accuracy_low=0.195, accuracy_high=0.314,
    top5=0.75, auc=None, jaccard=None, confidence=0.5, macs=1_500_000, parameters=21_859_949, time_ms=1.5,
    time_ms_min=1.25, time_ms_max=12.0, batch_size=16, device="cpu",
)  # fmt: skip
TWO = replace(ZERO, looks=(2,), total_looks=2, policy="topk", accuracy=0.5, accuracy_low=0.43, accuracy_high=0.57)
DEEP = replace(TWO, looks=(2, 1), total_looks=4, accuracy=0.75, accuracy_low=0.69, accuracy_high=0.8)


@given(total=st.integers(1, 5000), share=st.floats(0, 1))
def test_interval_is_wilsons(total: int, share: float) -> None:
    correct = round(total * share)
    known = binomtest(correct, total).proportion_ci(confidence_level=0.95, method="wilson")
    assert wilson_interval(correct, total) == pytest.approx((known.low, known.high), abs=1e-6)


@given(total=st.integers(1, 5000))
def test_interval_holds_the_share_itself_at_its_ends(total: int) -> None:
    assert wilson_interval(0, total)[0] == 0 and wilson_interval(total, total)[1] == 1


def test_labels_of_looks_are_what_the_command_line_reads() -> None:
    assert [looks_label(looks) for looks in [(), (3,), (2, 1)]] == ["0", "3", "2x1"]


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0, "0"), (0.00000012, "0.000000"), (0.0015, "0.001500"), (5.616, "5.616"), (10843.3, "10,843"), (12.0, "12.00")],
)
def test_numbers_are_short(value: float, shown: str) -> None:
    assert short_number(value) == shown


def test_table_says_everything_in_aligned_columns() -> None:
    lines = looks_table([ZERO, TWO, DEEP]).splitlines()
    assert len({len(line) for line in lines}) == 1
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    header = ["looks", "policy", "accuracy % (95 % interval)", "top-5 %", "confidence"]
    assert cells[0] == [*header, "multiply-adds (M)", "parameters (M)", "ms/image (min to max)"]
    assert set("".join(cells[1])) == {"-"}
    assert cells[2] == [
        "0", "none", "25.0 (19.5 to 31.4)", "75.0", "0.500", "1.500", "21.86", "1.50 (1.25 to 12.00)"
    ]  # fmt: skip
    assert [line[0] for line in cells[3:]] == ["2", "2x1"]


def test_table_has_columns_for_what_there_is() -> None:
    two_classes = replace(ZERO, top5=None, auc=0.8125)
    several_labels = replace(ZERO, top5=None, jaccard=0.25, macs=7_235_627_314)
    assert "| AUC " in looks_table([two_classes]) and "| 0.812 " in looks_table([two_classes])
    assert "top-5" not in looks_table([two_classes]) and "Jaccard" not in looks_table([two_classes])
    shown = looks_table([several_labels])
    assert "| Jaccard |" in shown and "multiply-adds (G)" in shown and "| 7.236 " in shown
    assert "exact match" in looks_notes([several_labels]) and "exact match" not in looks_notes([ZERO])


def test_csv_can_be_read_back(tmp_path: Path) -> None:
    write_rows_csv([ZERO, DEEP], tmp_path / "rows.csv")
    with (tmp_path / "rows.csv").open(newline="", encoding="utf-8") as file:
        zero, deep = csv.DictReader(file)
    assert (zero["looks"], deep["looks"]) == ("0", "2x1")
    assert (zero["auc"], float(zero["accuracy"]), int(zero["macs"])) == ("", 0.25, 1_500_000)
    names = [name for name in LooksRow.__dataclass_fields__ if not name.startswith("right")]
    assert list(zero) == names
    assert [path.name for path in tmp_path.iterdir()] == ["rows.csv"]


@pytest.mark.figures
@pytest.mark.parametrize(
    "rows",
    [
        [replace(ZERO, accuracy=0.0, accuracy_low=0.0)],
        [ZERO, TWO],
        [TWO, replace(TWO, policy="random", accuracy=0.3, accuracy_low=0.24, accuracy_high=0.37)],
        [ZERO, TWO, DEEP],
    ],
)
def test_plot_is_a_picture(rows: list[LooksRow], tmp_path: Path) -> None:
    plot_looks(rows, tmp_path / "plot.png")
    with Image.open(tmp_path / "plot.png") as picture:
        assert picture.format == "PNG"
        # Lines, bands and text: not an empty page.
        assert len(picture.convert("RGB").getcolors(2**24) or []) > 50
    assert [path.name for path in tmp_path.iterdir()] == ["plot.png"]


def test_files_that_cannot_be_written_are_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    for write in (write_rows_csv, plot_looks):
        with pytest.raises(OutputError, match="cannot be written"):
            write([ZERO], tmp_path / "file" / "rows.csv")
