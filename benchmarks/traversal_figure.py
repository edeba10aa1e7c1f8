"""Draw one traversal: the image, the regions that were chosen, and the pixels that the network received.

    python benchmarks/traversal_figure.py [--run RUN] [--index 8] [--out docs/figures/traversal.png]

Without ``--run`` the demo's TNet is trained first (minutes on two cores). The image is a test image of that run's
synthetic digits.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

import tnet
import tnet.demo
from tnet.data.digits import MegapixelDigits

RECIPE = Path(tnet.demo.__file__).parent / "digits.yaml"
FIGURE = Path(__file__).resolve().parents[1] / "docs" / "figures" / "traversal.png"
COLOURS = ("#d1495b", "#edae49", "#00798c", "#66a182", "#8d5b9f")
INK = "#333333"


def panel(figure: Figure, box: tuple[float, float, float, float], pixels: Tensor, colour: str = INK) -> Axes:
    """Show grey pixels in an axes with a coloured frame."""
    axes = figure.add_axes(box)
    axes.imshow(pixels, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set(edgecolor=colour, linewidth=2.5)
    return axes


def draw(model: tnet.TNet, image: Tensor, truth: str, names: list[str]) -> Figure:
    """Run the model on one image and draw what it saw."""
    with torch.inference_mode():
        output = model(image[None])
        glimpses = model.scene(image[None]).glimpse(output.regions, model.config.base_px)[:, 0]
    boxes = output.regions.box_l0_yxyx.tolist()
    looks = len(boxes) - 1
    alone = output.feature_logits[0].softmax(dim=1)
    height, width = image.shape[-2:]
    figure = Figure(figsize=(10, 5.3), dpi=110)
    figure.text(0.02, 0.94, f"The image: {width} × {height} px", weight="bold", color=INK)
    main = panel(figure, (0.02, 0.07, 0.45, 0.85), image[0] / 255)
    for number, (y0, x0, y1, x1) in enumerate(boxes[1:], start=1):
        colour = COLOURS[(number - 1) % len(COLOURS)]
        main.add_patch(Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, edgecolor=colour, linewidth=2.5))
        main.text(
            x0 + 12, y0 + 16, str(number), color="white", weight="bold", va="top",
            bbox={"facecolor": colour, "edgecolor": "none", "pad": 3},
        )  # fmt: skip
    px = model.config.base_px
    figure.text(0.52, 0.94, f"What the network saw: {len(boxes)} × {px} × {px} px", weight="bold", color=INK)
    for place, glimpse in enumerate(glimpses):
        row, column = divmod(place, 2)
        x, y = 0.52 + 0.24 * column, 0.57 - 0.44 * row
        colour = INK if place == 0 else COLOURS[(place - 1) % len(COLOURS)]
        panel(figure, (x, y, 0.186, 0.35), glimpse, colour)
        guess = int(alone[place].argmax())
        title = "first: the whole" if place == 0 else f"look {place}"
        figure.text(x, y - 0.035, f"{title}  ·  alone: {names[guess]} ({alone[place, guess]:.0%})", size=9, color=INK)
    probability, answer = output.logits[0].softmax(dim=0).max(dim=0)
    share = len(boxes) * px**2 / (height * width)
    figure.text(
        0.52, 0.02, f"Answer: {names[int(answer)]} ({float(probability):.0%}), true: {truth}  ·  {looks} looks, "
        f"{share:.1%} of the pixel count", color=INK, weight="bold", size=10,
    )  # fmt: skip
    return figure


def main() -> None:
    """Train if needed, run, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, help="run directory of the demo's recipe")
    parser.add_argument("--index", type=int, default=8, help="which test image")
    parser.add_argument("--out", type=Path, default=FIGURE)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        run = arguments.run
        if run is None:
            run = Path(scratch) / "run"
            tnet.train(tnet.load_recipe(RECIPE), run)
        model = tnet.load_model(run).eval()
        data = MegapixelDigits(tnet.load_recipe(run / "recipe.yaml").data.digits, "test")
    sample = data[arguments.index]
    assert isinstance(model, tnet.TNet) and isinstance(sample.image, Tensor)
    figure = draw(model, sample.image, data.classes[int(sample.target)], data.classes)
    figure.savefig(arguments.out)
    print(f"{arguments.out}: {arguments.out.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
