"""Does fine-tuning a TNet pay on real images, and does its locator know where to look?

For each seed the plain network is trained at full resolution, at TNet's base resolution and, if full resolution costs
much more than a TNet, at the resolution at which it costs as much. Then the TNet is trained. On small images it starts
from the weights of the plain network at full resolution and has it as a teacher, and so does the plain network at
TNet's cost; on fundus photographs it starts from ImageNet weights or (``fundus_from_full``) from those of the plain
network at full resolution. All use recipes of ``recipes/finetune/``; the best epoch is chosen on validation images and
results are measured on others. Resumable: finished runs are read back.

There are few fundus photographs, so each seed is a fold: a fifth of the patients is tested on, a sixth of the others
chooses the epoch.

    OMP_NUM_THREADS=1 python benchmarks/finetune.py birds --root FOLDER --weights FILE.pth --out runs/finetune
    python benchmarks/finetune.py birds --root FOLDER --out runs/finetune --report

Writes ``OUT/TASK.md``: accuracy (with two classes also the area under the ROC curve) as the mean over seeds with a
95 % interval (bootstrap over images, the same for all systems), cross entropy, multiply-adds, time, differences.
"""

from __future__ import annotations

import argparse
import csv
import platform
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import date
from functools import partial
from pathlib import Path

import numpy as np
import torch
from sklearn.metrics import roc_auc_score
from torch.nn import functional as F

from tnet.allocator import keep_freed_memory
from tnet.cost import multiply_adds, time_per_image_ms
from tnet.data.loading import eval_loader, open_split
from tnet.evaluation.report import looks_label
from tnet.evaluation.resources import machine
from tnet.models.base import Model
from tnet.models.io import load_model
from tnet.training.recipe import load_recipe
from tnet.training.run import train

RECIPES = Path(__file__).parent.parent / "recipes/finetune"
RESAMPLES = 2000
CONTROLS = ("random", "centre")
Measure = Callable[[np.ndarray, np.ndarray], float]


@dataclass(frozen=True)
class Task:
    """What is compared on one dataset.

    Attributes:
        full_px: side at which the plain network sees all there is.
        same_px: side at which the plain network costs what the TNet does with the looks that it is held to; ``None``
            to leave it out.
        looks: numbers of looks that are reported.
        held_to: the number of looks that is compared with the plain networks.
        size_hw: height and width of an image, pixels, for time.
        recipe: of the TNet.
        plain: recipe of the plain networks.
        overrides: of the plain network at full resolution, and at TNet's cost: what their size makes necessary.
        from_full: keys of the recipe, of the TNet and of the plain network at its cost, that name the plain network at
            full resolution.
        folds: seeds are folds of this many; 0 for a test set that is the same for all.
    """

    full_px: int
    same_px: int | None
    looks: tuple[int | tuple[int, ...], ...]
    held_to: int | tuple[int, ...]
    size_hw: tuple[int, int]
    recipe: str
    plain: str
    overrides: tuple[str, ...] = ()
    from_full: tuple[str, ...] = ("train.start_from", "train.teacher")
    folds: int = 0


FUNDUS = Task(
    # The resolution of the second level (a third of each side at 224 px), and what memory and time allow: 4 images a
    # step, so that 8 epochs are as many steps as the others' 15.
    full_px=672, same_px=592, looks=(1, 3, 6), held_to=6, size_hw=(1296, 1936), recipe="fundus", plain="fundus_plain",
    overrides=("train.batch_size=4", "train.epochs=8"), from_full=(), folds=5,
)  # fmt: skip
TASKS = {
    "birds": Task(224, 144, (1, 2, 3), 2, (227, 227), "birds", "birds_plain"),
    "photographs": Task(224, 144, (1, 2, 4), 4, (224, 224), "photographs", "photographs_plain"),
    "fundus": FUNDUS,
    # A teacher that sees 672 px at every step would cost as much as the TNet. The plain network at TNet's cost is that
    # of the two others, from ImageNet weights.
    "fundus_from_full": replace(FUNDUS, from_full=("train.start_from",), same_px=None),
    "fundus_3_levels": replace(FUNDUS, looks=(1, (2, 2), (4, 2)), held_to=(2, 2), recipe="fundus_3_levels"),
}


def rows(task: str) -> dict[str, tuple[str, list[str]]]:
    """Recipe and overrides of each network, in the order of training."""
    chosen = TASKS[task]
    plain = f"{chosen.plain}.yaml"
    same = {"same": (plain, [f"model.base_px={chosen.same_px}", *chosen.overrides])} if chosen.same_px else {}
    return {
        "full": (plain, [f"model.base_px={chosen.full_px}", *chosen.overrides]),
        "base": (plain, []),
        **same,
        "tnet": (f"{chosen.recipe}.yaml", []),
    }


