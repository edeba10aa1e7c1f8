"""Where the time of a training step goes, and how long it took at an earlier commit.

Trains by the fine-tuning recipes, as ``tnet train`` does, on noise in JPEG files of their datasets' sizes, reading and
augmentation included, for a few steps at a time in processes of their own; those of two commits take turns (A B B A).

    OMP_WAIT_POLICY=passive GOMP_SPINCOUNT=2000 python benchmarks/training_steps.py OLD NEW [--pairs 6]
        [--set train.compile=true]
    OMP_WAIT_POLICY=passive GOMP_SPINCOUNT=2000 python benchmarks/training_steps.py --shares

(Threads wait as the command line lets them wait.) Recipes are those of this checkout.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from two_commits import checked_out

SOURCE = Path(__file__).resolve().parent.parent / "src"
RECIPES = SOURCE.parent / "recipes" / "finetune"
# Images per step, as in the recipes; height and width in pixels.
BATCHES = {"birds": 32, "defects": 16, "fundus": 8, "photographs": 32}
SIZES_HW = {"birds": (227, 227), "defects": (640, 640), "fundus": (1296, 1936), "photographs": (224, 224)}
FILES = 16
# Kinds of work, each by names of PyTorch's operations.
KINDS = {
    "convolution": (
        "aten::mkldnn_convolution",
        "aten::thnn_conv2d",
        "aten::_slow_conv2d_forward",
        "mkldnn::_convolution_pointwise",  # of frozen stages, with what follows it
    ),
    "gradient of convolution": ("aten::convolution_backward",),
    "batch norm": ("aten::native_batch_norm",),
    "gradient of batch norm": ("aten::native_batch_norm_backward",),
    "activation, both": ("aten::clamp", "aten::clamp_", "aten::hardtanh_backward", "aten::silu", "aten::silu_backward"),
    "copies, padding": ("aten::copy_", "aten::fill_", "aten::cat", "aten::add_", "aten::add"),
    "resizing": ("aten::_upsample_bilinear2d_aa", "aten::upsample_bilinear2d", "aten::_upsample_bicubic2d_aa"),
}
OTHERS = ("images", "optimizer", "other operations", "Python")

_WORKER = """
import json, os, statistics, sys, time
import torch
from torch.optim.optimizer import register_optimizer_step_post_hook
from tnet.training.recipe import load_recipe
from tnet.training.run import train

path, out, steps, threads, shares, *overrides = sys.argv[1:]
torch.set_num_threads(int(threads))
ends, profiler = [], torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU])

def stepped(*_):
    ends.append(time.perf_counter())
    if shares == "True" and len(ends) == 4:
        profiler.start()
    if len(ends) < int(steps):
        return
    used = ends[3:]
    found = {"ms": 1000 * statistics.median(b - a for a, b in zip(used, used[1:]))}
    if shares == "True":
        profiler.stop()
        found["wall_ms"] = 1000 * (used[-1] - used[0])
        found["operations_ms"] = {row.key: row.self_cpu_time_total / 1000 for row in profiler.key_averages()}
    print("found", json.dumps(found), flush=True)
    os._exit(0)  # without validation

