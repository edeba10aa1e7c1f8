"""Does a TNet beat every plain network of equal cost?

Trains the plain network at several resolutions, from TNet's overview to all that the images show, and the TNet, by the
same recipe but for sizes; measures all of them on test images at every number of looks, and sets TNet's frontier beside
the envelope of the plain networks, against multiply-adds and against time. It is a suite of `tnet compare`, which is
written to the output folder and resumed by the same command.

    OMP_NUM_THREADS=1 python benchmarks/equal_cost.py defects --root FOLDER --weights FILE.pth --boxes FOLDER/boxes.csv
    python benchmarks/equal_cost.py digits --quick          # in minutes, to see it work: one seed, two steps a network
    python benchmarks/equal_cost.py defects --root FOLDER --tnet train.guide.teacher=PLAIN_RUN objective.reward=gain

Folders have train, val and test with one folder per class (birds: no val). Fundus photographs are few, so that each
seed is a fold of the patients. Boards of nine scans are made by the script beside the scans; as there are few of them,
all networks start from those of `defects`, each from the one that saw single scans at the same scale:

    OMP_NUM_THREADS=1 python benchmarks/equal_cost.py boards --root BOARDS --scans FOLDER --boxes BOARDS/boxes.csv

Writes ``OUT/TASK/equal_cost.md``, ``.csv`` and ``.png``; ``OUT/compared`` has all trained networks.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
from finetune import write_folds
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

from tnet.allocator import keep_freed_memory
from tnet.data.boxes import read_boxes
from tnet.data.folder import LabelledImages
from tnet.errors import DataError
from tnet.evaluation.attention import CONTROLS, measure_attention
from tnet.evaluation.comparison import Suite, compare, load_suite
from tnet.evaluation.comparison.report import Line
from tnet.evaluation.comparison.work import Work
from tnet.evaluation.evaluator import LEARNED, NO_POLICY
from tnet.evaluation.report import markdown_table, write_csv
from tnet.evaluation.resources import machine
from tnet.files import atomic_path, make_folder, write_text
from tnet.models.io import load_model, model_digest
from tnet.training.recipe import dump_yaml

RECIPES = Path(__file__).resolve().parent.parent / "recipes"
PLAIN = (
    "model.levels=1", "model.looks=[]", "model.look_px=null", "model.batch_norm=shared", "model.look_weights=shared",
    "model.policy.train=topk", "train.guide.teacher=null", "train.no_looks_epochs=0", "train.eval_policies=[]",
)  # fmt: skip
TIME = "cpu", 16
QUICK = (
    "train.epochs=1",
    "train.no_looks_epochs=0",
    "train.images_per_epoch=16",
    "train.batch_size=8",
    "train.recalibrate_batches=1",
)
Looks = int | tuple[int, ...]


@dataclass(frozen=True)
class Task:
    """What is compared on one dataset. Fixed before the first run.

    Attributes:
        recipe: of the TNet; the plain networks' is the same but for :data:`PLAIN`.
        sides_px: resolutions of the plain networks.
        looks: numbers of looks of the TNet.
        tnet: overrides of the TNet: its sizes.
        batches: images per step of plain networks from a side on, for memory; the epochs stay.
        folds: seeds are folds of this many; 0 for a test set that is the same for all.
        effort: overrides of all networks.
        after: task whose networks these start from, on images that are smaller by ``scale``.
        scale: side of these images as a multiple of that task's.
        first_px: all networks start from a plain network trained just as long: the TNet from that of this side, each
            plain network from that of its own.
    """

    recipe: str
    sides_px: tuple[int, ...]
    looks: tuple[Looks, ...]
    tnet: tuple[str, ...] = ()
    batches: dict[int, int] = field(default_factory=dict)
    folds: int = 0
    effort: tuple[str, ...] = ()
    after: str | None = None
    scale: int = 1
    first_px: int | None = None


# The scales of the networks that they start from, and the same looks: 112 px at full resolution.
_BOARDS = (
    "model.base_px=672", "model.grid={rows: 24, cols: 24, cell_extent: 0.05833}", "train.no_looks_epochs=0",
)  # fmt: skip
TASKS = {
    "defects": Task("finetune/defects", (224, 320, 384, 448, 640), (0, 1, 2, 3, 6)),
    "boards": Task(
        "finetune/defects",
        (672, 960, 1152, 1344, 1920),
        (0, 1, 2, 3, 6),
        _BOARDS,
        {960: 8, 1344: 4},
        effort=("train.epochs=3",),
        after="defects",
        scale=3,
    ),
    "birds": Task("finetune/birds", (80, 112, 144, 176, 224), (0, 1, 2, 3, 5)),
    "imagenette": Task("finetune/photographs", (64, 96, 128, 176, 224), (0, 1, 2, 4, 6)),
    # A look of 160 px is at the scale of 480 px; 4 looks cost what the plain network at 390 px does.
    "fundus": Task(
        "finetune/fundus",
        (224, 320, 390, 480, 672),
        (0, 1, 2, 4, 6),
        ("model.look_px=160",),
        {672: 4},
        folds=5,
        first_px=480,
    ),
    "digits": Task("baselines/tnet_digits", (64, 160, 320, 640, 1500), (0, 1, 2, 3, 5), (), {1500: 8}),
}


@dataclass(frozen=True)
class Row:
    """A network at one number of looks: accuracy in percent, with the ends of its 95 % interval."""

    network: str  # tnet, or plain
    name: str
    total_looks: int
    policy: str
    accuracy: float
    low: float
    high: float
    seeds: int
    gmacs: float
    ms: float | None


def suite_of(arguments: argparse.Namespace, root: Path | None, seeds: Sequence[int]) -> dict[str, Any]:
    """Return the suite as plain data."""
    task = TASKS[arguments.task]
    common = [*(QUICK if arguments.quick else ()), *arguments.set]
    common += ["model.backbone.pretrained=false"] if arguments.weights or arguments.quick else []
    common += [f"model.backbone.weights={arguments.weights}"] if arguments.weights else []
    common += [f"data.root={root}"] if root else []
    if arguments.quick and arguments.task == "digits":
        common += ["data.digits.images_train=64", "data.digits.images_val=16", "data.digits.images_test=16"]
    sides_px = arguments.sides or (task.sides_px[:2] if arguments.quick else task.sides_px)
    looks = [list(item) if isinstance(item, tuple) else item for item in task.looks]
    rows: list[dict[str, Any]] = [
        *({"name": f"plain, {side_px} px", **_plain(task, side_px, arguments.quick)} for side_px in sides_px),
        {"name": "TNet", **_tnet(task, arguments.tnet), "looks": looks, "policies": [LEARNED, *CONTROLS]},
    ]
    starts: list[tuple[str, dict[str, Any]]] = []
    if task.after is not None:
        first = TASKS[task.after]
        networks = [_plain(first, side_px // task.scale, arguments.quick) for side_px in sides_px]
        networks.append(_tnet(first, arguments.tnet))
        for row, network in zip(rows, networks, strict=True):
            network["overrides"].append(f"data.root={arguments.scans.resolve()}")
            starts.append((f"{row['name']}, {task.after}", network))
    elif task.first_px is not None:
        starts += [(f"plain, {px} px, first", _plain(task, px, arguments.quick)) for px in (*sides_px, task.first_px)]
    for row, (name, network) in zip(rows[: len(starts)], starts, strict=True):
        row["after"] = name
        if all(other["name"] != name for other in rows):
            rows.insert(rows.index(row), {"name": name, **network, "measure": False})
    costs = {"devices": [TIME[0]], "batch_sizes": [TIME[1]], "repeats": 1 if arguments.quick else 5}
    return {
        "title": f"{arguments.task}: TNet and plain networks of equal cost", "seeds": list(seeds), "split": "test",
        "overrides": common, "costs": {**costs, "memory_batch_size": 0}, "rows": rows,
    }  # fmt: skip


def _plain(task: Task, side_px: int, quick: bool) -> dict[str, Any]:
    """Return what is trained for a plain network."""
    batch = max((least for least in task.batches if least <= side_px), default=None)
    small = [f"train.batch_size={task.batches[batch]}"] if batch and not quick else []
    overrides = [*PLAIN, f"model.base_px={side_px}", *small]
    return {
        "recipe": str(RECIPES / f"{task.recipe}.yaml"),
        "overrides": [*task.effort, *overrides],
        "policies": [LEARNED],
    }


def _tnet(task: Task, more: Sequence[str]) -> dict[str, Any]:
    """Return what is trained for the TNet."""
    return {"recipe": str(RECIPES / f"{task.recipe}.yaml"), "overrides": [*task.effort, *task.tnet, *more]}


def parts_of(
    root: Path | None, out: Path, seeds: Sequence[int], folds: int
) -> Iterator[tuple[Path, Path | None, Sequence[int]]]:
    """Yield output folders, images and seeds: all at once, or fold by fold, which are written."""
    if not folds:
        yield out, root and root.resolve(), seeds
        return
    assert root is not None
    for seed in seeds:
        part = out / f"fold-{seed}"
        data = (part / "data").resolve()
        write_folds(root, data, seed, folds)
        yield part, data, [seed]


def run_suite(rows: dict[str, Any], out: Path, shared: Path, progress: bool) -> tuple[Suite, list[Line]]:
    """Write a suite to ``out``, then train and measure what is missing in ``shared``."""
    path = make_folder(out) / "suite.yaml"
    write_text(path, dump_yaml(rows))
    suite = load_suite(path)
    found = compare(suite, shared / "compared", progress=progress)
    if found.failures:
        names = ", ".join(found.failures)
        raise SystemExit(f"failed: {names}; what is done is kept in {out}, and the same command resumes")
    return suite, found.lines


def rows_of(lines: Sequence[Line]) -> list[Row]:
    """Return the measured lines; those of several folds, which have the same names, are joined."""
    rows = []
    for key in dict.fromkeys((line.row, line.looks, line.total_looks, line.policy) for line in lines):
        mine = [line for line in lines if (line.row, line.looks, line.total_looks, line.policy) == key]
        shares = [line.top1 for line in mine if line.top1 is not None]
        cost = mine[0].cost
        if not shares or cost is None:
            continue
        mean = float(np.mean([share.mean for share in shares]))
        # Folds are of different images, so that their errors are independent.
        below, above = (
            math.sqrt(sum(width**2 for width in widths)) / len(shares)
            for widths in ([s.mean - s.low for s in shares], [s.high - s.mean for s in shares])
        )
        time = mine[0].time(TIME)
        ms = None if time is None else time.median_ms
        network = "tnet" if key[0] == "TNet" else "plain"
        values = 100 * mean, 100 * (mean - below), 100 * (mean + above)
        seeds = sum(line.seeds for line in mine)
        rows.append(Row(network, key[0], key[2], key[3], *values, seeds, cost.macs / 1e9, ms))
    return rows


def upper_hull(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return the upper hull of points (cost, accuracy) over the logarithm of cost, up to the best of them, by cost."""
    hull: list[tuple[float, float]] = []
    best = max(points, key=lambda point: (point[1], -point[0]))
    for x, y in sorted(point for point in points if point[0] <= best[0]):
        while hull and hull[-1][0] == x:
            hull.pop()
        while len(hull) > 1 and _turns_up(hull[-2], hull[-1], (x, y)):
            hull.pop()
        if not hull or y > hull[-1][1]:
            hull.append((x, y))
    return hull