def place(task: str, row: str, seed: int, out: Path) -> Path:
    """Folder of a run; tasks that differ in the TNet alone share the plain networks."""
    return out / (task if row == "tnet" else TASKS[task].plain) / f"{row}-{seed}"


def write_folds(root: Path, folder: Path, fold: int, folds: int) -> None:
    """Write tables of training, validation and test images, split by patient."""
    rows = []
    for name in ("train.csv", "val.csv"):
        with (root / name).open(newline="") as file:
            rows += list(csv.DictReader(file))
    patients = np.random.default_rng(0).permutation(sorted({row["patient"] for row in rows}))
    share = {patient: index % folds for index, patient in enumerate(patients)}
    others = [patient for patient in patients if share[patient] != fold]
    part = {patient: "val" if index % 6 == 0 else "train" for index, patient in enumerate(others)}
    folder.mkdir(parents=True, exist_ok=True)
    for split in ("train", "val", "test"):
        with (folder / f"{split}.csv").open("w", newline="") as file:
            table = csv.writer(file)
            table.writerow(["path", "label"])
            table.writerows(
                [str(root.resolve() / row["path"]), row["label"]]
                for row in rows
                if part.get(row["patient"], "test") == split
            )


def run(task: str, row: str, seed: int, arguments: argparse.Namespace) -> None:
    """Train one network, or continue where it was stopped, and keep its answers for the test images."""
    folder = place(task, row, seed, arguments.out)
    done = folder / "answers.npz"
    if done.is_file():
        return
    name, overrides = rows(task)[row]
    root = arguments.root
    if TASKS[task].folds:
        root = arguments.out / TASKS[task].plain / f"fold-{seed}"
        write_folds(arguments.root, root, seed, TASKS[task].folds)
    overrides = [*overrides, f"data.root={root}", f"seed={seed}"]
    if arguments.weights:
        overrides += ["model.backbone.pretrained=false", f"model.backbone.weights={arguments.weights}"]
    if row in ("tnet", "same"):
        overrides += [f"{key}={place(task, 'full', seed, arguments.out)}" for key in TASKS[task].from_full]
    recipe = load_recipe(RECIPES / name, overrides)
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


def name_of(row: str, key: str) -> str:
    """What the tables call a network, and what was measured of it."""
    if row == "tnet":
        return f"TNet, {key}".replace(" 1 looks", " 1 look")
    return "plain network, " + ("TNet's cost" if row == "same" else f"{row} resolution")


def label(looks: int | tuple[int, ...]) -> str:
    """As the tables write it."""
    return f"{looks_label((looks,) if isinstance(looks, int) else looks)} looks"


def accuracy(logits: np.ndarray, targets: np.ndarray) -> float:
    """In %."""
    return 100 * float((logits.argmax(1) == targets).mean())


def auc(logits: np.ndarray, targets: np.ndarray) -> float:
    """Area under the ROC curve of two classes, in %."""
    return 100 * float(roc_auc_score(targets, logits[:, 1] - logits[:, 0]))


def surprise(logits: np.ndarray, targets: np.ndarray) -> float:
    """Cross entropy, nats: of use where accuracy is near its limit."""
    return float(F.cross_entropy(torch.from_numpy(logits), torch.from_numpy(targets)))


def interval(statistic: Callable[[list[np.ndarray]], float], sizes: list[int], shared: bool) -> tuple[float, float]:
    """Return the 95 % bootstrap interval over images of each seed; the same images for all seeds if shared."""
    draw = np.random.default_rng(0)
    values = []
    for _ in range(RESAMPLES):
        chosen = [draw.integers(size, size=size) for size in sizes]
        values.append(statistic([chosen[0]] * len(sizes) if shared else chosen))
    return float(np.percentile(values, 2.5)), float(np.percentile(values, 97.5))


