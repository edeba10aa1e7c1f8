from __future__ import annotations

import csv
import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tnet.evaluation.comparison.report import (
    Line,
    bootstrap_interval,
    comparison_notes,
    comparison_table,
    effort_table,
    lines_of,
    plot_comparison,
    share,
    write_comparison_csv,
)
from tnet.evaluation.comparison.work import Effort
from tnet.evaluation.evaluator import LooksRow
from tnet.evaluation.resources import Cost, MemoryUse, TimeUse

NONE, TWO, RANDOM = ("0", 0, "none"), ("2", 2, "learned"), ("2", 2, "random")


def a_row(setting: tuple[str, int, str], right: str, top5: str, without_context: str | None) -> LooksRow:
    looks, total, policy = setting
    return LooksRow(
        (int(looks),) if total else (), total, policy, len(right), 0.5, 0.4, 0.6, None, None, None, 0.5, 1, 1, 1.0, 1.0,
        1.0, 4, "cpu", right, top5, without_context,
    )  # fmt: skip


def a_cost(setting: tuple[str, int, str], macs: int) -> Cost:
    return Cost(
        *setting, macs, 1_500_000, 1_600_000, (64, 96), (TimeUse("cpu", 4, 5, 2.0, 1.5, 3.25),),
        (MemoryUse("cpu", 1, 12_500_000),),
    )  # fmt: skip


def some_lines() -> list[Line]:
    accuracies = [
        [
            a_row(NONE, "1000", "1100", None),
            a_row(TWO, "1110", "1111", "1010"),
            a_row(RANDOM, "1010", "1111", "0010"),
        ],
        [
            a_row(NONE, "1000", "1100", None),
            a_row(TWO, "1111", "1111", "1010"),
            a_row(RANDOM, "1011", "1111", "0010"),
        ],
    ]
    costs = [a_cost(NONE, 10**9), a_cost(TWO, 3 * 10**9), replace(a_cost(RANDOM, 29 * 10**8), times=(), memory=())]
    return lines_of("TNet", accuracies, costs, [Effort(10, 80, 1.0), Effort(10, 80, 2.0)], 1000)


def test_the_interval_is_that_of_drawing_images_one_by_one() -> None:
    values = np.array([1.0] * 30 + [0.5] * 20 + [0.0] * 50)
    low, high = bootstrap_interval(values, 20_000)
    generator = np.random.default_rng(1)
    means = values[generator.integers(100, size=(20_000, 100))].mean(axis=1)
    # Means come in steps of 0.005, and percentiles of 20 000 resamples are off by less than one.
    assert [low, high] == pytest.approx(np.percentile(means, [2.5, 97.5]), abs=0.0051)


def test_the_interval_of_many_images_is_the_normal_one() -> None:
    low, high = bootstrap_interval(np.array([1.0] * 7000 + [0.0] * 3000), 20_000)
    half = 1.959964 * math.sqrt(0.7 * 0.3 / 10_000)
    # The standard error of a 2.5 % percentile of 20 000 draws is 0.019 standard deviations of what is drawn.
    assert [low, high] == pytest.approx([0.7 - half, 0.7 + half], abs=4 * 0.019 * half / 1.96 + 1e-4)


def test_the_interval_follows_from_the_seed() -> None:
    values = np.array([1.0] * 13 + [0.0] * 29)
    assert bootstrap_interval(values) == bootstrap_interval(values)
    assert bootstrap_interval(np.ones(5)) == (1.0, 1.0)


def test_a_share_over_seeds() -> None:
    one = share(["1101"])
    assert (one.mean, one.std, one.min, one.max, one.images) == (0.75, None, 0.75, 0.75, 4)
    three = share(["1101", "1000", "1001"])
    assert three.mean == pytest.approx(0.5)
    assert three.std == pytest.approx(np.std([0.75, 0.25, 0.5], ddof=1))
    assert (three.min, three.max) == (0.25, 0.75)
    # Image 1 is always right and image 3 never: only what images differ in is resampled.
    assert (three.low, three.high) == bootstrap_interval(np.array([3, 1, 0, 2]) / 3)


