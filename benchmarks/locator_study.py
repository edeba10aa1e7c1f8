"""Which objective lets the locator learn, and do shared batch norm statistics hurt?

Trains the demo's task once per variant and seed and measures, after each epoch, the validation accuracy with learned
looks, with as many random ones, and with none. Resumable: finished runs are read back.

    python benchmarks/locator_study.py --out runs/locator_study --part locator --part norm

Writes ``table.md``, ``curves.csv`` and ``curves.png`` per part into the output folder.
"""

from __future__ import annotations

import argparse
import csv
import multiprocessing
import platform
import statistics
import time
from concurrent.futures import ProcessPoolExecutor
from itertools import pairwise
from pathlib import Path

import tnet.demo

RECIPE = Path(tnet.demo.__file__).parent / "digits.yaml"
# Fixed in the study, even if the demo's recipe has changed since: digits of 64 px, published batch norm.
SETTINGS = [
    "data.digits.digit_px=64",
    "data.digits.noise_px=64",
    "data.digits.images_val=512",
    "model.batch_norm=shared",
    "train.recalibrate_batches=0",
    "train.epochs=20",
    "train.images_per_epoch=960",
    "train.overlays=0",
]
# Fixed before the first run: 20 epochs of 960 images (600 steps of 32), three seeds, 512 validation images.
SEEDS = (0, 1, 2)
PARTS: dict[str, dict[str, list[str]]] = {
    "locator": {
        "top-k, L2 (published)": ["model.policy.train=topk", "model.locator.logits=l2"],
        "top-k, L2 x learned scale": ["model.policy.train=topk"],
        "sampled, L2": ["model.locator.logits=l2"],
        "sampled, L2 x learned scale": [],  # as in the recipe
    },
    "norm": {
        "batch norm, shared statistics": [],  # as in the recipe: the same runs as above
        "batch norm, statistics per level": ["model.batch_norm=per_level"],
        "batch norm, shared, recalibrated": ["train.recalibrate_batches=12"],
        "batch norm, per level, recalibrated": ["model.batch_norm=per_level", "train.recalibrate_batches=12"],
        "group norm, one group": ["model.backbone.kwargs.norm_layer=groupnorm1"],
    },
}


def run_one(arguments: tuple[str, list[str], int, Path]) -> tuple[str, int, list[dict[str, float]], float]:
    """Train one variant with one seed, or read the metrics of a finished run."""
    name, overrides, seed, folder = arguments
    import torch

    from tnet.training.curves import read_metrics
    from tnet.training.recipe import load_recipe
    from tnet.training.run import train

    torch.set_num_threads(1)
    recipe = load_recipe(RECIPE, [*SETTINGS, *overrides, f"seed={seed}"])
    seconds = 0.0
    if not (folder / "metrics.csv").is_file():
        seconds = train(recipe, folder, resume=True, progress=False).train_seconds
    return name, seed, read_metrics(folder / "logs" / "csv"), seconds


def study(part: str, out: Path, jobs: int) -> None:
    """Run all variants and seeds of one part and write its table."""
    variants = PARTS[part]
    todo = []
    for name, overrides in variants.items():
        for seed in SEEDS:
            folder = "-".join(override.rpartition("model.")[2] for override in overrides) or "recipe"
            todo.append((name, overrides, seed, out / "runs" / f"{folder}-seed{seed}"))
    context = multiprocessing.get_context("spawn")
    results: dict[tuple[str, int], list[dict[str, float]]] = {}
    start = time.monotonic()
    with ProcessPoolExecutor(jobs, mp_context=context) as pool:
        for name, seed, rows, seconds in pool.map(run_one, todo):
            results[name, seed] = rows
            last = rows[-1]
            print(
                f"[{time.monotonic() - start:6.0f} s] {name}, seed {seed}: learned {last['val/accuracy']:.3f}, "
                f"random {last['val/accuracy_random']:.3f}, 0 looks {last['val/accuracy_0_looks']:.3f} "
                f"({seconds:.0f} s)",
                flush=True,
            )
    write_table(part, out, results)
    write_curves(part, out, results)


def jump(rows: list[dict[str, float]]) -> float:
    """Return the mean fall of validation accuracy between epochs of the second half; rises count as 0."""
    values = [row["val/accuracy"] for row in rows]
    half = values[len(values) // 2 :]
    return statistics.mean(max(0.0, before - after) for before, after in pairwise(half))


def write_table(part: str, out: Path, results: dict[tuple[str, int], list[dict[str, float]]]) -> None:
    """Return a Markdown table with mean and range over seeds."""
    lines = [
        "| variant | learned looks, at half | learned looks, end | random looks, end | 0 looks, end "
        "| learned - random | mean fall between epochs, 2nd half |",
        "|---|---|---|---|---|---|---|",
    ]
    for name in PARTS[part]:
        runs = [results[name, seed] for seed in SEEDS]
        cells = [
            [100 * rows[len(rows) // 2 - 1]["val/accuracy"] for rows in runs],
            [100 * rows[-1]["val/accuracy"] for rows in runs],
            [100 * rows[-1]["val/accuracy_random"] for rows in runs],
            [100 * rows[-1]["val/accuracy_0_looks"] for rows in runs],
            [100 * (rows[-1]["val/accuracy"] - rows[-1]["val/accuracy_random"]) for rows in runs],
            [100 * jump(rows) for rows in runs],
        ]
        shown = [f"{statistics.mean(values):.1f} ({min(values):.1f} to {max(values):.1f})" for values in cells]
        lines.append(f"| {name} | " + " | ".join(shown) + " |")
    lines += ["", f"Mean (range) over seeds {SEEDS}, percent. {platform.machine()}, {time.strftime('%Y-%m-%d')}."]
    (out / f"{part}.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))


def write_curves(part: str, out: Path, results: dict[tuple[str, int], list[dict[str, float]]]) -> None:
    """Write validation accuracy over epochs, as CSV and as a plot."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    with (out / f"{part}.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["variant", "seed", "epoch", "learned", "random", "zero_looks"])
        for (name, seed), rows in results.items():
            for row in rows:
                values = [row["val/accuracy"], row["val/accuracy_random"], row["val/accuracy_0_looks"]]
                writer.writerow([name, seed, int(row["epoch"]) + 1, *(f"{value:.4f}" for value in values)])
    names = list(PARTS[part])
    figure, axes = plt.subplots(1, len(names), figsize=(4 * len(names), 3.4), sharey=True, layout="constrained")
    for axis, name in zip(axes, names, strict=True):
        for seed in SEEDS:
            rows = results[name, seed]
            epochs = [row["epoch"] + 1 for row in rows]
            axis.plot(
                epochs, [100 * row["val/accuracy"] for row in rows], color="C0", label="learned" if not seed else None
            )
            axis.plot(
                epochs,
                [100 * row["val/accuracy_random"] for row in rows],
                color="C1",
                label="random" if not seed else None,
            )
            axis.plot(
                epochs,
                [100 * row["val/accuracy_0_looks"] for row in rows],
                color="C7",
                label="0 looks" if not seed else None,
            )
        axis.set(title=name, xlabel="epoch")
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("validation accuracy (%)")
    axes[0].legend()
    figure.savefig(out / f"{part}.png", dpi=90)


def main() -> None:
    """Run the study."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/locator_study"))
    parser.add_argument("--part", choices=list(PARTS), action="append")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, one thread each")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    for part in arguments.part or list(PARTS):
        study(part, arguments.out, arguments.jobs)


if __name__ == "__main__":
    main()
