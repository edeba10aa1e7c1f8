"""Which aggregation answers a question about several regions best?

``digits`` trains small TNets on synthetic images of five digits, three of one class, two of others: which class has the
most copies? A look shows one or two of them, so no single region knows. ``fundus`` fine-tunes ``finetune/fundus.yaml``
on photographs with and without lesions, a few of which decide; its seeds are folds by patient, as in ``finetune.py``.
Every aggregation sees the same images as often.

    python benchmarks/aggregations.py digits --out runs/aggregations
    python benchmarks/aggregations.py fundus --root FOLDER --weights FILE.pth --out runs/aggregations_fundus
    python benchmarks/aggregations.py digits --out runs/try --quick       # a few seconds per run, to see it work
    python benchmarks/aggregations.py digits --variants canvas collected --images 60000

Appends a row per finished run to ``rows.csv`` in the output folder; runs that are there are not repeated.
``collected`` is ``canvas`` with a locator that reads the canvas too (``model.locator.context=collected``), whose looks
are taken one by one. Prints a table.
"""

from __future__ import annotations

import argparse
import csv
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from finetune import FUNDUS, RECIPES, accuracy, auc, write_folds

import tnet.demo

RECIPE = Path(tnet.demo.__file__).parent / "digits.yaml"
SEEDS = (0, 1, 2)
EPOCHS = 8
# Whatever the demo's recipe says. A digit is 17 px in a look, and 6 px in the whole image: found, but hardly read.
SETTINGS = [
    "data.digits.task=majority",
    "data.digits.canvas_px=512",
    "data.digits.digit_px=48",
    "data.digits.target_copies=3",
    "data.digits.other_digits=2",
    "model.looks=[6]",
    "model.policy.max_overlap=0.5",
    "objective.joint_weight_ce=0.8",  # the answer is about all regions together
    "train.overlays=0",
    "train.keep=last",
]
VARIANTS = {
    **{name: [f"model.aggregation={name}"] for name in ("mean", "max", "weighted", "attention", "canvas")},
    "collected": ["model.aggregation=canvas", "model.locator.context=collected"],
}
QUICK = ["data.digits.images_test=32", "data.digits.images_val=16", "train.recalibrate_batches=1"]
COLUMNS = [
    "variant", "seed", "images", "quick", "accuracy", "accuracy_0_looks", "multiply_adds", "train_seconds", "auc"
]  # fmt: skip
FUNDUS_EPOCHS = 6


def run_fundus(variant: str, fold: int, arguments: argparse.Namespace) -> dict[str, object]:
    """Fine-tune one variant on one fold and measure it on the photographs of the fold's patients."""
    from tnet.cost import multiply_adds
    from tnet.data.loading import eval_loader, open_split
    from tnet.training.recipe import load_recipe
    from tnet.training.run import train

    root = arguments.out / f"fold-{fold}"
    write_folds(arguments.root, root, fold, FUNDUS.folds)
    settings = [*VARIANTS[variant], f"seed={fold}", f"data.root={root}", f"train.epochs={FUNDUS_EPOCHS}"]
    if arguments.weights:
        settings += ["model.backbone.pretrained=false", f"model.backbone.weights={arguments.weights}"]
    recipe = load_recipe(RECIPES / "fundus.yaml", settings)
    folder = arguments.out / f"{variant}-{fold}"
    result = train(recipe, folder, resume=(folder / "recipe.yaml").is_file())
    looks = (FUNDUS.held_to, 0)
    logits: list[list[torch.Tensor]] = [[], []]
    targets = []
    with torch.inference_mode():
        for batch in eval_loader(open_split(recipe.data, 3, fold, "test"), 16, 0):
            targets.append(batch.targets)
            for found, number in zip(logits, looks, strict=True):
                found.append(result.model(batch.images, looks=number).logits)
    truth = torch.cat(targets).numpy()
    answers = [torch.cat(found).numpy() for found in logits]
    np.savez(folder / "answers.npz", targets=truth, looks=answers[0], whole=answers[1])
    return {
        "accuracy": accuracy(answers[0], truth) / 100,
        "accuracy_0_looks": accuracy(answers[1], truth) / 100,
        "multiply_adds": multiply_adds(result.model, FUNDUS.held_to, FUNDUS.size_hw),
        "train_seconds": round(result.train_seconds, 1),
        "auc": auc(answers[0], truth) / 100,
    }


