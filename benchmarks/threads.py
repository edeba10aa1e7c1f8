"""Speed of a network on the CPU with waiting threads that spin and that sleep, alone and beside another process.

    python benchmarks/threads.py [--rounds 5] [--seconds 4]

Every measurement is a process of its own, because OpenMP reads its settings once. "Beside another" means that a second
process runs the same network with the same setting.
"""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import statistics
import subprocess
import sys
import time

from tnet.evaluation.report import markdown_table
from tnet.threads import choose_threads, usable_cpus

SETTINGS: dict[str, dict[str, str]] = {"spinning (default)": {}, "asleep (tnet)": {}}
choose_threads(SETTINGS["asleep (tnet)"])


def measure(seconds: float, warm_up: float = 2.0) -> float:
    """Return images per second of MobileNetV2 at 224 px, in batches of 8."""
    import timm
    import torch

    model = timm.create_model("mobilenetv2_100").eval()
    images = torch.rand(8, 3, 224, 224)
    done, begin = 0, time.monotonic()
    with torch.inference_mode():
        while (now := time.monotonic()) < begin + warm_up + seconds:
            model(images)
            done += len(images) if now > begin + warm_up else 0
    return done / seconds


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4)
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(measure(args.seconds))
        return
    command = [sys.executable, __file__, "--one", "--seconds", str(args.seconds)]
    speeds: dict[tuple[str, int], list[float]] = {(name, count): [] for count in (1, 2) for name in SETTINGS}
    for _ in range(args.rounds):
        for (name, count), found in speeds.items():
            environment = {key: value for key, value in os.environ.items() if key not in SETTINGS["asleep (tnet)"]}
            options = {"env": environment | SETTINGS[name], "text": True, "stdout": subprocess.PIPE}
            processes = [subprocess.Popen(command, **options) for _ in range(count)]
            found.append(statistics.mean(float(process.communicate()[0]) for process in processes))
    rows = []
    for count, place in ((1, "alone"), (2, "beside another")):
        spinning, asleep = (speeds[name, count] for name in SETTINGS)
        ratios = [after / before for before, after in zip(spinning, asleep, strict=True)]
        columns = (spinning, asleep, ratios)
        rows.append([place, *(f"{statistics.median(c):.2f} ({min(c):.2f} to {max(c):.2f})" for c in columns)])
    print(markdown_table(["", *(f"images/s, {name}" for name in SETTINGS), "ratio"], rows))
    today = datetime.datetime.now(datetime.UTC).date()
    print(f"Median (range) of {args.rounds} rounds. {platform.machine()}, {usable_cpus()} CPUs, {today}.")


if __name__ == "__main__":
    main()
