"""The steps of the demonstration, from training to the page."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from PIL import Image

from tnet.cost import build_outline, multiply_adds
from tnet.data.digits import MegapixelDigits
from tnet.demo.page import Claim, Rows, find_row, tnet_config, write_demo_page
from tnet.errors import OutputError
from tnet.evaluation.evaluator import evaluate
from tnet.evaluation.report import looks_table, write_rows_csv
from tnet.explain import look, save_explanation
from tnet.files import make_folder, write_text
from tnet.inference.predictor import iter_predictions
from tnet.inference.write import write_predictions
from tnet.models.base import Model
from tnet.report.run import machine_text
from tnet.training.recipe import Recipe, load_recipe
from tnet.training.run import RunResult, train

RECIPE = Path(__file__).parent / "digits.yaml"
LOOKS = (0, 1, 2, 3, 5, 8)
FRESH_IMAGES = 6
_Say = Callable[[str], object]
_SMOKE = ["train.epochs=1", "train.images_per_epoch=64", "data.digits.canvas_px=256"]
_SMOKE += ["data.digits.images_val=32", "data.digits.images_test=48"]


@dataclass(frozen=True)
class DemoResult:
    """Results of the demonstration: files, checked claims, measurements per system, and wall time."""

    folder: Path
    page: Path
    claims: list[Claim]
    rows: Rows
    seconds: float


def run_demo(
    folder: str | Path, *, seed: int = 0, smoke: bool = False, progress: bool = True, say: _Say = print
) -> DemoResult:
    """Train a TNet and two plain networks on synthetic images, compare them, and write a page.

    The plain networks are the same backbone on the whole image, at the base resolution and at full resolution, each
    trained with as many multiply-adds as the TNet. ``smoke`` takes seconds and only checks that every step works;
    ``say`` is called with a line about each step.
    """
    start = time.monotonic()
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise OutputError(f"{folder} exists and is not empty; give another --out, or remove it")
    make_folder(folder)
    recipe = load_recipe(RECIPE, [*(_SMOKE if smoke else ()), f"seed={seed}"])
    digits, config = recipe.data.digits, tnet_config(recipe)
    say(f"1/5  Training a TNet: {recipe.title.lower()} ({digits.canvas_px} x {digits.canvas_px} px canvases)")
    tnet = train(recipe, folder / "tnet", progress=progress)
    minutes = tnet.train_seconds / 60
    say(f"     {minutes:.1f} min. 2/5  Training the same backbone on the downsized image, with as many multiply-adds")
    small = train(plain_recipe(recipe, config.base_px, minutes), folder / "plain_downsized", progress=progress)
    say("3/5  Training the same backbone on the full image, with as many multiply-adds")
    full = train(plain_recipe(recipe, digits.canvas_px, minutes), folder / "plain_full", progress=progress)
    say("4/5  Evaluating all three on test images")
    rows = _evaluate(tnet, small, full, progress)
    say("5/5  Predicting and explaining fresh images")
    explained = _fresh_images(tnet.model, recipe, folder)
    claims = check_claims(rows, config.looks[0])
    seconds = time.monotonic() - start
    _write_results(folder, rows, claims, seed, seconds)
    page = write_demo_page(folder, recipe, rows, claims, explained, minutes, seconds)
    return DemoResult(folder, page, claims, rows, seconds)


def plain_recipe(recipe: Recipe, base_px: int, minutes: float) -> Recipe:
    """Return the recipe for the plain backbone on the whole image resized to ``base_px``.

    It is trained with as many multiply-adds as the TNet, in one epoch. Only a training of five times the TNet's
    ``minutes`` is stopped: time says little about effort on a busy machine. If ``base_px`` differs from the recipe's,
    the batch size is reduced so that the larger image fits in memory.
    """
    config, settings = tnet_config(recipe), recipe.train
    plain = replace(config, levels=1, looks=(), base_px=base_px)
    batch = settings.batch_size if base_px == config.base_px else max(4, settings.batch_size // 4)
    seen = settings.epochs * (settings.images_per_epoch or recipe.data.digits.images_train)
    effort = seen * multiply_adds(build_outline(config)) / 1e9
    settings = replace(settings, epochs=1, images_per_epoch=None, max_gmacs=effort)
    settings = replace(settings, batch_size=batch, max_minutes=5 * minutes, overlays=0)
    return replace(recipe, model=plain, train=settings)


def _evaluate(tnet: RunResult, small: RunResult, full: RunResult, progress: bool) -> Rows:
    data = MegapixelDigits(tnet.recipe.data.digits, "test")
    rows = {
        "TNet": evaluate(tnet.model, data, looks=LOOKS, policies=("topk", "random"), progress=progress),
        "downsized": evaluate(small.model, data, looks=(0,), progress=progress),
        "full": evaluate(full.model, data, looks=(0,), batch_size=4, progress=progress),
    }
    folder = tnet.folder.parent
    for name, system in rows.items():
        write_rows_csv(system, folder / f"evaluation_{name.lower()}.csv")
    return rows


def check_claims(rows: Rows, looks: int) -> list[Claim]:
    """Check the demonstration's claims."""
    chosen = find_row(rows["TNet"], looks)
    none, random = find_row(rows["TNet"], 0), find_row(rows["TNet"], looks, "random")
    full = rows["full"][0]
    # Rounded, because 0.7 - 0.4 < 0.3 in floating point.
    over_none = round(100 * (chosen.accuracy - none.accuracy), 6)
    over_random = round(100 * (chosen.accuracy - random.accuracy), 6)
    share, accuracy = chosen.macs / full.macs, f"{100 * chosen.accuracy:.1f} % against"
    return [
        Claim(
            f"{looks} looks are at least 30 points better than none",
            f"{accuracy} {100 * none.accuracy:.1f} %: {over_none:+.1f} points",
            over_none >= 30,
        ),
        Claim(
            f"{looks} learned looks are at least 15 points better than {looks} random ones",
            f"{accuracy} {100 * random.accuracy:.1f} %: {over_random:+.1f} points",
            over_random >= 15,
        ),
        Claim(
            "not below the full-image network trained with as many multiply-adds",
            f"{accuracy} {100 * full.accuracy:.1f} %",
            chosen.accuracy >= full.accuracy,
        ),
        Claim(
            "under a quarter of the full-image network's multiply-adds",
            f"{chosen.macs / 1e6:.1f} M against {full.macs / 1e6:.1f} M: 1/{1 / share:.0f}",
            share < 0.25,
        ),
    ]


