"""The page that the demonstration leaves: one HTML file with its pictures inside."""

from __future__ import annotations

import base64
import csv
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from jinja2 import Environment, PackageLoader, StrictUndefined

from tnet.evaluation.evaluator import LooksRow
from tnet.evaluation.report import macs_unit, short_number
from tnet.files import write_text
from tnet.geometry import axis_cells
from tnet.models.config import TNetConfig
from tnet.training.recipe import Recipe

if TYPE_CHECKING:
    from tnet.demo.run import Claim

_LEARNED = "learned"


def tnet_config(recipe: Recipe) -> TNetConfig:
    """The recipe's model, which in the demonstration is a TNet."""
    assert isinstance(recipe.model, TNetConfig)
    return recipe.model


def write_page(
    folder: Path,
    recipe: Recipe,
    rows: dict[str, list[LooksRow]],
    claims: Sequence[Claim],
    explained: Sequence[Path],
    train_minutes: float,
    seconds: float,
) -> Path:
    """Write ``index.html`` from what a run measured.

    Args:
        folder: of the run; its pictures go into the page.
        recipe: of the TNet.
        rows: measured systems.
        claims: held against the rows.
        explained: pictures of explanations.
        train_minutes: of each of the three networks.
        seconds: of the whole run.
    """
    from tnet.demo.run import machine

    environment = Environment(loader=PackageLoader("tnet.demo"), autoescape=True, undefined=StrictUndefined)
    with (folder / "predictions.csv").open(newline="", encoding="utf-8") as file:
        predictions = list(csv.DictReader(file))
    digits, model = recipe.data.digits, tnet_config(recipe)
    cell_px = axis_cells(digits.canvas_px, model.grid.cols, model.grid.cell_extent).cell_px
    text = environment.get_template("page.html.j2").render(
        canvas_px=digits.canvas_px,
        digit_px=digits.digit_px,
        clutter=digits.noise_patterns,
        base_px=model.base_px,
        seen_px=f"{digits.digit_px * model.base_px / digits.canvas_px:.0f}",
        close_px=f"{digits.digit_px * model.base_px / cell_px:.0f}",
        grid=model.grid,
        looks=model.looks[0],
        claims=claims,
        systems=_systems(rows, model.looks[0]),
        accuracy=_embedded(folder / "accuracy.png"),
        curves=_embedded(folder / "tnet" / "curves.png"),
        explained=[_embedded(path) for path in explained],
        predictions=predictions,
        train_minutes=f"{train_minutes:.1f}",
        minutes=f"{seconds / 60:.1f}",
        machine=machine(),
        date=time.strftime("%Y-%m-%d"),
        seed=recipe.seed,
        images=rows["TNet"][0].images,
        commands=next_commands(),
    )
    page = folder / "index.html"
    write_text(page, text)
    return page


def next_commands() -> list[tuple[str, str]]:
    """What to try next on one's own images: command and what it does."""
    return [
        (
            "tnet train recipes/own_images.yaml data.root=PHOTOS --out runs/photos",
            "train on a folder with train/CLASS/picture.jpg and val/CLASS/picture.jpg",
        ),
        ("tnet evaluate runs/photos", "accuracy against the number of looks, with cost and time"),
        ("tnet explain runs/photos PHOTOS/val --out explained", "see where it looked, picture by picture"),
    ]


def _systems(rows: dict[str, list[LooksRow]], looks: int) -> list[dict[str, str | bool]]:
    """Lines of the page's table."""
    unit, letter = macs_unit(max(row.macs for found in rows.values() for row in found))
    lines: list[dict[str, str | bool]] = []

    def add(name: str, row: LooksRow, strong: bool = False) -> None:
        interval = f"{100 * row.accuracy_low:.1f} to {100 * row.accuracy_high:.1f}"
        lines.append(
            {
                "name": name,
                "accuracy": f"{100 * row.accuracy:.1f}",
                "interval": interval,
                "macs": f"{short_number(row.macs / unit)} {letter}",
                "parameters": f"{row.parameters / 1e6:.2f} M",
                "time": f"{row.time_ms:.2f} ({row.time_ms_min:.2f} to {row.time_ms_max:.2f})",
                "strong": strong,
            }
        )

    for row in rows["TNet"]:
        if row.policy != "random":
            name = "TNet, the whole image only" if not row.total_looks else f"TNet, {_count(row.total_looks, _LEARNED)}"
            add(name, row, row.total_looks == looks)
    for row in rows["TNet"]:
        if row.policy == "random":
            add(f"TNet, {_count(row.total_looks, 'random')}", row)
    add("plain backbone, downsized image", rows["downsized"][0])
    add("plain backbone, full image", rows["full"][0])
    return lines


def _count(looks: int, kind: str) -> str:
    return f"{looks} {kind} look{'s' if looks > 1 else ''}"


def _embedded(path: Path) -> str:
    """A PNG as a data address, so that the page is one file."""
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode("ascii")
