"""The demonstration's page: one HTML file with embedded figures."""

from __future__ import annotations

import base64
import csv
import platform
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from jinja2 import Environment, PackageLoader, StrictUndefined

from tnet.evaluation.evaluator import LooksRow
from tnet.evaluation.report import macs_unit, short_number
from tnet.files import write_text
from tnet.geometry import axis_cells
from tnet.models.config import TNetConfig
from tnet.training.recipe import Recipe

Rows = dict[str, list[LooksRow]]  # measurements of each system


@dataclass(frozen=True)
class Claim:
    """A claim of the demonstration, the measurement in words, and whether the claim is met."""

    text: str
    measured: str
    met: bool


def machine() -> str:
    """Describe the hardware and software."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{torch.get_num_threads()} CPU threads"
    return f"{platform.machine()}, {device}, Python {platform.python_version()}, PyTorch {torch.__version__}"


def tnet_config(recipe: Recipe) -> TNetConfig:
    """Return the configuration of the demonstration's TNet."""
    assert isinstance(recipe.model, TNetConfig)
    return recipe.model


def write_page(
    folder: Path, recipe: Recipe, rows: Rows, claims: list[Claim], explained: list[Path], minutes: float, seconds: float
) -> Path:
    """Write ``index.html`` with the results of a run; ``minutes`` is the training time of the TNet."""
    environment = Environment(loader=PackageLoader("tnet.demo"), autoescape=True, undefined=StrictUndefined)
    with (folder / "predictions.csv").open(newline="", encoding="utf-8") as file:
        predictions = list(csv.DictReader(file))
    digits, model, systems = recipe.data.digits, tnet_config(recipe), _systems(rows, tnet_config(recipe).looks[0])
    cell_px = axis_cells(digits.canvas_px, model.grid.cols, model.grid.cell_extent).cell_px
    unit, letter = macs_unit(max(row.macs for _, row, _ in systems))
    text = environment.get_template("page.html.j2").render(
        recipe=recipe, digits=digits, model=model,
        seen_px=f"{digits.digit_px * model.base_px / digits.canvas_px:.0f}",
        close_px=f"{digits.digit_px * model.base_px / cell_px:.0f}",
        claims=claims, systems=systems, images=rows["TNet"][0].images, predictions=predictions,
        macs_text=lambda macs: f"{short_number(macs / unit)} {letter}",
        accuracy=_embedded(folder / "accuracy.png"), curves=_embedded(folder / "tnet" / "curves.png"),
        explained=[_embedded(path) for path in explained],
        train_minutes=f"{minutes:.1f}", minutes=f"{seconds / 60:.1f}",
        machine=machine(), date=time.strftime("%Y-%m-%d"), commands=next_commands(),
    )  # fmt: skip
    write_text(folder / "index.html", text)
    return folder / "index.html"


def next_commands() -> list[tuple[str, str]]:
    """Return commands to try next on one's own images, with descriptions."""
    train = "tnet train recipes/own_images.yaml data.root=PHOTOS --out runs/photos"
    return [
        (train, "train on a folder with train/CLASS/image.jpg and val/CLASS/image.jpg"),
        ("tnet evaluate runs/photos", "accuracy against the number of looks, with cost and time"),
        ("tnet explain runs/photos PHOTOS/val --out explained", "see where it looked, image by image"),
    ]


def _systems(rows: Rows, looks: int) -> list[tuple[str, LooksRow, bool]]:
    """Return name, measurement and emphasis of each line of the page's table."""
    systems = []
    for row in sorted(rows["TNet"], key=lambda row: row.policy == "random"):
        kind = "random" if row.policy == "random" else "learned"
        count = f"{row.total_looks} {kind} look{'s' if row.total_looks > 1 else ''}"
        name = f"TNet, {count if row.total_looks else 'the whole image only'}"
        systems.append((name, row, kind == "learned" and row.total_looks == looks))
    systems.append(("plain backbone, downsized image", rows["downsized"][0], False))
    return [*systems, ("plain backbone, full image", rows["full"][0], False)]


def _embedded(path: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode("ascii")
