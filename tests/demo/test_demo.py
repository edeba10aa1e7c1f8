"""The demonstration: its claims, and its page."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from tests.report.reader import Reader, check_self_contained

from tnet.data.digits import MegapixelDigits
from tnet.demo.page import next_commands, write_demo_page
from tnet.demo.run import FRESH_IMAGES, LOOKS, RECIPE, Claim, check_claims, find_row, plain_recipe, run_demo
from tnet.errors import OutputError
from tnet.evaluation.report import LooksRow
from tnet.training.effort import within_effort
from tnet.training.recipe import load_recipe


def row(looks: int, accuracy: float, macs: int = 10_000_000, policy: str = "topk") -> LooksRow:
    return LooksRow(
        looks=(looks,) if looks else (),
        total_looks=looks,
        policy=policy if looks else "none",
        images=500,
        accuracy=accuracy,
        accuracy_low=max(0.0, accuracy - 0.04),
        accuracy_high=min(1.0, accuracy + 0.04),
        top5=None,
        auc=None,
        jaccard=None,
        confidence=0.6,
        macs=macs,
        parameters=1_234_567,
        time_ms=1.25,
        time_ms_min=1.0,
        time_ms_max=2.0,
        batch_size=32,
        device="cpu",
    )


def rows(
    chosen: float = 0.9, none: float = 0.3, random: float = 0.5, full: float = 0.8, share: float = 0.1
) -> dict[str, list[LooksRow]]:
    """What was measured; other numbers of looks are there to be taken by mistake."""
    full_macs = 200_000_000
    return {
        "TNet": [
            row(0, none, 2_000_000),
            row(1, 0.01),
            row(3, chosen, int(share * full_macs)),
            row(8, 0.99, 10 * full_macs),
            row(1, 0.99, policy="random"),
            row(3, random, int(share * full_macs), policy="random"),
        ],
        "downsized": [row(0, 0.2)],
        "full": [row(0, full, full_macs)],
    }


# --- claims


@pytest.mark.parametrize(
    ("changes", "met"),
    [
        ({}, [True, True, True, True]),
        ({"none": 0.61}, [False, True, True, True]),
        ({"random": 0.76}, [True, False, True, True]),
        ({"full": 0.91}, [True, True, False, True]),
        ({"share": 0.26}, [True, True, True, False]),
        ({"chosen": 0.1, "share": 4.0}, [False, False, False, False]),
        # At the limit: at least 30 and 15 points, not below, under a quarter. 0.7 - 0.4 < 0.3 in floating point.
        ({"chosen": 0.7, "none": 0.4, "random": 0.55, "full": 0.7, "share": 0.25}, [True, True, True, False]),
        ({"chosen": 0.698, "none": 0.4, "random": 0.55, "full": 0.7}, [False, False, False, True]),
    ],
)
def test_claims_are_met_or_missed(changes: dict[str, float], met: list[bool]) -> None:
    assert [claim.met for claim in check_claims(rows(**changes), 3)] == met


def test_a_claim_says_what_was_measured() -> None:
    none, random, full, cost = check_claims(rows(), 3)
    assert none.text.startswith("3 looks are at least 30 points")
    assert none.measured == "90.0 % against 30.0 %: +60.0 points"
    assert "3 random ones" in random.text and random.measured == "90.0 % against 50.0 %: +40.0 points"
    assert full.measured == "90.0 % against 80.0 %"
    assert cost.measured == "20.0 M against 200.0 M: 1/10"
    assert check_claims(rows(chosen=0.2), 3)[0].measured.endswith("-10.0 points")


def test_rows_by_looks_and_policy() -> None:
    found = rows()["TNet"]
    assert find_row(found, 3).accuracy == 0.9 and find_row(found, 3, "random").accuracy == 0.5
    assert find_row(found, 0, "random") is find_row(found, 0) is found[0]


# --- recipes


def test_the_claims_can_be_measured_with_the_recipe() -> None:
    recipe = load_recipe(RECIPE)
    assert recipe.model.looks[0] in LOOKS and 0 in LOOKS and recipe.model.levels == 2
    assert max(LOOKS) <= recipe.model.grid.cells


def test_the_plain_networks_differ_in_what_they_must() -> None:
    recipe = load_recipe(RECIPE)
    small, full = plain_recipe(recipe, recipe.model.base_px, 1.5), plain_recipe(recipe, 1024, 1.5)
    for plain, base_px, batch in ((small, 64, 32), (full, 1024, 8)):
        assert (plain.model.levels, plain.model.looks, plain.model.base_px) == (1, (), base_px)
        assert plain.train.batch_size == batch and plain.train.max_minutes == 7.5 and plain.train.epochs == 1
        # The TNet sees 4 glimpses of 64 px of each of its 6 x 1920 images: as many pixels, in whole batches.
        images = within_effort(plain, MegapixelDigits(plain.data.digits, "train")).train.images_per_epoch
        assert images is not None and images % batch == 0
        assert images == pytest.approx(6 * 1920 * 4 * (64 / base_px) ** 2, rel=0.05)
        same = ("data", "optim", "objective", "seed")
        assert all(getattr(plain, name) == getattr(recipe, name) for name in same)
        assert plain.model.backbone == recipe.model.backbone
    assert recipe.model.levels == 2  # the recipe itself is as it was


# --- the page


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """What a run leaves before its page is written; a file's name and a label that would be HTML."""
    (tmp_path / "tnet").mkdir()
    for name in ("scene_1.png", "scene_2.png"):
        Image.new("L", (4, 4)).save(tmp_path / name)
    (tmp_path / "tnet" / "metrics.csv").write_text("epoch,step,val/accuracy\n0,9,0.5\n1,19,0.75\n")
    with (tmp_path / "predictions.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label", "probability"])
        writer.writerows([["a/b/scene_1.png", "<i>7</i>", 0.91234], ["c\\<img src=x>.png", "é & co", 1.0]])
    return tmp_path


