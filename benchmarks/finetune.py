"""Does fine-tuning a TNet pay on real pictures, and does its locator know where to look?

For each seed the plain network is trained at TNet's base resolution and at full resolution, and then the TNet, from the
second one's weights and with it as a teacher. All by recipes of ``recipes/finetune/``; the best epoch is chosen on
validation pictures, and what is reported is measured on others. Resumable: what is finished is read back.

    OMP_NUM_THREADS=1 python benchmarks/finetune.py birds --root FOLDER --weights FILE.pth --out runs/finetune
    python benchmarks/finetune.py birds --root FOLDER --out runs/finetune --report

Writes ``OUT/TASK/table.md``: accuracy (area under the ROC curve with two classes) as the mean over seeds with a 95 %
interval (pictures resampled, the same for all that is compared), what each part of TNet adds, multiply-adds, and time.
"""

from __future__ import annotations

import argparse
import platform
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import numpy as np
import torch
from sklearn.metrics import roc_auc_score

from tnet.data.loading import eval_loader, open_split
from tnet.evaluation.cost import multiply_adds, time_per_image_ms
from tnet.models.base import Model
from tnet.models.io import load_model
from tnet.training.recipe import load_recipe
from tnet.training.run import train

RECIPES = Path(__file__).parent.parent / "recipes/finetune"
RESAMPLES = 2000
CONTROLS = ("random", "centre")


@dataclass(frozen=True)
class Task:
    """What is compared on one data set.

    Attributes:
        full_px: side at which the plain network sees all there is.
        looks: numbers of looks that are reported.
        held_to: the one that is held against the plain networks; fixed before anything was measured on test pictures.
        overrides: of the plain network at full resolution: what its size makes necessary.
        size_hw: of a picture, pixels, for time.
    """

    full_px: int
    looks: tuple[int | tuple[int, ...], ...]
    held_to: int | tuple[int, ...]
    size_hw: tuple[int, int]
    overrides: tuple[str, ...] = ()


TASKS = {
    "birds": Task(224, (1, 2, 3), 2, (227, 227)),
    "photographs": Task(224, (1, 2, 3), 2, (224, 224)),
}


def rows(task: str) -> dict[str, tuple[str, list[str]]]:
    """Recipe and overrides of each network, in the order of training."""
    plain, full = f"{task}_plain.yaml", TASKS[task]
    return {
        "full": (plain, [f"model.base_px={full.full_px}", *full.overrides]),
        "base": (plain, []),
        "tnet": (f"{task}.yaml", []),
    }


def run(task: str, row: str, seed: int, arguments: argparse.Namespace) -> None:
    """Train one network, or go on where it was stopped, and keep its answers for the test pictures."""
    folder = arguments.out / task / f"{row}-{seed}"
    name, overrides = rows(task)[row]
    overrides = [*overrides, f"data.root={arguments.root}", f"seed={seed}"]
    if arguments.weights:
        overrides += ["model.backbone.pretrained=false", f"model.backbone.weights={arguments.weights}"]
    if row == "tnet":
        teacher = arguments.out / task / f"full-{seed}"
        overrides += [f"train.teacher={teacher}", f"train.start_from={teacher}"]
    recipe = load_recipe(RECIPES / name, overrides)
    done = folder / "answers.npz"
    if done.is_file():
        return
    train(recipe, folder, resume=(folder / "recipe.yaml").is_file())
    model = load_model(folder)
    data = open_split(recipe.data, model.config.in_channels, recipe.seed, "test")
    answers: dict[str, list[np.ndarray]] = {}
    with torch.inference_mode():
        for index, batch in enumerate(eval_loader(data, 16, 0)):
            answers.setdefault("targets", []).append(batch.targets.numpy())
            for key, looks, policy in measured(task, row):
                torch.manual_seed(1_000_003 * seed + index)  # what the random policy draws
                logits = model(batch.images, looks=looks, policy=policy).logits
                answers.setdefault(key, []).append(logits.numpy())
    np.savez(done, **{key: np.concatenate(parts) for key, parts in answers.items()})


def measured(task: str, row: str) -> list[tuple[str, int | tuple[int, ...] | None, str]]:
    """Name, looks and policy of what is measured of a network."""
    if row != "tnet":
        return [("whole", None, "topk")]
    found: list[tuple[str, int | tuple[int, ...] | None, str]] = [("0 looks", 0, "topk")]
    for looks in TASKS[task].looks:
        found += [(f"{label(looks)}, {policy}", looks, policy) for policy in ("topk", *CONTROLS)]
    return found


def label(looks: int | tuple[int, ...]) -> str:
    """As the tables write it."""
    return f"{looks if isinstance(looks, int) else 'x'.join(map(str, looks))} looks"


def score(logits: np.ndarray, targets: np.ndarray) -> float:
    """Accuracy, or the area under the ROC curve of two classes, in %."""
    if logits.shape[1] == 2:
        return 100 * float(roc_auc_score(targets, logits[:, 1] - logits[:, 0]))
    return 100 * float((logits.argmax(1) == targets).mean())


