"""Which parts of our recipes help? Each is left out, or put in, alone.

Every variant starts from the plain network at the resolution of TNet's overview, trained by the same recipe, and trains
with looks for a while. ``defects``: 340 steps from the plain network of `equal_cost.py`, which is trained only once if
both write into the same folder. ``fundus``: folds of the patients, 6 epochs.

    OMP_NUM_THREADS=1 python benchmarks/ablation.py defects --root FOLDER --weights FILE.pth
    OMP_NUM_THREADS=1 python benchmarks/ablation.py fundus --root FOLDER --weights FILE.pth --variants recipe "mean"

It is a suite of `tnet compare`, written to the output folder and resumed by the same command. Writes
``OUT/ablation-TASK/ablation.md``; ``OUT/compared`` has all trained networks.
"""

from __future__ import annotations

import argparse
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
from equal_cost import PLAIN, RECIPES, parts_of, run_suite

from tnet.allocator import keep_freed_memory
from tnet.evaluation.comparison import Suite
from tnet.evaluation.comparison.report import bootstrap_interval
from tnet.evaluation.comparison.work import Work
from tnet.evaluation.evaluator import LEARNED
from tnet.evaluation.report import markdown_table
from tnet.evaluation.resources import machine
from tnet.files import make_folder, write_text


@dataclass(frozen=True)
class Task:
    """What is compared on one dataset. Fixed before the first run.

    Attributes:
        recipe: of the TNet, of which ``effort`` and a variant change something.
        base_px: resolution of the plain network that all start from.
        looks: number of looks to measure.
        effort: overrides of all variants.
        folds: seeds are folds of this many; 0 for a test set that is the same for all.
    """

    recipe: str
    base_px: int
    looks: int
    effort: tuple[str, ...]
    folds: int = 0


_LOOKS_ONLY = ("train.no_looks_epochs=0",)
TASKS = {
    "defects": Task("finetune/defects", 224, 3, (*_LOOKS_ONLY, "train.epochs=2", "train.images_per_epoch=2720")),
    "fundus": Task("finetune/fundus", 224, 4, (*_LOOKS_ONLY, "train.epochs=6"), folds=5),
}
_SAMPLED = "model.policy.train=sample"
VARIANTS: dict[str, tuple[str, ...]] = {
    "recipe": (),
    # teaching where to look
    "no guide": ("train.guide.teacher=null",),
    "no worth": ("objective.worth_weight=0",),
    "REINFORCE alone (paper)": (
        "train.guide.teacher=null", "objective.worth_weight=0", "objective.reinforce_weight=0.1", _SAMPLED,
    ),
    "REINFORCE of gains alone": (
        "train.guide.teacher=null", "objective.worth_weight=0", "objective.reinforce_weight=0.1",
        "objective.reward=gain", _SAMPLED,
    ),
    "sampled looks": (_SAMPLED,),
    "random looks first": ("train.random_looks_epochs=1",),
    "every look, distilled": ("objective.every_look_weight=0.5", "objective.distil_weight=0.5"),
    # seeing differently
    "shared weights": ("model.look_weights=shared", "model.batch_norm=per_level"),
    "each look must know": ("objective.per_feature=mean",),
    "each look, little weight": ("objective.per_feature=mean", "objective.joint_weight_ce=0.9"),
    # context
    "mean": ("model.aggregation=mean",),
    "attention": ("model.aggregation=attention",),
    "canvas": ("model.aggregation=canvas",),
}  # fmt: skip


def suite_of(arguments: argparse.Namespace, root: Path | None, seeds: Sequence[int]) -> dict[str, Any]:
    """Return the suite as plain data."""
    task = TASKS[arguments.task]
    recipe = str(RECIPES / f"{task.recipe}.yaml")
    common = [f"data.root={root}"]
    if arguments.weights:
        common += ["model.backbone.pretrained=false", f"model.backbone.weights={arguments.weights}"]
    start = {"name": "start", "recipe": recipe, "measure": False}
    rows: list[dict[str, Any]] = [{**start, "overrides": [*PLAIN, f"model.base_px={task.base_px}", *arguments.set]}]
    rows += [
        {"name": name, "recipe": recipe, "after": "start", "overrides": [*task.effort, *VARIANTS[name], *arguments.set],
         "looks": [task.looks], "policies": [LEARNED, "random"]}
        for name in arguments.variants
    ]  # fmt: skip
    costs = {"devices": ["cpu"], "batch_sizes": [16], "repeats": 1, "memory_batch_size": 0}
    return {
        "title": f"{arguments.task}: what helps", "seeds": list(seeds), "split": "val", "overrides": common,
        "costs": costs, "rows": rows,
    }  # fmt: skip