def run_digits(variant: str, seed: int, images: int, quick: bool) -> dict[str, object]:
    """Train one variant with one seed and measure it on the test images."""
    from tnet.data.digits import MegapixelDigits
    from tnet.evaluation.evaluator import evaluate
    from tnet.training.recipe import load_recipe
    from tnet.training.run import train

    epochs = 1 if quick else EPOCHS
    effort = [f"train.epochs={epochs}", f"train.images_per_epoch={images // epochs}", *(QUICK if quick else [])]
    recipe = load_recipe(RECIPE, [*SETTINGS, *VARIANTS[variant], *effort, f"seed={seed}"])
    with tempfile.TemporaryDirectory() as folder:
        result = train(recipe, Path(folder) / "run", progress=False)
        data = MegapixelDigits(recipe.data.digits, "test")
        looks = [0, recipe.model.looks[0]]
        without, with_looks = evaluate(result.model, data, looks=looks, progress=False)
    return {
        "accuracy": with_looks.accuracy,
        "accuracy_0_looks": without.accuracy,
        "multiply_adds": with_looks.macs,
        "train_seconds": round(result.train_seconds, 1),
    }


def read_rows(path: Path) -> list[dict[str, str]]:
    """Return the finished runs."""
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def append_row(path: Path, row: dict[str, object], columns: Sequence[str]) -> None:
    """Add a finished run."""
    is_new = not path.is_file()
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns)
        if is_new:
            writer.writeheader()
        writer.writerow(row)


def table(rows: list[dict[str, str]]) -> str:
    """Return a Markdown table: mean, and smallest to largest of the seeds."""
    auc_head = "AUC, 6 looks | " if any(row["auc"] for row in rows) else ""
    lines = [
        f"| aggregation | accuracy, 6 looks | 0 looks | {auc_head}seeds | multiply-adds | training |",
        "|---" * (7 if auc_head else 6) + "|",
    ]
    for name in dict.fromkeys(row["variant"] for row in rows):
        mine = [row for row in rows if row["variant"] == name]
        cells = []
        for column in ("accuracy", "accuracy_0_looks", *(("auc",) if mine[0]["auc"] else ())):
            values = [100 * float(row[column]) for row in mine]
            cells.append(f"{statistics.mean(values):.1f} ({min(values):.1f} to {max(values):.1f})")
        seconds = statistics.mean(float(row["train_seconds"]) for row in mine)
        macs = int(mine[0]["multiply_adds"]) / 1e6
        lines.append(f"| {name} | {' | '.join(cells)} | {len(mine)} | {macs:.1f} M | {seconds:.0f} s |")
    return "\n".join(lines)


def main() -> None:
    """Run what is missing and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=("digits", "fundus"))
    parser.add_argument("--out", type=Path, default=Path("runs/aggregations"))
    parser.add_argument("--images", type=int, default=24_000, help="digits: training images per run, counting repeats")
    parser.add_argument("--root", type=Path, help="fundus: folder of the photographs")
    parser.add_argument("--weights", type=Path, help="fundus: of the backbone; fetched if left out")
    parser.add_argument("--variants", nargs="+", choices=list(VARIANTS), default=list(VARIANTS)[:5])
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    parser.add_argument("--quick", action="store_true", help="digits: 64 images and one seed, to show that it runs")
    arguments = parser.parse_args()
    quick = arguments.quick and arguments.task == "digits"
    images, seeds = (64, [0]) if quick else (arguments.images, arguments.seeds)
    arguments.out.mkdir(parents=True, exist_ok=True)
    path = arguments.out / "rows.csv"

    def finished() -> list[dict[str, str]]:
        effort = str(images), str(int(quick))
        return [row for row in read_rows(path) if (row["images"], row["quick"]) == effort]

    done = {(row["variant"], int(row["seed"])) for row in finished()}
    for seed in seeds:  # all variants with the first seed first
        for variant in arguments.variants:
            if (variant, seed) not in done:
                if arguments.task == "fundus":
                    row = run_fundus(variant, seed, arguments)
                else:
                    row = run_digits(variant, seed, images, quick)
                append_row(
                    path, {"variant": variant, "seed": seed, "images": images, "quick": int(quick)} | row, COLUMNS
                )
                print(f"{variant}, seed {seed}: {row['accuracy']:.3f} ({row['train_seconds']} s)", flush=True)
    print(f"\n{table(finished())}\n\nMean (range) in percent.")


if __name__ == "__main__":
    main()