def test_lines_put_seeds_and_costs_together() -> None:
    lines = some_lines()
    assert [(line.looks, line.total_looks, line.policy) for line in lines] == [NONE, TWO, RANDOM]
    assert lines[1].top1 is not None and lines[1].top1.mean == pytest.approx(0.875)
    assert lines[0].without_context is None
    assert lines[1].without_context is not None and lines[1].without_context.mean == 0.5
    assert lines[1].effort == Effort(10, 80, 1.5)
    (costly,) = lines_of("B", [], [a_cost(TWO, 5)], [], 100)
    assert (costly.top1, costly.effort, costly.cost) == (None, None, a_cost(TWO, 5))


def test_the_table_has_the_columns_of_the_paper() -> None:
    lines = some_lines()
    header, _, *body = [[cell.strip() for cell in line.strip("|").split("|")] for line in
                        comparison_table(lines).strip().split("\n")]  # fmt: skip
    assert header == [
        "row", "#locs", "policy", "top-1 %", "top-5 %", "without context %", "FLOPs (G)", "parameters (M)",
        "ms/image, cpu, batch 4", "peak MB, cpu, batch 1",
    ]  # fmt: skip
    assert body[1][:3] == ["TNet", "2", "learned"]
    assert body[1][3].startswith("87.5 (") and body[1][3].endswith("± 17.7 [75.0 to 100.0]")
    assert body[1][6:] == ["3.000", "1.500", "2.00 (1.50 to 3.25)", "12.5"]
    assert body[2][6:] == ["2.900", "1.500", "-", "-"]
    notes = comparison_notes(lines, ["cuda"], {"cpu": "Abacus"})
    for said in ("4 images", "multiply-adds per image", "64 x 96 px", "cpu Abacus", "not measured: cuda", "2 seeds"):
        assert said in notes
    assert "| TNet | 2     | 10    | 80          | 1.5     |" in effort_table(lines)
    assert effort_table([replace(line, effort=None) for line in lines]) == ""


def test_a_name_does_not_change_the_form_of_tables_and_plots(tmp_path: Path) -> None:
    name = "=a|b <i>\n$\\frac$"
    lines = [replace(line, row=name) for line in some_lines()]
    for table in (comparison_table(lines), effort_table(lines)):
        shown = table.splitlines()
        assert {len(re.split(r"(?<!\\)\|", line)) for line in shown} == {len(shown[0].split("|"))}
        assert r"=a\|b &lt;i\>\\n$\\frac$" in shown[2]
    write_comparison_csv(lines, tmp_path / "c.csv")
    with (tmp_path / "c.csv").open(newline="", encoding="utf-8") as file:
        assert {row["row"] for row in csv.DictReader(file)} == {f"'{name}"}
    plot_comparison(lines, tmp_path)


def test_the_csv_has_every_number(tmp_path: Path) -> None:
    lines = [*some_lines(), *lines_of("costs", [], [a_cost(TWO, 7)], [], 100)]
    write_comparison_csv(lines, tmp_path / "a.csv")
    with (tmp_path / "a.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [(row["row"], row["looks"], row["policy"]) for row in rows][1:] == [
        ("TNet", "2", "learned"), ("TNet", "2", "random"), ("costs", "2", "learned")
    ]  # fmt: skip
    assert float(rows[1]["top1"]) == 0.875 and float(rows[1]["without_context"]) == 0.5
    assert (rows[1]["macs"], rows[1]["flops"]) == ("3000000000", "6000000000")
    assert (rows[1]["ms_per_image_cpu_batch4"], rows[1]["ms_per_image_cpu_batch4_max"]) == ("2", "3.25")
    assert (rows[1]["peak_bytes_cpu_batch1"], rows[1]["images_seen"]) == ("12500000", "80")
    assert (rows[2]["ms_per_image_cpu_batch4"], rows[3]["top1"], rows[3]["steps"]) == ("", "", "")


@pytest.mark.slow
@pytest.mark.figures
def test_pictures_are_drawn_of_what_there_is(tmp_path: Path) -> None:
    drawn = plot_comparison(some_lines(), tmp_path)
    assert [path.name for path in drawn] == ["accuracy_macs.png", "accuracy_time.png", "accuracy_looks.png"]
    for path in drawn:
        with Image.open(path) as picture:
            assert len(picture.convert("RGB").getcolors(2**24) or ()) > 50
    (tmp_path / "b").mkdir()
    bare = [replace(line, cost=None) for line in some_lines()]
    assert [path.name for path in plot_comparison(bare, tmp_path / "b")] == ["accuracy_looks.png"]
    assert plot_comparison([replace(line, top1=None) for line in some_lines()], tmp_path / "b") == []