def _turns_up(a: tuple[float, float], b: tuple[float, float], c: tuple[float, float]) -> bool:
    """Whether b lies on or below the line from a to c."""
    share = math.log(b[0] / a[0]) / math.log(c[0] / a[0])
    return b[1] <= a[1] + share * (c[1] - a[1])


def envelope_at(hull: Sequence[tuple[float, float]], cost: float) -> float | None:
    """Return the accuracy of the envelope at a cost; ``None`` below the cheapest plain network."""
    if not hull or cost < hull[0][0]:
        return None
    logs, values = [math.log(x) for x, _ in hull], [y for _, y in hull]
    return float(np.interp(math.log(cost), logs, values))


def pointing(arguments: argparse.Namespace, suite: Suite, out: Path) -> list[dict[str, Any]]:
    """Where the TNet of each seed looks: learned, random and centre; read back if measured."""
    work = Work(suite, arguments.out / "compared/cache", "cpu", not arguments.quiet, print)
    row = next(row for row in suite.rows if row.name == "TNet")
    found = []
    for entry in work.entries(row, make=False):
        assert entry.model is not None
        kept = out / f"pointing-{model_digest(entry.model)}.json"
        if not kept.is_file():
            data = work.data(row, entry.seed)
            if not isinstance(data, LabelledImages):
                raise DataError("--boxes is about images in files; leave it out for digits")
            boxes = read_boxes(arguments.boxes, data.paths).by_image
            looks = [looks for looks in row.looks if looks]
            rows = measure_attention(
                load_model(entry.model), data, boxes, looks=looks, policies=(LEARNED, *CONTROLS), curve_images=0,
                progress=not arguments.quiet, seed=entry.seed,
            )  # fmt: skip
            names = ("pointing", "pointing_any", "hit", "hit_any", "box_share", "image_share")
            values = [
                {"looks": item.total_looks, "policy": item.policy, "images": item.images,
                 **{name: 100 * getattr(item, name).mean for name in names}}
                for item in rows
            ]  # fmt: skip
            write_text(kept, json.dumps(values))
        found += json.loads(kept.read_text())
    return found


