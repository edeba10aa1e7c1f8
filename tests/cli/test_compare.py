from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from tests.helpers import tiny_recipe
from typer.testing import CliRunner

from tnet.cli.main import app
from tnet.evaluation.comparison.suite import load_suite
from tnet.training.recipe import load_recipe, save_recipe

COSTS = {"devices": ["cpu"], "batch_sizes": [1], "repeats": 1, "memory_batch_size": 0}


@pytest.fixture
def suite(tmp_path: Path) -> Path:
    save_recipe(tiny_recipe(train={"epochs": 1}), tmp_path / "tiny.yaml")
    rows = [{"name": "TNet", "recipe": "tiny.yaml", "looks": [0, 2], "policies": ["learned", "random"]}]
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump({"title": "Mine", "costs": COSTS, "rows": rows}))
    return path


def compare(*arguments: object) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ["compare", *map(str, arguments), "--device", "cpu", "--no-progress"])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, result.stderr


def test_a_suite_becomes_a_table_a_csv_and_pictures(suite: Path, in_tmp_path: Path) -> None:
    code, shown, said = compare(suite)
    assert code == 0
    out = in_tmp_path / "runs" / "mine"
    assert sorted(path.name for path in out.iterdir()) == [
        "accuracy_looks.png", "accuracy_macs.png", "accuracy_time.png", "cache", "comparison.csv", "comparison.md",
        "training.png",
    ]  # fmt: skip
    page = (out / "comparison.md").read_text()
    table = [line for line in shown.splitlines() if line.startswith("| TNet")]
    assert len(table) == 4 and all(line in page for line in table)  # 3 settings, and the training effort
    assert page.startswith("# Mine\n") and "(accuracy_macs.png)" in page
    assert "training in" in said and "evaluating on 16 images" in said and "training in" not in shown
    with (out / "comparison.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [(row["looks"], row["policy"], row["images"], row["steps"], row["images_seen"]) for row in rows] == [
        ("0", "none", "16", "3", "24"), ("2", "learned", "16", "3", "24"), ("2", "random", "16", "3", "24")
    ]  # fmt: skip
    code, again, said = compare(suite)
    assert (code, again, said) == (0, shown, "")  # nothing is done twice, times included


@pytest.mark.slow
def test_a_row_that_fails_does_not_lose_the_others(suite: Path, tmp_path: Path) -> None:
    content = yaml.safe_load(suite.read_text())
    content["rows"].insert(0, {"name": "bad", "recipe": "tiny.yaml", "overrides": ["model.in_channels=3"]})
    content["rows"].insert(1, {"name": "after bad", "recipe": "tiny.yaml", "after": "bad"})
    suite.write_text(yaml.safe_dump(content))
    code, shown, said = compare(suite, "--out", tmp_path / "out")
    assert code == 1
    assert "| TNet" in shown and "Failed: bad: " in shown
    assert "error: row 'bad': " in said and "error: row 'after bad': " in said
    assert "Failed: bad" in (tmp_path / "out" / "comparison.md").read_text()


def test_wrong_suites_and_rows_are_one_sentence(suite: Path, tmp_path: Path) -> None:
    code, _, said = compare(suite, "seed=3")
    assert code == 1 and "mine.yaml" in said and "'seed'" in said
    code, _, said = compare(suite, "--only", "DRAM", "--out", tmp_path / "out")
    assert code == 1 and "'DRAM'" in said
    (tmp_path / "file").touch()
    code, _, said = compare(suite, "--out", tmp_path / "file")
    assert code == 1 and "file" in said


@pytest.mark.slow
def test_a_comparison_that_was_killed_goes_on(suite: Path, tmp_path: Path) -> None:
    content = yaml.safe_load(suite.read_text()) | {"overrides": ["train.epochs=15"]}
    suite.write_text(yaml.safe_dump(content))
    out = tmp_path / "out"
    process = subprocess.Popen(
        [sys.executable, "-c", "from tnet.cli.main import main; main()", "compare", str(suite), "--out", str(out),
         "--device", "cpu"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=os.environ,
    )  # fmt: skip
    try:
        give_up = time.monotonic() + 90
        while not list(out.glob("cache/*/run/checkpoints/last.ckpt")):
            assert process.poll() is None and time.monotonic() < give_up
            time.sleep(0.02)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait(60)
    (run,) = out.glob("cache/*/run")
    assert not json.loads((run.parent / "effort.json").read_text())["finished"]
    assert not (out / "comparison.md").exists()
    code, shown, said = compare(suite, "--out", out)
    assert code == 0 and "resuming in" in said
    assert list(out.glob("cache/*/run")) == [run]
    assert (run / "logs" / "csv" / "version_1").is_dir()
    done = json.loads((run.parent / "effort.json").read_text())
    assert done["finished"] and (done["effort"]["steps"], done["effort"]["images"]) == (45, 360)
    assert "| TNet | 1     | 45    | 360 " in shown


def test_the_example_is_a_suite_and_its_rows_are_recipes(repository: Path) -> None:
    suite = load_suite(repository / "recipes" / "compare_digits.yaml")
    assert len(suite.rows) > 1
    for row in suite.rows:
        assert row.recipe is not None
        load_recipe(row.recipe, [*suite.overrides, *row.overrides])