def report(task: str, arguments: argparse.Namespace) -> str:
    """The tables of what is finished."""

    def at(looks: int | tuple[int, ...], policy: str = "topk") -> str:
        return name_of("tnet", f"{label(looks)}, {policy}")

    def answers(row: str, seed: int) -> Path:
        return place(task, row, seed, arguments.out) / "answers.npz"

    networks = [row for row in rows(task) if row in arguments.only]
    seeds = [seed for seed in arguments.seeds if all(answers(row, seed).is_file() for row in networks)]
    if not seeds:
        return f"No seed of {task} is finished with {', '.join(networks)}.\n"
    found: dict[str, list[np.ndarray]] = {}
    for row in networks:
        for key, _, _ in measured(task, row):
            found[name_of(row, key)] = [np.load(answers(row, seed))[key] for seed in seeds]
    targets = [np.load(answers(networks[0], seed))["targets"] for seed in seeds]

    def mean(name: str, measure: Measure, chosen: list[np.ndarray]) -> float:
        triples = zip(found[name], targets, chosen, strict=True)
        return float(np.mean([measure(logits[one], true[one]) for logits, true, one in triples]))

    def difference(pair: tuple[str, str], measure: Measure, digits: int) -> str:
        def statistic(chosen: list[np.ndarray]) -> float:
            first, second = (mean(name, measure, chosen) for name in pair)
            return first - second

        low, high = interval(statistic, sizes, shared)
        return f"{statistic(everything):+.{digits}f} ({low:+.{digits}f} to {high:+.{digits}f})"

    everything = [np.arange(len(true)) for true in targets]
    sizes = [len(true) for true in targets]
    shared = not TASKS[task].folds
    scores: dict[str, Measure] = {"accuracy": accuracy}
    if len(np.unique(targets[0])) == 2:
        scores = {"AUC": auc, **scores}
    first = next(iter(scores))
    lines = [
        f"{sizes[0] if shared else sum(sizes)} test images, {'seeds' if shared else 'folds'} "
        f"{', '.join(map(str, seeds))}.",
        "",
        f"| network | {' | '.join(f'{name} % (95 % interval)' for name in scores)} | {first} by "
        f"{'seed' if shared else 'fold'} | cross entropy | multiply-adds (M) | ms, batch 16 |",
        "|---|" + "---|" * (4 + len(scores)),
    ]
    costs = {
        name: cost for row in networks for name, cost in costs_of(task, row, answers(row, seeds[0]).parent).items()
    }
    for name in found:
        cells = []
        for measure in scores.values():
            low, high = interval(partial(mean, name, measure), sizes, shared)
            cells.append(f"{mean(name, measure, everything):.1f} ({low:.1f} to {high:.1f})")
        pairs_of = zip(found[name], targets, strict=True)
        cells.append(", ".join(f"{scores[first](logits, true):.1f}" for logits, true in pairs_of))
        lines.append(f"| {name} | {' | '.join(cells)} | {mean(name, surprise, everything):.3f} | {costs[name]} |")
    pairs = [(at(TASKS[task].held_to), name_of(row, "")) for row in networks if row != "tnet"]
    pairs += [(name_of(one, ""), name_of(other, "")) for one, other in (("same", "full"), ("full", "base"))]
    for looks in TASKS[task].looks:
        pairs += [(at(looks), at(looks, control)) for control in CONTROLS]
    pairs = [pair for pair in pairs if set(pair) <= set(found)]
    heads = [*(f"{name}, points" for name in scores), "cross entropy, nats"]
    lines += ["", f"| difference (95 % interval) | {' | '.join(heads)} |", "|---|" + "---|" * len(heads)]
    for pair in pairs:
        cells = [difference(pair, measure, 1) for measure in scores.values()]
        lines.append(f"| {' - '.join(pair)} | {' | '.join([*cells, difference(pair, surprise, 3)])} |")
    system = ", ".join(f"{key} {value}" for key, value in machine().items())
    return "\n".join([*lines, "", f"{system}, Python {platform.python_version()}, {date.today()}."]) + "\n"


def costs_of(task: str, row: str, folder: Path) -> dict[str, str]:
    """Multiply-adds (millions) and milliseconds an image, as columns of the table."""
    model: Model = load_model(folder)
    images = torch.randint(256, (16, 3, *TASKS[task].size_hw), dtype=torch.uint8)
    found = {}
    for key, looks, policy in measured(task, row):
        macs = multiply_adds(model, looks, TASKS[task].size_hw, policy) / 1e6
        timing = time_per_image_ms(model, images, looks, policy=policy)
        found[name_of(row, key)] = f"{macs:.0f} | {timing.median_ms:.1f} ({timing.min_ms:.1f} to {timing.max_ms:.1f})"
    return found


def main() -> None:
    """Train what is asked for, then report what is there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=list(TASKS))
    parser.add_argument("--root", type=Path, required=True, help="folder of the images")
    parser.add_argument("--weights", type=Path, help="of the backbone; the network's own are fetched if left out")
    parser.add_argument("--out", type=Path, default=Path("runs/finetune"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    every = ["full", "base", "same", "tnet"]
    parser.add_argument("--only", choices=every, nargs="+", default=every, help="networks to train and report")
    parser.add_argument("--report", action="store_true", help="train nothing")
    arguments = parser.parse_args()
    keep_freed_memory()  # as the command line does; times depend on it
    for seed in () if arguments.report else arguments.seeds:
        for row in (row for row in rows(arguments.task) if row in arguments.only):
            run(arguments.task, row, seed, arguments)
    table = report(arguments.task, arguments)
    (arguments.out / f"{arguments.task}.md").write_text(table)
    print(table)


if __name__ == "__main__":
    main()
