"""How small may the object be? Where top-down search goes blind, and what repairs it.

A digit of 48 px among 8 pieces of clutter of the same size, on canvases of 1024 to 6000 px: it covers 0.22 to 0.0064 %
of the image. The demo's network sees the image at 64 px and takes 3 looks, as in the demo, or with a repair:

- ``same``: as in the demo. On larger canvases cells grow with the image, and what a look shows shrinks.
- ``levels``: more levels, until a look covers at most 360 px, about as in the demo; one look into each region.
- ``overview``: a larger overview, in which the digit is 3 px as in the demo, and cells of 352 px.
- ``random first``: ``overview``, whose looks are random in the first half of the training.

    python benchmarks/limits.py --out runs/limits
    python benchmarks/limits.py --canvases 1024 --out runs/try --images 96    # to see it work

Every network sees the same number of images. Appends a row per finished run to ``rows.csv`` in the output folder; runs
that are there are not repeated. Writes ``limits.png`` and prints a table.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path

from aggregations import RECIPE, append_row, read_rows

# Fixed before the first run.
CANVASES_PX = (1024, 1500, 3000, 6000)
IMAGES = 11_520  # as in the demo
EPOCHS = 6
DIGIT_PX, LOOK_PX, CELL_PX, STRIDE_PX = 48, 64, 352, 168  # the demo's
EXTENT = 0.34375
FORMS = ("same", "levels", "overview", "random first")


def settings(form: str, canvas_px: int) -> list[str]:
    """Return the changes to the demo's recipe, of which the demo's own canvas needs none."""
    if form == "same":
        return []
    if form == "levels":
        deeper = 1
        while canvas_px * EXTENT**deeper > 360:
            deeper += 1
        return [f"model.levels={1 + deeper}", f"model.looks={[3] + [1] * (deeper - 1)}"]
    cells = 1 + round((canvas_px - CELL_PX) / STRIDE_PX)
    grid = f"{{rows: {cells}, cols: {cells}, cell_extent: {CELL_PX / canvas_px:.5f}}}"
    base_px = 32 * round(canvas_px * LOOK_PX / 1024 / 32)
    changes = [f"model.base_px={base_px}", f"model.look_px={LOOK_PX}", f"model.grid={grid}"]
    return [*changes, *([f"train.random_looks_epochs={EPOCHS // 2}"] if form == "random first" else [])]


def run(form: str, canvas_px: int, seed: int, images: int) -> dict[str, object]:
    """Train one network, and measure it on the test images with its own looks, random ones, and none."""
    from tnet.data.digits import MegapixelDigits
    from tnet.evaluation.evaluator import evaluate
    from tnet.training.recipe import load_recipe
    from tnet.training.run import train

    effort = [f"train.epochs={EPOCHS}", f"train.images_per_epoch={images // EPOCHS}", "train.overlays=0"]
    # Images of 36 megapixels: fewer at a time, more often.
    small = ["train.batch_size=16", "optim.lr=1.4e-3"] if canvas_px > 3000 else []
    canvas = [f"data.digits.canvas_px={canvas_px}", f"seed={seed}", *small]
    recipe = load_recipe(RECIPE, [*effort, *canvas, *settings(form, canvas_px)])
    with tempfile.TemporaryDirectory() as folder:
        result = train(recipe, Path(folder) / "run")
        data = MegapixelDigits(recipe.data.digits, "test")
        looks = [0, recipe.model.default_looks]
        rows = evaluate(result.model, data, looks=looks, policies=["topk", "random"], batch_size=16, progress=False)
    without, learned, random = rows
    return {
        "form": form, "canvas_px": canvas_px, "seed": seed, "images": images, "accuracy": learned.accuracy,
        "accuracy_random": random.accuracy, "accuracy_0_looks": without.accuracy,
        "total_looks": learned.total_looks, "multiply_adds": learned.macs,
        "train_seconds": round(result.train_seconds, 1),
    }  # fmt: skip


def by_canvas(rows: list[dict[str, str]], form: str) -> dict[int, list[dict[str, str]]]:
    """Return the rows of a form, one for each seed, by canvas."""
    mine = [row for row in rows if row["form"] == form]
    canvases = sorted({int(row["canvas_px"]) for row in mine})
    return {side: [row for row in mine if int(row["canvas_px"]) == side] for side in canvases}


def mean(rows: list[dict[str, str]], column: str) -> float:
    """Return the mean of a share over seeds, in percent."""
    return statistics.mean(100 * float(row[column]) for row in rows)


def share(canvas_px: int) -> float:
    """Return how much of the image the digit covers, in percent."""
    return 100 * DIGIT_PX**2 / canvas_px**2


def table(rows: list[dict[str, str]]) -> str:
    """Return a Markdown table by canvas and form."""
    head = (
        "| canvas px | digit, % of the image | form | accuracy % | random looks | 0 looks | looks | multiply-adds (M) |"
    )
    lines = [head, "|---" * 8 + "|"]
    for side in sorted({int(row["canvas_px"]) for row in rows}):
        for form in FORMS:
            mine = by_canvas(rows, form).get(side)
            if not mine:
                continue
            columns = ("accuracy", "accuracy_random", "accuracy_0_looks")
            numbers = " | ".join(f"{mean(mine, column):.1f}" for column in columns)
            cost = int(mine[0]["multiply_adds"]) / 1e6
            lines.append(f"| {side} | {share(side):.2g} | {form} | {numbers} | {mine[0]['total_looks']} | {cost:.1f} |")
    return "\n".join(lines)


def plot(rows: list[dict[str, str]], path: Path) -> None:
    """Draw accuracy against the share of the image that the digit covers."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.subplots()
    for form in FORMS:
        points = by_canvas(rows, form)
        if points:
            accuracies = [mean(mine, "accuracy") for mine in points.values()]
            axes.plot([share(side) for side in points], accuracies, marker="o", label=form)
    axes.axhline(10, color="grey", linestyle=":", label="chance")
    axes.set(xscale="log", xlabel="digit, % of the image", ylabel="accuracy, %", ylim=(0, 100))
    axes.invert_xaxis()
    axes.legend()
    figure.savefig(path, dpi=120)


def main() -> None:
    """Run what is missing, print the table and draw the plot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/limits"))
    parser.add_argument("--canvases", type=int, nargs="+", default=list(CANVASES_PX))
    parser.add_argument("--forms", nargs="+", choices=FORMS, default=list(FORMS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--images", type=int, default=IMAGES, help="training images per run, counting repeats")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    path = arguments.out / "rows.csv"

    def finished() -> list[dict[str, str]]:
        return [row for row in read_rows(path) if int(row["images"]) == arguments.images]

    done = {(row["form"], int(row["canvas_px"]), int(row["seed"])) for row in finished()}
    for seed in arguments.seeds:
        for canvas_px in arguments.canvases:
            for form in arguments.forms:
                if (form, canvas_px, seed) not in done and (form == "same" or canvas_px > CANVASES_PX[0]):
                    row = run(form, canvas_px, seed, arguments.images)
                    append_row(path, row, list(row))
                    print(f"{form}, {canvas_px} px: {row['accuracy']:.3f} ({row['train_seconds']} s)", flush=True)
    plot(finished(), arguments.out / "limits.png")
    print(f"\n{table(finished())}")


if __name__ == "__main__":
    main()