def _fresh_images(model: Model, recipe: Recipe, folder: Path) -> list[Path]:
    """Write new images as files, predict them as a user would, and explain them."""
    digits = recipe.data.digits
    # After the images that were evaluated.
    fresh = MegapixelDigits(replace(digits, images_test=digits.images_test + FRESH_IMAGES), "test")
    paths, explained = [], []
    images = make_folder(folder / "fresh_images")
    for number in range(FRESH_IMAGES):
        sample = fresh[digits.images_test + number]
        path = images / f"scene_{number + 1}.png"
        assert isinstance(sample.image, torch.Tensor)
        Image.fromarray(sample.image[0].numpy()).save(path)
        paths.append(path)
        figure = folder / "explained" / f"scene_{number + 1}.png"
        explanation = look(model, sample.image, title=path.name, truth=fresh.classes[int(sample.target)])
        save_explanation(explanation, figure)
        explained.append(figure)
    write_predictions(iter_predictions(model, paths, progress=False), folder / "predictions.csv")
    return explained


def _write_results(folder: Path, rows: Rows, claims: list[Claim], seed: int, seconds: float) -> None:
    results = {
        "seed": seed, "seconds": round(seconds, 1), "machine": machine_text(), "date": time.strftime("%Y-%m-%d"),
        "claims": [asdict(claim) for claim in claims],
        "rows": {name: [asdict(row) for row in system] for name, system in rows.items()},
    }  # fmt: skip
    write_text(folder / "results.json", json.dumps(results, indent=2) + "\n")
    write_text(folder / "evaluation_tnet.md", looks_table(rows["TNet"]))