def rights(suite: Suite, out: Path, progress: bool) -> dict[tuple[str, str], dict[int, np.ndarray]]:
    """Return which validation images were right, by variant and policy and by seed."""
    work = Work(suite, out / "compared/cache", "cpu", progress, print)
    found: dict[tuple[str, str], dict[int, np.ndarray]] = {}
    for row in suite.rows[1:]:
        for entry in work.entries(row, make=False):
            for measured in work.accuracies(row, entry, make=False):
                bits = np.array([int(bit) for bit in measured.right])
                found.setdefault((row.name, measured.policy), {})[entry.seed] = bits
    return found


def table(found: dict[tuple[str, str], dict[int, np.ndarray]], is_folds: bool) -> str:
    """Return the accuracy of each variant, and its difference from the recipe's for the same images and seeds."""
    body = []
    for name in dict.fromkeys(name for name, _ in found):
        learned, random = found[name, LEARNED], found[name, "random"]
        seeds = sorted(learned)
        accuracies = [100 * learned[seed].mean() for seed in seeds]
        ours = found.get(("recipe", LEARNED), {})
        difference = "-"
        if name != "recipe" and set(seeds) <= set(ours):
            # Images of one fold differ from those of another; those of seeds are the same.
            parts = [100.0 * (learned[seed] - ours[seed]) for seed in seeds]
            values = np.concatenate(parts) if is_folds else np.mean(parts, axis=0)
            low, high = bootstrap_interval(values)
            difference = f"{values.mean():+.1f} ({low:+.1f} to {high:+.1f})"
        by_seed = ", ".join(f"{accuracy:.1f}" for accuracy in accuracies)
        at_random = np.mean([100 * random[seed].mean() for seed in seeds])
        body.append([name, f"{np.mean(accuracies):.1f}", by_seed, difference, f"{at_random:.1f}"])
    heads = ["variant", "accuracy %", "by seed", "difference from the recipe (95 % interval)", "random looks"]
    return markdown_table(heads, body)


def main() -> None:
    """Train and measure what is missing, then report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=list(TASKS))
    parser.add_argument("--root", type=Path, required=True, help="folder of the images")
    parser.add_argument("--weights", type=Path, help="of the backbone; fetched if left out")
    parser.add_argument("--out", type=Path, default=Path("runs/equal_cost"))
    parser.add_argument("--variants", nargs="+", choices=list(VARIANTS), default=list(VARIANTS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="overrides of all networks")
    parser.add_argument("--quiet", action="store_true", help="no progress")
    arguments = parser.parse_args()
    keep_freed_memory()
    task, out = TASKS[arguments.task], make_folder(arguments.out / f"ablation-{arguments.task}")
    found: dict[tuple[str, str], dict[int, np.ndarray]] = {}
    for folder, root, seeds in parts_of(arguments.root, out, arguments.seeds, task.folds):
        suite, _ = run_suite(suite_of(arguments, root, seeds), folder, arguments.out, not arguments.quiet)
        for key, by_seed in rights(suite, arguments.out, not arguments.quiet).items():
            found.setdefault(key, {}).update(by_seed)
    system = ", ".join(f"{key} {value}" for key, value in machine().items())
    title = f"# {arguments.task}: what helps, on validation images"
    text = [
        title,
        "",
        table(found, task.folds > 0),
        "",
        f"{system}, Python {platform.python_version()}, {date.today()}.",
        "",
    ]
    write_text(out / "ablation.md", "\n".join(text))
    print("\n".join(text))


if __name__ == "__main__":
    main()
