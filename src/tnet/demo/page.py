"""The demonstration's page."""

from __future__ import annotations

import csv
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tnet.evaluation.evaluator import LooksRow
from tnet.evaluation.plots import looks_figure
from tnet.geometry import axis_cells
from tnet.models.config import TNetConfig
from tnet.report.gallery import file_name
from tnet.report.page import Commands, Mark, Page, Section, Table, plot, png_file, write_page
from tnet.report.run import machine_text
from tnet.report.sections import systems_table, training
from tnet.training.curves import read_run
from tnet.training.recipe import Recipe

Rows = dict[str, list[LooksRow]]  # measurements of each system


@dataclass(frozen=True)
class Claim:
    """A claim of the demonstration, the measurement in words, and whether the claim is met."""

    text: str
    measured: str
    met: bool


def tnet_config(recipe: Recipe) -> TNetConfig:
    """Return the configuration of the demonstration's TNet."""
    assert isinstance(recipe.model, TNetConfig)
    return recipe.model


def write_demo_page(
    folder: Path, recipe: Recipe, rows: Rows, claims: list[Claim], explained: list[Path], minutes: float, seconds: float
) -> Path:
    """Write ``index.html`` with the results of a run; ``minutes`` is the training time of the TNet."""
    digits, model = recipe.data.digits, tnet_config(recipe)
    cell_px = axis_cells(digits.canvas_px, model.grid.cols, model.grid.cell_extent).cell_px
    seen_px, close_px = (f"{digits.digit_px * model.base_px / px:.0f}" for px in (digits.canvas_px, cell_px))
    lead = [
        f"Each image is {digits.canvas_px} x {digits.canvas_px} px. Somewhere on it is one handwritten digit of "
        f"{digits.digit_px} px, among {digits.noise_patterns} pieces of clutter of the same size. Downscaled to the "
        f"network's input of {model.base_px} px, the digit is {seen_px} px tall: it can be located, but hardly read.",
        f"A TNet looks at the whole image once at {model.base_px} px, scores {model.grid.rows} x {model.grid.cols} "
        f"overlapping regions, and looks at the best {model.looks[0]} of them, again at {model.base_px} px, where the "
        f"digit is {close_px} px tall. It was trained on image labels only, without the positions of the digits.",
    ]
    marks: list[list[str | Mark]] = [
        [claim.text, claim.measured, Mark("holds" if claim.met else "does not hold", claim.met)] for claim in claims
    ]
    shown = Section(
        "What this run shows", "What a network that chooses where to look should achieve here, and what it did.",
        [Table(["claim", "this run", ""], marks, texts=3)],
    )  # fmt: skip
    others = [
        ("plain backbone, downsized image", rows["downsized"][0]), ("plain backbone, full image", rows["full"][0])
    ]  # fmt: skip
    cost = Section(
        "Accuracy and cost",
        "A few looks cost a fraction of the full image. All rows of TNet are one trained model: the number of looks is "
        "chosen when it is used. The plain networks are the same backbone without looks, trained with as many "
        "multiply-adds.",
        [systems_table(_named(rows["TNet"]), others, find_row(rows["TNet"], model.looks[0])),
         plot(looks_figure(rows["TNet"]), "Accuracy against the number of looks and against multiply-adds",
              "Learned against random locations, by number of looks and by cost.")],
        f"{rows['TNet'][0].images} test images, with handwritten digits that are not in the training images. The TNet "
        f"was trained for {minutes:.1f} minutes on this machine. One multiply-add is two FLOPs.",
    )  # fmt: skip
    with (folder / "predictions.csv").open(newline="", encoding="utf-8") as file:
        answers = [
            [file_name(row["path"]), row["label"], f"{float(row['probability']):.3f}"] for row in csv.DictReader(file)
        ]
    new = Section(
        "New images, explained",
        "The regions are the explanation: besides the downscaled image, they are all that the model saw. "
        "predictions.csv holds the same as data.",
        [*(png_file(path, f"Explanation of image {number}") for number, path in enumerate(explained, 1)),
         Table(["image", "label", "probability"], answers, texts=2)],
    )  # fmt: skip
    following = Section("Next, on your own images", "Three commands are enough to begin.", [Commands(next_commands())])
    learned = training(read_run(folder / "tnet"), recipe.train.keep)
    foot = f"Seed {recipe.seed}, {time.strftime('%Y-%m-%d')}, {seconds / 60:.1f} minutes in all, {machine_text()}. "
    foot += "All figures on this page were measured by the run that wrote it."
    sections = [section for section in (shown, cost, learned, new, following) if section]
    page = Page("Where is the digit, and which one is it?", lead, sections, foot=[foot])
    write_page(page, folder / "index.html")
    return folder / "index.html"


def next_commands() -> list[tuple[str, str]]:
    """Return commands to try next on one's own images, with descriptions."""
    train = "tnet train recipes/own_images.yaml data.root=PHOTOS --out runs/photos"
    return [
        (train, "train on a folder with train/CLASS/image.jpg and val/CLASS/image.jpg"),
        ("tnet report runs/photos", "one page: accuracy, cost, where it looks, what it gets wrong"),
        ("tnet explain runs/photos PHOTOS/val --out explained", "see where it looked, image by image"),
    ]


def find_row(rows: Sequence[LooksRow], looks: int, policy: str = "topk") -> LooksRow:
    """Return the row of a number of looks; the policy is ignored for 0."""
    return next(row for row in rows if row.total_looks == looks and (looks == 0 or row.policy == policy))


def _named(rows: list[LooksRow]) -> list[tuple[str, LooksRow]]:
    """Return the rows of the TNet with names, the random ones last."""
    named = []
    for row in sorted(rows, key=lambda row: row.policy == "random"):
        kind = "random" if row.policy == "random" else "learned"
        count = f"{row.total_looks} {kind} look{'s' if row.total_looks > 1 else ''}"
        named.append((f"TNet, {count if row.total_looks else 'the whole image only'}", row))
    return named