def pointing_table(rows: Sequence[dict[str, Any]]) -> str:
    """Return the means over seeds."""
    names = {
        "pointing": "first look's centre in a box %", "pointing_any": "any look's %", "hit": "first look shows it %",
        "hit_any": "any look shows it %", "box_share": "box covered %", "image_share": "image covered %",
    }  # fmt: skip
    body = []
    for looks, policy in dict.fromkeys((row["looks"], row["policy"]) for row in rows):
        mine = [row for row in rows if (row["looks"], row["policy"]) == (looks, policy)]
        body.append([str(looks), policy, *(f"{np.mean([row[name] for row in mine]):.1f}" for name in names)])
    return markdown_table(["looks", "policy", *names.values()], body)


def table(rows: Sequence[Row]) -> str:
    """Return all rows, each with its distance from the envelope of the plain networks at its cost."""
    hulls = hulls_of(rows)
    body = []
    for row in rows:
        margins = []
        for hull, cost in zip(hulls, (row.gmacs, row.ms), strict=True):
            at = envelope_at(hull, cost) if cost and row.network == "tnet" else None
            margins.append("-" if at is None else f"{row.accuracy - at:+.1f}")
        accuracy = f"{row.accuracy:.1f} ({row.low:.1f} to {row.high:.1f})"
        looks = "-" if row.network == "plain" else str(row.total_looks)
        policy = "-" if row.policy == NO_POLICY else row.policy
        ms = "-" if row.ms is None else f"{row.ms:.1f}"
        body.append([row.name, looks, policy, accuracy, f"{row.gmacs:.3f}", ms, *margins])
    heads = ["network", "looks", "policy", "accuracy % (95 % interval)", "multiply-adds (G)", f"ms, batch {TIME[1]}"]
    return markdown_table([*heads, "above the envelope by multiply-adds", "by time"], body)