def interval(statistic: Callable[[np.ndarray], float], images: int) -> tuple[float, float]:
    """95 % percentile bootstrap interval of what is computed from some pictures."""
    draw = np.random.default_rng(0)
    values = [statistic(draw.integers(images, size=images)) for _ in range(RESAMPLES)]
    return float(np.percentile(values, 2.5)), float(np.percentile(values, 97.5))


def report(task: str, arguments: argparse.Namespace) -> str:
    """The tables of what is finished."""
    folder, held = arguments.out / task, f"{label(TASKS[task].held_to)}, topk"
    seeds = [
        seed for seed in arguments.seeds if all((folder / f"{row}-{seed}/answers.npz").is_file() for row in rows(task))
    ]
    found: dict[str, list[np.ndarray]] = {}
    for row in rows(task):
        for key, _, _ in measured(task, row):
            name = f"plain network, {row} resolution" if row != "tnet" else f"TNet, {key}"
            found[name] = [np.load(folder / f"{row}-{seed}/answers.npz")[key] for seed in seeds]
    targets = np.load(folder / f"base-{seeds[0]}/answers.npz")["targets"]

    def mean(name: str, chosen: np.ndarray) -> float:
        return float(np.mean([score(logits[chosen], targets[chosen]) for logits in found[name]]))

    everything = np.arange(len(targets))
    unit = "AUC %" if len(np.unique(targets)) == 2 else "accuracy %"
    lines = [
        f"{len(targets)} test pictures, seeds {', '.join(map(str, seeds))}.",
        "",
        f"| network | {unit} (95 % interval) | by seed | multiply-adds (M) | ms, batch 16 |",
        "|---|---|---|---|---|",
    ]
    costs = {
        name: cost for row in rows(task) for name, cost in costs_of(task, row, folder / f"{row}-{seeds[0]}").items()
    }
    for name in found:
        low, high = interval(lambda chosen, name=name: mean(name, chosen), len(targets))
        by_seed = ", ".join(f"{score(logits, targets):.1f}" for logits in found[name])
        lines.append(f"| {name} | {mean(name, everything):.1f} ({low:.1f} to {high:.1f}) | {by_seed} | {costs[name]} |")
    pairs = [(f"TNet, {held}", f"plain network, {row} resolution") for row in ("base", "full")]
    for looks in TASKS[task].looks:
        pairs += [(f"TNet, {label(looks)}, topk", f"TNet, {label(looks)}, {control}") for control in CONTROLS]
    lines += ["", "| difference, points | (95 % interval) |", "|---|---|"]
    for first, second in pairs:
        low, high = interval(lambda chosen, a=first, b=second: mean(a, chosen) - mean(b, chosen), len(targets))
        difference = mean(first, everything) - mean(second, everything)
        lines.append(f"| {first} - {second} | {difference:+.1f} ({low:+.1f} to {high:+.1f}) |")
    system = (
        f"{platform.system()} {platform.machine()}, {torch.get_num_threads()} thread(s), PyTorch {torch.__version__}"
    )
    return "\n".join([*lines, "", f"{system}, Python {platform.python_version()}, {date.today()}."]) + "\n"


def costs_of(task: str, row: str, folder: Path) -> dict[str, str]:
    """Multiply-adds (millions) and milliseconds an image, as columns of the table."""
    model: Model = load_model(folder)
    images = torch.randint(256, (16, 3, *TASKS[task].size_hw), dtype=torch.uint8)
    found = {}
    for key, looks, policy in measured(task, row):
        name = f"plain network, {row} resolution" if row != "tnet" else f"TNet, {key}"
        macs = multiply_adds(model, looks, TASKS[task].size_hw, policy) / 1e6
        timing = time_per_image_ms(model, images, looks, policy=policy)
        found[name] = f"{macs:.0f} | {timing.median_ms:.1f} ({timing.min_ms:.1f} to {timing.max_ms:.1f})"
    return found


def main() -> None:
    """Train what is asked for, then report what is there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=list(TASKS))
    parser.add_argument("--root", type=Path, required=True, help="folder of the pictures")
    parser.add_argument("--weights", type=Path, help="of the backbone; the network's own are fetched if left out")
    parser.add_argument("--out", type=Path, default=Path("runs/finetune"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--only", choices=["full", "base", "tnet"], nargs="+", default=["full", "base", "tnet"])
    parser.add_argument("--report", action="store_true", help="train nothing")
    arguments = parser.parse_args()
    for seed in () if arguments.report else arguments.seeds:
        for row in arguments.only:
            run(arguments.task, row, seed, arguments)
    table = report(arguments.task, arguments)
    (arguments.out / arguments.task / "table.md").write_text(table)
    print(table)


if __name__ == "__main__":
    main()
