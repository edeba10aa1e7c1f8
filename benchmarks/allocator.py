"""Speed of training on the CPU with and without keeping freed memory: the same steps, alternating.

    python benchmarks/allocator.py [--rounds 3] [--steps 6]

Each measurement is a separate process, because the setting holds for the rest of a process.
"""

from __future__ import annotations

import argparse
import datetime
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch

from tnet.allocator import keep_freed_memory
from tnet.evaluation.memory import peak_bytes
from tnet.evaluation.report import markdown_table
from tnet.models.io import build_model
from tnet.training.recipe import build_objective, load_recipe

RECIPES = Path(__file__).resolve().parents[1] / "recipes" / "baselines"
CASES = {
    "tnet_imagenette": (224, 32),
    "saccader_1_imagenette": (224, 32),
    "attention_sampling_digits": (1500, 32),
    "saccader_1_digits": (1500, 32),
}


def measure(name: str, keep: bool, steps: int) -> tuple[float, float]:
    """Return milliseconds per step, without the first two, and the peak resident memory of the process, MiB."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    if keep:
        keep_freed_memory()
    side, batch = CASES[name]
    recipe = load_recipe(RECIPES / f"{name}.yaml")
    model, objective = build_model(recipe.model).train(), build_objective(recipe.objective)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])
    images = torch.randint(256, (batch, model.config.in_channels, side, side), dtype=torch.uint8)
    target = torch.arange(batch) % 10
    times = []
    for _ in range(steps + 2):
        start = time.perf_counter()
        objective(model(images, **objective.forward_options), target, model).total.backward()
        optimizer.step()
        optimizer.zero_grad()
        times.append(1000 * (time.perf_counter() - start))
    return statistics.median(times[2:]), peak_bytes() / 2**20


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--one", nargs=2, metavar=("NAME", "KEEP"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(*measure(args.one[0], args.one[1] == "True", args.steps))
        return
    rows = []
    for name, (side, batch) in CASES.items():
        found: dict[bool, list[tuple[float, float]]] = {False: [], True: []}
        for _ in range(args.rounds):
            for keep in found:
                command = [sys.executable, __file__, "--steps", str(args.steps), "--one", name, str(keep)]
                done = subprocess.run(command, capture_output=True, text=True, check=True)
                time_ms, peak_mib = map(float, done.stdout.split())
                found[keep].append((time_ms, peak_mib))
        ratios = [before[0] / after[0] for before, after in zip(found[False], found[True], strict=True)]
        cells = [f"{name}, {batch} x {side} px"]
        for keep in found:
            times = [time_ms for time_ms, _ in found[keep]]
            cells.append(f"{statistics.median(times):.0f} ({min(times):.0f} to {max(times):.0f})")
        cells.append(f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")
        cells += [f"{statistics.median(peak for _, peak in found[keep]):.0f}" for keep in found]
        rows.append(cells)
    header = ["steps of", "ms", "ms, kept", "times faster", "peak MiB", "peak MiB, kept"]
    print(markdown_table(header, rows))
    print(
        f"Median (range) of {args.rounds} processes per cell. {platform.machine()}, 1 thread, Python "
        f"{platform.python_version()}, PyTorch {torch.__version__}, {datetime.datetime.now(datetime.UTC).date()}."
    )


if __name__ == "__main__":
    main()