def hulls_of(rows: Sequence[Row]) -> tuple[list[tuple[float, float]], list[tuple[float, float]]]:
    """Return the envelope of the plain networks over multiply-adds and over time."""
    plain = [row for row in rows if row.network == "plain"]
    by_time = [(row.ms, row.accuracy) for row in plain if row.ms is not None]
    return upper_hull([(row.gmacs, row.accuracy) for row in plain]), upper_hull(by_time) if by_time else []


def plot(rows: Sequence[Row], title: str, path: Path) -> None:
    """Draw accuracy against both costs."""
    figure = Figure(figsize=(11, 4.4), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    labels = ("multiply-adds per image (G)", f"ms per image (CPU, batch {TIME[1]})")
    for number, (axis, label, hull) in enumerate(zip(axes, labels, hulls_of(rows), strict=True)):
        axis.plot(*zip(*hull, strict=True), color="C7", linewidth=6, alpha=0.35, label="envelope of plain networks")
        series = {
            "plain network": ([row for row in rows if row.network == "plain"], "C7", "s", ""),
            "TNet": ([row for row in rows if row.network == "tnet" and row.policy not in CONTROLS], "C0", "o", "-"),
            "TNet, random looks": (
                [row for row in rows if row.network == "tnet" and row.policy in ("random", NO_POLICY)], "C1", "x", "--",
            ),
        }  # fmt: skip
        for name, (mine, color, marker, line) in series.items():
            points = sorted((x, row.accuracy, row.low, row.high) for row in mine if (x := _cost(row, number)))
            if not points:
                continue
            costs, means, low, high = map(np.array, zip(*points, strict=True))
            bars = [np.maximum(means - low, 0), np.maximum(high - means, 0)]
            axis.errorbar(
                costs, means, bars, color=color, marker=marker, linestyle=line, capsize=2, elinewidth=0.8, label=name
            )
        for row in rows:
            if row.network == "tnet" and row.policy not in CONTROLS and (x_at := _cost(row, number)):
                at = (x_at, row.accuracy)
                axis.annotate(str(row.total_looks), at, (4, 5), textcoords="offset points", fontsize=8)
        axis.set_xscale("log")
        axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.xaxis.set_major_formatter(StrMethodFormatter("{x:,g}"))
        axis.xaxis.set_minor_formatter(NullFormatter())
        axis.set_xlabel(label)
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("test accuracy (%)")
    axes[0].legend(fontsize=8)
    figure.suptitle(title + "; numbers: looks")
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=120)