register_optimizer_step_post_hook(stepped)
train(load_recipe(path, overrides), out, progress=False)
"""


def write_images(folder: Path, size_hw: tuple[int, int], count: int) -> None:
    """Write noisy images of two classes, train and val, as folders and as tables; few of them are different."""
    rng = np.random.default_rng(0)
    coarse = [rng.integers(256, size=(size_hw[0] // 16, size_hw[1] // 16, 3), dtype=np.uint8) for _ in range(FILES)]
    for part in ("train", "val"):
        rows = []
        for index in range(count):
            path = folder / part / str(index % 2) / f"{index:04}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            first = folder / "train" / str(index % 2) / f"{index % FILES:04}.jpg"
            if path == first:
                image = Image.fromarray(coarse[index]).resize(size_hw[::-1], Image.Resampling.BICUBIC)
                image.save(path, quality=90)
            else:
                os.link(first, path)
            rows.append([path.relative_to(folder), index % 2, f"{part}{index}"])
        with (folder / f"{part}.csv").open("w", newline="") as file:
            csv.writer(file).writerows([["path", "label", "patient"], *rows])


def measure(
    source: Path, recipe: str, images: Path, options: argparse.Namespace, more: Sequence[str] = ()
) -> dict[str, Any]:
    """Train for a few steps with the package in ``source``; return what :data:`_WORKER` found."""
    overrides = [
        f"data.root={images}", f"train.batch_size={BATCHES[recipe]}", "model.backbone.pretrained=false",
        "train.epochs=1",
        *(("train.no_looks_epochs=0", "train.guide.teacher=null") if recipe == "defects" else ()),
        *more,
    ]  # fmt: skip
    path = str(RECIPES / f"{recipe}.yaml")
    with tempfile.TemporaryDirectory() as scratch:
        command = [sys.executable, "-W", "ignore", "-c", _WORKER, path, f"{scratch}/run", str(options.steps)]
        done = subprocess.run(
            [*command, str(options.threads), str(options.shares), *overrides],
            env={**os.environ, "PYTHONPATH": str(source), "OMP_NUM_THREADS": str(options.threads)},
            capture_output=True, text=True,
        )  # fmt: skip
    found = [line for line in done.stdout.splitlines() if line.startswith("found ")]
    if done.returncode or not found:
        raise SystemExit(done.stderr)
    return json.loads(found[0].removeprefix("found "))  # type: ignore[no-any-return]


def compared(sources: Sequence[Path], recipe: str, images: Path, options: argparse.Namespace) -> list[str]:
    """Return a row of the table of two commits."""
    pairs = []
    for pair in range(options.pairs):
        found = {
            index: measure(sources[index], recipe, images, options, options.set if index else ())["ms"]
            for index in (0, 1)[:: 1 - pair % 2 * 2]
        }
        pairs.append((found[0], found[1]))
    ratios = sorted(old / new for old, new in pairs)
    low, high = ratios[len(ratios) // 4], ratios[-1 - len(ratios) // 4]
    old, new = (f"{statistics.median(times):.0f}" for times in zip(*pairs, strict=True))
    return [_label(recipe), old, new, f"{statistics.median(ratios):.2f} ({low:.2f} to {high:.2f})"]


def shared_out(recipe: str, images: Path, options: argparse.Namespace) -> list[str]:
    """Return a row of the table of shares."""
    found = measure(SOURCE, recipe, images, options)
    spent, wall_ms = found["operations_ms"], found["wall_ms"]
    shares = {kind: sum(spent.get(name, 0.0) for name in names) for kind, names in KINDS.items()}
    shares["images"] = sum(ms for name, ms in spent.items() if name.startswith("enumerate(DataLoader)"))
    shares["optimizer"] = sum(ms for name, ms in spent.items() if name.startswith(("Optimizer.", "aten::_foreach")))
    listed = {name for names in KINDS.values() for name in names}
    shares["other operations"] = sum(
        ms for name, ms in spent.items() if name.startswith(("aten::", "mkldnn::")) and name not in listed
    )
    shares["Python"] = wall_ms - sum(shares.values())
    return [_label(recipe), f"{found['ms']:.0f}", *(f"{100 * ms / wall_ms:.0f}" for ms in shares.values())]


def _label(recipe: str) -> str:
    height, width = SIZES_HW[recipe]
    return f"{recipe}, {BATCHES[recipe]} x {width} x {height} px"


def main() -> None:
    """Measure, print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("commits", nargs="*", metavar="COMMIT", help="old and new")
    parser.add_argument("--shares", action="store_true", help="of kinds of work, in this checkout")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="overrides of the new commit")
    parser.add_argument("--recipes", nargs="+", choices=list(SIZES_HW), help="[default: those that both know]")
    parser.add_argument("--pairs", type=int, default=6)
    parser.add_argument("--steps", type=int, default=14, help="of each training, the first four of which warm up")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args()
    if len(options.commits) != (0 if options.shares else 2):
        parser.error("give two commits, or --shares")
    recipes = options.recipes or [name for name in SIZES_HW if options.shares or name != "defects"]
    with tempfile.TemporaryDirectory() as scratch:
        folders = {name: Path(scratch) / name for name in recipes}
        for name, folder in folders.items():
            write_images(folder, SIZES_HW[name], 2 * BATCHES[name] * options.steps)
        if options.shares:
            head = ["recipe", "ms per step", *(f"{kind} %" for kind in (*KINDS, *OTHERS))]
            print_row(head)
            print_row(["---"] * len(head))
            for name, folder in folders.items():
                print_row(shared_out(name, folder, options))
        else:
            new = " ".join((options.commits[1], *options.set))
            head = ["recipe", f"ms per step, {options.commits[0]}", new, "times faster"]
            print_row(head)
            print_row(["---"] * len(head))
            with checked_out(options.commits, Path(scratch)) as sources:
                for name, folder in folders.items():
                    print_row(compared(sources, name, folder, options))
    pairs = "" if options.shares else f", of {options.pairs} pairs (middle half)"
    print(
        f"\nMedian of {options.steps - 4} steps{pairs}. {platform.machine()}, {options.threads} thread(s), Python "
        f"{platform.python_version()}, PyTorch {torch.__version__}, {datetime.datetime.now(datetime.UTC).date()}."
    )


def print_row(cells: Sequence[str]) -> None:
    """Print a row of a table as soon as it is known: each takes minutes."""
    print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