def page_of(folder: Path, claims: list[Claim], **changes: Any) -> str:
    explained = [folder / "scene_1.png", folder / "scene_2.png"]
    page = write_demo_page(folder, load_recipe(RECIPE), rows(**changes), claims, explained, 3.25, 600.0)
    assert page == folder / "index.html"
    return page.read_text(encoding="utf-8")


def test_the_page_says_every_claim_and_whether_it_holds(folder: Path) -> None:
    claims = check_claims(rows(full=0.95), 3)
    text = page_of(folder, claims, full=0.95)
    page = Reader(text)
    for claim in claims:
        assert claim.text in page.text and claim.measured in page.text
    assert page.text.count("✓ holds") == 3 and page.text.count("✗ does not hold") == 1
    assert text.count('<td class="met">') == 3 and text.count('<td class="missed">') == 1


def test_the_page_shows_what_was_measured(folder: Path) -> None:
    page = Reader(page_of(folder, check_claims(rows(), 3)))
    for line in ("the whole image only", "3 learned looks", "1 learned look ", "3 random looks", "plain backbone"):
        assert line in page.text
    assert page.row("TNet, 3 learned looks")[1:4] == ["90.0 %", "86.0 to 94.0 %", "20.00 M"]
    assert page.row("plain backbone, full image")[1] == "80.0 %"
    assert "500 test images" in page.text and "3.2 minutes" in page.text and "10.0 minutes in all" in page.text
    assert "1024 x 1024 px" in page.text and "64 px" in page.text
    assert all(command in page.text for command, _ in next_commands())
    assert "{{" not in page.text and "{%" not in page.text  # nothing of the template is left


def test_what_is_not_ours_is_escaped(folder: Path) -> None:
    claims = [Claim("<script>alert(1)</script>", 'a < b & "c"', True)]
    page = Reader(page_of(folder, claims))
    assert "script" not in page.tags and "i" not in page.tags
    # Accuracy, curves and two explanations: the file's name made no fifth picture.
    assert page.tags.count("img") == 4
    assert "<script>alert(1)</script>" in page.text and 'a < b & "c"' in page.text
    assert "<i>7</i>" in page.text and "<img src=x>.png" in page.text and "é & co" in page.text
    assert "scene_1.png" in page.text and "a/b/" not in page.text


def test_the_page_is_one_file_without_addresses(folder: Path) -> None:
    text = page_of(folder, check_claims(rows(), 3))
    check_self_contained(text)
    assert Reader(text).addresses


# --- the whole


def test_a_folder_in_use_is_refused_before_anything_is_trained(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("x")
    with pytest.raises(OutputError, match="--out"):
        run_demo(tmp_path, smoke=True, say=lambda line: None)
    with pytest.raises(OutputError, match="mine.txt"):
        run_demo(tmp_path / "mine.txt", smoke=True, say=lambda line: None)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_smoke_run_leaves_everything(tmp_path: Path) -> None:
    folder, said = tmp_path / "demo", []
    result = run_demo(folder, seed=3, smoke=True, progress=False, say=said.append)
    assert said[0].startswith("1/5") and "5/5" in said[-1]
    assert result.folder == folder and result.page == folder / "index.html" and len(result.claims) == 4
    page = Reader(result.page.read_text(encoding="utf-8"))
    assert all(claim.text in page.text and claim.measured in page.text for claim in result.claims)
    results = json.loads((folder / "results.json").read_text())
    assert results["seed"] == 3 and [claim["met"] for claim in results["claims"]] == [c.met for c in result.claims]
    assert {row["total_looks"] for row in results["rows"]["TNet"]} == set(LOOKS)
    assert results["rows"]["full"][0]["macs"] > results["rows"]["downsized"][0]["macs"] > 0
    with (folder / "predictions.csv").open(newline="") as file:
        predictions = list(csv.DictReader(file))
    assert [Path(p["path"]).name for p in predictions] == [f"scene_{n + 1}.png" for n in range(FRESH_IMAGES)]
    explained = sorted((folder / "explained").glob("*.png"))
    assert len(explained) == FRESH_IMAGES
    for path in explained:
        with Image.open(path) as image:
            image.verify()
    for name in ("tnet", "plain_downsized", "plain_full"):
        assert (folder / name / "model" / "model.safetensors").is_file()
    before = (folder / "results.json").read_bytes()
    with pytest.raises(OutputError, match="--out"):
        run_demo(folder, smoke=True, say=said.append)
    assert (folder / "results.json").read_bytes() == before