def _cost(row: Row, number: int) -> float | None:
    return row.ms if number else row.gmacs


def main() -> None:
    """Train and measure what is missing, then report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=list(TASKS))
    parser.add_argument("--root", type=Path, help="folder of the images; digits need none")
    parser.add_argument("--scans", type=Path, help="folder of the scans that boards are made of")
    parser.add_argument("--weights", type=Path, help="of the backbone; the network's own are fetched if left out")
    parser.add_argument("--boxes", type=Path, help="table of boxes, to measure where it looks")
    parser.add_argument("--out", type=Path, default=Path("runs/equal_cost"))
    parser.add_argument("--seeds", type=int, nargs="+", help="[default: 0 1 2, or all folds]")
    parser.add_argument(
        "--sides", type=int, nargs="+", metavar="PX", help="of the plain networks [default: the task's]"
    )
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="overrides of all networks")
    parser.add_argument("--tnet", nargs="+", default=[], metavar="KEY=VALUE", help="overrides of the TNet alone")
    parser.add_argument("--quick", action="store_true", help="one seed, two plain networks, two steps each")
    parser.add_argument("--quiet", action="store_true", help="no progress")
    arguments = parser.parse_args()
    keep_freed_memory()  # as the command line does; times depend on it
    task, out = TASKS[arguments.task], arguments.out / (arguments.task + "-quick" * arguments.quick)
    if arguments.root is None and arguments.task != "digits":
        parser.error(f"{arguments.task} needs --root")
    if arguments.scans is None and task.after is not None:
        parser.error(f"{arguments.task} needs --scans, the folder of {task.after}")
    seeds = arguments.seeds or list(range(task.folds or 3))
    seeds = seeds[:1] if arguments.quick else seeds
    lines: list[Line] = []
    looked: list[dict[str, Any]] = []
    for folder, root, own in parts_of(arguments.root, out, seeds, task.folds):
        suite, found = run_suite(suite_of(arguments, root, own), folder, arguments.out, not arguments.quiet)
        lines += found
        if arguments.boxes is not None:
            looked += pointing(arguments, suite, folder)
    rows = rows_of(lines)
    title = f"{arguments.task}, {'folds' if task.folds else 'seeds'} {', '.join(map(str, seeds))}"
    text = [f"# Equal cost: {title}", "", table(rows), ""]
    text += [pointing_table(looked), ""] if looked else []
    text += ["![Accuracy against cost](equal_cost.png)", ""]
    system = ", ".join(f"{key} {value}" for key, value in machine().items())
    text += [f"{system}, Python {platform.python_version()}, {date.today()}.", ""]
    plot(rows, title, out / "equal_cost.png")
    write_csv([vars(row) for row in rows], out / "equal_cost.csv")
    write_text(out / "equal_cost.md", "\n".join(text))
    print("\n".join(text))


if __name__ == "__main__":
    main()
